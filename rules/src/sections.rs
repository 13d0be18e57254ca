//! The operator's saved state: parts that each know their own form, one after the other.
//!
//! ```text
//! "TGRULES2", the length of what follows u64 little endian, then for each part: its tag u8, its length u64, its bytes
//! ```

const MAGIC: &[u8; 8] = b"TGRULES2";
/// Bytes beside those of the parts: more than there are.
pub(crate) const OVERHEAD: usize = 256;

/// A state from its parts.
pub(crate) fn join(parts: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let length = parts.iter().map(|(_, bytes)| bytes.len() + 9).sum::<usize>();
    let mut state = Vec::with_capacity(MAGIC.len() + 8 + length);
    state.extend_from_slice(MAGIC);
    state.extend_from_slice(&(length as u64).to_le_bytes());
    for (tag, bytes) in parts {
        state.push(*tag);
        state.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        state.extend_from_slice(bytes);
    }
    state
}

/// The parts of a state, by tag.
///
/// # Errors
/// What is wrong with the bytes.
pub(crate) fn split(state: &[u8]) -> Result<Vec<(u8, &[u8])>, String> {
    let rest = state.strip_prefix(MAGIC).ok_or("it does not start as one")?;
    let (length, mut rest) = rest.split_first_chunk::<8>().ok_or("it ends in its length")?;
    if u64::from_le_bytes(*length) != rest.len() as u64 {
        return Err(format!("it should have {} bytes and has {}", u64::from_le_bytes(*length), rest.len()));
    }
    let mut parts = Vec::new();
    while let Some((tag, after)) = rest.split_first() {
        let (length, after) = after.split_first_chunk::<8>().ok_or("it ends in the length of a part")?;
        let length = usize::try_from(u64::from_le_bytes(*length)).map_err(|error| error.to_string())?;
        let (part, after) = after.split_at_checked(length).ok_or("it ends in a part")?;
        if parts.iter().any(|(known, _)| known == tag) {
            return Err(format!("part {tag} is there twice"));
        }
        parts.push((*tag, part));
        rest = after;
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_come_back_and_damage_is_an_error() {
        let state = join(&[(1, b"files".to_vec()), (2, Vec::new())]);
        assert_eq!(split(&state), Ok(vec![(1, b"files".as_slice()), (2, b"".as_slice())]));
        for end in 0..state.len() {
            assert!(split(&state[..end]).is_err(), "{end}");
        }
        assert!(split(&join(&[(1, Vec::new()), (1, Vec::new())])).is_err());
    }
}

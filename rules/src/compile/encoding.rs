//! Encodings that attackers wrap text in: base64 at each of its three offsets, UTF-16.

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Base64 with padding (RFC 4648, section 4).
pub(crate) fn base64(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |at: usize| u32::from(chunk.get(at).copied().unwrap_or(0));
        let group = byte(0) << 16 | byte(1) << 8 | byte(2);
        for at in 0..4 {
            let letter = ALPHABET.get((group >> (18 - 6 * at) & 63) as usize).copied().map_or('=', char::from);
            text.push(if at > chunk.len() { '=' } else { letter });
        }
    }
    text
}

/// What of the base64 of any text that contains `bytes` is the same whatever stands around them: once for each place of
/// their first byte in a group of three.
pub(crate) fn base64_offsets(bytes: &[u8]) -> [String; 3] {
    const START: [usize; 3] = [0, 2, 3];
    const END: [usize; 3] = [0, 3, 2];
    [0, 1, 2].map(|offset| {
        let mut shifted = vec![b' '; offset];
        shifted.extend_from_slice(bytes);
        let encoded = base64(&shifted);
        let cut = END.get(shifted.len() % 3).copied().unwrap_or(0);
        let start = START.get(offset).copied().unwrap_or(0);
        encoded.get(start..encoded.len().saturating_sub(cut)).unwrap_or_default().to_owned()
    })
}

/// UTF-16 in the given byte order, with a byte order mark if asked for.
pub(crate) fn utf16(text: &str, order: fn(u16) -> [u8; 2], mark: bool) -> Vec<u8> {
    let mark = mark.then_some(0xfeff);
    mark.into_iter().chain(text.encode_utf16()).flat_map(order).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_rfc_4648() {
        for (text, encoded) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(base64(text.as_bytes()), encoded);
        }
    }

    #[test]
    fn each_offset_is_found_wherever_the_text_stands() {
        for needle in ["http://", "IEX", "powershell", "ab"] {
            let offsets = base64_offsets(needle.as_bytes());
            for (before, after) in [("", "zz"), ("x", "y"), ("xy", ""), ("xyz", "!"), ("abcd", "~~~")] {
                let encoded = base64(format!("{before}{needle}{after}").as_bytes());
                assert!(encoded.contains(&offsets[before.len() % 3]), "{needle} after {before:?}");
            }
        }
    }

    #[test]
    fn utf16_has_the_byte_order_asked_for() {
        assert_eq!(utf16("aé", u16::to_le_bytes, false), [0x61, 0, 0xe9, 0]);
        assert_eq!(utf16("a", u16::to_be_bytes, false), [0, 0x61]);
        assert_eq!(utf16("a", u16::to_le_bytes, true), [0xff, 0xfe, 0x61, 0]);
    }
}

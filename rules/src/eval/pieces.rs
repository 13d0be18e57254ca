//! Short pieces of which every literal has one, few enough for a SIMD searcher: a text without a piece has no literal.

use aho_corasick::packed;
use rustc_hash::{FxHashMap, FxHashSet};

/// Bytes of a piece.
const BYTES: usize = 3;
/// The most pieces that the searcher takes, each spelling counted.
const SPELLINGS_MAX: usize = 48;
/// Literals past which nobody looks for pieces.
const LITERALS_MAX: usize = 256;

/// A searcher for pieces of folded literals in ASCII text of any case; `None` when there are too many, or a literal is too short.
pub(crate) fn raw(literals: &[Box<str>]) -> Option<packed::Searcher> {
    if literals.len() > LITERALS_MAX {
        return None;
    }
    // ASCII text has no others.
    let mut open: Vec<&[u8]> =
        literals.iter().filter(|literal| literal.is_ascii()).map(|literal| literal.as_bytes()).collect();
    let mut spelled: Vec<Vec<u8>> = Vec::new();
    while !open.is_empty() {
        let mut counts: FxHashMap<&[u8], usize> = FxHashMap::default();
        for literal in &open {
            let pieces: FxHashSet<&[u8]> = literal.windows(BYTES).collect();
            pieces.into_iter().for_each(|piece| *counts.entry(piece).or_default() += 1);
        }
        // Signs have one spelling, and stand in fewer words than letters.
        let signs = |piece: &[u8]| piece.iter().filter(|byte| !byte.is_ascii_alphanumeric()).count();
        let best = counts.into_iter().max_by_key(|(piece, count)| (*count, signs(piece), *piece))?.0;
        spelled.extend(spellings(best));
        let before = open.len();
        open.retain(|literal| !literal.windows(BYTES).any(|piece| piece == best));
        if spelled.len() > SPELLINGS_MAX || open.len() == before {
            return None;
        }
    }
    if spelled.is_empty() { None } else { packed::Config::new().builder().extend(spelled).build() }
}

/// A folded piece in every case.
fn spellings(piece: &[u8]) -> Vec<Vec<u8>> {
    let mut all = vec![Vec::new()];
    for byte in piece {
        let upper = byte.to_ascii_uppercase();
        let mut uppers = if upper == *byte { Vec::new() } else { all.clone() };
        uppers.iter_mut().for_each(|spelling| spelling.push(upper));
        all.iter_mut().for_each(|spelling| spelling.push(*byte));
        all.append(&mut uppers);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_literal_is_found_in_any_case() {
        let literals: Vec<Box<str>> =
            ["sekurlsa::", "lsadump::", "kerberos::ptt", "eo.oe.kiwi", "mimidrv.sys", "straße"].map(Box::from).to_vec();
        let found = raw(&literals).expect("few pieces");
        for literal in literals.iter().filter(|literal| literal.is_ascii()) {
            for text in [literal.to_string(), literal.to_uppercase(), format!("a long text before {literal} and after")]
            {
                assert!(found.find(&text).is_some(), "{text}");
            }
        }
        assert!(found.find("nothing of the kind is in this text: not at all").is_none());
        assert!(raw(&["ab".into()]).is_none(), "too short");
        let many: Vec<Box<str>> = (0..200).map(|at| format!("{at:03}").into()).collect();
        assert!(raw(&many).is_none(), "too many");
        assert_eq!(spellings(b"a:b").len(), 4);
    }
}

//! The starter pack: rules of our own that are in the binary.

use crate::problem::RuleFile;

/// (name, text) of each rule. A test compares the list with the folder.
const PACK: &[(&str, &str)] = &[];

/// The rules of the pack, by name. The names start with `pack/`, so that they cannot clash with a rule folder's.
pub fn files() -> Vec<RuleFile> {
    PACK.iter().map(|(name, text)| RuleFile::new(*name, *text)).collect()
}

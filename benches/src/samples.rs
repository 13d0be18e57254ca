//! Real events and real rules that are not part of the repository: the folder that `TIDEGATE_DATA` names, or else `../shared/data`
//! beside the checkout.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use tidegate_rules::{RuleFolder, RulesConfig};

/// What to do when a file is missing.
const WHERE: &str = "set TIDEGATE_DATA to a folder with windows-lsass.ndjson.zst (OTRF Security-Datasets, LSASS campaign 05, one JSON \
     event a line), cloudtrail.ndjson.gz (invictus-ir/aws_dataset, one record a line) and sigma-rules.tar.gz (the rule folders of \
     SigmaHQ/sigma)";

/// Windows events around an LSASS memory dump, one JSON object each.
///
/// # Errors
/// When the file is missing or is no zstd.
pub fn windows() -> anyhow::Result<Vec<Vec<u8>>> {
    let bytes = read("windows-lsass.ndjson.zst")?;
    Ok(lines(&zstd::stream::decode_all(bytes.as_slice())?))
}

/// CloudTrail records of an attack simulation, one JSON object each.
///
/// # Errors
/// When the file is missing or is no gzip.
pub fn cloudtrail() -> anyhow::Result<Vec<Vec<u8>>> {
    let bytes = read("cloudtrail.ndjson.gz")?;
    let mut text = Vec::new();
    flate2::read::MultiGzDecoder::new(bytes.as_slice()).read_to_end(&mut text)?;
    Ok(lines(&text))
}

/// The rule files of SigmaHQ by name.
///
/// # Errors
/// When the archive is missing, or `tar` cannot unpack it.
pub fn sigma_rules() -> anyhow::Result<BTreeMap<String, String>> {
    let folder = tempfile::tempdir()?;
    let archive = folder_of_samples().join("sigma-rules.tar.gz");
    let status = Command::new("tar").arg("xzf").arg(&archive).arg("-C").arg(folder.path()).status()?;
    anyhow::ensure!(status.success(), "cannot unpack {}: {WHERE}", archive.display());
    let (texts, skipped) = RuleFolder::new(folder.path(), &RulesConfig::default()).read()?;
    anyhow::ensure!(skipped.is_empty(), "rule files were left out: {:?}", skipped.first());
    Ok(texts)
}

fn folder_of_samples() -> PathBuf {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data");
    std::env::var_os("TIDEGATE_DATA").map_or(beside, PathBuf::from)
}

fn read(name: &str) -> anyhow::Result<Vec<u8>> {
    let path = folder_of_samples().join(name);
    std::fs::read(&path).with_context(|| format!("cannot read {}: {WHERE}", path.display()))
}

fn lines(text: &[u8]) -> Vec<Vec<u8>> {
    text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(<[u8]>::to_vec).collect()
}

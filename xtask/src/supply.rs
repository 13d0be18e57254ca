//! What the program is built from: licences, sources, duplicates and known advisories of every crate, offline.
//!
//! `deny.toml` is the one list of what is allowed, so that `cargo deny check` says the same. Here it is checked without that
//! tool, on every test run; the advisories come from a dated copy of the RustSec database (CC0) beside this folder, which
//! `cargo xtask` does not fetch anew: replace the file, and its date in [`ADVISORIES`], to bring it up to date.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

use semver::{Version, VersionReq};

use crate::tidy::{output, root};

/// The dated copy of github.com/RustSec/advisory-db.
const ADVISORIES: &str = "xtask/advisory-db-2026-08-20.tar.gz";

/// A crate of the tree.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Package {
    name: String,
    version: Version,
    license: String,
}

/// What is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tree {
    /// Whatever is compiled on this kind of machine, tests and benches included.
    Whole,
    /// What ends up in the program, and what builds it.
    Shipped,
}

/// The crates as cargo resolves them, features and all.
fn packages(tree: Tree) -> BTreeSet<Package> {
    let which: &[&str] = match tree {
        Tree::Whole => &["--workspace", "--edges", "normal,build,dev"],
        Tree::Shipped => &["--package", "tidegate", "--edges", "normal,build"],
    };
    let arguments = [&["tree", "--locked", "--prefix", "none", "--format", "{p}\t{l}"], which].concat();
    let mut found = BTreeSet::new();
    for line in output(env!("CARGO"), &arguments).lines().filter(|line| !line.is_empty()) {
        let (package, license) = line.split_once('\t').expect("a package and its licence");
        let mut words = package.split(' ');
        let (name, version) = (words.next().expect("a name"), words.next().expect("a version"));
        found.insert(Package {
            name: name.to_owned(),
            version: version.trim_start_matches('v').parse().expect("a version"),
            license: license.trim_end_matches(" (*)").to_owned(),
        });
    }
    assert!(found.len() > 100, "only {} crates found", found.len());
    found
}

fn deny() -> toml::Table {
    let text = std::fs::read_to_string(root().join("deny.toml")).expect("deny.toml");
    text.parse().expect("deny.toml is TOML")
}

/// Whether an SPDX expression (or the older `A/B`) can be met with the allowed licences alone.
fn licensed(expression: &str, allowed: &BTreeSet<&str>) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    let met = any(&words, &mut at, allowed);
    met && at == words.len()
}

fn any(words: &[&str], at: &mut usize, allowed: &BTreeSet<&str>) -> bool {
    let mut met = every(words, at, allowed);
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        met |= every(words, at, allowed);
    }
    met
}

fn every(words: &[&str], at: &mut usize, allowed: &BTreeSet<&str>) -> bool {
    let mut met = one(words, at, allowed);
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        met &= one(words, at, allowed);
    }
    met
}

fn one(words: &[&str], at: &mut usize, allowed: &BTreeSet<&str>) -> bool {
    if words.get(*at) == Some(&"(") {
        *at += 1;
        let met = any(words, at, allowed);
        *at += 1;
        return met;
    }
    let mut name = words.get(*at).copied().unwrap_or_default().to_owned();
    *at += 1;
    if words.get(*at) == Some(&"WITH") {
        name = format!("{name} WITH {}", words.get(*at + 1).copied().unwrap_or_default());
        *at += 2;
    }
    allowed.contains(name.as_str())
}

#[test]
fn every_crate_has_a_licence_that_is_allowed() {
    let deny = deny();
    let allowed = deny["licenses"]["allow"].as_array().expect("licenses.allow");
    let allowed: BTreeSet<&str> = allowed.iter().filter_map(toml::Value::as_str).collect();
    assert!(licensed("(MIT OR GPL-3.0) AND Zlib", &allowed) && !licensed("MIT AND GPL-3.0", &allowed));
    let exceptions = deny["licenses"]["exceptions"].as_array().expect("licenses.exceptions");
    let excepted = |package: &Package| {
        let own = exceptions.iter().filter(|entry| entry["crate"].as_str() == Some(&package.name));
        let own = own.filter_map(|entry| entry["allow"].as_array()).flatten().filter_map(toml::Value::as_str).collect();
        licensed(&package.license, &own)
    };
    let whole = packages(Tree::Whole).into_iter();
    let refused: Vec<Package> =
        whole.filter(|package| !licensed(&package.license, &allowed) && !excepted(package)).collect();
    assert!(refused.is_empty(), "licences that deny.toml does not allow: {refused:#?}");
}

#[test]
fn every_crate_comes_from_the_registry_or_this_tree() {
    let registry = "registry+https://github.com/rust-lang/crates.io-index";
    let text = std::fs::read_to_string(root().join("Cargo.lock")).expect("Cargo.lock");
    let lock: toml::Table = text.parse().expect("Cargo.lock is TOML");
    let sources = (lock["package"].as_array().expect("packages").iter()).filter_map(|package| package.get("source"));
    let foreign: Vec<_> = sources.filter(|source| source.as_str() != Some(registry)).collect();
    assert!(foreign.is_empty(), "crates from elsewhere: {foreign:#?}");
}

#[test]
fn no_crate_is_there_twice_without_a_reason() {
    let deny = deny();
    let skipped: BTreeSet<(String, String)> = (deny["bans"]["skip"].as_array().expect("bans.skip").iter())
        .filter_map(|entry| {
            assert!(entry.get("reason").is_some(), "{entry} has no reason");
            let (name, version) = entry["crate"].as_str()?.split_once(':')?;
            Some((name.to_owned(), version.to_owned()))
        })
        .collect();
    let mut versions: BTreeMap<String, BTreeSet<Version>> = BTreeMap::new();
    for package in packages(Tree::Shipped) {
        versions.entry(package.name).or_default().insert(package.version);
    }
    let mut twice = Vec::new();
    for (name, versions) in versions {
        let skip = |version: &&Version| {
            skipped.iter().any(|(skipped, wanted)| {
                let wanted = VersionReq::parse(wanted).expect("a version in bans.skip");
                *skipped == name && wanted.matches(version)
            })
        };
        if versions.iter().filter(|version| !skip(version)).count() > 1 {
            twice.push(format!("{name} {versions:?}"));
        }
    }
    assert!(twice.is_empty(), "two versions of one crate; give deny.toml a reason or bring them together: {twice:#?}");
}

/// What an advisory says of versions.
#[derive(Debug)]
struct Advisory {
    id: String,
    package: String,
    withdrawn: bool,
    /// Versions that it does not concern.
    safe: Vec<VersionReq>,
}

impl Advisory {
    /// From a file of the database: TOML between "```toml" and "```", then prose.
    fn parse(text: &str) -> Option<Self> {
        let (front, _) = text.strip_prefix("```toml\n")?.split_once("\n```")?;
        let front: toml::Table = front.parse().ok()?;
        let advisory = front.get("advisory")?;
        let versions = |key: &str| {
            let list = front.get("versions").and_then(|versions| versions.get(key)?.as_array().cloned());
            list.unwrap_or_default().into_iter().filter_map(|text| VersionReq::parse(text.as_str()?).ok())
        };
        Some(Self {
            id: advisory.get("id")?.as_str()?.to_owned(),
            package: advisory.get("package")?.as_str()?.to_owned(),
            withdrawn: advisory.get("withdrawn").is_some(),
            safe: versions("patched").chain(versions("unaffected")).collect(),
        })
    }

    fn concerns(&self, package: &Package) -> bool {
        !self.withdrawn && self.package == package.name && !self.safe.iter().any(|safe| safe.matches(&package.version))
    }
}

fn advisories() -> Vec<Advisory> {
    let file = std::fs::File::open(root().join(ADVISORIES)).expect(ADVISORIES);
    let mut tar = Vec::new();
    flate2::read::GzDecoder::new(file).read_to_end(&mut tar).expect("gzip");
    let mut found = Vec::new();
    let mut rest = tar.as_slice();
    // A header of 512 bytes (name at 0, size in octal at 124, kind at 156), then the file, padded to 512 bytes.
    while let Some((header, after)) = rest.split_at_checked(512) {
        let size = String::from_utf8_lossy(&header[124..136]).trim_matches(['\0', ' ']).to_owned();
        let size = usize::from_str_radix(&size, 8).unwrap_or(0);
        let name = String::from_utf8_lossy(&header[..100]).trim_end_matches('\0').to_owned();
        let body = after.get(..size).expect("a whole file");
        if matches!(header[156], b'0' | 0) && name.contains("/crates/") && name.ends_with(".md") {
            let text = String::from_utf8_lossy(body);
            found.push(Advisory::parse(&text).unwrap_or_else(|| panic!("{name} cannot be read")));
        }
        rest = after.get(size.div_ceil(512) * 512..).unwrap_or_default();
    }
    assert!(found.len() > 700, "only {} advisories in {ADVISORIES}", found.len());
    found
}

#[test]
fn no_advisory_concerns_a_crate_that_we_use() {
    let advisories = advisories();
    let ignored =
        deny().get("advisories").and_then(|table| table.get("ignore")?.as_array().cloned()).unwrap_or_default();
    let ignored: BTreeSet<String> =
        (ignored.iter()).filter_map(|entry| Some(entry.get("id").unwrap_or(entry).as_str()?.to_owned())).collect();
    let old = |name: &str, version: &str| Package {
        name: name.into(),
        version: version.parse().expect("a version"),
        license: String::new(),
    };
    let concerned = |package: &Package| advisories.iter().any(|advisory| advisory.concerns(package));
    assert!(concerned(&old("time", "0.1.44")), "an old time has a known advisory");
    let mut hits = Vec::new();
    for package in packages(Tree::Whole) {
        for advisory in advisories.iter().filter(|advisory| advisory.concerns(&package)) {
            if !ignored.contains(&advisory.id) {
                hits.push(format!("{} concerns {} {}", advisory.id, package.name, package.version));
            }
        }
    }
    assert!(hits.is_empty(), "move to a version that is safe, or give deny.toml a reason: {hits:#?}");
}

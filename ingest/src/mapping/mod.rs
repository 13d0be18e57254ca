//! Mappings from raw records to core columns: data files, one per kind of record, shipped with the program or given by its
//! user. They say how to recognise a record, which fields make its id, and how each core column is filled; own fields are
//! kept under their own names whatever the mapping. `docs/mappings.md` is the reference.

pub mod decimal;
mod file;
pub mod rule;
pub mod time;

use std::path::Path;
use std::sync::Arc;

use tidegate_events::Dataset;

use crate::error::IngestError;
use rule::{Condition, Rule};

/// How one kind of record fills the core columns.
#[derive(Debug, Clone)]
pub struct Mapping {
    /// What the column `source` says.
    pub name: Arc<str>,
    /// The table that it fills.
    pub dataset: Dataset,
    /// Whether a field that a core column holds exactly is not kept as an own field too.
    pub consume: bool,
    /// Any of these recognises a record; a mapping without one must be named by `?source=`.
    pub recognise: Vec<Recognise>,
    /// Ways to a record's own id, in order.
    pub ids: Vec<Rule>,
    /// Ways to fill each core column, in order: (index in the core schema, rules).
    pub columns: Vec<(usize, Vec<Rule>)>,
}

/// What a record must look like.
#[derive(Debug, Clone)]
pub struct Recognise {
    /// All of these fields are there.
    pub fields: Vec<String>,
    /// None of these is.
    pub absent: Vec<String>,
    /// All of these hold.
    pub values: Vec<Condition>,
}

/// All mappings, in the order in which they are tried.
#[derive(Debug, Clone)]
pub struct Mappings {
    all: Vec<Arc<Mapping>>,
}

/// The files shipped with the program, in the order in which they are tried: the more a shape demands, the earlier.
const BUILTIN: &[(&str, &str)] = &[
    ("cloudtrail.toml", include_str!("../../mappings/cloudtrail.toml")),
    ("windows.toml", include_str!("../../mappings/windows.toml")),
    ("suricata.toml", include_str!("../../mappings/suricata.toml")),
    ("zeek.toml", include_str!("../../mappings/zeek.toml")),
    ("kubernetes_audit.toml", include_str!("../../mappings/kubernetes_audit.toml")),
    ("github_audit.toml", include_str!("../../mappings/github_audit.toml")),
    ("ocsf.toml", include_str!("../../mappings/ocsf.toml")),
    ("ecs.toml", include_str!("../../mappings/ecs.toml")),
    ("focus.toml", include_str!("../../mappings/focus.toml")),
    ("unknown.toml", include_str!("../../mappings/unknown.toml")),
    ("unknown_cost.toml", include_str!("../../mappings/unknown_cost.toml")),
];

/// What `source` says of a record that no mapping recognises; the mappings of this name are the fallback of their dataset.
pub const UNKNOWN: &str = "unknown";

impl Mappings {
    /// The mappings shipped with the program.
    ///
    /// # Errors
    /// [`IngestError::Mapping`] if a shipped file is wrong, which a test excludes.
    pub fn builtin() -> Result<Self, IngestError> {
        let all = BUILTIN.iter().map(|(path, text)| compile(path, text)).collect::<Result<_, _>>()?;
        Ok(Self { all })
    }

    /// The shipped mappings, and before them those of the `*.toml` files in `folder`, by file name. A file that has the
    /// name of a shipped mapping replaces it.
    ///
    /// # Errors
    /// [`IngestError::Io`] when the folder or a file cannot be read, [`IngestError::Mapping`] with file and line when a
    /// file is wrong.
    pub fn load(folder: &Path) -> Result<Self, IngestError> {
        let failed = |op, path: &Path| {
            let path = path.to_owned();
            move |source| IngestError::Io { op, path, source }
        };
        let mut paths = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(failed("list", folder))? {
            let path = entry.map_err(failed("list", folder))?.path();
            if path.extension().is_some_and(|extension| extension == "toml") {
                paths.push(path);
            }
        }
        paths.sort();
        let mut texts = Vec::new();
        for path in paths {
            let text = std::fs::read_to_string(&path).map_err(failed("read", &path))?;
            texts.push((path.display().to_string(), text));
        }
        Self::with_texts(&texts)
    }

    /// As [`load`](Self::load), of files that were read already: (path, text), in the order in which they are tried.
    ///
    /// # Errors
    /// [`IngestError::Mapping`] with file and line when a text is wrong.
    pub fn with_texts(texts: &[(String, String)]) -> Result<Self, IngestError> {
        let mut all = texts.iter().map(|(path, text)| compile(path, text)).collect::<Result<Vec<_>, _>>()?;
        let replaced = |one: &Arc<Mapping>| all.iter().any(|own| own.name == one.name && own.dataset == one.dataset);
        let kept: Vec<_> = Self::builtin()?.all.into_iter().filter(|one| !replaced(one)).collect();
        all.extend(kept);
        Ok(Self { all })
    }

    /// All mappings, in the order in which they are tried.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Mapping>> {
        self.all.iter()
    }

    /// The mapping at this place of the order.
    pub fn get(&self, at: usize) -> Option<&Arc<Mapping>> {
        self.all.get(at)
    }

    /// The place of the mapping that `?source=` names, for records of `dataset`.
    pub fn position(&self, name: &str, dataset: Dataset) -> Option<usize> {
        self.all.iter().position(|mapping| &*mapping.name == name && mapping.dataset == dataset)
    }
}

fn compile(path: &str, text: &str) -> Result<Arc<Mapping>, IngestError> {
    file::compile(text).map(Arc::new).map_err(|(line, reason)| {
        let path = line.map_or_else(|| path.to_owned(), |line| format!("{path}:{line}"));
        IngestError::Mapping { path, reason }
    })
}

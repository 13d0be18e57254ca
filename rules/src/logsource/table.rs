//! The form of a log source table, and those that are shipped.

use std::collections::BTreeMap;

use tidegate_events::{Dataset, focus};

use super::Wants;
use crate::error::RulesError;

/// One product's table.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Table {
    /// The Sigma product; absent in a table of categories that no product owns.
    pub product: Option<String>,
    /// Values of the core column `source` that its events have.
    #[serde(default)]
    pub sources: Vec<String>,
    /// What its events may have before a field's name.
    #[serde(default)]
    pub prefixes: Vec<String>,
    /// Other names of fields, in every log source of the product.
    #[serde(default)]
    pub fields: BTreeMap<String, Vec<String>>,
    /// Its log sources.
    pub log_source: Vec<Entry>,
}

/// One log source of a product.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    pub product: Option<String>,
    pub category: Option<String>,
    pub service: Option<String>,
    /// Its own values of `source`, instead of the product's.
    #[serde(default)]
    pub sources: Vec<String>,
    /// The fields that its events have: one of these maps, all of its fields. Empty: all events of the sources.
    #[serde(default)]
    pub any: Vec<Wants>,
    /// Other names of fields, in this log source only.
    #[serde(default)]
    pub fields: BTreeMap<String, Vec<String>>,
}

impl Entry {
    pub fn dataset(&self) -> Dataset {
        if self.category.as_deref() == Some("cost") { Dataset::CostEvents } else { Dataset::SecurityEvents }
    }
}

const SHIPPED: &[(&str, &str)] = &[
    ("applications", include_str!("../../logsources/applications.toml")),
    ("aws", include_str!("../../logsources/aws.toml")),
    ("azure", include_str!("../../logsources/azure.toml")),
    ("focus", include_str!("../../logsources/focus.toml")),
    ("gcp", include_str!("../../logsources/gcp.toml")),
    ("generic", include_str!("../../logsources/generic.toml")),
    ("github", include_str!("../../logsources/github.toml")),
    ("kubernetes", include_str!("../../logsources/kubernetes.toml")),
    ("linux", include_str!("../../logsources/linux.toml")),
    ("m365", include_str!("../../logsources/m365.toml")),
    ("macos", include_str!("../../logsources/macos.toml")),
    ("network", include_str!("../../logsources/network.toml")),
    ("windows", include_str!("../../logsources/windows.toml")),
    ("zeek", include_str!("../../logsources/zeek.toml")),
];

/// The tables in the binary.
pub(super) fn shipped() -> Result<Vec<Table>, RulesError> {
    let parse = |(table, text): &(&'static str, &str)| {
        toml::from_str(text).map_err(|error| RulesError::Table { table, reason: error.to_string() })
    };
    let mut tables: Vec<Table> = SHIPPED.iter().map(parse).collect::<Result<_, _>>()?;
    for table in tables.iter_mut().filter(|table| table.product.as_deref() == Some("focus")) {
        for column in focus::columns() {
            for name in column.focus_names {
                table.fields.entry((*name).to_owned()).or_default().push(column.name.to_owned());
            }
        }
    }
    Ok(tables)
}

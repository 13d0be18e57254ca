//! The reference page of all settings, made from the types.

use std::fmt::Write as _;

use serde_json::Value;

use super::keys::{Key, Keys, Kind};

const INTRODUCTION: &str = "\
# Configuration

<!-- Made from the types by `tidegate docs configuration`. Do not edit by hand. -->

Everything has a default: `tidegate serve` needs no configuration. What is written is taken from four places; the first
one that says something wins:

1. a flag of the command line (`--listen 0.0.0.0:4000`),
2. an environment variable (`TIDEGATE_LISTEN=0.0.0.0:4000`; an empty one counts as not set),
3. the TOML file named by `--config FILE` or by `TIDEGATE_CONFIG`,
4. the default.

The variable of a key is `TIDEGATE_` and its path in capitals, with `__` for each dot: `query.query_ms_max` is
`TIDEGATE_QUERY__QUERY_MS_MAX`. Lists and tables are written there in TOML (`['a', 'b']`). A key or a `TIDEGATE_` variable
that does not exist is an error, as is a value of the wrong type or out of range; all errors are told at once, each with file,
line and column. `tidegate check --config FILE` tells them without starting anything.
";

/// `docs/configuration.md`, whole.
pub fn reference() -> String {
    let keys = Keys::of_config();
    let mut page = INTRODUCTION.to_owned();
    page.push_str("\n## Top of the file\n\n");
    table(&mut page, keys.keys.iter().filter(|key| !key.path.contains('.')));
    for (section, doc) in &keys.sections {
        let _ = write!(page, "\n## `[{section}]`\n\n{}\n\n", paragraph(doc));
        let prefix = format!("{section}.");
        let own = |key: &&Key| key.path.strip_prefix(&prefix).is_some_and(|rest| !rest.contains('.'));
        if keys.keys.iter().any(|key| own(&key)) {
            table(&mut page, keys.keys.iter().filter(own));
        }
    }
    page
}

fn table<'a>(page: &mut String, keys: impl Iterator<Item = &'a Key>) {
    page.push_str("| key | default | what it is |\n|---|---|---|\n");
    for key in keys {
        let name = key.path.rsplit('.').next().unwrap_or(&key.path);
        let mut what = paragraph(&key.doc);
        if key.kind == Kind::Choice {
            let _ = write!(what, " One of `{}`.", key.choices.join("`, `"));
        }
        match (key.min, key.max) {
            (Some(min), Some(max)) => what.push_str(&format!(" From {min} to {max}.")),
            (Some(min), None) if min != 0.0 => what.push_str(&format!(" At least {min}.")),
            _ => {}
        }
        let _ = writeln!(page, "| `{name}` | {} | {what}<br>`{}` |", default(&key.default), key.env_name());
    }
}

fn default(value: &Value) -> String {
    match value {
        Value::Null => "none".to_owned(),
        Value::Object(table) if table.is_empty() => "none".to_owned(),
        other => format!("`{other}`"),
    }
}

/// One line that stands in a table cell.
fn paragraph(doc: &str) -> String {
    doc.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

//! The first stage of configuration: only what was written, checked key by key. Nothing here needs the machine.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};
use toml::de::{DeTable, DeValue};

use super::Config;
use super::keys::{ENV_PREFIX, Key, Keys, Kind};
use super::problem::{ConfigProblem, Origin, position, suggest};

/// The environment variable that names the configuration file: the one setting that cannot stand in the file.
pub const CONFIG_FILE_ENV: &str = "TIDEGATE_CONFIG";

/// Tells tests where their servers are (`cargo xtask with-servers`); no setting of the program.
const TEST_ENV_PREFIX: &str = "TIDEGATE_TEST_";

/// What was written, by dotted path. A later layer replaces what an earlier one says.
#[derive(Debug, Default)]
pub struct Raw {
    /// Value and origin by dotted path.
    pub values: BTreeMap<String, (Value, Origin)>,
    /// What was wrong in any layer.
    pub problems: Vec<ConfigProblem>,
}

impl Raw {
    /// Adds the layer of a TOML file.
    pub fn add_file(&mut self, keys: &Keys, path: &Path, text: &str) {
        let at = |offset: usize| {
            let (line, column) = position(text, offset);
            Origin::File { path: path.to_owned(), line, column }
        };
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in &errors {
            let origin = error.span().map(|span| at(span.start));
            self.problem(origin, format!("not valid TOML: {}", error.message().replace('\n', "; ")), None);
        }
        self.add_table(keys, "", table.get_ref(), &at);
    }

    fn add_table(&mut self, keys: &Keys, prefix: &str, table: &DeTable<'_>, at: &impl Fn(usize) -> Origin) {
        for (name, value) in table {
            let path =
                if prefix.is_empty() { name.get_ref().to_string() } else { format!("{prefix}.{}", name.get_ref()) };
            let origin = at(name.span().start);
            if let Some(key) = keys.get(&path) {
                match json(value.get_ref()) {
                    Ok(json) => self.add(key, json, at(value.span().start)),
                    Err(message) => self.problem(Some(at(value.span().start)), format!("{path}: {message}"), None),
                }
            } else if !keys.is_section(&path) {
                let hint = hint_for(keys, prefix, name.get_ref());
                self.problem(Some(origin), format!("unknown key {path:?}"), hint);
            } else if let DeValue::Table(inner) = value.get_ref() {
                self.add_table(keys, &path, inner, at);
            } else {
                let hint = format!("write [{path}] and keys below it");
                self.problem(Some(origin), format!("{path} is a table of settings"), Some(hint));
            }
        }
    }

    /// Adds the layer of the environment: variables that do not start with `TIDEGATE_` are none of ours, an empty one counts
    /// as not set.
    pub fn add_env(&mut self, keys: &Keys, variables: impl IntoIterator<Item = (String, String)>) {
        let names: BTreeMap<String, &Key> = keys.keys.iter().map(|key| (key.env_name(), key)).collect();
        for (name, text) in variables {
            let foreign = is_kubernetes_link(&name) || name.starts_with(TEST_ENV_PREFIX);
            if !name.starts_with(ENV_PREFIX) || name == CONFIG_FILE_ENV || foreign {
                continue;
            }
            let Some(key) = names.get(&name) else {
                let hint = suggest(&name, names.keys().map(String::as_str));
                let hint = hint.map(|name| format!("did you mean {name}?"));
                self.problem(None, format!("unknown environment variable {name}"), hint);
                continue;
            };
            if !text.is_empty() {
                self.add_text(key, &text, Origin::Env(name));
            }
        }
    }

    /// Adds the layer of the command line: (dotted path, long name of the flag, text).
    pub fn add_flags(&mut self, keys: &Keys, flags: impl IntoIterator<Item = (String, String, String)>) {
        for (path, flag, text) in flags {
            match keys.get(&path) {
                Some(key) => self.add_text(key, &text, Origin::Flag(flag)),
                None => self.problem(Some(Origin::Flag(flag)), format!("there is no key {path}"), None),
            }
        }
    }

    fn add_text(&mut self, key: &Key, text: &str, origin: Origin) {
        match value_of_text(key.kind, text) {
            Some(value) => self.add(key, value, origin),
            None => {
                let message = format!("{} takes {}, found {text:?}", key.path, key.kind.as_str());
                self.problem(Some(origin), message, None);
            }
        }
    }

    fn add(&mut self, key: &Key, value: Value, origin: Origin) {
        match check(key, &value) {
            Ok(()) => {
                self.values.insert(key.path.clone(), (value, origin));
            }
            Err(message) => {
                let word = value.as_str().and_then(|word| suggest(word, key.choices.iter().map(String::as_str)));
                let hint = word.map(|word| format!("did you mean {word:?}?"));
                self.problem(Some(origin), format!("{}: {message}", key.path), hint);
            }
        }
    }

    fn problem(&mut self, origin: Option<Origin>, message: String, hint: Option<String>) {
        self.problems.push(ConfigProblem { origin, message, hint });
    }

    /// All values as one JSON tree.
    pub fn tree(&self) -> Value {
        let mut root = Map::new();
        for (path, (value, _)) in &self.values {
            insert(&mut root, path, value.clone());
        }
        Value::Object(root)
    }
}

/// Tries one value alone, so that an error is known to be of this key.
fn check(key: &Key, value: &Value) -> Result<(), String> {
    if let Some(number) = value.as_f64() {
        let too_small = key.min.is_some_and(|min| number < min);
        let too_large = key.max.is_some_and(|max| number > max);
        if too_small || too_large {
            return Err(match (key.min, key.max) {
                (Some(min), Some(max)) => format!("must be from {min} to {max}, found {value}"),
                (Some(min), None) => format!("must be at least {min}, found {value}"),
                (_, max) => format!("must be at most {}, found {value}", max.unwrap_or_default()),
            });
        }
    }
    let mut root = Map::new();
    insert(&mut root, &key.path, value.clone());
    serde_json::from_value::<Config>(Value::Object(root)).map(drop).map_err(|error| error.to_string())
}

fn insert(table: &mut Map<String, Value>, path: &str, value: Value) {
    match path.split_once('.') {
        None => {
            table.insert(path.to_owned(), value);
        }
        Some((first, rest)) => {
            let inner = table.entry(first).or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(inner) = inner {
                insert(inner, rest, value);
            }
        }
    }
}

/// A misspelt sibling, or a key of this name that lives elsewhere.
fn hint_for(keys: &Keys, prefix: &str, name: &str) -> Option<String> {
    let tables = keys.sections.iter().map(|(path, _)| path.as_str());
    let all: Vec<&str> = keys.keys.iter().map(|key| key.path.as_str()).chain(tables).collect();
    let split = |path: &&str| match path.rsplit_once('.') {
        Some((parent, name)) => (parent.to_owned(), name.to_owned()),
        None => (String::new(), (*path).to_owned()),
    };
    let parts: Vec<(String, String)> = all.iter().map(split).collect();
    let siblings = parts.iter().filter(|(parent, _)| parent == prefix).map(|(_, name)| name.as_str());
    if let Some(sibling) = suggest(name, siblings) {
        return Some(format!("did you mean {sibling:?}?"));
    }
    let (parent, name) = parts.iter().find(|(_, other)| other == name)?;
    Some(if parent.is_empty() {
        format!("{name:?} stands at the top of the file, before any [table]")
    } else {
        format!("{name:?} belongs under [{parent}]")
    })
}

fn json(value: &DeValue<'_>) -> Result<Value, String> {
    Ok(match value {
        DeValue::String(text) => Value::from(text.as_ref()),
        DeValue::Boolean(bool) => Value::from(*bool),
        DeValue::Integer(digits) => {
            let (text, radix) = (digits.as_str(), digits.radix());
            match (i64::from_str_radix(text, radix), u64::from_str_radix(text, radix)) {
                (Ok(number), _) => Value::from(number),
                (_, Ok(number)) => Value::from(number),
                _ => return Err(format!("{text} is too large a number")),
            }
        }
        DeValue::Float(digits) => {
            let number = digits.as_str().parse::<f64>().ok().and_then(serde_json::Number::from_f64);
            number.map(Value::Number).ok_or_else(|| format!("{} is not a finite number", digits.as_str()))?
        }
        DeValue::Datetime(time) => Value::from(time.to_string()),
        DeValue::Array(items) => Value::Array(items.iter().map(|item| json(item.get_ref())).collect::<Result<_, _>>()?),
        DeValue::Table(table) => {
            let entries = table.iter().map(|(name, value)| Ok((name.get_ref().to_string(), json(value.get_ref())?)));
            Value::Object(entries.collect::<Result<_, String>>()?)
        }
    })
}

fn value_of_text(kind: Kind, text: &str) -> Option<Value> {
    match kind {
        Kind::Text | Kind::Choice => Some(Value::from(text)),
        Kind::Bool => match text {
            "true" | "1" => Some(Value::from(true)),
            "false" | "0" => Some(Value::from(false)),
            _ => None,
        },
        Kind::Int => text.parse::<i64>().map(Value::from).or_else(|_| text.parse::<u64>().map(Value::from)).ok(),
        Kind::Float => text.parse::<f64>().ok().and_then(serde_json::Number::from_f64).map(Value::Number),
        Kind::List | Kind::Table => {
            let value = DeValue::parse(text).ok()?;
            let value = json(value.get_ref()).ok()?;
            (value.is_array() == (kind == Kind::List)).then_some(value)
        }
    }
}

/// Kubernetes sets variables like these in every pod beside a service named `tidegate`; they are no settings of ours.
fn is_kubernetes_link(name: &str) -> bool {
    let rest = name.strip_prefix(ENV_PREFIX).unwrap_or_default();
    let port = rest.strip_prefix("PORT_").is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()));
    rest == "PORT" || rest == "SERVICE_HOST" || rest == "SERVICE_PORT" || rest.starts_with("SERVICE_PORT_") || port
}

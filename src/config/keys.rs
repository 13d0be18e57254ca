//! The closed list of configuration keys, derived from the types of [`Config`]: what the three layers are checked against
//! and what the reference page is made of.

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

use super::Config;

/// What kind of value a key takes: decides how text from the environment or a flag is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `true` or `false`.
    Bool,
    /// A whole number.
    Int,
    /// A number.
    Float,
    /// Text, a path or an address.
    Text,
    /// One of a few words.
    Choice,
    /// A list; TOML syntax in the environment.
    List,
    /// A table with keys of the user's own; TOML syntax in the environment.
    Table,
}

impl Kind {
    /// The word in messages and in the reference.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bool => "true or false",
            Self::Int => "a whole number",
            Self::Float => "a number",
            Self::Text => "text",
            Self::Choice => "one of a few words",
            Self::List => "a list",
            Self::Table => "a table",
        }
    }
}

/// One configuration key.
#[derive(Debug, Clone)]
pub struct Key {
    /// Its dotted TOML path: `query.query_ms_max`.
    pub path: String,
    /// What it takes.
    pub kind: Kind,
    /// The doc comment of the field.
    pub doc: String,
    /// The value when nothing is written. `Null` where there is none.
    pub default: Value,
    /// The smallest number allowed.
    pub min: Option<f64>,
    /// The largest number allowed.
    pub max: Option<f64>,
    /// The words allowed, for [`Kind::Choice`].
    pub choices: Vec<String>,
}

impl Key {
    /// The environment variable that sets the key: `TIDEGATE_QUERY__QUERY_MS_MAX`.
    pub fn env_name(&self) -> String {
        format!("{ENV_PREFIX}{}", self.path.replace('.', "__").to_uppercase())
    }
}

/// What the names of all environment variables of Tidegate start with.
pub const ENV_PREFIX: &str = "TIDEGATE_";

/// All keys, in the order of the types, and the doc comments of the sections.
#[derive(Debug, Clone)]
pub struct Keys {
    /// The keys.
    pub keys: Vec<Key>,
    /// (dotted path, doc comment) of each table that the types define.
    pub sections: Vec<(String, String)>,
}

impl Keys {
    /// The keys of [`Config`].
    pub fn of_config() -> Self {
        let settings = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
        let schema = settings.into_generator().into_root_schema_for::<Config>();
        let default = serde_json::to_value(Config::default()).unwrap_or_default();
        let mut keys = Self { keys: Vec::new(), sections: Vec::new() };
        if let Some(object) = schema.as_object() {
            keys.collect(object, "", &default);
        }
        keys
    }

    fn collect(&mut self, schema: &Map<String, Value>, prefix: &str, default: &Value) {
        let Some(properties) = schema.get("properties").and_then(Value::as_object) else { return };
        for (name, property) in properties {
            let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
            let Some(property) = property.as_object() else { continue };
            let doc = property.get("description").and_then(Value::as_str).unwrap_or_default().to_owned();
            // Of a table that is absent by default, the type says what its keys are once it is there.
            let of_type = property.get("default").unwrap_or(&Value::Null);
            let default = default.get(name).unwrap_or(of_type);
            let inner = without_null(property);
            let property = if inner.contains_key("properties") { inner } else { property };
            if property.contains_key("properties") {
                self.sections.push((path.clone(), doc));
                self.collect(property, &path, default);
            } else {
                self.keys.push(key(path, doc, property, default.clone()));
            }
        }
    }

    /// The key with this path.
    pub fn get(&self, path: &str) -> Option<&Key> {
        self.keys.iter().find(|key| key.path == path)
    }

    /// Whether the path is a table that the types define.
    pub fn is_section(&self, path: &str) -> bool {
        self.sections.iter().any(|(section, _)| section == path)
    }
}

fn key(path: String, doc: String, schema: &Map<String, Value>, default: Value) -> Key {
    let schema = without_null(schema);
    let choices = choices(schema);
    let kind = if choices.is_empty() { kind(schema) } else { Kind::Choice };
    let bound = |name: &str| schema.get(name).and_then(Value::as_f64);
    Key { path, kind, doc, default, min: bound("minimum"), max: bound("maximum"), choices }
}

/// The schema of `T` in that of `Option<T>`.
fn without_null(schema: &Map<String, Value>) -> &Map<String, Value> {
    let options = schema.get("anyOf").and_then(Value::as_array);
    let mut some = options.into_iter().flatten().filter_map(Value::as_object);
    some.find(|option| option.get("type").and_then(Value::as_str) != Some("null")).unwrap_or(schema)
}

fn choices(schema: &Map<String, Value>) -> Vec<String> {
    let listed = |name: &str| schema.get(name).and_then(Value::as_array).into_iter().flatten();
    let words = listed("enum").filter_map(Value::as_str);
    let consts = listed("oneOf").filter_map(|option| option.get("const").and_then(Value::as_str));
    let inner = listed("oneOf").filter_map(|option| option.get("enum")).filter_map(Value::as_array).flatten();
    words.chain(consts).chain(inner.filter_map(Value::as_str)).map(str::to_owned).collect()
}

fn kind(schema: &Map<String, Value>) -> Kind {
    let types = match schema.get("type") {
        Some(Value::String(one)) => vec![one.as_str()],
        Some(Value::Array(many)) => many.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    match types.into_iter().find(|kind| *kind != "null") {
        Some("boolean") => Kind::Bool,
        Some("integer") => Kind::Int,
        Some("number") => Kind::Float,
        Some("array") => Kind::List,
        Some("object") => Kind::Table,
        _ => Kind::Text,
    }
}

//! Texts that people and programs write: rules, SQL, configuration, mapping files, filters, query strings.

use std::path::Path;
use std::sync::{Arc, LazyLock};

use tidegate::config::Config;
use tidegate::config::keys::Keys;
use tidegate::config::raw::Raw;
use tidegate_events::{Dataset, focus};
use tidegate_ingest::http::{QueryString, nearest};
use tidegate_ingest::mapping::rule::{address_of, port_of};
use tidegate_ingest::mapping::time::{TimeUnit, from_float, from_int, from_text};
use tidegate_ingest::mapping::{Mappings, decimal};
use tidegate_pipeline::LogBatch;
use tidegate_query::{QueryConfig, check_sql};
use tidegate_rules::{Evaluator, RuleFile, RuleSet, RulesConfig};
use tidegate_sinks::feed::Filter;

use crate::bodies::with_mapping;
use crate::rows::batch;

/// What the gate asks for.
const GATE_STACK_BYTES: usize = 8 << 20;
/// `toml_parser` 1.1 loses count of how deep it is in some broken texts, and then takes some kilobytes of stack a brace.
const TOML_STACK_BYTES: usize = 512 << 20;
/// What is wrong in a configuration file is told with its place and a hint, which takes the square of how much it is.
const CONFIGURATION_BYTES_MAX: usize = 4096;

/// Runs a part of a target on a stack of its own.
fn on_stack(bytes: usize, run: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(bytes).spawn_scoped(scope, run).expect("a thread");
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

const GOOD_RULE: &str = "title: Good\nid: good\nlogsource: {product: windows}\n\
                         detection: {s: {own.text|contains: text}, condition: s}";

static KEYS: LazyLock<Keys> = LazyLock::new(Keys::of_config);

fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The text of a rule file, beside a good one: the good rule is there and matches.
pub fn rule_text(bytes: &[u8]) {
    let config = RulesConfig { regex_bytes_max: 1 << 18, document_nodes_max: 5_000, ..RulesConfig::default() };
    let text = text_of(bytes);
    let files = [RuleFile::new("a.yml", GOOD_RULE), RuleFile::new("b.yml", text.clone())];
    let (rules, problems) = RuleSet::compile(&files, &config).expect("the shipped tables are right");
    // As YAML counts them: a line may end with a carriage return alone (YAML 1.2.2, section 5.4).
    let lines = text.replace("\r\n", "\n").split(['\r', '\n']).count() + 1;
    for problem in &problems {
        assert_eq!(problem.file, "b.yml", "only the bytes are at fault: {problem}");
        assert!((1..=lines).contains(&problem.line) && problem.column >= 1, "{problem} is in no line of {lines}");
    }
    let good = rules.rules().iter().position(|rule| rule.head.file == "a.yml").expect("the good rule is there");
    let batch = LogBatch { offset: 0, dataset: Dataset::SecurityEvents, rows: batch(&["one", "two"]) };
    let mut evaluator = Evaluator::new(Arc::new(rules), &config);
    let matches = evaluator.matches(&batch);
    assert_eq!(matches, evaluator.matches(&batch), "what is remembered changes nothing");
    // A filter may take matches of the good rule away: that is what filters are for.
    if !text.contains("filter") {
        for row in 0..2 {
            assert!(matches.contains(&(row, good)), "the good rule matches row {row}: {matches:?}");
        }
    }
}

/// SQL before it is planned. What passes does not pass with a writing statement after it or around it.
pub fn sql_gate(bytes: &[u8]) {
    let text = text_of(bytes);
    let check = || {
        let config = QueryConfig::default();
        let Ok(()) = check_sql(&text, &config) else { return };
        for writing in [
            format!("{text}\n; DROP TABLE alerts"),
            format!("DROP TABLE alerts; {text}"),
            format!("INSERT INTO alerts {text}"),
            format!("CREATE TABLE t AS {text}"),
            format!("COPY ({text}\n) TO 'file'"),
            format!("EXPLAIN COPY ({text}\n) TO 'file'"),
        ] {
            assert!(check_sql(&writing, &config).is_err(), "this passes: {writing}");
        }
    };
    on_stack(GATE_STACK_BYTES, check);
}

/// A configuration file, and the same lines as variables of the environment: without a problem, they are a configuration.
pub fn configuration(bytes: &[u8]) {
    let text = text_of(bytes.get(..CONFIGURATION_BYTES_MAX).unwrap_or(bytes));
    on_stack(TOML_STACK_BYTES, || check_configuration(&text));
}

fn check_configuration(text: &str) {
    let mut file = Raw::default();
    file.add_file(&KEYS, Path::new("t.toml"), text);
    let mut env = Raw::default();
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    let named = pairs.clone().map(|(name, value)| {
        let name = name.trim().to_uppercase().replace('.', "__");
        (format!("TIDEGATE_{name}"), value.trim().to_owned())
    });
    env.add_env(&KEYS, named);
    let mut flags = Raw::default();
    flags.add_flags(
        &KEYS,
        pairs.map(|(name, value)| (name.trim().to_owned(), name.to_owned(), value.trim().to_owned())),
    );
    for raw in [file, env, flags] {
        for problem in &raw.problems {
            assert!(!problem.to_string().is_empty());
        }
        let config = serde_json::from_value::<Config>(raw.tree());
        config.expect("values that were taken one by one are a configuration together");
    }
}

/// A mapping file and, after a line `---`, an event: a wrong file is refused with a reason, else its events are decoded.
pub fn mapping_file(bytes: &[u8]) {
    let text = text_of(bytes);
    on_stack(TOML_STACK_BYTES, || check_mapping(&text));
}

fn check_mapping(text: &str) {
    let (mapping, event) =
        text.split_once("\n---\n").unwrap_or((text, r#"{"time":"2024-01-01T00:00:00Z","a":[1,"b"]}"#));
    match Mappings::with_texts(&[("hostile.toml".to_owned(), mapping.to_owned())]) {
        Ok(mappings) => with_mapping(&Arc::new(mappings), event),
        Err(error) => assert!(error.to_string().contains("hostile.toml"), "{error}"),
    }
}

/// What a subscriber of the feed sends as its filter: one that is taken reads the same when it is read again.
pub fn feed_filter(bytes: &[u8]) {
    let Ok(filter) = serde_json::from_slice::<Filter>(bytes) else { return };
    match filter.checked() {
        Ok(filter) => {
            let again = serde_json::to_vec(&filter).expect("a filter is JSON");
            let again: Filter = serde_json::from_slice(&again).expect("a filter is read back");
            assert_eq!(again.checked().as_ref().ok(), Some(&filter));
        }
        Err(problem) => assert_eq!(problem.status, 400, "{problem:?}"),
    }
}

/// A query string: what is taken has known names only, each once.
pub fn query_string(bytes: &[u8]) {
    let known = ["source", "ack", "dataset", "limit"];
    let text = text_of(bytes);
    match QueryString::parse(Some(&text), &known) {
        Ok(query) => {
            let given = text.split('&').filter(|pair| !pair.is_empty()).count();
            assert_eq!(known.iter().filter(|name| query.get(name).is_some()).count(), given, "{query:?}");
        }
        Err(problem) => {
            assert_eq!(problem.status, 400, "{problem:?}");
            assert!(serde_json::from_str::<serde_json::Value>(&problem.to_json(&text)).is_ok());
        }
    }
    assert!(nearest(&text, &known).is_none_or(|near| known.contains(&near)));
}

/// The text of one value, read as everything that core columns hold, and written as JSON.
pub fn values(bytes: &[u8]) {
    let text = text_of(bytes);
    if let Some(decimal) = decimal::parse(&text) {
        let one = 10i128.pow(u32::from(focus::DECIMAL_SCALE.unsigned_abs()));
        let magnitude = decimal.unscaled.checked_abs().expect("a decimal of the column's digits");
        assert!(magnitude < 10i128.pow(u32::from(focus::DECIMAL_PRECISION)), "{text:?} is {decimal:?}");
        let sign = if decimal.unscaled < 0 { "-" } else { "" };
        let written = format!("{sign}{}.{:015}", magnitude / one, magnitude % one);
        let again = decimal::parse(&written).map(|again| (again.unscaled, again.exact));
        assert_eq!(again, Some((decimal.unscaled, true)), "{text:?} as {written}");
    }
    let number = bytes.first_chunk::<8>().map_or(0, |eight| i64::from_le_bytes(*eight));
    let units =
        [TimeUnit::Auto, TimeUnit::Seconds, TimeUnit::Milliseconds, TimeUnit::Microseconds, TimeUnit::Nanoseconds];
    for unit in units {
        let float = f64::from_bits(number.cast_unsigned());
        let times = [from_text(&text, unit), from_int(number, unit), from_float(float, unit)];
        for us in times.into_iter().flatten() {
            assert!((-62_167_219_200_000_000..253_402_300_800_000_000).contains(&us), "{text:?} is {us} as {unit:?}");
        }
    }
    assert!(text.contains(address_of(&text)));
    assert!(port_of(&text).is_none_or(|port| text.ends_with(port) && port.bytes().all(|byte| byte.is_ascii_digit())));
    let mut json = Vec::new();
    tidegate_query::json::write_text(&text, &mut json);
    assert_eq!(serde_json::from_slice::<String>(&json).ok().as_ref(), Some(&text), "what is shown is what was stored");
}

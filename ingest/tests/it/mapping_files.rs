//! Mapping files of a user: they come first, replace shipped ones, and say where they are wrong.

use std::sync::Arc;

use tidegate_events::Dataset;
use tidegate_ingest::IngestError;
use tidegate_ingest::decode::{Body, BodyFormat, DecodeConfig, Decoder};
use tidegate_ingest::mapping::Mappings;

fn load(files: &[(&str, &str)]) -> Result<Mappings, IngestError> {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).expect("a file");
    }
    Mappings::load(folder.path())
}

const DOORS: &str = r#"
name = "doors"
dataset = "security_events"
ids = "{site}-{seq}"

[[recognise]]
fields = ["door"]
absent = ["winlog"]
values = { vendor = ["Acme", "acme-*"] }

[columns]
time = { field = "at", as = "time_ms" }
actor = [{ field = "holder", unless = { holder = "-" } }, { const = "nobody" }]
severity = [{ field = "result", map = { Forced = "4" } }, { const = "1" }]
outcome = { field = "result", map = { ok = "success" }, otherwise = "failure" }
src_ip = { field = "reader", as = "ip" }
src_port = { field = "reader", as = "port" }
resource = { field = "path", as = "last_part" }
activity = { field = "verb", as = "lower" }
message = "{holder} at {door}"
"#;

#[test]
fn the_example_of_the_documentation_and_a_file_of_ones_own_fill_columns() {
    let mappings = load(&[("doors.toml", DOORS)]).expect("mappings");
    assert!(mappings.iter().count() > 10, "the shipped ones are there too");
    let mut decoder = Decoder::new(Arc::new(mappings), DecodeConfig::default(), 1);
    let body = r#"{"door":"north","vendor":"ACME-3","site":"x","seq":7,"at":1000,"holder":"-","result":"forced","reader":"[::1]:99","path":"/a/b","verb":"OPEN"}
{"door":"north","vendor":"other"}
{"door":"south","vendor":"Acme","winlog":1}"#;
    decoder.push(Body {
        org_id: "acme".into(),
        dataset: Dataset::SecurityEvents,
        source: None,
        format: BodyFormat::Json,
        bytes: body.into(),
        received_us: 0,
        idempotency_key: None,
        request_id: "r".into(),
    });
    let decoded = decoder.flush().expect("batches");
    let shown: Vec<String> = decoded
        .batches
        .iter()
        .map(|batch| {
            let mut text = Vec::new();
            // The zone `UTC` is printed only with a time zone database, so the times are left out.
            let names = [
                "event_id", "source", "activity", "severity", "outcome", "actor", "src_ip", "src_port", "resource",
                "message",
            ];
            let columns = names.iter().filter_map(|name| batch.rows.schema().index_of(name).ok()).collect::<Vec<_>>();
            let batch = batch.rows.project(&columns).expect("columns");
            arrow::json::LineDelimitedWriter::new(&mut text).write(&batch).expect("JSON");
            String::from_utf8(text).expect("text")
        })
        .collect();
    let shown = shown.concat();
    let want = r#"{"event_id":"x-7","source":"doors","activity":"open","severity":4,"outcome":"failure","actor":"nobody","src_ip":"::1","src_port":99,"resource":"b","message":"- at north"}"#;
    assert!(shown.contains(want), "{shown}");
    assert_eq!(shown.matches(r#""source":"unknown""#).count(), 2, "{shown}");
}

#[test]
fn a_file_replaces_the_shipped_mapping_of_its_name() {
    let before = Mappings::builtin().expect("mappings").iter().count();
    let mappings = load(&[("x.toml", "name = \"zeek\"\ndataset = \"security_events\"\n"), ("readme.md", "no mapping")]);
    let mappings = mappings.expect("mappings");
    assert_eq!(mappings.iter().count(), before);
    assert_eq!(mappings.position("zeek", Dataset::SecurityEvents), Some(0));
    assert_eq!(mappings.position("zeek", Dataset::CostEvents), None);
}

#[test]
fn errors_name_the_file_the_line_and_the_reason() {
    let head = "name = \"a\"\ndataset = \"security_events\"\n";
    for (text, line, reason) in [
        ("name = \"a\"\n".to_owned(), None, "missing field `dataset`"),
        ("name = \"a\"\ndataset = \"events\"\n".to_owned(), Some(2), "no such dataset: \"events\""),
        (format!("{head}colums = 1\n"), Some(3), "unknown field `colums`"),
        (format!("{head}[columns]\ntime = \"at\"\nactr = \"x\"\n"), Some(5), "\"actr\" is not a core column"),
        (format!("{head}[columns]\norg_id = \"x\"\n"), Some(4), "\"org_id\" is not a core column"),
        (
            format!("{head}[columns]\ntime = {{ field = \"at\", as = \"secs\" }}\n"),
            Some(4),
            "no such conversion: \"secs\"",
        ),
        (format!("{head}[columns]\n\ntime = {{ feild = \"at\" }}\n"), Some(5), "unknown field `feild`"),
        (
            format!("{head}[columns]\ntime = {{ field = \"at\", const = \"x\" }}\n"),
            Some(4),
            "exactly one of field, template",
        ),
        (format!("{head}[columns]\nmessage = \"{{a}} and {{b\"\n"), Some(4), "without `}`"),
        (format!("{head}[columns]\nmessage = 5\n"), Some(4), "neither the name of a field nor a table"),
        (format!("{head}ids = [1]\n"), Some(3), "neither the name of a field nor a table"),
        (format!("{head}[columns\n"), Some(3), ""),
    ] {
        let error = load(&[("bad.toml", &text)]).expect_err(&text).to_string();
        let place = line.map_or("bad.toml".into(), |line| format!("bad.toml:{line}: "));
        assert!(error.contains(&place) && error.contains(reason), "{error} for\n{text}");
    }
    let missing = Mappings::load(std::path::Path::new("/nowhere")).expect_err("no folder");
    assert!(missing.to_string().contains("/nowhere"));
}

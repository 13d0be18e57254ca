//! Every target on its crashes, its corpus and on mutants of them: two seconds each, longer with `TIDEGATE_FUZZ_SECONDS`.

mod arrow_seeds;
mod campaign;
mod mutate;

mod right_seeds;
mod seeds;

use campaign::run;

#[test]
fn arrow_body() {
    run("arrow_body");
}

#[test]
fn configuration() {
    run("configuration");
}

#[test]
fn csv_body() {
    run("csv_body");
}

#[test]
fn database_value() {
    run("database_value");
}

#[test]
fn feed_filter() {
    run("feed_filter");
}

#[test]
fn fluvio_record() {
    run("fluvio_record");
}

#[test]
fn inflate() {
    run("inflate");
}

#[test]
fn json_body() {
    run("json_body");
}

#[test]
fn log_segment() {
    run("log_segment");
}

#[test]
fn log_summary() {
    run("log_summary");
}

#[test]
fn mapping_file() {
    run("mapping_file");
}

#[test]
fn parquet_manifest() {
    run("parquet_manifest");
}

#[test]
fn query_string() {
    run("query_string");
}

#[test]
fn rule_text() {
    run("rule_text");
}

#[test]
fn sql_gate() {
    run("sql_gate");
}

#[test]
fn values() {
    run("values");
}

#[test]
fn replay() {
    campaign::replay();
}

#[test]
fn each_target_has_a_test_a_program_and_a_corpus() {
    let here = include_str!("main.rs");
    for (name, _) in tidegate_fuzz::TARGETS {
        assert!(here.contains(&format!("run(\"{name}\");")), "{name} has no test");
        let program = campaign::folder("libfuzzer/fuzz_targets", &format!("{name}.rs"));
        let text = std::fs::read_to_string(&program).unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        assert!(text.contains(&format!("tidegate_fuzz::{name}(")), "{} calls another target", program.display());
        assert!(campaign::folder("corpus", name).is_dir(), "{name} has no corpus");
    }
}

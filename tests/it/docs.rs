//! The generated pages of docs/ are those that the program makes.

#[test]
fn the_metrics_page_is_current() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md")).unwrap_or_default();
    assert!(
        page == tidegate::serve::telemetry::metrics_page(),
        "docs/metrics.md is not current: run `cargo xtask docs`"
    );
}

#[test]
fn each_metric_has_one_name_a_kind_and_a_prefix() {
    let metrics = tidegate::serve::telemetry::metrics();
    for (at, (name, kind, help)) in metrics.iter().enumerate() {
        assert!(name.starts_with("tidegate_") && !help.is_empty(), "{name}");
        assert!(["counter", "gauge", "histogram"].contains(kind), "{name}: {kind}");
        assert!(metrics[at + 1..].iter().all(|(other, _, _)| other != name), "{name} twice");
    }
}

//! Which columns a tenant's table has: those of the dataset, its own fields by name, `_rest`; each of them once.

use std::sync::Arc;

use tidegate_events::{Dataset, FieldType};
use tidegate_pipeline::FieldCatalog;
use tidegate_query::Scope;

use super::fixture::{Mode, World};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_own_field_that_is_named_as_a_column_of_the_dataset_is_no_second_column() {
    let stored = ["Case", "flag", "mine", "n", "ports", "winlog.event_data.Image"];
    for (mode, own) in [(Mode::Tail, &["mine"][..]), (Mode::Mixed, &stored)] {
        let world = World::told(mode).await;
        // What a release knew as own fields that had fewer columns.
        let mut fields = FieldCatalog::default();
        for name in ["mine", "actor", "_rest"] {
            fields.add(&"acme".into(), Dataset::SecurityEvents, &name.into(), FieldType::INT);
        }
        *world.fields.lock() = Arc::new(fields);
        let rows = world.query.sql(&Scope::tenant("acme"), "SELECT * FROM security_events").await.expect("a plan");
        let columns: Vec<String> = rows.schema().fields().iter().map(|field| field.name().clone()).collect();
        let core = Dataset::SecurityEvents.core_schema();
        let core = core.fields().iter().map(|field| field.name().as_str());
        let wanted: Vec<&str> = core.chain(own.iter().copied()).chain(["_rest"]).collect();
        assert_eq!(columns, wanted, "{mode:?}");
        let actor = rows.schema().field_with_name("actor").expect("a column").data_type().clone();
        assert_eq!(actor, arrow::datatypes::DataType::Utf8, "{mode:?}");
        let count: usize = rows.collect().await.expect("rows").iter().map(|batch| batch.num_rows()).sum();
        assert_eq!(count, 8, "{mode:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn texts_that_are_joined_are_named_as_they_were_written() {
    let world = World::told(Mode::Tail).await;
    let sql = "SELECT actor || source || 'x', source || actor FROM security_events";
    let rows = world.query.sql(&Scope::tenant("acme"), sql).await.expect("a plan");
    let columns: Vec<String> = rows.schema().fields().iter().map(|field| field.name().clone()).collect();
    let parts: Vec<Vec<&str>> = columns.iter().map(|name| name.split(" || ").collect()).collect();
    let ends = |part: &str, name: &str| assert!(part.ends_with(name), "{columns:?}");
    let wanted: [&[&str]; 2] = [&["actor", "source", "Utf8(\"x\")"], &["source", "actor"]];
    for (parts, wanted) in parts.iter().zip(wanted) {
        assert_eq!(parts.len(), wanted.len(), "{columns:?}");
        parts.iter().zip(wanted).for_each(|(part, name)| ends(part, name));
    }
}

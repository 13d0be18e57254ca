//! Stretches of stored events: in order, of one tenant, with the wanted columns, from the log and from Parquet alike.

use std::sync::Arc;

use arrow::array::AsArray;
use tidegate_events::Dataset;
use tidegate_query::Scope;
use tidegate_query::scan::Stretch;

use super::fixture::World;
use super::twin::MODES;

/// 2026-01-01T00:00:00Z.
const START_US: i64 = 1_767_225_600_000_000;
const MINUTE_US: i64 = 60_000_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stretch_has_its_rows_in_order_and_the_wanted_columns() {
    let cases = [
        ("acme", 0, 24 * 60, vec!["a1", "a2", "a3", "a4", "a5", "same", "a6", "a7"], vec![(0, 3), (1, 3), (2, 2)]),
        ("globex", 0, 24 * 60, vec!["g1", "same", "g2"], vec![(0, 2), (2, 1)]),
        // The end is not in it.
        ("acme", 20, 70, vec!["a2", "a3", "a4"], vec![(0, 2), (1, 1)]),
        ("acme", 300, 400, vec![], vec![]),
        ("nobody", 0, 24 * 60, vec![], vec![]),
    ];
    for mode in MODES {
        let world = World::told(mode).await;
        for (org_id, from, to, wanted_ids, wanted_hours) in &cases {
            let scope = Scope::tenant(*org_id);
            let [from_us, to_us] = [*from, *to].map(|minute| START_US + minute * MINUTE_US);
            let stretch = Stretch { dataset: Dataset::SecurityEvents, from_us, to_us };
            let wanted = Arc::new(|column: &str| matches!(column, "n" | "org_id" | "no_such_column"));
            let rows =
                world.query.scan(&scope, &stretch, wanted).await.expect("a stream").collect().await.expect("rows");
            let mut ids = Vec::new();
            for batch in &rows {
                let mut columns: Vec<_> = batch.schema().fields().iter().map(|field| field.name().clone()).collect();
                columns.sort();
                assert!(["event_id", "org_id", "time"].iter().all(|name| columns.contains(&(*name).to_owned())));
                assert!(columns.len() <= 4, "{mode:?} {org_id}: {columns:?}");
                let column = |name: &str| batch.column_by_name(name).expect("a column").as_string::<i32>().clone();
                ids.extend(column("event_id").iter().flatten().map(str::to_owned));
                assert!(column("org_id").iter().flatten().all(|own| own == *org_id));
            }
            assert_eq!(ids, *wanted_ids, "{mode:?} {org_id} {from}..{to}");
            let hours = world.query.hours(&scope, &stretch).await.expect("hours");
            let hours: Vec<_> =
                hours.into_iter().map(|(at, count)| ((at - START_US) / 60 / MINUTE_US, count)).collect();
            assert_eq!(hours, *wanted_hours, "{mode:?} {org_id} {from}..{to}");
        }
    }
}

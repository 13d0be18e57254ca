//! The `.slt` files give the same answers wherever the rows are.

use std::time::Duration;

use arrow::util::display::{ArrayFormatter, FormatOptions};
use sqllogictest::{AsyncDB, DBOutput, DefaultColumnType, Runner};
use tidegate_query::{Query, QueryError, Scope};

use super::fixture::World;
use super::twin::{MODES, SLT};

struct Tenant {
    query: Query,
    scope: Scope,
}

#[async_trait::async_trait]
impl AsyncDB for Tenant {
    type Error = QueryError;
    type ColumnType = DefaultColumnType;

    async fn run(&mut self, sql: &str) -> Result<DBOutput<DefaultColumnType>, QueryError> {
        let stream = self.query.sql(&self.scope, sql).await?;
        let types = vec![DefaultColumnType::Any; stream.schema().fields().len()];
        let options = FormatOptions::default().with_null("NULL");
        let mut rows = Vec::new();
        for batch in stream.collect().await? {
            let columns: Vec<_> = batch
                .columns()
                .iter()
                .map(|column| ArrayFormatter::try_new(column, &options).expect("shown"))
                .collect();
            for row in 0..batch.num_rows() {
                let shown = columns.iter().map(|column| column.value(row).to_string());
                rows.push(shown.map(|text| if text.is_empty() { "(empty)".into() } else { text }).collect());
            }
        }
        Ok(DBOutput::Rows { types, rows })
    }

    async fn shutdown(&mut self) {}

    fn engine_name(&self) -> &str {
        "tidegate"
    }

    async fn sleep(duration: Duration) {
        tokio::time::sleep(duration).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_file_gives_the_same_answers_wherever_the_rows_are() {
    let mut files: Vec<_> =
        std::fs::read_dir(SLT).expect("the folder").map(|entry| entry.expect("a file").path()).collect();
    files.sort();
    assert!(!files.is_empty());
    for mode in MODES {
        let world = World::told(mode).await;
        for file in &files {
            let query = world.query.clone();
            let mut runner =
                Runner::new(|| async { Ok(Tenant { query: query.clone(), scope: Scope::tenant("acme") }) });
            if let Err(error) = runner.run_file_async(file).await {
                panic!("{mode:?} {}: {error}", file.display());
            }
        }
    }
}

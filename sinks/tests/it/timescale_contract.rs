//! The TimescaleDB sink keeps the contract of a sink, whatever makes it commit and however many lanes it has.

use tidegate_pipeline::Sink;
use tidegate_sinks::parquet::LogSource;

use crate::contract::sink::{Destination, check};
use crate::postgres::Schema;

struct Database {
    schema: Schema,
    source: LogSource,
}

impl Destination for Database {
    fn sink(&self) -> Box<dyn Sink> {
        Box::new(self.schema.sink(self.source))
    }

    fn ids(&self) -> Vec<String> {
        self.schema.ids()
    }

    fn refused_id(&self, nth: usize) -> Option<String> {
        if nth == 0 {
            let check = "ADD CONSTRAINT no_evil CHECK (event_id NOT LIKE 'evil%')";
            self.schema.query(&format!("ALTER TABLE security_events {check}; SELECT 1"));
        }
        Some(format!("evil{nth:04}"))
    }
}

#[test]
fn the_timescale_sink_keeps_the_contract_of_a_sink() {
    for (source, connections, commit_rows) in [(LogSource::Ingest, 1, 3), (LogSource::Output, 3, 1 << 20)] {
        let name = format!("{source:?}, {connections} lanes, commits of {commit_rows} rows");
        check(&name, || {
            let mut schema = Schema::new();
            schema.config.connections = connections;
            schema.config.commit_rows = commit_rows;
            Box::new(Database { schema, source })
        });
    }
}

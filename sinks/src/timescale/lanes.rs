//! Lanes: connections that write at the same time, each with a cursor of its own.
//!
//! A lane commits its rows and its cursor in one transaction, whose first statement takes the cursor's row (`FOR UPDATE`) and
//! looks where it stands:
//! - where this process left it: the lane goes on from there;
//! - where a commit was to put it whose answer never came (the connection broke): that commit happened, and the rows below it
//!   are left out;
//! - anywhere else: someone else writes, or the database went back in time. Nothing is written then.
//!
//! The row's lock keeps a transaction that the server still has of a broken connection and its successor apart.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use deadpool_postgres::Object;
use futures::SinkExt;
use tidegate_events::Dataset;
use tidegate_pipeline::{LogBatch, Offset};
use xxhash_rust::xxh3::xxh3_64;

use super::binary;
use super::checkpoints::Along;
use super::connect::step;
use super::ddl::{Layout, qualified};
use super::failure::{failed, late, row_of_copy};
use super::leases::hold;
use super::rows::{Rows, copy_statement};
use super::schema::rows;
use super::store::TimescaleStore;
use super::tails::keep;
use crate::error::SinksError;

/// Bytes of rows that are sent at once.
const CHUNK_BYTES: usize = 128 << 10;

/// What this process knows of a lane.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lane {
    pub(super) number: i32,
    /// Rows below are in the tables.
    pub(super) next: Offset,
    /// Where a commit was to put it whose answer is not known.
    pub(super) unsure: Option<Offset>,
}

impl Lane {
    /// Where it stands, when its cursor was found there: where it was left, or where a commit without an answer has put it.
    ///
    /// # Errors
    /// [`SinksError::Database`] for any other place, or none.
    pub(super) fn stands(&self, found: Option<Offset>) -> Result<Offset, SinksError> {
        match found {
            Some(found) if found == self.next || self.unsure == Some(found) => Ok(found),
            Some(found) => Err(moved(self, found)),
            None => Err(SinksError::Database {
                reason: format!(
                    "the cursor of lane {} is gone from the table cursors: was the schema emptied? Restart tidegate: it goes on \
                     with what its log still holds",
                    self.number
                ),
            }),
        }
    }
}

/// A batch with the lane of each row, and which rows are of a time without a chunk.
pub(super) struct Share {
    pub(super) batch: Arc<LogBatch>,
    /// The lane of each row; empty when there is one lane.
    pub(super) lanes: Vec<u8>,
    /// With the extension: rows that go to `<table>_default`. Empty when none does.
    pub(super) strays: Vec<bool>,
}

/// What one transaction is to do: rows for the first of these lanes, and cursors for all.
pub(super) struct Work {
    pub(super) store: Arc<TimescaleStore>,
    pub(super) layout: Layout,
    pub(super) log_id: i16,
    pub(super) lanes: Vec<Lane>,
    pub(super) shares: Arc<Vec<Share>>,
    pub(super) to: Offset,
    /// What the log ends with before `to`, to be kept beside the cursor.
    pub(super) tail: Option<Vec<u8>>,
    /// A checkpoint that goes with it.
    pub(super) along: Option<Along>,
}

/// What a transaction did.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Done {
    pub(super) rows: u64,
    pub(super) bytes: u64,
    pub(super) replaced: u64,
}

/// The lane of a tenant.
fn lane_of(org_id: &str, lanes: usize) -> u8 {
    (xxh3_64(org_id.as_bytes()) % lanes as u64) as u8
}

/// The lane of each row of a batch; empty when there is one lane.
pub(super) fn lanes_of(batch: &LogBatch, lanes: usize) -> Vec<u8> {
    use arrow::array::{Array, AsArray};
    if lanes <= 1 {
        return Vec::new();
    }
    let orgs = batch.rows.column_by_name(Dataset::ORG_ID).and_then(|column| column.as_string_opt::<i32>());
    let (mut last, mut lane) = ("", lane_of("", lanes));
    let mut of_row = |row: usize| {
        let org = orgs.filter(|orgs| orgs.is_valid(row)).map_or("", |orgs| orgs.value(row));
        // Rows of one tenant mostly stand together.
        if org != last {
            (last, lane) = (org, lane_of(org, lanes));
        }
        lane
    };
    (0..batch.rows.num_rows()).map(&mut of_row).collect()
}

impl Share {
    /// The rows of a lane from `from` on: those that stray, or those that do not.
    fn of_lane(&self, lane: Lane, from: Offset, stray: bool) -> impl Iterator<Item = usize> {
        let below = usize::try_from(from.saturating_sub(self.batch.offset)).unwrap_or(usize::MAX);
        let rows = below.min(self.batch.rows.num_rows())..self.batch.rows.num_rows();
        rows.filter(move |row| {
            self.lanes.get(*row).is_none_or(|of| i32::from(*of) == lane.number)
                && self.strays.get(*row).is_some_and(|stray| *stray) == stray
        })
    }

    /// Whether it has rows for a lane that are not in the tables yet.
    pub(super) fn concerns(&self, lane: Lane) -> bool {
        self.of_lane(lane, lane.next, false).chain(self.of_lane(lane, lane.next, true)).next().is_some()
    }
}

impl Work {
    /// Runs the transaction.
    ///
    /// # Errors
    /// [`SinksError::Database`], [`SinksError::Refused`] or [`SinksError::CursorMoved`]; nothing of it is in the tables then,
    /// or all of it, when the answer to the commit was lost.
    pub(super) async fn commit(mut self) -> Result<Done, SinksError> {
        let client = self.store.connection().await?;
        let done = self.on(&client).await;
        if done.is_err() {
            // Its state is not known: it may be in the middle of a COPY. Dropped, it is closed.
            drop(Object::take(client));
        } else if let Some(along) = self.along {
            along.written();
        }
        done
    }

    async fn on(&mut self, client: &Object) -> Result<Done, SinksError> {
        let config = &self.store.config;
        let starts = self.begin(client).await?;
        let mut done = Done::default();
        let lane = self.lanes.first().zip(starts.first());
        if let Some((lane, from)) = lane {
            let mut by_dataset: BTreeMap<Dataset, Vec<&Share>> = BTreeMap::new();
            for share in self.shares.iter() {
                by_dataset.entry(share.batch.dataset).or_default().push(share);
            }
            for (dataset, shares) in by_dataset {
                for stray in [false, true] {
                    let has_rows = |share: &&Share| share.of_lane(*lane, *from, stray).next().is_some();
                    if shares.iter().any(has_rows) {
                        self.copy(client, dataset, &shares, (*lane, *from, stray), &mut done).await?;
                    }
                }
            }
        }
        if let Some(along) = &mut self.along {
            along.write(client).await?;
        }
        let cursors = qualified(&config.schema, "cursors");
        let tail = self.tail.as_ref().map_or_else(String::new, |tail| keep(&config.schema, self.log_id, tail) + "; ");
        let end = format!(
            "UPDATE {cursors} SET next_offset = {}, updated = now() WHERE log_id = {} AND lane IN ({}); {tail}COMMIT",
            self.to,
            self.log_id,
            self.numbers()
        );
        step(config, "commit", client.batch_execute(&end)).await?;
        Ok(done)
    }

    fn numbers(&self) -> String {
        self.lanes.iter().map(|lane| lane.number.to_string()).collect::<Vec<_>>().join(", ")
    }

    /// Begins the transaction; where each lane really stands.
    async fn begin(&self, client: &Object) -> Result<Vec<Offset>, SinksError> {
        let config = &self.store.config;
        let mut begin = String::from("BEGIN; ");
        if let Some(lease) = self.store.lease {
            step(config, "begin a transaction", client.batch_execute(&begin)).await?;
            hold(client, config, lease).await?;
            begin.clear();
        }
        // Whoever lowers this for the whole database would lose rows that the log has forgotten by then.
        begin.push_str(
            "SELECT CASE current_setting('synchronous_commit') WHEN 'off' THEN set_config('synchronous_commit', 'on', true) END; ",
        );
        let _ = write!(
            begin,
            "SELECT lane, next_offset FROM {} WHERE log_id = {} AND lane IN ({}) ORDER BY lane FOR UPDATE",
            qualified(&config.schema, "cursors"),
            self.log_id,
            self.numbers()
        );
        let found = rows(client, config, "take the cursor", &begin).await?;
        let number = |row: &Vec<String>, at: usize| row.get(at).and_then(|text| text.parse::<Offset>().ok());
        let found: BTreeMap<u64, Offset> =
            found.iter().filter_map(|row| Some((number(row, 0)?, number(row, 1)?))).collect();
        self.lanes.iter().map(|lane| lane.stands(found.get(&(lane.number as u64)).copied())).collect()
    }

    async fn copy(
        &self,
        client: &Object,
        dataset: Dataset,
        shares: &[&Share],
        (lane, from, stray): (Lane, Offset, bool),
        done: &mut Done,
    ) -> Result<(), SinksError> {
        let config = &self.store.config;
        let apart = stray && self.layout == Layout::Hypertables;
        let name = if apart { format!("{}_default", dataset.table_name()) } else { dataset.table_name().to_owned() };
        let doing = format!("COPY {name}");
        let statement = copy_statement(&qualified(&config.schema, &name), dataset);
        let statement = step(config, &doing, client.prepare_cached(&statement)).await?;
        let sink = step(config, &doing, client.copy_in::<_, Bytes>(&statement)).await?;
        let mut sink = pin!(sink);
        let bound = Duration::from_millis(config.statement_ms_max);
        let mut buffer = BytesMut::with_capacity(CHUNK_BYTES + CHUNK_BYTES / 4);
        buffer.extend_from_slice(binary::HEADER);
        // The database may refuse a row while others are still sent: the error of either says which one.
        let refused = |error: &tokio_postgres::Error| refused_row(error, &doing, shares, (lane, from, stray));
        for share in shares {
            let mut encoder = Rows::of(dataset, &share.batch.rows, self.log_id)?;
            for row in share.of_lane(lane, from, stray) {
                encoder.write(row, share.batch.offset + row as u64, &mut buffer);
                done.rows += 1;
                if buffer.len() >= CHUNK_BYTES {
                    done.bytes += buffer.len() as u64;
                    let chunk = buffer.split().freeze();
                    match tokio::time::timeout(bound, sink.feed(chunk)).await {
                        Ok(fed) => fed.map_err(|error| refused(&error))?,
                        Err(_) => return Err(late(&doing, bound)),
                    }
                    // Takes the memory of a chunk that has been sent.
                    buffer.reserve(CHUNK_BYTES + CHUNK_BYTES / 4);
                }
            }
            done.replaced += encoder.replaced;
        }
        buffer.extend_from_slice(&binary::TRAILER);
        done.bytes += buffer.len() as u64;
        let finishing = async {
            sink.feed(buffer.freeze()).await?;
            sink.as_mut().finish().await
        };
        match tokio::time::timeout(bound, finishing).await {
            Ok(finished) => finished.map(drop).map_err(|error| refused(&error)),
            Err(_) => Err(late(&doing, bound)),
        }
    }
}

/// A failed COPY of the rows of a lane, with the row that was refused where the database says which one.
fn refused_row(
    error: &tokio_postgres::Error,
    doing: &str,
    shares: &[&Share],
    (lane, from, stray): (Lane, Offset, bool),
) -> SinksError {
    let offsets = |share: &&Share| {
        let first = share.batch.offset;
        share.of_lane(lane, from, stray).map(move |row| first + row as u64).collect::<Vec<_>>()
    };
    match failed(doing, error) {
        SinksError::Refused { reason, .. } => {
            let nth = row_of_copy(error).map(|row| row - 1);
            let row = nth.and_then(|nth| shares.iter().flat_map(offsets).nth(nth));
            SinksError::Refused { reason, row }
        }
        other => other,
    }
}

/// A lane that is not where it was left.
fn moved(lane: &Lane, found: Offset) -> SinksError {
    let (number, next) = (lane.number, lane.next);
    let reason = if found > next {
        format!(
            "the cursor of lane {number} stands at {found}, not at {next}: another server with a copy of this data folder \
             writes to this schema; stop one of the two, and restart this one"
        )
    } else {
        format!(
            "the cursor of lane {number} has gone back from {next} to {found}: the database was restored or failed over to \
             a copy that lacks rows; restart tidegate: it delivers again what its log still holds from there"
        )
    };
    SinksError::Database { reason }
}

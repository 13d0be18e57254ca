//! Leases on the partitions of a log, kept in the database beside the cursors, and the checkpoints of who holds them.
//!
//! Workers share the partitions evenly. A lease is good until a time of the database's clock; its holder renews it, and counts it
//! lost by his own clock if that did not succeed in time. Whoever takes a lease raises its *epoch*. Each transaction of a holder
//! looks, with a lock on the row that keeps others from taking it until the transaction ends, whether the epoch is still his: so
//! one that was held up (a stopped process, a network that hangs) writes nothing after another has taken over.
//!
//! ```text
//! workers     (holder, until)                      who is there
//! leases      (partition, holder, epoch, until)    who has what
//! checkpoints (partition, epoch, body)             where to go on
//! ```

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use deadpool_postgres::{Object, Pool};

use super::checkpoints::LeasedCheckpoint;
use super::config::TimescaleConfig;
use super::connect;
use super::ddl::{qualified, quoted};
use super::schema::{ADVISORY_LOCK, rows, run};
use super::tails;
use crate::error::SinksError;

/// A partition that this worker holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lease {
    /// Which one.
    pub partition: u32,
    /// How often it was taken so far.
    pub epoch: u64,
}

/// What a worker holds after a round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Round {
    /// Its leases.
    pub held: Vec<Lease>,
    /// How many partitions are its fair share.
    pub share: usize,
    /// Workers beside it that take leases.
    pub others: usize,
}

/// The leases as one worker sees them. It holds what [`round`](Self::round) says for as long as [`good_until`](Self::good_until).
pub struct Leases {
    config: TimescaleConfig,
    pool: Pool,
    /// Of the checkpoints, so that a large one does not keep the leases from being renewed.
    large: Pool,
    holder: String,
    length: Duration,
    made: bool,
    held: BTreeMap<u32, u64>,
    good_until: Option<Instant>,
}

impl Leases {
    /// Leases of `length` for the worker `holder` (a name that no other has). Connects to nothing yet.
    ///
    /// # Errors
    /// [`SinksError::Invalid`] when the configuration cannot be used.
    pub fn new(config: TimescaleConfig, holder: &str, length: Duration) -> Result<Self, SinksError> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
        if holder.is_empty() || holder.len() > 100 || !holder.bytes().all(plain) {
            return Err(SinksError::Invalid(format!("{holder:?} cannot be the name of a worker")));
        }
        let (pool, large) = (connect::pool(&config, 2)?, connect::pool(&config, 2)?);
        Ok(Self {
            config,
            pool,
            large,
            holder: holder.to_owned(),
            length,
            made: false,
            held: BTreeMap::new(),
            good_until: None,
        })
    }

    /// Renews what is held, and takes what is free, up to a fair share of `partitions`. A worker that holds more is to
    /// [`release`](Self::release) what is over. One that `rests` takes nothing, and does not count when the others share.
    ///
    /// # Errors
    /// [`SinksError::Database`], with what to do. What was held is held until [`good_until`](Self::good_until).
    pub async fn round(&mut self, partitions: u32, rests: bool) -> Result<Round, SinksError> {
        let client = Asked::of(connect::get(&self.pool, &self.config).await?);
        let found = self.round_with(&client, partitions, rests).await?;
        client.answered();
        Ok(found)
    }

    /// Renews what is held and takes nothing: what is held then.
    ///
    /// # Errors
    /// As [`round`](Self::round).
    pub async fn renew(&mut self) -> Result<Vec<Lease>, SinksError> {
        let client = Asked::of(connect::get(&self.pool, &self.config).await?);
        let asked = Instant::now();
        let held = self.renew_with(&client, false).await?;
        client.answered();
        Ok(self.hold(held, asked))
    }

    /// What is held from now on, when that was asked for at a time.
    fn hold(&mut self, held: BTreeMap<u32, u64>, asked: Instant) -> Vec<Lease> {
        self.held = held;
        // By the own clock from before it was asked: the database's began later.
        self.good_until = Some(asked + self.length);
        self.held.iter().map(|(partition, epoch)| Lease { partition: *partition, epoch: *epoch }).collect()
    }

    /// The time of the database until which a lease that is renewed now is held.
    fn until(&self) -> String {
        format!("now() + interval '{} ms'", self.length.as_millis())
    }

    async fn renew_with(&self, client: &Object, rests: bool) -> Result<BTreeMap<u32, u64>, SinksError> {
        let (leases, workers) = (self.table("leases"), self.table("workers"));
        let (holder, until) = (&self.holder, self.until());
        let present = match rests {
            true => format!("DELETE FROM {workers} WHERE holder = '{holder}'"),
            false => format!(
                "INSERT INTO {workers} (holder, until) VALUES ('{holder}', {until}) ON CONFLICT (holder) DO UPDATE SET until = {until}"
            ),
        };
        let renew = format!(
            "{present}; DELETE FROM {workers} WHERE until < now() - interval '1 day'; \
             UPDATE {leases} SET until = {until} WHERE holder = '{holder}' AND until > now() RETURNING partition, epoch"
        );
        let renewed = rows(client, &self.config, "renew the leases", &renew).await?;
        // One that is held in the table and not known here was taken by an answer that was lost: its epoch is ours all the same.
        Ok(renewed.iter().filter_map(|row| lease(row)).collect())
    }

    async fn round_with(&mut self, client: &Object, partitions: u32, rests: bool) -> Result<Round, SinksError> {
        if !self.made {
            make(client, &self.config, partitions).await?;
            self.made = true;
        }
        let (leases, workers) = (self.table("leases"), self.table("workers"));
        let (holder, until) = (&self.holder, self.until());
        let asked = Instant::now();
        let mut held = self.renew_with(client, rests).await?;
        let others = format!("SELECT count(*) FROM {workers} WHERE until > now() AND holder <> '{holder}'");
        let others = rows(client, &self.config, "count the workers", &others).await?;
        let others: usize = others.first().and_then(|row| row.first()?.parse().ok()).unwrap_or(0);
        let share = if rests { partitions as usize } else { (partitions as usize).div_ceil(others + 1) };
        if held.len() < share && !rests {
            // A row that a transaction of its last holder has locked is passed over: it is free when that has ended.
            let take = format!(
                "UPDATE {leases} SET holder = '{holder}', epoch = epoch + 1, until = {until} WHERE partition IN \
                 (SELECT partition FROM {leases} WHERE until <= now() AND partition < {partitions} ORDER BY partition LIMIT {} \
                 FOR UPDATE SKIP LOCKED) RETURNING partition, epoch",
                share - held.len()
            );
            let taken = rows(client, &self.config, "take leases", &take).await?;
            held.extend(taken.iter().filter_map(|row| lease(row)));
        }
        Ok(Round { held: self.hold(held, asked), share, others })
    }

    /// Until when, by this process's clock, what is held is held without another [`round`](Self::round). Some of the time is left
    /// out for what is under way.
    pub fn good_until(&self) -> Option<Instant> {
        self.good_until.map(|until| until - self.length / 5)
    }

    /// Gives a lease back, when nothing is written for it any more.
    ///
    /// # Errors
    /// [`SinksError::Database`]: it ends by itself then.
    pub async fn release(&mut self, lease: Lease) -> Result<(), SinksError> {
        self.held.remove(&lease.partition);
        let client = Asked::of(connect::get(&self.pool, &self.config).await?);
        let (leases, Lease { partition, epoch }) = (self.table("leases"), lease);
        let release =
            format!("UPDATE {leases} SET until = '-infinity' WHERE partition = {partition} AND epoch = {epoch}");
        run(&client, &self.config, "release a lease", &[release]).await?;
        client.answered();
        Ok(())
    }

    /// Says that this worker is gone, so that the others take more at once.
    ///
    /// # Errors
    /// [`SinksError::Database`]: it is seen by itself then.
    pub async fn leave(&mut self) -> Result<(), SinksError> {
        let client = Asked::of(connect::get(&self.pool, &self.config).await?);
        let leave = format!("DELETE FROM {} WHERE holder = '{}'", self.table("workers"), self.holder);
        run(&client, &self.config, "leave the workers", &[leave]).await?;
        client.answered();
        Ok(())
    }

    /// Where the checkpoints of a lease are kept.
    pub fn checkpoints(&self, lease: Lease) -> LeasedCheckpoint {
        LeasedCheckpoint::new(self.config.clone(), self.large.clone(), lease)
    }

    fn table(&self, name: &str) -> String {
        qualified(&self.config.schema, name)
    }
}

impl std::fmt::Debug for Leases {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Leases").field("holder", &self.holder).field("held", &self.held).finish_non_exhaustive()
    }
}

/// A connection that is asked something by whoever may lose patience: one that has not answered is closed, since its state is not
/// known, and the next question must not wait behind this one.
pub(super) struct Asked(Option<Object>);

impl Asked {
    pub(super) fn of(client: Object) -> Self {
        Self(Some(client))
    }

    pub(super) fn answered(mut self) {
        self.0 = None;
    }
}

impl std::ops::Deref for Asked {
    type Target = Object;

    fn deref(&self) -> &Object {
        self.0.as_ref().expect("only what ends it takes it")
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if let Some(client) = self.0.take() {
            drop(Object::take(client));
        }
    }
}

/// Looks, in a transaction, whether a lease is still held, and keeps others from taking it until the transaction ends.
///
/// # Errors
/// [`SinksError::Database`] when it is not.
pub(super) async fn hold(client: &Object, config: &TimescaleConfig, lease: Lease) -> Result<(), SinksError> {
    let Lease { partition, epoch } = lease;
    let leases = qualified(&config.schema, "leases");
    // Renewing does not wait for this lock, taking does. So the server ends a transaction whose holder was stopped in it, once the
    // lease is over: others would wait for it.
    let idle_max = format!(
        "least({}, greatest(1000, extract(epoch FROM until - now()) * 1000))::int8::text",
        config.statement_ms_max
    );
    let query = format!(
        "SELECT epoch, set_config('idle_in_transaction_session_timeout', {idle_max}, true) FROM {leases} \
         WHERE partition = {partition} AND epoch = {epoch} AND isfinite(until) FOR KEY SHARE"
    );
    match rows(client, config, "look at the lease", &query).await?.is_empty() {
        true => Err(lost(lease)),
        false => Ok(()),
    }
}

pub(super) fn lost(lease: Lease) -> SinksError {
    let reason = format!(
        "the lease of partition {} was taken by another worker, or given back: this one writes nothing for it any more",
        lease.partition
    );
    SinksError::Database { reason }
}

fn lease(row: &[String]) -> Option<(u32, u64)> {
    Some((row.first()?.parse().ok()?, row.get(1)?.parse().ok()?))
}

/// The tables of workers. The schema is there.
pub(super) fn tables(schema: &str) -> Vec<String> {
    let (workers, leases, checkpoints) =
        (qualified(schema, "workers"), qualified(schema, "leases"), qualified(schema, "checkpoints"));
    vec![
        format!("CREATE TABLE IF NOT EXISTS {workers} (holder text PRIMARY KEY, until timestamptz NOT NULL)"),
        format!(
            "CREATE TABLE IF NOT EXISTS {leases} (partition int4 PRIMARY KEY, holder text, epoch int8 NOT NULL DEFAULT 0, \
             until timestamptz NOT NULL DEFAULT '-infinity')"
        ),
        format!(
            "CREATE TABLE IF NOT EXISTS {checkpoints} (partition int4 PRIMARY KEY, epoch int8 NOT NULL, body bytea NOT NULL, \
             saved timestamptz NOT NULL DEFAULT now(), next_offset int8 NOT NULL)"
        ),
        tails::table(schema),
    ]
}

/// Makes what must be there before a lease is asked for. What is there already takes no right to make it.
async fn make(client: &Object, config: &TimescaleConfig, partitions: u32) -> Result<(), SinksError> {
    let doing = "make the tables of leases";
    let schema = config.schema.as_str();
    let there = ["workers", "leases", "checkpoints", "tails"]
        .map(|table| format!("to_regclass('{}') IS NOT NULL", qualified(schema, table)))
        .join(" AND ");
    if rows(client, config, doing, &format!("SELECT 1 WHERE {there}")).await?.is_empty() {
        // All workers may start at once, and servers that migrate.
        let begin = format!("BEGIN; SELECT pg_advisory_xact_lock({ADVISORY_LOCK})");
        run(client, config, doing, &[begin]).await?;
        let schema_there = format!("SELECT 1 WHERE to_regnamespace('{}') IS NOT NULL", quoted(schema));
        if rows(client, config, doing, &schema_there).await?.is_empty() {
            run(client, config, doing, &[format!("CREATE SCHEMA {}", quoted(schema))]).await?;
        }
        run(client, config, doing, &tables(schema)).await?;
        run(client, config, doing, &["COMMIT".to_owned()]).await?;
    }
    let fill = format!(
        "INSERT INTO {} (partition) SELECT generate_series(0, {}) ON CONFLICT DO NOTHING",
        qualified(schema, "leases"),
        i64::from(partitions) - 1
    );
    run(client, config, doing, &[fill]).await
}

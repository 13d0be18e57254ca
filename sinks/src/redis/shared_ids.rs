//! The set of event ids that several ingest nodes share.
//!
//! An id is absent, *claimed* by a node for a few seconds, or *stored* for the length of the window. A node claims the ids of a
//! group before it appends the group to its log, and marks them as stored once the group is durable, before it answers. Only
//! what is marked as stored is ever answered as a duplicate, so that no node answers for an event that is durable nowhere:
//!
//! | what happens | what another node does with the same id |
//! |---|---|
//! | the node dies after the claim, before the event is durable | waits at most `wait_ms_max`, then stores it |
//! | the append fails | the claim is given up; stores it |
//! | the node dies when the event is durable and not yet marked | stores it too: twice at worst, unanswered before |
//! | the node answers, then dies | answers "duplicate" |
//! | Redis is away, slow, full, or has forgotten | stores it by what it knows itself: twice at worst |
//!
//! Nothing here refuses or loses an event, and nothing waits for Redis longer than its bound; after a few failures nothing waits
//! at all until Redis has answered a ping.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use metrics::{counter, gauge};
use parking_lot::{Mutex, RwLock};
use redis::aio::MultiplexedConnection;
use redis::{Pipeline, RedisError};
use tidegate_pipeline::Stage;
use tidegate_pipeline::backoff::Backoff;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

use super::config::SharedIdsConfig;
use super::keys::KeyNames;
use super::link::Server;
use crate::metrics as names;

const CLAIM: &str = include_str!("claim.lua");
const SETTLE: &str = include_str!("settle.lua");

/// Ids of one call of a script: what Lua takes as arguments of a function, and a moment of the server's time.
const IDS_MAX: usize = 1_000;

/// Between two looks at ids that another node is about to store.
const LOOK_AGAIN: Duration = Duration::from_millis(4);

/// Between two tries to reach Redis.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// What is known of an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    /// This node stores it.
    Ours,
    /// Another node is about to store it.
    Claimed,
    /// It is durable on a node.
    Stored,
}

/// The set, as one node sees it.
#[derive(Debug)]
pub(super) struct SharedIds {
    server: Arc<Server>,
    keys: KeyNames,
    pub(super) config: SharedIdsConfig,
    node: String,
    claim_hash: String,
    settle_hash: String,
    stage: Arc<Stage>,
    connection: RwLock<Option<MultiplexedConnection>>,
    failures: AtomicU32,
    /// The connection was given up, or there is something to tell.
    woken: Notify,
    /// Stored ids of which Redis has not said that it knows them.
    missed: Mutex<VecDeque<u128>>,
    pub(super) groups: Arc<Semaphore>,
}

impl SharedIds {
    pub(super) fn new(
        server: Arc<Server>,
        keys: KeyNames,
        config: SharedIdsConfig,
        node: String,
        stage: Arc<Stage>,
    ) -> Arc<Self> {
        let hash = |script: &str| redis::Script::new(script).get_hash().to_owned();
        let groups = Arc::new(Semaphore::new(config.groups_max));
        Arc::new(Self {
            server,
            keys,
            config,
            node,
            claim_hash: hash(CLAIM),
            settle_hash: hash(SETTLE),
            stage,
            connection: RwLock::default(),
            failures: AtomicU32::new(0),
            woken: Notify::new(),
            missed: Mutex::default(),
            groups,
        })
    }

    /// Whether Redis is asked at present.
    pub(super) fn is_up(&self) -> bool {
        self.connection.read().is_some()
    }

    /// Connects, and connects again whenever the connection was given up; tells what was missed meanwhile. Never ends.
    pub(super) async fn keep_connected(self: Arc<Self>) {
        let mut backoff = Backoff::new(RECONNECT.0, RECONNECT.1, 7);
        let mut slow = Backoff::new(RECONNECT.0, RECONNECT.1, 11);
        loop {
            let up = self.connection.read().clone();
            if let Some(mut connection) = up {
                let wait = self.server.reply_max;
                connection.set_response_timeout(wait);
                match self.tell_missed(&mut connection).await {
                    Ok(()) => {
                        slow.succeeded();
                        self.woken.notified().await;
                    }
                    Err(error) => {
                        self.failed(&error, wait);
                        tokio::time::sleep(slow.failed()).await;
                    }
                }
                continue;
            }
            gauge!(names::REDIS_IDS_AWAY).set(1.0);
            match self.reconnect().await {
                Ok(()) => {
                    if backoff.failures() > 0 {
                        tracing::info!("event ids are shared over Redis again");
                    }
                    backoff.succeeded();
                    gauge!(names::REDIS_IDS_AWAY).set(0.0);
                    self.stage.set_detail(None);
                }
                Err(reason) => {
                    if backoff.failures() == 0 {
                        tracing::warn!(reason, "event ids are not shared: each node knows its own only");
                    }
                    self.degraded(&reason);
                    tokio::time::sleep(backoff.failed()).await;
                }
            }
        }
    }

    /// Connects, tells what was missed, and lets the appends ask.
    async fn reconnect(&self) -> Result<(), String> {
        let wait = self.server.reply_max;
        let mut connection = self.server.connect(wait, &[CLAIM, SETTLE]).await?;
        let told = |error: RedisError| self.server.told(&error, wait);
        // A server that answers may still refuse to be written to. No event has the id 0.
        self.settle_on(&mut connection, &[0], true).await.map_err(told)?;
        self.tell_missed(&mut connection).await.map_err(told)?;
        self.failures.store(0, Ordering::Relaxed);
        connection.set_response_timeout(Duration::from_millis(self.config.wait_ms_max));
        *self.connection.write() = Some(connection);
        Ok(())
    }

    /// Tells the other nodes what is stored here and they have not heard of yet. What is not told stays.
    async fn tell_missed(&self, connection: &mut MultiplexedConnection) -> Result<(), RedisError> {
        loop {
            let told: Vec<u128> = {
                let mut missed = self.missed.lock();
                let count = missed.len().min(8 * IDS_MAX);
                missed.drain(..count).collect()
            };
            if told.is_empty() {
                return Ok(());
            }
            if let Err(error) = self.settle_on(connection, &told, true).await {
                let mut missed = self.missed.lock();
                let room = self.config.missed_ids_max.saturating_sub(missed.len());
                // Those that came meanwhile are newer.
                told.into_iter().rev().take(room).for_each(|id| missed.push_front(id));
                return Err(error);
            }
        }
    }

    fn degraded(&self, reason: &str) {
        self.stage.set_detail(Some(format!("duplicates are recognised by this node alone: {reason}")));
    }

    /// Takes note of a failure; after a few, Redis is left alone.
    fn failed(&self, error: &RedisError, waited: Duration) {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        let slow = error.is_timeout();
        if (!slow || failures >= self.config.open_after_failures) && self.connection.write().take().is_some() {
            let reason = self.server.told(error, waited);
            tracing::warn!(reason, "event ids are not shared: each node knows its own only");
            self.degraded(&reason);
            self.woken.notify_one();
        }
    }

    /// What is known of ids. Those of which nothing is are claimed, if `claim` says so; ids that another node has claimed are
    /// looked at again until the time is over. `None` when Redis did not say.
    pub(super) async fn known(&self, ids: &[u128], claim: bool) -> Option<Vec<Known>> {
        let deadline = Instant::now() + Duration::from_millis(self.config.wait_ms_max);
        let mut known = self.ask(ids, claim, deadline).await?;
        loop {
            let open: Vec<usize> = (0..ids.len()).filter(|at| known.get(*at) == Some(&Known::Claimed)).collect();
            if !claim || open.is_empty() || Instant::now() + LOOK_AGAIN >= deadline {
                return Some(known);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
            let again: Vec<u128> = open.iter().filter_map(|at| ids.get(*at)).copied().collect();
            // What was claimed just now stays claimed, whatever becomes of this look.
            let Some(answers) = self.ask(&again, claim, deadline).await else { return Some(known) };
            for (at, answer) in open.into_iter().zip(answers) {
                if let Some(place) = known.get_mut(at) {
                    *place = answer;
                }
            }
        }
    }

    async fn ask(&self, ids: &[u128], claim: bool, deadline: Instant) -> Option<Vec<Known>> {
        let mut connection = self.connection.read().clone()?;
        let claim_ms = if claim { self.config.claim_s * 1_000 } else { 0 };
        let requests = self.requests(&self.claim_hash, ids, claim_ms);
        let asking = requests.query_async::<Vec<Vec<u8>>>(&mut connection);
        let started = Instant::now();
        let error = match tokio::time::timeout_at(deadline, asking).await {
            Ok(Ok(answers)) => {
                let known = answers.into_iter().flatten().map(|digit| match digit {
                    b'2' => Known::Stored,
                    b'1' => Known::Claimed,
                    _ => Known::Ours,
                });
                let known: Vec<Known> = known.collect();
                self.failures.store(0, Ordering::Relaxed);
                return (known.len() == ids.len()).then_some(known);
            }
            Ok(Err(error)) => error,
            Err(_) => std::io::Error::from(std::io::ErrorKind::TimedOut).into(),
        };
        self.failed(&error, started.elapsed());
        None
    }

    /// Says what became of ids: stored, or given up. Waits as long as the bound; ids that Redis did not confirm as stored are
    /// told again soon, or when it is back.
    pub(super) async fn settle(&self, ids: &[u128], stored: bool) {
        let connection = self.connection.read().clone();
        if let Some(mut connection) = connection {
            let wait = Duration::from_millis(self.config.wait_ms_max);
            let settled = tokio::time::timeout(wait, self.settle_on(&mut connection, ids, stored)).await;
            match settled.unwrap_or_else(|_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into())) {
                Ok(()) => return,
                Err(error) => self.failed(&error, wait),
            }
        }
        if stored {
            self.missed(ids);
        }
    }

    /// Keeps ids that were stored and not told, and has them told as soon as may be; the oldest go when they are too many.
    pub(super) fn missed(&self, ids: &[u128]) {
        {
            let mut missed = self.missed.lock();
            missed.extend(ids);
            let over = missed.len().saturating_sub(self.config.missed_ids_max);
            missed.drain(..over);
        }
        self.woken.notify_one();
        counter!(names::REDIS_IDS_MISSED).increment(ids.len() as u64);
    }

    async fn settle_on(
        &self,
        connection: &mut MultiplexedConnection,
        ids: &[u128],
        stored: bool,
    ) -> Result<(), RedisError> {
        let window_ms = if stored { self.config.window_s * 1_000 } else { 0 };
        self.requests(&self.settle_hash, ids, window_ms).exec_async(connection).await
    }

    fn requests(&self, hash: &str, ids: &[u128], ms: u64) -> Pipeline {
        let mut requests = Pipeline::with_capacity(ids.len().div_ceil(IDS_MAX));
        for ids in ids.chunks(IDS_MAX) {
            let mut request = redis::cmd("EVALSHA");
            request.arg(hash).arg(ids.len());
            for id in ids {
                request.arg(self.keys.id(*id));
            }
            request.arg(&self.node).arg(ms);
            requests.add_command(request);
        }
        requests
    }
}

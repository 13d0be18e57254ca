//! The role `worker`: takes leases on partitions of the log, and works on those that it holds.
//!
//! A lease is renewed well before it ends. When that does not succeed in time, all partitions are let go at once, before another
//! worker may have them; what was under way then cannot be committed any more, since the database looks at the lease.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use metrics::{counter, gauge};
use metrics_exporter_prometheus::PrometheusHandle;
use tidegate_pipeline::Stage;
use tidegate_sinks::SinksError;
use tidegate_sinks::timescale::{Lease, Leases, Round, TimescaleConfig};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle, JoinSet};

use super::super::metrics::{LEASES_LOST, LEASES_TAKEN, PARTITION_HELD, PARTITION_LAG, PARTITIONS_HELD};
use super::super::router::Offered;
use super::super::signals::until_signal;
use super::Node;
use super::partition::{LAGGING, Partition, PartitionParts, Stages};
use crate::config::Config;

/// Rounds for each length of a lease.
const ROUNDS: u32 = 4;

/// Tries that a partition gets before it is left to other workers for a while.
const TRIES: u32 = 3;

/// A while is at least the length of a lease, twice as long each time, and at most so many times: a power of two.
const REST_MAX: u32 = 8;

/// Runs the node until it is told to stop.
///
/// # Errors
/// What keeps it from starting, or from ending well.
pub(super) async fn run(mut node: Node, config: &Config, metrics: PrometheusHandle) -> anyhow::Result<()> {
    // Before the first event is looked at.
    node.sync_rules().await?;
    let doors = node.listen(config, Offered::default(), watch::Sender::new(false), metrics).await?;
    let mut worker = Worker::new(&node, config)?;
    worker.work(until_signal(Some(&node.rules))).await?;
    let deadline = Instant::now() + Duration::from_millis(config.shutdown.drain_ms_max);
    worker.end(deadline).await;
    doors.close().await?;
    node.end(deadline).await;
    Ok(())
}

/// A partition whose lease is held.
enum Unit {
    /// On its way to work.
    Starting(Lease, JoinHandle<anyhow::Result<Partition>>),
    Working(Box<Partition>),
    /// On its way to others; its lease is held until it has ended.
    Ending(Lease, AbortHandle),
}

struct Worker {
    config: Arc<Config>,
    /// One connection for each log of a partition: the partitions are written at the same time.
    timescale: TimescaleConfig,
    leases: Leases,
    length: Duration,
    partitions: u32,
    units: BTreeMap<u32, Unit>,
    ending: JoinSet<Lease>,
    /// The newest lease of each partition that was let go of before it was given back: what was under way then may still be, so
    /// that the partition is taken with another epoch only.
    abandoned: BTreeMap<u32, Lease>,
    /// How often each partition did not come to work here, or ended, since it last worked for the length of a lease.
    tries: BTreeMap<u32, u32>,
    /// Until when nothing is taken.
    rests_until: Option<Instant>,
    /// Workers beside this one.
    others: usize,
    stages: BTreeMap<u32, Stages>,
    /// How often a partition was taken, by whoever, when this worker took it last.
    taken: BTreeMap<u32, u64>,
    stage: Arc<Stage>,
    node: NodeParts,
}

/// What partitions need of the node.
struct NodeParts {
    fs: Arc<dyn tidegate_pipeline::fs::Fs>,
    changes: Arc<tidegate_sinks::fluvio::FluvioLog>,
}

impl Worker {
    fn new(node: &Node, config: &Config) -> anyhow::Result<Self> {
        let timescale = config.sinks.timescale.clone().context("a worker needs sinks.timescale")?;
        let timescale = TimescaleConfig { connections: 1, ..timescale };
        timescale.check()?;
        let length = Duration::from_millis(config.worker.lease_ms);
        let leases = Leases::new(timescale.clone(), &holder(config)?, length)?;
        let stages = (0..node.partitions).map(|partition| (partition, Stages::new(&node.health, partition)));
        Ok(Self {
            config: Arc::new(config.clone()),
            timescale,
            leases,
            length,
            partitions: node.partitions,
            units: BTreeMap::new(),
            ending: JoinSet::new(),
            abandoned: BTreeMap::new(),
            tries: BTreeMap::new(),
            rests_until: None,
            others: 0,
            stages: stages.collect(),
            taken: BTreeMap::new(),
            stage: node.health.stage("leases"),
            node: NodeParts { fs: node.fs.clone(), changes: node.changes.clone() },
        })
    }

    /// Holds leases and works on their partitions, until it is told to stop. Nothing in it takes longer than what is held is held.
    async fn work(&mut self, stop: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
        let mut stop = pin!(stop);
        let mut rounds = tokio::time::interval(self.length / ROUNDS);
        rounds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let lost = self.held_until();
            tokio::select! {
                // First of all: a round that is due can wait, and what is lost cannot.
                biased;
                () = tokio::time::sleep_until(lost.unwrap_or_else(Instant::now).into()), if lost.is_some() => self.lose_all(),
                stopped = &mut stop => return stopped,
                Some(ended) = self.ending.join_next() => self.ended(ended.ok()).await,
                _ = rounds.tick() => self.round().await,
            }
        }
    }

    /// Until when what is held is held, when something is.
    fn held_until(&self) -> Option<Instant> {
        self.leases.good_until().filter(|_| !self.units.is_empty())
    }

    /// Until when the database may answer: never so long that something is held past its time.
    fn patience(&self) -> Instant {
        let patience = Instant::now() + self.length / 2;
        self.held_until().map_or(patience, |until| until.min(patience))
    }

    async fn round(&mut self) {
        let rests = self.rests();
        let found = in_time(self.patience(), self.leases.round(self.partitions, rests)).await;
        let Round { held, share, others } = match found {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(error, "the leases are not renewed; it is tried again");
                self.stage.set_detail(Some(error));
                self.stage.waiting(1, Instant::now());
                if self.leases.good_until().is_some_and(|until| Instant::now() >= until) {
                    self.lose_all();
                }
                return;
            }
        };
        self.stage.set_detail(None);
        self.stage.waiting(0, Instant::now());
        self.others = others;
        let gone: Vec<u32> = (self.units.iter())
            .filter(|(_, unit)| !held.contains(&unit.lease()))
            .map(|(partition, _)| *partition)
            .collect();
        gone.into_iter().for_each(|partition| self.lose(partition));
        self.settle().await;
        for lease in held.iter().filter(|lease| !self.units.contains_key(&lease.partition)).collect::<Vec<_>>() {
            if self.abandoned.get(&lease.partition) == Some(lease) {
                self.release(Some(*lease), self.patience()).await;
            } else {
                self.start(*lease);
            }
        }
        let anew = self.beginning_anew();
        self.give_back(anew);
        let surplus = held.len().saturating_sub(share);
        self.give_back(self.over(surplus));
        self.show();
    }

    /// The partitions at work that are to be started anew, here or elsewhere.
    fn beginning_anew(&mut self) -> Vec<u32> {
        let (mut anew, mut ended) = (Vec::new(), Vec::new());
        for (partition, unit) in &self.units {
            let Unit::Working(working) = unit else { continue };
            if working.has_lost() {
                anew.push(*partition);
            } else if working.has_ended() {
                ended.push(working.lease());
            } else if working.started().elapsed() > self.length {
                self.tries.remove(partition);
            }
        }
        for lease in ended {
            // Where it ends time and again, and nobody else is there, it stays as it is, and its stage says so.
            if self.others > 0 || self.tries.get(&lease.partition).is_none_or(|tries| *tries < TRIES) {
                self.failed(lease);
                anew.push(lease.partition);
            }
        }
        anew
    }

    /// A partition does not work here: whether it is left to others now.
    fn failed(&mut self, lease: Lease) -> bool {
        let tries = self.tries.entry(lease.partition).or_default();
        *tries += 1;
        if self.others == 0 || !tries.is_multiple_of(TRIES) {
            return false;
        }
        let rest = self.length * (1 << (*tries / TRIES - 1).min(REST_MAX.ilog2()));
        tracing::warn!(?lease, tries, ?rest, "a partition does not work here: it is left to other workers");
        self.rests_until = Some(Instant::now() + rest);
        true
    }

    /// Whether what is free is left to others now: only while there are some.
    fn rests(&mut self) -> bool {
        if self.rests_until.is_some_and(|until| Instant::now() >= until || self.others == 0) {
            self.rests_until = None;
            // Whoever has them by now: nothing waits for them here.
            for partition in self.tries.keys().filter(|partition| !self.units.contains_key(partition)) {
                self.stages.get(partition).iter().for_each(|stages| stages.clear());
            }
        }
        self.rests_until.is_some()
    }

    /// Sets the gauges.
    fn show(&self) {
        gauge!(PARTITIONS_HELD).set(self.units.len() as f64);
        for partition in 0..self.partitions {
            let unit = self.units.get(&partition);
            let label = partition.to_string();
            gauge!(PARTITION_HELD, "partition" => label.clone()).set(if unit.is_some() { 1.0 } else { 0.0 });
            let lag = if let Some(Unit::Working(working)) = unit { working.lag() } else { [0; 3] };
            for (stage, records) in LAGGING.into_iter().zip(lag) {
                gauge!(PARTITION_LAG, "partition" => label.clone(), "stage" => stage).set(records as f64);
            }
        }
    }

    fn start(&mut self, lease: Lease) {
        let Some(stages) = self.stages.get(&lease.partition).cloned() else { return };
        if self.taken.insert(lease.partition, lease.epoch) != Some(lease.epoch) {
            counter!(LEASES_TAKEN, "partition" => lease.partition.to_string()).increment(1);
        }
        let parts = PartitionParts {
            config: self.config.clone(),
            timescale: self.timescale.clone(),
            fs: self.node.fs.clone(),
            changes: self.node.changes.clone(),
            lease,
            checkpoint: self.leases.checkpoints(lease),
            stages,
        };
        self.units.insert(lease.partition, Unit::Starting(lease, tokio::spawn(Partition::start(parts))));
    }

    /// Looks what became of those that were starting.
    async fn settle(&mut self) {
        for (partition, unit) in std::mem::take(&mut self.units) {
            let settled = match unit {
                Unit::Starting(lease, task) if task.is_finished() => match task.await {
                    Ok(Ok(working)) => Some(Unit::Working(Box::new(working))),
                    Ok(Err(error)) => {
                        let error = format!("{error:#}");
                        tracing::warn!(?lease, error, "a partition does not start; it is tried again");
                        if let Some(stages) = self.stages.get(&partition) {
                            stages.refused(error);
                        }
                        if self.failed(lease) {
                            // It has written nothing, and is given back.
                            self.abandoned.insert(partition, lease);
                        }
                        None
                    }
                    Err(error) => {
                        tracing::error!(?lease, %error, "the start of a partition ended early: a bug; it is tried again");
                        None
                    }
                },
                other => Some(other),
            };
            if let Some(unit) = settled {
                self.units.insert(partition, unit);
            }
        }
    }

    /// So many partitions, less those that end already, for workers that have fewer.
    fn over(&self, surplus: usize) -> Vec<u32> {
        let under_way = self.units.values().filter(|unit| matches!(unit, Unit::Ending(..))).count();
        let working = self.units.iter().rev().filter(|(_, unit)| matches!(unit, Unit::Working(_)));
        working.map(|(partition, _)| *partition).take(surplus.saturating_sub(under_way)).collect()
    }

    /// Ends partitions, whose leases are given back then: for other workers, or to be started anew by whoever takes them.
    fn give_back(&mut self, partitions: Vec<u32>) {
        for partition in partitions {
            if let Some(Unit::Working(working)) = self.units.remove(&partition) {
                let lease = working.lease();
                let deadline = Instant::now() + self.length / 2;
                let ending = self.ending.spawn(async move {
                    working.drain(deadline).await;
                    lease
                });
                self.units.insert(partition, Unit::Ending(lease, ending));
            }
        }
    }

    /// A partition that was given back has ended.
    async fn ended(&mut self, lease: Option<Lease>) {
        let patience = self.patience();
        self.release(lease, patience).await;
    }

    async fn release(&mut self, lease: Option<Lease>, deadline: Instant) {
        let Some(lease) = lease else { return };
        let deadline = self.patience().min(deadline);
        if let Err(error) = in_time(deadline, self.leases.release(lease)).await {
            tracing::warn!(?lease, error, "a lease was not given back: it is tried again, or it ends by itself");
            // What was asked may be done late: this lease is good for nothing more.
            self.abandoned.insert(lease.partition, lease);
        }
        if matches!(self.units.get(&lease.partition), Some(Unit::Ending(ending, _)) if *ending == lease) {
            self.units.remove(&lease.partition);
        }
    }

    fn lose_all(&mut self) {
        let all: Vec<u32> = self.units.keys().copied().collect();
        all.into_iter().for_each(|partition| self.lose(partition));
    }

    fn lose(&mut self, partition: u32) {
        let Some(unit) = self.units.remove(&partition) else { return };
        self.abandoned.insert(partition, unit.lease());
        match unit {
            Unit::Working(working) => working.abandon(),
            Unit::Starting(_, task) => task.abort(),
            // Dropped, it ends at once.
            Unit::Ending(_, ending) => ending.abort(),
        }
        counter!(LEASES_LOST, "partition" => partition.to_string()).increment(1);
        if let Some(stages) = self.stages.get(&partition) {
            stages.clear();
        }
        self.show();
    }

    /// Gives everything back, as far as the deadline and the database let it. What is on its way to work is not waited for: it has
    /// written nothing.
    async fn end(mut self, deadline: Instant) {
        // Some of the time is left for the commits that end it.
        let until = deadline - deadline.saturating_duration_since(Instant::now()) / 5;
        for (_, unit) in std::mem::take(&mut self.units) {
            match unit {
                Unit::Working(working) => {
                    self.ending.spawn(async move {
                        let lease = working.lease();
                        working.drain(until).await;
                        lease
                    });
                }
                Unit::Starting(lease, task) => {
                    task.abort();
                    self.ending.spawn(async move {
                        // What had started by then ends here.
                        drop(task.await);
                        lease
                    });
                }
                // It is among those that end already.
                Unit::Ending(..) => {}
            }
        }
        let mut rounds = tokio::time::interval(self.length / ROUNDS);
        rounds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while !self.ending.is_empty() {
            let held = self.leases.good_until().map_or(deadline, |until| until.min(deadline));
            tokio::select! {
                biased;
                // Dropped, they end at once.
                () = tokio::time::sleep_until(held.into()) => {
                    tracing::warn!(partitions = self.ending.len(), "not all partitions could be given back: their leases end by themselves");
                    self.ending.abort_all();
                    break;
                }
                Some(ended) = self.ending.join_next() => self.release(ended.ok(), held).await,
                _ = rounds.tick() => {
                    if let Err(error) = in_time(self.patience().min(held), self.leases.renew()).await {
                        tracing::warn!(error, "the leases are not renewed; it is tried again");
                    }
                }
            }
        }
        if let Err(error) = in_time(deadline, self.leases.leave()).await {
            tracing::warn!(error, "the other workers see later that this one is gone");
        }
    }
}

/// What the database answers, or why it does not.
async fn in_time<T>(deadline: Instant, asked: impl Future<Output = Result<T, SinksError>>) -> Result<T, String> {
    let started = Instant::now();
    match tokio::time::timeout_at(deadline.into(), asked).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer of the database in {} ms", started.elapsed().as_millis())),
    }
}

impl Unit {
    fn lease(&self) -> Lease {
        match self {
            Self::Starting(lease, _) | Self::Ending(lease, _) => *lease,
            Self::Working(working) => working.lease(),
        }
    }
}

/// A name that no other process has.
fn holder(config: &Config) -> anyhow::Result<String> {
    let machine = || rustix::system::uname().nodename().to_string_lossy().into_owned();
    let name = config.worker.name.clone().unwrap_or_else(machine);
    let plain = |letter: char| if letter.is_ascii_alphanumeric() { letter } else { '-' };
    let name: String = name.chars().take(60).map(plain).collect();
    Ok(format!("{name}.{:016x}", getrandom::u64().context("random bits")?))
}

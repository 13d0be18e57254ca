//! The alerts of the other nodes: found, followed, and shown to the feed as one log a node.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use metrics::{counter, gauge};
use parking_lot::RwLock;
use redis::{Pipeline, Value};
use tidegate_pipeline::backoff::Backoff;
use tidegate_pipeline::clock::now_us;
use tidegate_pipeline::log::memory_bytes;
use tidegate_pipeline::{LogBatch, LogBounds, LogReader, Offset, PipelineError, Stage};
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::alert_frames::{Frame, frames, position};
use super::config::FanOutConfig;
use super::keys::KeyNames;
use super::link::{Link, Server, as_error, as_text};
use crate::feed::{Peer, Peers};
use crate::metrics as names;

/// Between two looks at which nodes there are; at the same time this node shows itself.
const LOOK: Duration = Duration::from_secs(1);

/// Entries of one read.
const READ_MAX: usize = 64;

/// Between two tries to reach Redis.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// The alerts of another node, as far as Redis has them.
struct PeerLog {
    stream: String,
    server: Arc<Server>,
    runtime: Handle,
    newest: RwLock<Newest>,
    bounds: watch::Sender<LogBounds>,
    memory_bytes_max: usize,
}

/// The newest batches, in memory.
#[derive(Default)]
struct Newest {
    frames: VecDeque<Frame>,
    bytes: usize,
    /// Everything from here on is in memory.
    start: Offset,
}

impl PeerLog {
    /// Takes in entries that follow those before them.
    fn push(&self, fresh: Vec<Frame>) {
        let Some(last) = fresh.last() else { return };
        let end = last.batch.next_offset();
        let mut newest = self.newest.write();
        for frame in fresh {
            newest.bytes += memory_bytes(&frame.batch.rows);
            newest.frames.push_back(frame);
        }
        while newest.bytes > self.memory_bytes_max && newest.frames.len() > 1 {
            if let Some(dropped) = newest.frames.pop_front() {
                newest.bytes -= memory_bytes(&dropped.batch.rows);
                newest.start = dropped.batch.next_offset();
            }
        }
        drop(newest);
        self.bounds.send_modify(|bounds| bounds.next = bounds.next.max(end));
    }

    /// Entries after `from` from Redis.
    async fn fetch(&self, from: Offset) -> Result<Vec<Frame>, String> {
        let mut connection = self.server.connect(self.server.reply_max, &[]).await?;
        let mut request = redis::cmd("XRANGE");
        request.arg(&self.stream).arg(format!("({from}-0")).arg("+").arg("COUNT").arg(READ_MAX);
        let answer = request.query_async::<Value>(&mut connection).await;
        answer.map(|answer| frames(&answer)).map_err(|error| self.server.told(&error, self.server.reply_max))
    }

    fn forgotten(&self, asked: Offset, first: Offset) -> PipelineError {
        self.bounds.send_modify(|bounds| bounds.first = bounds.first.max(first));
        PipelineError::Forgotten { asked, first }
    }
}

impl LogReader for PeerLog {
    fn read(&self, from: Offset, bytes_max: usize) -> Result<Vec<Arc<LogBatch>>, PipelineError> {
        let bounds = self.bounds();
        if from < bounds.first {
            return Err(PipelineError::Forgotten { asked: from, first: bounds.first });
        }
        let kept = {
            let newest = self.newest.read();
            let first = newest.frames.partition_point(|frame| frame.batch.next_offset() <= from);
            (from >= newest.start).then(|| newest.frames.range(first..).cloned().collect::<Vec<_>>())
        };
        let found = match kept {
            Some(kept) => kept,
            // Called on a thread that may block: see `read_on`.
            None => self.runtime.block_on(self.fetch(from)).map_err(PipelineError::Invalid)?,
        };
        let Some(first) = found.first() else { return Ok(Vec::new()) };
        if first.previous > from && first.batch.offset > from {
            return Err(self.forgotten(from, first.previous));
        }
        // A hole after the first ends the read; the next one begins there.
        let mut batches = Vec::new();
        let (mut at, mut bytes) = (first.previous, 0);
        for frame in found {
            if frame.previous > at || bytes >= bytes_max {
                break;
            }
            at = frame.batch.next_offset();
            bytes += memory_bytes(&frame.batch.rows);
            batches.push(frame.batch);
        }
        Ok(batches)
    }

    fn watch(&self) -> watch::Receiver<LogBounds> {
        self.bounds.subscribe()
    }
}

/// Follows the other nodes. See [`follow`](Self::follow).
pub(super) struct Follower {
    link: Link,
    keys: KeyNames,
    config: FanOutConfig,
    node: String,
    stage: Arc<Stage>,
    peers: HashMap<String, (Arc<PeerLog>, bool)>,
    told: watch::Sender<Option<Arc<Vec<Peer>>>>,
    looked: Option<tokio::time::Instant>,
}

impl Follower {
    pub(super) fn new(
        server: Arc<Server>,
        keys: KeyNames,
        config: FanOutConfig,
        node: String,
        stage: Arc<Stage>,
    ) -> (Self, Peers) {
        let (told, others) = watch::channel(None);
        let peers = Peers { own: node.as_str().into(), others };
        let link = Link::new(server, &[]);
        (Self { link, keys, config, node, stage, peers: HashMap::new(), told, looked: None }, peers)
    }

    /// Shows this node, finds the others, and takes in their alerts as they come. Never ends.
    pub(super) async fn follow(mut self) {
        let mut backoff = Backoff::new(RECONNECT.0, RECONNECT.1, 11);
        loop {
            match self.step().await {
                Ok(()) if backoff.failures() > 0 => {
                    tracing::info!("alerts of the other nodes come again");
                    backoff.succeeded();
                    self.stage.set_detail(None);
                }
                Ok(()) => {}
                Err(reason) => {
                    if backoff.failures() == 0 {
                        tracing::warn!(reason, "the alerts of the other nodes do not come");
                    }
                    self.stage.set_detail(Some(format!("the alerts of the other nodes do not come: {reason}")));
                    self.looked = None;
                    tokio::time::sleep(backoff.failed()).await;
                }
            }
        }
    }

    async fn step(&mut self) -> Result<(), String> {
        if self.looked.is_none_or(|looked| looked.elapsed() >= LOOK) {
            self.look().await?;
            self.looked = Some(tokio::time::Instant::now());
        }
        if self.peers.is_empty() {
            tokio::time::sleep(LOOK).await;
            return Ok(());
        }
        self.read().await
    }

    /// Shows this node, and takes up those that are new.
    async fn look(&mut self) -> Result<(), String> {
        let (nodes, now_s) = (self.keys.nodes(), now_us() / 1_000_000);
        let forgotten = now_s - i64::try_from(self.config.forget_s).unwrap_or(i64::MAX);
        let mut requests = Pipeline::new();
        requests.cmd("ZADD").arg(&nodes).arg(now_s).arg(&self.node);
        requests.cmd("ZRANGEBYSCORE").arg(&nodes).arg("-inf").arg(format!("({forgotten}"));
        requests.cmd("ZREVRANGE").arg(&nodes).arg(0).arg(self.config.nodes_max);
        let answers = self.link.ask(&mut requests).await?;
        if let Some(error) = answers.iter().find_map(as_error) {
            return Err(self.link.server.refused(&error));
        }
        let texts = |at: usize| match answers.get(at) {
            Some(Value::Array(names)) => names.iter().filter_map(as_text).collect::<Vec<_>>(),
            _ => Vec::new(),
        };
        let (gone, mut there) = (texts(1), texts(2));
        there.retain(|node| *node != self.node && is_name(node) && !gone.contains(node));
        let before = self.peers.len();
        self.peers.retain(|node, _| there.contains(node));
        let mut changed = self.peers.len() != before || self.told.borrow().is_none();
        for node in there {
            if !self.peers.contains_key(&node) {
                let log = self.find(&node).await?;
                // Nodes that were there when this one first looked have a past of which its clients saw nothing.
                let new = self.told.borrow().is_some();
                self.peers.insert(node, (Arc::new(log), new));
                changed = true;
            }
        }
        self.remove(&gone).await?;
        gauge!(names::REDIS_PEERS).set(self.peers.len() as f64);
        if changed {
            let peer = |(node, (log, new)): (&String, &(Arc<PeerLog>, bool))| Peer {
                node: node.as_str().into(),
                log: log.clone(),
                new: *new,
            };
            self.told.send_replace(Some(Arc::new(self.peers.iter().map(peer).collect())));
        }
        Ok(())
    }

    /// Where the stream of a node begins and ends.
    async fn find(&mut self, node: &str) -> Result<PeerLog, String> {
        let stream = self.keys.alerts(node);
        let mut requests = Pipeline::new();
        requests.cmd("XRANGE").arg(&stream).arg("-").arg("+").arg("COUNT").arg(1);
        requests.cmd("XREVRANGE").arg(&stream).arg("+").arg("-").arg("COUNT").arg(1);
        let answers = self.link.ask(&mut requests).await?;
        if let Some(error) = answers.iter().find_map(as_error) {
            return Err(self.link.server.refused(&error));
        }
        let mut ends = answers.iter().map(|answer| frames(answer).into_iter().next());
        let (first, last) = (ends.next().flatten(), ends.next().flatten());
        let next = last.map_or(0, |last| last.batch.next_offset());
        let first = first.map_or(next, |first| first.previous).min(next);
        let newest = RwLock::new(Newest { start: next, ..Newest::default() });
        let bounds = watch::Sender::new(LogBounds { first, next });
        let (server, memory_bytes_max) = (self.link.server.clone(), self.config.memory_bytes_max);
        Ok(PeerLog { stream, server, runtime: Handle::current(), newest, bounds, memory_bytes_max })
    }

    /// Removes what nodes left that have not been seen for long.
    async fn remove(&mut self, gone: &[String]) -> Result<(), String> {
        if gone.is_empty() {
            return Ok(());
        }
        let mut requests = Pipeline::new();
        for node in gone {
            requests.cmd("DEL").arg(self.keys.alerts(node));
            requests.cmd("ZREM").arg(self.keys.nodes()).arg(node);
        }
        self.link.ask(&mut requests).await.map(drop)
    }

    /// Waits for entries of any node, until the next look.
    async fn read(&mut self) -> Result<(), String> {
        let peers: Vec<Arc<PeerLog>> = self.peers.values().map(|(log, _)| log.clone()).collect();
        let mut request = redis::cmd("XREAD");
        request.arg("COUNT").arg(READ_MAX).arg("BLOCK").arg(LOOK.as_millis() as u64).arg("STREAMS");
        for peer in &peers {
            request.arg(&peer.stream);
        }
        for peer in &peers {
            request.arg(format!("{}-0", peer.bounds().next));
        }
        let mut requests = Pipeline::new();
        requests.add_command(request);
        let wait = self.link.server.reply_max + LOOK;
        let answer = self.link.ask_within(&mut requests, wait).await?.pop().unwrap_or_default();
        if let Some(error) = as_error(&answer) {
            return Err(self.link.server.refused(&error));
        }
        for (stream, entries) in streams(answer) {
            let Some(peer) = peers.iter().find(|peer| peer.stream == stream) else { continue };
            let end = last_position(&entries);
            // Decoding what others wrote: off the threads that serve sockets.
            let decoded = tokio::task::spawn_blocking(move || frames(&entries)).await.unwrap_or_default();
            counter!(names::REDIS_ALERTS_IN)
                .increment(decoded.iter().map(|frame| frame.batch.rows.num_rows() as u64).sum());
            peer.push(decoded);
            // Past entries of which nothing could be made.
            peer.bounds.send_modify(|bounds| bounds.next = bounds.next.max(end.unwrap_or(0)));
        }
        Ok(())
    }
}

/// The streams of an answer to XREAD, with their entries.
fn streams(answer: Value) -> Vec<(String, Value)> {
    let Value::Array(streams) = answer else { return Vec::new() };
    let stream = |stream: Value| match stream {
        Value::Array(mut parts) if parts.len() == 2 => {
            let entries = parts.pop()?;
            Some((as_text(parts.first()?)?, entries))
        }
        _ => None,
    };
    streams.into_iter().filter_map(stream).collect()
}

fn last_position(entries: &Value) -> Option<Offset> {
    let Value::Array(entries) = entries else { return None };
    let Value::Array(parts) = entries.last()? else { return None };
    position(&as_text(parts.first()?)?)
}

/// Whether a name may be that of a node: it becomes part of what clients resume with.
fn is_name(node: &str) -> bool {
    (1..=64).contains(&node.len())
        && node.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

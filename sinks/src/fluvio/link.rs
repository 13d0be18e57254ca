//! A connection to a cluster: topics, producers and readers of partitions, with our own bounds on everything.
//!
//! The client library retries some things for ever and some not at all, and has no bound of time for most calls. So each call
//! has a deadline here; who sees a failure drops the link with all that was made by it, and makes a new one. A fetch that
//! ends within a batch makes the library skip the rest of it, without an error: topics are made with segments that one
//! fetch holds whole (a fetch never goes past a segment), and the offsets that come are checked (docs/sinks/fluvio.md).

use std::fmt::Display;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use fluvio::consumer::{ConsumerConfigExt, RetryMode};
use fluvio::metadata::topic::{CleanupPolicy, SegmentBasedPolicy, TopicResolution, TopicSpec, TopicStorageConfig};
use fluvio::{Fluvio, FluvioClusterConfig, FluvioError, Isolation, Offset as Position};
use futures::StreamExt;
use tokio::time::{Instant, sleep, timeout};

use super::config::{ClusterConfig, check_address};
use super::failure::FluvioFailure;
use super::producer::{Producer, ProducerConfig};
use super::records::Records;
use crate::error::SinksError;

/// Segments of the topics that are made, as a rule. A batch is never larger.
pub(super) const SEGMENT_BYTES: u32 = 16 << 20;

/// What a reader fetches at once: more than a segment.
pub(super) const FETCH_BYTES: u32 = 32 << 20;

/// Between two looks at something that comes about.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Where a cluster is, and how long anything may take.
#[derive(Debug)]
pub(super) struct Cluster {
    /// `host:port` of the SC.
    pub(super) address: String,
    pub(super) connect_max: Duration,
    pub(super) reply_max: Duration,
    pub(super) isolation: Isolation,
}

/// A topic as it is to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TopicShape {
    pub(super) partitions: u32,
    pub(super) replicas: u32,
    /// `None` for ever.
    pub(super) retention_s: Option<u32>,
    /// `None` for as many as there are.
    pub(super) partition_bytes_max: Option<u64>,
    /// Less than [`FETCH_BYTES`].
    pub(super) segment_bytes: u32,
    /// What a batch may have: no more than a segment.
    pub(super) batch_bytes_max: usize,
}

/// The records of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct PartitionBounds {
    /// The first one.
    pub(super) first: u64,
    /// The one that will be written next. Both are 0 for a partition without records.
    pub(super) next: u64,
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub(super) struct Link {
    cluster: Arc<Cluster>,
    fluvio: Arc<Fluvio>,
}

impl Cluster {
    /// Connects to nothing.
    ///
    /// # Errors
    /// [`SinksError::Invalid`] for an address that is none.
    pub(super) fn new(config: &ClusterConfig) -> Result<Arc<Self>, SinksError> {
        check_address(&config.address)?;
        Ok(Arc::new(Self {
            address: config.address.clone(),
            connect_max: Duration::from_millis(config.connect_ms_max),
            reply_max: Duration::from_millis(config.reply_ms_max),
            isolation: config.acknowledged_by.isolation(),
        }))
    }

    /// A new connection to the SC. Those to SPUs are made when they are needed.
    ///
    /// # Errors
    /// [`FluvioFailure::Away`] or [`FluvioFailure::Late`].
    pub(super) async fn connect(self: &Arc<Self>) -> Result<Link, FluvioFailure> {
        let config = FluvioClusterConfig::new(self.address.as_str());
        let connecting = Fluvio::connect_with_config(&config);
        let fluvio = self.in_time("connect", self.connect_max, connecting).await?;
        let fluvio = fluvio.map_err(|error| self.away("connect", &error))?;
        Ok(Link { cluster: self.clone(), fluvio: Arc::new(fluvio) })
    }

    /// Waits for something no longer than `max`.
    pub(super) async fn in_time<F: Future>(
        &self,
        doing: &str,
        max: Duration,
        future: F,
    ) -> Result<F::Output, FluvioFailure> {
        timeout(max, future).await.map_err(|_| self.late(doing, max))
    }

    pub(super) fn late(&self, doing: &str, after: Duration) -> FluvioFailure {
        FluvioFailure::Late { doing: doing.to_owned(), address: self.address.clone(), after }
    }

    pub(super) fn away(&self, doing: &str, error: &dyn Display) -> FluvioFailure {
        FluvioFailure::Away(format!("{doing}: Fluvio at {}: {error}", self.address))
    }
}

impl Link {
    /// Makes sure of a topic; how many partitions it has.
    ///
    /// # Errors
    /// [`FluvioFailure::Refused`] for a topic of which readers would lose records, and for one that the cluster cannot make.
    pub(super) async fn ensure_topic(&self, name: &str, shape: TopicShape) -> Result<u32, FluvioFailure> {
        let doing = format!("make the topic {name}");
        let deadline = Instant::now() + self.cluster.connect_max;
        let (mut asked, mut stands) = (None, None);
        loop {
            match self.topic(name).await? {
                Some((spec, TopicResolution::Provisioned)) => {
                    check_segments(name, &spec, shape.batch_bytes_max)?;
                    return Ok(spec.partitions());
                }
                Some((_, found)) if found.no_resource() || found.is_invalid() => {
                    return Err(FluvioFailure::Refused(format!(
                        "{doing}: the cluster says {}: has it {} SPUs for as many replicas?",
                        found.resolution_label(),
                        shape.replicas
                    )));
                }
                Some((_, found)) => stands = Some(found),
                None if asked.is_none() => {
                    let admin = self.fluvio.admin().await;
                    let made = admin.create(name.to_owned(), false, topic_spec(shape));
                    let made = self.cluster.in_time(&doing, self.cluster.connect_max, made).await?;
                    // Another node may have made it at the same time: it is looked for in any case.
                    asked = Some(made.err().map(|error| error.to_string()));
                }
                None => {}
            }
            if Instant::now() >= deadline {
                return Err(match (asked.flatten(), stands) {
                    (Some(error), _) => self.cluster.away(&doing, &error),
                    (None, Some(stands)) => {
                        self.cluster.away(&doing, &format!("it is still {}", stands.resolution_label()))
                    }
                    (None, None) => self.cluster.late(&doing, self.cluster.connect_max),
                });
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    /// A topic as it is, by this name.
    async fn topic(&self, name: &str) -> Result<Option<(TopicSpec, TopicResolution)>, FluvioFailure> {
        let doing = format!("look for the topic {name}");
        let admin = self.fluvio.admin().await;
        let listed = admin.list::<TopicSpec, _>(vec![name.to_owned()]);
        let listed = self.cluster.in_time(&doing, self.cluster.reply_max, listed).await?;
        let listed = listed.map_err(|error| self.cluster.away(&doing, &error))?;
        // The name is a filter: others may have it as a part of theirs.
        let found = listed.into_iter().find(|topic| topic.name == name);
        Ok(found.map(|topic| (topic.spec, topic.status.resolution)))
    }

    /// A producer of a topic that [`ensure_topic`](Self::ensure_topic) has seen. Records that are sent wait in memory for as long
    /// as the leader of their partition is away: look with [`next_record`](Self::next_record) whether it is there before.
    ///
    /// # Errors
    /// [`FluvioFailure::Away`] or [`FluvioFailure::Late`].
    pub(super) async fn producer(&self, topic: &str, config: &ProducerConfig) -> Result<Producer, FluvioFailure> {
        let doing = format!("open a producer of {topic}");
        let settings = config.settings(&self.cluster)?;
        let pool = self.once_known(&doing, || self.fluvio.topic_producer_with_config(topic, settings.clone())).await?;
        Ok(Producer::new(self.clone(), topic, pool, config))
    }

    /// The records of a partition from `from` on, and those that are still to come.
    ///
    /// # Errors
    /// [`FluvioFailure::Away`] or [`FluvioFailure::Late`]. Where `from` is no longer there, the first record says so.
    pub(super) async fn records(&self, topic: &str, partition: u32, from: u64) -> Result<Records, FluvioFailure> {
        let doing = format!("read {topic}-{partition}");
        let position = Position::absolute(i64::try_from(from).unwrap_or(i64::MAX));
        let position = position.map_err(|error| self.cluster.away(&doing, &error))?;
        let config = self.reading(topic, partition, position, false)?;
        let stream = self.once_known(&doing, || self.fluvio.consumer_with_config(config.clone())).await?;
        Ok(Records::new(self.clone(), topic.to_owned(), partition, from, stream.boxed()))
    }

    /// What a partition holds now. It costs two connections and a fetch of a segment: not for every look.
    ///
    /// # Errors
    /// [`FluvioFailure::Away`] or [`FluvioFailure::Late`], also while the partition has no leader.
    pub(super) async fn bounds(&self, topic: &str, partition: u32) -> Result<PartitionBounds, FluvioFailure> {
        let next = self.next_record(topic, partition).await?;
        let first = self.one_record(topic, partition, Position::beginning()).await?;
        Ok(PartitionBounds { first: first.unwrap_or(0), next })
    }

    /// The record that will be written next to a partition; 0 for one without records.
    ///
    /// # Errors
    /// As [`bounds`](Self::bounds).
    pub(super) async fn next_record(&self, topic: &str, partition: u32) -> Result<u64, FluvioFailure> {
        Ok(self.one_record(topic, partition, Position::from_end(1)).await?.map_or(0, |last| last + 1))
    }

    /// The offset of the first record from a position on that is there already.
    async fn one_record(&self, topic: &str, partition: u32, from: Position) -> Result<Option<u64>, FluvioFailure> {
        let doing = format!("look at {topic}-{partition}");
        let config = self.reading(topic, partition, from, true)?;
        // On a connection of its own: an SPU serves a reader for as long as the connection is there, though nobody reads.
        let link = self.cluster.connect().await?;
        let stream = link.once_known(&doing, || link.fluvio.consumer_with_config(config.clone())).await?;
        let mut stream = stream.boxed();
        match self.cluster.in_time(&doing, self.cluster.reply_max, stream.next()).await? {
            Some(Ok(record)) => Ok(u64::try_from(record.offset()).ok()),
            Some(Err(error)) => Err(self.cluster.away(&doing, &error)),
            None => Ok(None),
        }
    }

    fn reading(
        &self,
        topic: &str,
        partition: u32,
        from: Position,
        ends: bool,
    ) -> Result<ConsumerConfigExt, FluvioFailure> {
        let config = ConsumerConfigExt::builder()
            .topic(topic)
            .partition(partition)
            .offset_start(from)
            .disable_continuous(ends)
            .max_bytes(FETCH_BYTES as i32)
            .isolation(self.cluster.isolation)
            .retry_mode(RetryMode::Disabled)
            .build();
        config.map_err(|error| self.cluster.away("set up a reader", &error))
    }

    /// Does what needs a topic: a client learns of one a moment after it was made.
    async fn once_known<T, E, F>(&self, doing: &str, mut attempt: impl FnMut() -> F) -> Result<T, FluvioFailure>
    where
        E: Display + AsRef<dyn std::error::Error + Send + Sync + 'static>,
        F: Future<Output = Result<T, E>>,
    {
        let deadline = Instant::now() + self.cluster.connect_max;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match timeout(left, attempt()).await {
                Ok(Ok(done)) => return Ok(done),
                Ok(Err(error)) if is_not_known_yet(error.as_ref()) && Instant::now() + LOOK_AGAIN < deadline => {
                    sleep(LOOK_AGAIN).await;
                }
                Ok(Err(error)) => return Err(self.cluster.away(doing, &error)),
                Err(_) => return Err(self.cluster.late(doing, self.cluster.connect_max)),
            }
        }
    }

    pub(super) fn cluster(&self) -> &Arc<Cluster> {
        &self.cluster
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("address", &self.cluster.address).finish_non_exhaustive()
    }
}

/// Whether the client may only have to hear of what was asked for.
fn is_not_known_yet(error: &(dyn std::error::Error + Send + Sync + 'static)) -> bool {
    use FluvioError::{PartitionNotFound, SPUNotFound, TopicNotFound};
    matches!(error.downcast_ref(), Some(TopicNotFound(_) | PartitionNotFound(..) | SPUNotFound(_)))
}

fn topic_spec(shape: TopicShape) -> TopicSpec {
    let mut spec = TopicSpec::new_computed(shape.partitions, shape.replicas, None);
    spec.set_storage(TopicStorageConfig {
        segment_size: Some(shape.segment_bytes),
        // Without it the cluster keeps 100 GB.
        max_partition_size: Some(shape.partition_bytes_max.unwrap_or(u64::MAX >> 1)),
    });
    let time_in_seconds = shape.retention_s.unwrap_or(u32::MAX);
    spec.set_cleanup_policy(CleanupPolicy::Segment(SegmentBasedPolicy { time_in_seconds }));
    spec
}

/// Refuses a topic of which a fetch would not hold whole segments, or whose segments hold no whole batch.
fn check_segments(name: &str, spec: &TopicSpec, batch_bytes_max: usize) -> Result<(), FluvioFailure> {
    let bytes = spec.get_storage().and_then(|storage| storage.segment_size);
    match bytes {
        Some(bytes) if bytes >= FETCH_BYTES => {}
        Some(bytes) if (bytes as usize) < batch_bytes_max => {
            return Err(FluvioFailure::Refused(format!(
                "the topic {name} has segments of {bytes} bytes, and records of up to {batch_bytes_max} are written to it, which the \
                 cluster would never take; remove it, so that it is made with larger ones, or set another prefix"
            )));
        }
        Some(_) => return Ok(()),
        None => {}
    }
    let found = bytes.map_or_else(
        || "segments of the default size (1 GiB)".to_owned(),
        |bytes| format!("segments of {bytes} bytes"),
    );
    Err(FluvioFailure::Refused(format!(
        "the topic {name} has {found}, of which readers lose records without an error; remove it, so that it is made with \
         segments of {SEGMENT_BYTES} bytes, or set another prefix"
    )))
}

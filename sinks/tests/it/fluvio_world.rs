//! The Fluvio cluster that [`SC_ENV`] names, as tests need it: topics of their own, and consumers of the stock client. There is
//! none in CI: the tests that need it say that they were not run.
//!
//! [`SPU_ENV`] names a program that kills the only SPU at once (`kill`), starts it again (`start`), freezes it (`stop`, `cont`), and kills and
//! starts the SC (`sc-kill`, `sc-start`).

use std::collections::{BTreeSet, HashMap};
use std::io::Write;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use fluvio::consumer::{ConsumerConfigExt, RetryMode};
use fluvio::metadata::partition::PartitionSpec;
use fluvio::metadata::topic::TopicSpec;
use fluvio::{Fluvio, FluvioClusterConfig, Offset, RecordKey, TopicProducerConfigBuilder};
use futures::StreamExt;
use tidegate_events::Dataset;
use tidegate_sinks::fluvio::FluvioConfig;
use tokio::runtime::{Builder, Runtime};

/// `host:port` of the SC's public door.
const SC_ENV: &str = "TIDEGATE_TEST_FLUVIO";

/// The program that disturbs it.
const SPU_ENV: &str = "TIDEGATE_TEST_FLUVIO_SPU";

/// A cluster, and topics of a prefix that nobody else has, which are removed with this.
pub struct Cluster {
    address: String,
    pub prefix: String,
    runtime: Runtime,
    _turn: Turn,
}

/// Held by everyone who uses the cluster, alone by who disturbs it.
static CLUSTER: RwLock<()> = RwLock::new(());

/// A hold on it.
#[allow(dead_code, reason = "held, not read")]
enum Turn {
    Shared(RwLockReadGuard<'static, ()>),
    Alone(RwLockWriteGuard<'static, ()>),
}

/// A record as a consumer gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Consumed {
    pub partition: u32,
    pub offset: u64,
    pub org_id: String,
    pub id: String,
}

impl Cluster {
    /// `None`, and a word about `suite`, where there is no cluster.
    pub fn find(suite: &str) -> Option<Self> {
        let address = address(suite)?;
        let turn = Turn::Shared(CLUSTER.read().unwrap_or_else(PoisonError::into_inner));
        Some(Self::new(address, turn))
    }

    /// The same, for a test that [disturbs](disturb) it: no other uses it meanwhile.
    pub fn alone(suite: &str) -> Option<Self> {
        let address = address(suite)?;
        if environment(SPU_ENV).is_none() {
            say(&format!("NOT RUN: {suite}: {SPU_ENV} names no program that disturbs it"));
            return None;
        }
        let turn = Turn::Alone(CLUSTER.write().unwrap_or_else(PoisonError::into_inner));
        Some(Self::new(address, turn))
    }

    fn new(address: String, turn: Turn) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("t{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        Self { address, prefix, runtime, _turn: turn }
    }

    /// A configuration that gives up early, for tests.
    pub fn config(&self) -> FluvioConfig {
        FluvioConfig {
            address: self.address.clone(),
            prefix: self.prefix.clone(),
            partitions: 3,
            connect_ms_max: 5_000,
            reply_ms_max: 2_000,
            partition_bytes_max: 1 << 30,
            ..FluvioConfig::default()
        }
    }

    /// All records of a dataset's topic, partition after partition, by a stock consumer that fetches `max_bytes` at once, or
    /// what it does by default. Nothing for a topic that is not there.
    pub fn consume(&self, dataset: Dataset, max_bytes: Option<i32>) -> Vec<Consumed> {
        self.consume_of(&self.prefix, dataset, max_bytes)
    }

    fn consume_of(&self, prefix: &str, dataset: Dataset, max_bytes: Option<i32>) -> Vec<Consumed> {
        let topic = format!("{prefix}-{}", dataset.table_name().replace('_', "-"));
        self.block_on(async {
            let fluvio = self.fluvio().await;
            let topics = fluvio.admin().await.list::<TopicSpec, _>(vec![topic.clone()]).await.expect("topics");
            let Some(found) = topics.into_iter().find(|found| found.name == topic) else { return Vec::new() };
            let mut all = Vec::new();
            for partition in 0..found.spec.partitions() {
                let mut config = ConsumerConfigExt::builder();
                config.topic(topic.as_str()).partition(partition).offset_start(Offset::beginning());
                config.disable_continuous(true).retry_mode(RetryMode::Disabled);
                if let Some(bytes) = max_bytes {
                    config.max_bytes(bytes);
                }
                let config = config.build().expect("a configuration");
                let mut records = fluvio.consumer_with_config(config).await.expect("a consumer").boxed();
                while let Some(record) = records.next().await {
                    all.push(consumed(&record.expect("a record")));
                }
            }
            all
        })
    }

    /// Bytes of a dataset's topic, as the SC knows them.
    pub fn bytes(&self, dataset: Dataset) -> i64 {
        let topic = format!("{}-{}", self.prefix, dataset.table_name().replace('_', "-"));
        // SPUs tell the SC now and then.
        std::thread::sleep(Duration::from_secs(5));
        self.block_on(async {
            let admin = self.fluvio().await.admin().await;
            let partitions = admin.list::<PartitionSpec, _>(vec![topic.clone()]).await.expect("partitions");
            partitions.iter().map(|partition| partition.status.size).sum()
        })
    }

    /// What a broker does that loses its newest records: the topic is made anew by `make`, and each partition gets the same records
    /// again but for the last `lost` ones. How many each has then.
    pub fn lose_records(&self, topic: &str, lost: usize, make: impl FnOnce()) -> Vec<u64> {
        let kept = self.block_on(async {
            let fluvio = self.fluvio().await;
            let admin = fluvio.admin().await;
            let topics = admin.list::<TopicSpec, _>(vec![topic.to_owned()]).await.expect("topics");
            let found = topics.into_iter().find(|found| found.name == topic).expect("the topic");
            let mut kept: Vec<Vec<Vec<u8>>> = Vec::new();
            for partition in 0..found.spec.partitions() {
                let mut config = ConsumerConfigExt::builder();
                config.topic(topic).partition(partition).offset_start(Offset::beginning()).max_bytes(32 << 20);
                let config = config.disable_continuous(true).retry_mode(RetryMode::Disabled).build().expect("one");
                let records = fluvio.consumer_with_config(config).await.expect("a consumer").collect::<Vec<_>>().await;
                let mut values: Vec<Vec<u8>> =
                    records.into_iter().map(|record| record.expect("a record").value().to_vec()).collect();
                values.truncate(values.len().saturating_sub(lost));
                kept.push(values);
            }
            admin.delete::<TopicSpec>(topic).await.expect("removed");
            kept
        });
        make();
        let counts = kept.iter().map(|values| values.len() as u64).collect();
        self.block_on(async {
            let fluvio = self.fluvio().await;
            for (partition, values) in (0u32..).zip(kept) {
                let mut config = TopicProducerConfigBuilder::default();
                config.set_specific_partitioner(partition);
                let config = config.max_request_size(32 << 20).build().expect("a configuration");
                let producer = fluvio.topic_producer_with_config(topic, config).await.expect("a producer");
                for value in values {
                    producer.send(RecordKey::NULL, value).await.expect("sent").wait().await.expect("acknowledged");
                }
            }
        });
        counts
    }

    /// The ids of all records of all topics of a prefix, which begins with this one's.
    pub fn ids(&self, prefix: &str) -> Vec<String> {
        let of = |dataset| self.consume_of(prefix, dataset, Some(32 << 20)).into_iter().map(|record| record.id);
        Dataset::ALL.into_iter().flat_map(of).collect()
    }

    /// Runs a future to its end, wherever it is called from.
    fn block_on<T: Send>(&self, work: impl Future<Output = T> + Send) -> T {
        std::thread::scope(|scope| scope.spawn(|| self.runtime.block_on(work)).join().expect("no panic"))
    }

    async fn fluvio(&self) -> Fluvio {
        Fluvio::connect_with_config(&FluvioClusterConfig::new(self.address.as_str())).await.expect("a cluster")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.block_on(async {
            let Ok(fluvio) = Fluvio::connect_with_config(&FluvioClusterConfig::new(self.address.as_str())).await else {
                return;
            };
            let admin = fluvio.admin().await;
            let ours = format!("{}-", self.prefix);
            for topic in admin.list::<TopicSpec, _>(vec![ours.clone()]).await.unwrap_or_default() {
                if topic.name.starts_with(&ours) {
                    let _ = admin.delete::<TopicSpec>(topic.name).await;
                }
            }
        });
    }
}

fn consumed(record: &fluvio::consumer::Record) -> Consumed {
    let event: serde_json::Value = serde_json::from_slice(record.value()).expect("JSON");
    let id = event.get("event_id").or_else(|| event.get("alert_id")).and_then(|id| id.as_str()).expect("an id");
    Consumed {
        partition: record.partition(),
        offset: u64::try_from(record.offset()).expect("an offset"),
        org_id: String::from_utf8(record.key().expect("a key").to_vec()).expect("text"),
        id: id.to_owned(),
    }
}

/// What a consumer finds that looks at ids.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Ids that are there.
    pub distinct: u64,
    /// Records whose id was there before.
    pub again: u64,
    /// Records that came before one with a smaller number of the same tenant, which comes in its order too.
    pub early: u64,
}

/// Checks that each partition has consecutive offsets, that a tenant is in one of them, and that each tenant's ids, `number`s, are
/// there in order, whatever else is between them.
pub fn look(records: &[Consumed], number: impl Fn(&str) -> u64) -> Found {
    let mut next: HashMap<u32, u64> = HashMap::new();
    let mut of_tenant: HashMap<&str, Vec<&Consumed>> = HashMap::new();
    for record in records {
        let expected = next.entry(record.partition).or_insert(0);
        assert_eq!(record.offset, *expected, "{record:?}");
        *expected += 1;
        of_tenant.entry(&record.org_id).or_default().push(record);
    }
    let mut found = Found::default();
    for (tenant, records) in of_tenant {
        assert!(records.iter().all(|record| record.partition == records[0].partition), "{tenant}");
        let numbers: Vec<u64> = records.iter().map(|record| number(&record.id)).collect();
        let distinct: BTreeSet<u64> = numbers.iter().copied().collect();
        let mut in_order = distinct.iter().peekable();
        let mut seen = BTreeSet::new();
        for number in numbers {
            let is_next = in_order.next_if_eq(&&number).is_some();
            let is_new = seen.insert(number);
            found.again += u64::from(!is_new);
            found.early += u64::from(is_new && !is_next);
        }
        assert_eq!(in_order.next(), None, "{tenant}: not in order");
        found.distinct += distinct.len() as u64;
    }
    found
}

/// To the real stderr: what is printed by macros is not shown of tests that pass.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Where the cluster is; `None`, and a word about `suite`, where there is none.
pub fn address(suite: &str) -> Option<String> {
    let address = environment(SC_ENV);
    if address.is_none() {
        say(&format!("NOT RUN: {suite}: {SC_ENV} names no Fluvio cluster (host:port of its SC)"));
    }
    address
}

/// One of what [`SPU_ENV`] can do.
pub fn disturb(what: &str) {
    let program = environment(SPU_ENV).expect("a program");
    let done = Command::new(program).arg(what).status().expect("it runs");
    assert!(done.success(), "{what}");
}

/// Waits until it is so.
pub fn until(what: &str, patience: Duration, mut so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !so() {
        assert!(started.elapsed() < patience, "{what}: not within {patience:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[expect(clippy::disallowed_methods, reason = "tests are told by the environment where their servers are")]
fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

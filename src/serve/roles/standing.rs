//! Where a partition stands, and whether its logs still hold what comes before that.
//!
//! A broker may come back without the newest records that it had acknowledged, and give their numbers to others
//! (docs/many-machines.md). The cursors and the checkpoint in the database would then be behind rows that nobody has looked at: they
//! are put back to where the others begin. Where that is not known, the partition does not start, and says so.

use std::sync::Arc;

use tidegate_pipeline::Offset;
use tidegate_pipeline::checkpoint::Checkpoint;
use tidegate_sinks::fluvio::{FluvioLog, FluvioLogConfig, LogTail, LogTopic};
use tidegate_sinks::parquet::LogSource;
use tidegate_sinks::timescale::{LeasedCheckpoint, TimescaleStore};

use super::super::destinations::SOURCES;
use super::leased::Leased;

/// The topics of [`SOURCES`].
pub(super) const TOPICS: [LogTopic; 2] = [LogTopic::Log, LogTopic::Output];

/// Where who takes a partition goes on.
pub(super) struct Standing {
    /// Rows below are in the database, for each of [`TOPICS`].
    pub(super) cursors: [Offset; 2],
    /// Where the rules go on.
    pub(super) checkpoint: Option<Checkpoint>,
    /// What each log ends with before its cursor, or before what is processed.
    pub(super) tails: [LogTail; 2],
}

/// A log, and a partition of it.
pub(super) struct Part<'a> {
    pub(super) config: &'a FluvioLogConfig,
    pub(super) topic: LogTopic,
    pub(super) partition: u32,
}

impl Standing {
    /// Looks at the database, and at the ends of the logs.
    ///
    /// # Errors
    /// When either does not answer, or it is not known from where on records are lost.
    pub(super) async fn find(
        config: &FluvioLogConfig,
        store: &Arc<TimescaleStore>,
        place: &LeasedCheckpoint,
        partition: u32,
    ) -> anyhow::Result<Self> {
        let mut leased = load(place).await?;
        let (mut cursors, mut tails): ([Offset; 2], [LogTail; 2]) = Default::default();
        for (nth, (source, topic)) in SOURCES.into_iter().zip(TOPICS).enumerate() {
            let part = Part { config, topic, partition };
            let processed = leased.as_ref().map_or_else(LogTail::default, |leased| leased.tails[nth].clone());
            let found = part.look(store, source, processed).await?;
            (cursors[nth], tails[nth]) = (found.cursor, found.tail);
            let Some(from) = found.lost else { continue };
            // The cursor last: until then it tells whoever comes next the same.
            if let Some(leased) = &mut leased {
                leased.go_back(nth, from);
                place.replace(leased.checkpoint.offset, &leased.encode()).await?;
            }
            store.rewind(source, from).await?;
        }
        if let Some(leased) = &mut leased
            && FluvioLog::has_lost_of(config, LogTopic::Changes, 0, &leased.tails[2]).await?
        {
            tracing::warn!(partition, "changes of rules were lost by a broker: the rules begin afresh");
            leased.checkpoint.states.clear();
        }
        Ok(Self { cursors, checkpoint: leased.map(|leased| leased.checkpoint), tails })
    }
}

/// What is known of a log.
pub(super) struct Found {
    pub(super) cursor: Offset,
    pub(super) tail: LogTail,
    /// From where on it has other rows than the database got, or was to get.
    pub(super) lost: Option<Offset>,
}

impl Part<'_> {
    /// The cursor of a log, put back to where rows were lost; the database does not know of that yet.
    pub(super) async fn look(
        &self,
        store: &TimescaleStore,
        source: LogSource,
        processed: LogTail,
    ) -> anyhow::Result<Found> {
        let (cursor, kept) = (store.cursor(source).await?, store.tail(source).await?);
        let committed = LogTail::decode(&kept.tail).unwrap_or_default();
        let mut lost = kept.rewind_to;
        // Who says where to go on knows more.
        for tail in [&committed, &processed].into_iter().filter(|_| kept.rewind_to.is_none()) {
            let from = FluvioLog::lost_from(self.config, self.topic, self.partition, tail).await?;
            lost = [lost, from].into_iter().flatten().min();
        }
        let Some(from) = lost else {
            // The log is read from the earlier of the two on.
            let tail = if processed.is_before(&committed) { processed } else { committed };
            return Ok(Found { cursor, tail, lost });
        };
        let (topic, partition) = (self.config.topic(self.topic), self.partition);
        tracing::error!(
            topic,
            partition,
            cursor,
            from,
            "a broker has lost rows that were read: those that have their places now are delivered"
        );
        Ok(Found { cursor: cursor.min(from), tail: LogTail::default(), lost })
    }
}

async fn load(place: &LeasedCheckpoint) -> anyhow::Result<Option<Leased>> {
    let body = place.load().await?;
    Ok(match body.map(|body| Leased::decode(&body)) {
        Some(Err(error)) => {
            tracing::error!(
                error,
                "the checkpoint in the database is damaged: rules begin afresh, all of the log is processed"
            );
            None
        }
        found => found.and_then(Result::ok),
    })
}

//! The metrics of this crate: a closed set of names.

/// Commits of the Parquet store, by `source` (`ingest`, `output`) and `outcome` (`done`, `failed`).
pub const PARQUET_COMMITS: &str = "tidegate_sinks_parquet_commits_total";
/// Rows committed to Parquet, by `source`.
pub const PARQUET_ROWS: &str = "tidegate_sinks_parquet_rows_total";
/// Bytes of Parquet files written by commits, by `source`.
pub const PARQUET_BYTES: &str = "tidegate_sinks_parquet_bytes_total";
/// How long a commit took, by `source`.
pub const PARQUET_COMMIT_SECONDS: &str = "tidegate_sinks_parquet_commit_seconds";
/// Bytes of rows that wait for a commit, by `source`; bounded by `buffer_bytes_max`.
pub const PARQUET_BUFFER_BYTES: &str = "tidegate_sinks_parquet_buffer_bytes";
/// Visible Parquet files, by `dataset`.
pub const PARQUET_FILES: &str = "tidegate_sinks_parquet_files";
/// Rows in visible Parquet files, by `dataset`.
pub const PARQUET_STORED_ROWS: &str = "tidegate_sinks_parquet_stored_rows";
/// Bytes of visible Parquet files, by `dataset`.
pub const PARQUET_STORED_BYTES: &str = "tidegate_sinks_parquet_stored_bytes";
/// Files that compaction replaced.
pub const PARQUET_COMPACTED_FILES: &str = "tidegate_sinks_parquet_compacted_files_total";
/// Bytes that compaction wrote.
pub const PARQUET_COMPACTED_BYTES: &str = "tidegate_sinks_parquet_compacted_bytes_total";
/// Rows that retention removed.
pub const PARQUET_EXPIRED_ROWS: &str = "tidegate_sinks_parquet_expired_rows_total";
/// Files set aside because they are damaged.
pub const PARQUET_QUARANTINED_FILES: &str = "tidegate_sinks_parquet_quarantined_files_total";
/// Files no longer visible that wait for readers or for the next edit before they are removed from disk.
pub const PARQUET_CONDEMNED_FILES: &str = "tidegate_sinks_parquet_condemned_files";

/// Commits to the database, by `source` (`ingest`, `output`) and `outcome` (`done`, `failed`).
pub const TIMESCALE_COMMITS: &str = "tidegate_sinks_timescale_commits_total";
/// Rows committed to the database, by `source`.
pub const TIMESCALE_ROWS: &str = "tidegate_sinks_timescale_rows_total";
/// Bytes of COPY that were committed, by `source`.
pub const TIMESCALE_BYTES: &str = "tidegate_sinks_timescale_bytes_total";
/// How long a commit took, by `source`.
pub const TIMESCALE_COMMIT_SECONDS: &str = "tidegate_sinks_timescale_commit_seconds";
/// Bytes of rows that wait for a commit, by `source`; bounded by `commit_bytes` and a delivery.
pub const TIMESCALE_BUFFER_BYTES: &str = "tidegate_sinks_timescale_buffer_bytes";
/// Values in which NUL was replaced, by `source`.
pub const TIMESCALE_REPLACED: &str = "tidegate_sinks_timescale_replaced_values_total";
/// Questions about history that the database was asked, by `outcome` (`answered`, `left` by who asked, `late`, `busy`, `failed`).
pub const TIMESCALE_QUESTIONS: &str = "tidegate_sinks_timescale_questions_total";
/// How long a question took, until its last row was taken.
pub const TIMESCALE_QUESTION_SECONDS: &str = "tidegate_sinks_timescale_question_seconds";
/// 1 when another server has taken over the store, so that this one writes to it no more.
pub const PARQUET_REPLACED: &str = "tidegate_sinks_parquet_replaced";
/// Requests to the object store, by `op` (`get`, `head`, `list`, `put`, `part`, `upload`, `copy`, `delete`) and `outcome`
/// (`done`, `missing`, `exists`, `failed`).
pub const BUCKET_REQUESTS: &str = "tidegate_sinks_bucket_requests_total";
/// Blocks of the object store's files that queries found in the cache.
pub const CACHE_HITS: &str = "tidegate_sinks_cache_hits_total";
/// Blocks that had to be fetched.
pub const CACHE_MISSES: &str = "tidegate_sinks_cache_misses_total";
/// Bytes that were fetched.
pub const CACHE_FETCHED_BYTES: &str = "tidegate_sinks_cache_fetched_bytes_total";
/// Blocks that made room for others.
pub const CACHE_EVICTED_BLOCKS: &str = "tidegate_sinks_cache_evicted_blocks_total";
/// Blocks that did not hold what they should and were dropped.
pub const CACHE_DAMAGED: &str = "tidegate_sinks_cache_damaged_blocks_total";
/// Bytes of the cache; bounded by `cache_bytes_max`.
pub const CACHE_BYTES: &str = "tidegate_sinks_cache_bytes";

/// Subscribers of the alert feed now.
pub const FEED_SUBSCRIBERS: &str = "tidegate_sinks_feed_subscribers";
/// Frames sent to subscribers.
pub const FEED_FRAMES: &str = "tidegate_sinks_feed_frames_total";
/// Subscribers told of a gap.
pub const FEED_GAPS: &str = "tidegate_sinks_feed_gaps_total";
/// Alerts that subscribers missed in gaps.
pub const FEED_MISSED_ALERTS: &str = "tidegate_sinks_feed_missed_alerts_total";
/// Requests for the feed that were refused, by `code`.
pub const FEED_REFUSED: &str = "tidegate_sinks_feed_refused_total";
/// WebSocket streams that ended, by `why`.
pub const FEED_ENDED: &str = "tidegate_sinks_feed_ended_total";

/// Entries added to Redis Streams, by `dataset`.
pub const REDIS_ENTRIES: &str = "tidegate_sinks_redis_entries_total";
/// Bytes of entries added to Redis Streams.
pub const REDIS_BYTES: &str = "tidegate_sinks_redis_bytes_total";
/// Entries without their JSON, because it is longer than `event_bytes_max`.
pub const REDIS_OMITTED: &str = "tidegate_sinks_redis_omitted_events_total";
/// How long requests of a sink to Redis took, by `log`.
pub const REDIS_REQUEST_SECONDS: &str = "tidegate_sinks_redis_request_seconds";
/// How often Redis was found at an older state, by `log`.
pub const REDIS_REWINDS: &str = "tidegate_sinks_redis_rewinds_total";
/// Rows that Redis lost and the log no longer has, by `log`.
pub const REDIS_LOST_ROWS: &str = "tidegate_sinks_redis_lost_rows_total";

/// Records written to the logs of many machines.
pub const FLUVIO_LOG_RECORDS: &str = "tidegate_sinks_fluvio_log_records_total";
/// Bytes of records written to the logs of many machines, before compression.
pub const FLUVIO_LOG_BYTES: &str = "tidegate_sinks_fluvio_log_bytes_total";
/// How long groups took to be acknowledged.
pub const FLUVIO_LOG_GROUP_SECONDS: &str = "tidegate_sinks_fluvio_log_group_seconds";
/// Groups that were not acknowledged.
pub const FLUVIO_LOG_FAILED_GROUPS: &str = "tidegate_sinks_fluvio_log_failed_groups_total";
/// Appends refused because too much waits.
pub const FLUVIO_LOG_REFUSED: &str = "tidegate_sinks_fluvio_log_refused_total";
/// Rows left out by readers because they were written before.
pub const FLUVIO_LOG_REPEATS: &str = "tidegate_sinks_fluvio_log_repeated_rows_total";
/// Records that could not be decoded.
pub const FLUVIO_LOG_DAMAGED: &str = "tidegate_sinks_fluvio_log_damaged_records_total";
/// Times that a partition no longer had records that were read from it, or acknowledged.
pub const FLUVIO_LOG_LOST_ENDS: &str = "tidegate_sinks_fluvio_log_lost_ends_total";
/// Readers that were opened for who fell behind the cache.
pub const FLUVIO_LOG_REREADS: &str = "tidegate_sinks_fluvio_log_rereads_total";
/// Bytes of decoded batches, by `partition`; bounded by `cache_bytes_max`.
pub const FLUVIO_LOG_CACHE_BYTES: &str = "tidegate_sinks_fluvio_log_cache_bytes";

/// Rows not stored because another node has stored them.
pub const REDIS_IDS_DUPLICATES: &str = "tidegate_sinks_redis_ids_duplicates_total";
/// Groups of events stored by what this node knows alone, by `why` (`away`, `busy`, `slow`).
pub const REDIS_IDS_ALONE: &str = "tidegate_sinks_redis_ids_alone_groups_total";
/// How long groups waited for Redis to say which ids are known.
pub const REDIS_IDS_SECONDS: &str = "tidegate_sinks_redis_ids_wait_seconds";
/// 1 while event ids are not shared because Redis is away.
pub const REDIS_IDS_AWAY: &str = "tidegate_sinks_redis_ids_away";
/// Ids of stored events that Redis was not told of at once.
pub const REDIS_IDS_MISSED: &str = "tidegate_sinks_redis_ids_missed_total";
/// Alerts published for the feeds of the other nodes.
pub const REDIS_ALERTS_OUT: &str = "tidegate_sinks_redis_alerts_out_total";
/// Alerts of other nodes that were read.
pub const REDIS_ALERTS_IN: &str = "tidegate_sinks_redis_alerts_in_total";
/// Other nodes that are followed.
pub const REDIS_PEERS: &str = "tidegate_sinks_redis_peers";

/// Records sent to a Fluvio cluster, by `dataset`; one that is sent again counts again.
pub const FLUVIO_RECORDS: &str = "tidegate_sinks_fluvio_records_total";
/// Bytes of their keys and values, before compression.
pub const FLUVIO_BYTES: &str = "tidegate_sinks_fluvio_bytes_total";
/// How long the records of a delivery took to be acknowledged, by `log`.
pub const FLUVIO_DELIVERY_SECONDS: &str = "tidegate_sinks_fluvio_delivery_seconds";
/// How often a connection was given up, by `log`: what was not acknowledged is sent again.
pub const FLUVIO_BROKEN: &str = "tidegate_sinks_fluvio_broken_connections_total";

/// All names with their kind and help text.
pub const NAMES: &[(&str, &str, &str)] = &[
    (PARQUET_COMMITS, "counter", "Commits of the Parquet store by source and outcome"),
    (PARQUET_ROWS, "counter", "Rows committed to Parquet by source"),
    (PARQUET_BYTES, "counter", "Bytes of Parquet files written by commits by source"),
    (PARQUET_COMMIT_SECONDS, "histogram", "How long a commit took by source"),
    (PARQUET_BUFFER_BYTES, "gauge", "Bytes of rows waiting for a commit by source, bounded by buffer_bytes_max"),
    (PARQUET_FILES, "gauge", "Visible Parquet files by dataset"),
    (PARQUET_STORED_ROWS, "gauge", "Rows in visible Parquet files by dataset"),
    (PARQUET_STORED_BYTES, "gauge", "Bytes of visible Parquet files by dataset"),
    (PARQUET_COMPACTED_FILES, "counter", "Files that compaction replaced"),
    (PARQUET_COMPACTED_BYTES, "counter", "Bytes that compaction wrote"),
    (PARQUET_EXPIRED_ROWS, "counter", "Rows that retention removed"),
    (PARQUET_QUARANTINED_FILES, "counter", "Files set aside because they are damaged"),
    (PARQUET_CONDEMNED_FILES, "gauge", "Files no longer visible that wait to be removed from disk"),
    (TIMESCALE_COMMITS, "counter", "Commits to the database by source and outcome"),
    (TIMESCALE_ROWS, "counter", "Rows committed to the database by source"),
    (TIMESCALE_BYTES, "counter", "Bytes of COPY committed to the database by source"),
    (TIMESCALE_COMMIT_SECONDS, "histogram", "How long a commit to the database took by source"),
    (TIMESCALE_BUFFER_BYTES, "gauge", "Bytes of rows waiting for a commit by source, bounded by commit_bytes"),
    (TIMESCALE_REPLACED, "counter", "Values in which NUL became U+FFFD, which PostgreSQL cannot hold, by source"),
    (TIMESCALE_QUESTIONS, "counter", "Questions about history by outcome; busy is bounded by read_connections"),
    (TIMESCALE_QUESTION_SECONDS, "histogram", "How long questions about history took, until the last row was taken"),
    (PARQUET_REPLACED, "gauge", "1 when another server has taken over the object store"),
    (BUCKET_REQUESTS, "counter", "Requests to the object store by op and outcome, without those of queries"),
    (CACHE_HITS, "counter", "Blocks of the object store that queries found in the cache"),
    (CACHE_MISSES, "counter", "Blocks of the object store that were fetched for queries"),
    (CACHE_FETCHED_BYTES, "counter", "Bytes of the object store that were fetched for queries"),
    (CACHE_EVICTED_BLOCKS, "counter", "Blocks of the cache that made room for others"),
    (CACHE_DAMAGED, "counter", "Blocks of the cache that were damaged and dropped"),
    (CACHE_BYTES, "gauge", "Bytes of the cache of the object store, bounded by cache_bytes_max"),
    (FEED_SUBSCRIBERS, "gauge", "Subscribers of the alert feed now"),
    (FEED_FRAMES, "counter", "Frames sent to subscribers of the alert feed"),
    (FEED_GAPS, "counter", "Subscribers told that they missed alerts, bounded by lag_rows_max"),
    (FEED_MISSED_ALERTS, "counter", "Alerts that subscribers missed in gaps"),
    (FEED_REFUSED, "counter", "Requests for the alert feed that were refused by code"),
    (FEED_ENDED, "counter", "WebSocket streams that ended by why"),
    (REDIS_ENTRIES, "counter", "Entries added to Redis Streams by dataset"),
    (REDIS_BYTES, "counter", "Bytes of entries added to Redis Streams"),
    (REDIS_OMITTED, "counter", "Entries without their JSON, bounded by event_bytes_max"),
    (REDIS_REQUEST_SECONDS, "histogram", "How long requests of a sink to Redis took by log"),
    (REDIS_REWINDS, "counter", "Times that Redis was found at an older state by log"),
    (REDIS_LOST_ROWS, "counter", "Rows that Redis lost and the log no longer has by log"),
    (FLUVIO_LOG_RECORDS, "counter", "Records written to the logs of many machines"),
    (FLUVIO_LOG_BYTES, "counter", "Bytes of records written to the logs of many machines, before compression"),
    (FLUVIO_LOG_GROUP_SECONDS, "histogram", "How long groups of appends took to be acknowledged by the broker"),
    (FLUVIO_LOG_FAILED_GROUPS, "counter", "Groups of appends that the broker did not acknowledge"),
    (
        FLUVIO_LOG_REFUSED,
        "counter",
        "Appends refused because too much waits for the broker, bounded by queue_bytes_max",
    ),
    (
        FLUVIO_LOG_REPEATS,
        "counter",
        "Rows left out by readers because they were written before, bounded by dedup_keys_max",
    ),
    (FLUVIO_LOG_DAMAGED, "counter", "Records of the logs of many machines that could not be decoded"),
    (
        FLUVIO_LOG_LOST_ENDS,
        "counter",
        "Times that a partition no longer had records that were read from it, or acknowledged",
    ),
    (FLUVIO_LOG_REREADS, "counter", "Readers opened for who fell behind the cache, bounded by cache_bytes_max"),
    (FLUVIO_LOG_CACHE_BYTES, "gauge", "Bytes of decoded batches by partition, bounded by cache_bytes_max"),
    (REDIS_IDS_DUPLICATES, "counter", "Rows not stored because another node has stored them"),
    (REDIS_IDS_ALONE, "counter", "Groups of events stored by what this node knows alone, by why"),
    (REDIS_IDS_SECONDS, "histogram", "How long groups waited for Redis, bounded by wait_ms_max"),
    (REDIS_IDS_AWAY, "gauge", "1 while event ids are not shared because Redis is away"),
    (REDIS_IDS_MISSED, "counter", "Ids of stored events that Redis was not told of at once, bounded by missed_ids_max"),
    (REDIS_ALERTS_OUT, "counter", "Alerts published for the feeds of the other nodes"),
    (REDIS_ALERTS_IN, "counter", "Alerts of other nodes that were read"),
    (REDIS_PEERS, "gauge", "Other nodes whose alerts are followed, bounded by nodes_max"),
    (FLUVIO_RECORDS, "counter", "Records sent to Fluvio by dataset"),
    (FLUVIO_BYTES, "counter", "Bytes of records sent to Fluvio before compression"),
    (FLUVIO_DELIVERY_SECONDS, "histogram", "How long the records of a delivery took to be acknowledged by log"),
    (FLUVIO_BROKEN, "counter", "Connections to Fluvio that were given up by log"),
];

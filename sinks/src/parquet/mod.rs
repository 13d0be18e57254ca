//! History as Parquet files on the local disk.
//!
//! ```text
//! log ─► ParquetSink ── sort by (org_id, time), split, encode ──► <dataset>/<number>.parquet   (synced)
//!                                                                        │
//!                              manifest/<number>.edit  ◄── one edit ─────┘   now rows and cursor are visible
//!                                        │
//!        compaction, retention ──────────┤
//!                                        ▼
//!                              Snapshot (immutable) ──► query
//! ```
//!
//! Constraints, in order:
//!
//! 1. Rows and cursor become visible in the same instant, with one manifest edit: after a crash anywhere, a row below the
//!    cursor is in exactly one file, and a row above it in none.
//! 2. Opening never fails for damage. A missing, cut or damaged file is set aside and reported, the rest is served.
//! 3. A reader of a [`Snapshot`](tidegate_pipeline::Snapshot) sees its files for as long as it holds it.
//! 4. The number of files stays in check, under a trickle of small commits as under a backfill over years.
//! 5. Memory is bounded by configuration, whatever the size of the store.
//!
//! # Folders
//!
//! `<dir>/<table>/<20 digits>.parquet`, `<dir>/manifest/<20 digits>.edit` (the format is told in `manifest.rs`),
//! `<dir>/quarantine/` for what was set aside. Numbers are never given twice.
//!
//! # Files
//!
//! A file is sorted by `org_id` (bytes), then `time`; a null counts as empty, or 0. Its schema holds the core columns that
//! have a value in it, in core order, then own fields by name, each with the narrowest type that holds its values in this
//! file (int → float → text, scalar → list). Integers that no float can hold turn such a column to text, not to float.
//! zstd pages, dictionaries, page index, bloom filters on event_id, actor, src_ip, asset and resource, statistics.
//! The CRC32C of the whole file is in the manifest.

mod bucket;
mod cache;
mod columns;
mod commit;
mod compact;
mod config;
mod connect;
mod encode;
mod encoding;
mod file_io;
mod layout;
mod manifest;
mod merge;
mod pick;
mod place;
mod publish;
mod read;
mod recover;
mod refusal;
mod retain;
mod rewrite;
mod sink;
mod sparse;
mod splice;
mod store;
mod threads;
mod upload;
mod verify;

pub use bucket::{Bucket, BucketParts, Writer};
pub use cache::{BlockCache, CachedReads};
pub(crate) use columns::{check_batch, row_bytes};
pub use compact::Compacted;
pub use config::{DatasetDays, ParquetConfig, RetentionConfig};
pub use connect::{BucketUrl, Opener, StorePlace};
pub use manifest::Ledger;
pub use recover::{OpenReport, SetAside};
pub use retain::Retained;
pub use sink::ParquetSink;
pub use store::{DatasetStats, LogSource, ParquetStore, StoreStats};
pub use verify::FileCheck;

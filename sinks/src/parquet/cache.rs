//! A cache of what queries read of an object store: blocks of its files, in a folder, within a bound of bytes.
//!
//! Files of the store never change and no name is given twice, so a block is good for as long as it is there. A block is a file
//! of its own, `<hash of place and key>-<number>.block`, which ends with the CRC32C of its name and bytes: one that does not
//! hold what it should is dropped and fetched again. Nothing is synced: what a power cut leaves is checked.
//!
//! - What several readers want at the same time is fetched once.
//! - Blocks that lie side by side are fetched with one request.
//! - A cache that cannot write (a full disk) only misses.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::future::{BoxFuture, FutureExt, Shared};
use futures::stream::{BoxStream, StreamExt};
use metrics::{counter, gauge};
use object_store::path::Path as Key;
use object_store::{
    CopyOptions, Error, GetOptions, GetRange, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use xxhash_rust::xxh3::xxh3_128;

use crate::error::SinksError;
use crate::metrics as names;

/// Bytes of a block. Small enough for a column of a row group, large enough for the latency of a request.
const BLOCK_BYTES: u64 = 512 << 10;
/// One request fetches at most so many blocks.
const FETCH_BLOCKS_MAX: u64 = 32;
const SUFFIX: &str = "block";
const SUM_BYTES: usize = 4;

/// A block: its name, from the hash of its file's name and the number of the block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct BlockId {
    file: u128,
    number: u64,
}

impl BlockId {
    fn name(self) -> String {
        format!("{:032x}-{:x}.{SUFFIX}", self.file, self.number)
    }

    fn parse(name: &str) -> Option<Self> {
        let (file, number) = name.strip_suffix(SUFFIX)?.strip_suffix('.')?.split_once('-')?;
        Some(Self { file: u128::from_str_radix(file, 16).ok()?, number: u64::from_str_radix(number, 16).ok()? })
    }
}

/// Which blocks there are, and which was used last.
#[derive(Debug, Default)]
struct Index {
    /// Bytes and turn of each.
    blocks: HashMap<BlockId, (u64, u64)>,
    turns: BTreeMap<u64, BlockId>,
    turn: u64,
    bytes: u64,
}

impl Index {
    /// Notes a use; whether the block is there.
    fn touch(&mut self, block: BlockId) -> bool {
        let Some((_, turn)) = self.blocks.get_mut(&block) else { return false };
        self.turns.remove(turn);
        self.turn += 1;
        *turn = self.turn;
        self.turns.insert(self.turn, block);
        true
    }

    fn add(&mut self, block: BlockId, bytes: u64) {
        self.remove(block);
        self.turn += 1;
        self.blocks.insert(block, (bytes, self.turn));
        self.turns.insert(self.turn, block);
        self.bytes += bytes;
    }

    fn remove(&mut self, block: BlockId) {
        if let Some((bytes, turn)) = self.blocks.remove(&block) {
            self.turns.remove(&turn);
            self.bytes -= bytes;
        }
    }

    /// The blocks that must go so that `bytes` more fit, longest unused first.
    fn evict(&mut self, bytes: u64, bytes_max: u64) -> Vec<BlockId> {
        let mut gone = Vec::new();
        while self.bytes + bytes > bytes_max {
            let Some((_, block)) = self.turns.first_key_value() else { break };
            let block = *block;
            self.remove(block);
            gone.push(block);
        }
        gone
    }
}

/// The folder and what is in it.
#[derive(Debug)]
pub struct BlockCache {
    dir: PathBuf,
    /// The place whose files these are: two places may use the same names.
    place: String,
    bytes_max: u64,
    index: Mutex<Index>,
}

impl BlockCache {
    /// Opens the cache in a folder, which is made if it is missing. What is in it and no block is removed.
    ///
    /// # Errors
    /// [`SinksError::Io`] when the folder cannot be made or listed.
    pub fn open(dir: &Path, place: &str, bytes_max: u64) -> std::result::Result<Self, SinksError> {
        std::fs::create_dir_all(dir).map_err(SinksError::io("make", dir))?;
        let mut index = Index::default();
        for entry in std::fs::read_dir(dir).map_err(SinksError::io("list", dir))? {
            let entry = entry.map_err(SinksError::io("list", dir))?;
            let block = entry.file_name().to_str().and_then(BlockId::parse);
            match (block, entry.metadata()) {
                (Some(block), Ok(found)) if found.is_file() => index.add(block, found.len()),
                _ => drop(std::fs::remove_file(entry.path())),
            }
        }
        let cache = Self { dir: dir.to_owned(), place: place.to_owned(), bytes_max, index: Mutex::new(index) };
        cache.make_room(0);
        Ok(cache)
    }

    /// Bytes that it holds.
    pub fn bytes(&self) -> u64 {
        self.index.lock().bytes
    }

    fn block(&self, key: &Key, number: u64) -> BlockId {
        BlockId { file: xxh3_128(format!("{}\n{key}", self.place).as_bytes()), number }
    }

    /// The bytes of a block, if it is there and whole.
    fn load(&self, block: BlockId) -> Option<Bytes> {
        if !self.index.lock().touch(block) {
            return None;
        }
        let path = self.dir.join(block.name());
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => Bytes::from(bytes),
            // It has just made room for another one.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
            Err(_) => Bytes::new(),
        };
        let whole = bytes.len().checked_sub(SUM_BYTES).and_then(|len| {
            let content = bytes.slice(..len);
            (bytes.get(len..) == Some(&sum(block, &content)[..])).then_some(content)
        });
        if whole.is_none() {
            counter!(names::CACHE_DAMAGED).increment(1);
            self.index.lock().remove(block);
            std::fs::remove_file(&path).ok();
        }
        whole
    }

    /// Keeps a block. A failure is none of the reader's business.
    fn store(&self, block: BlockId, content: &[u8]) {
        let bytes = (content.len() + SUM_BYTES) as u64;
        if bytes > self.bytes_max {
            return;
        }
        self.make_room(bytes);
        // Under a name that is no block until it is whole.
        let (path, draft) = (self.dir.join(block.name()), self.dir.join(format!("{}.draft", block.name())));
        let whole = [content, &sum(block, content)].concat();
        match std::fs::write(&draft, whole).and_then(|()| std::fs::rename(&draft, &path)) {
            Ok(()) => {
                self.index.lock().add(block, bytes);
                // Others may have added in the meantime.
                self.make_room(0);
            }
            Err(error) => {
                tracing::debug!(%error, path = %path.display(), "a block was not kept in the cache");
                std::fs::remove_file(&draft).ok();
            }
        }
    }

    fn make_room(&self, bytes: u64) {
        let gone = self.index.lock().evict(bytes, self.bytes_max);
        counter!(names::CACHE_EVICTED_BLOCKS).increment(gone.len() as u64);
        for block in gone {
            std::fs::remove_file(self.dir.join(block.name())).ok();
        }
        gauge!(names::CACHE_BYTES).set(self.bytes() as f64);
    }
}

fn sum(block: BlockId, content: &[u8]) -> [u8; SUM_BYTES] {
    crc32c::crc32c_append(crc32c::crc32c(block.name().as_bytes()), content).to_le_bytes()
}

type Fetch = Shared<BoxFuture<'static, std::result::Result<Bytes, Arc<Error>>>>;

/// An object store whose ranges are read by way of a cache. What is asked of it beside ranges of a known size goes through.
#[derive(Debug)]
pub struct CachedReads {
    inner: Arc<dyn ObjectStore>,
    cache: Arc<BlockCache>,
    runtime: Handle,
    /// Runs of blocks that are on their way.
    under_way: Arc<Mutex<HashMap<(Key, u64), Fetch>>>,
}

impl CachedReads {
    /// A store with a cache. `runtime` fetches, so that a reader that goes away does not end what others wait for.
    pub fn new(inner: Arc<dyn ObjectStore>, cache: BlockCache, runtime: Handle) -> Self {
        Self { inner, cache: Arc::new(cache), runtime, under_way: Arc::default() }
    }

    /// The bytes of some ranges of a file.
    async fn read(&self, key: &Key, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let numbers = wanted(ranges);
        let mut blocks = self.load(key, numbers.clone()).await?;
        counter!(names::CACHE_HITS).increment(blocks.len() as u64);
        let missing: Vec<u64> = numbers.into_iter().filter(|number| !blocks.contains_key(number)).collect();
        counter!(names::CACHE_MISSES).increment(missing.len() as u64);
        let runs = missing.chunk_by(|a, b| a + 1 == *b).flat_map(|run| run.chunks(FETCH_BLOCKS_MAX as usize));
        let fetches: Vec<(u64, Fetch)> = runs.flat_map(|run| self.fetch(key, run)).collect();
        for (number, fetch) in fetches {
            let block = fetch.await.map_err(|error| match &*error {
                Error::NotFound { path, .. } => Error::NotFound { path: path.clone(), source: Box::new(error) },
                _ => Error::Generic { store: "cache", source: Box::new(error) },
            })?;
            blocks.insert(number, block);
        }
        ranges.iter().map(|range| cut(&blocks, range)).collect()
    }

    /// What the cache has of some blocks.
    async fn load(&self, key: &Key, numbers: Vec<u64>) -> Result<BTreeMap<u64, Bytes>> {
        let (cache, key) = (self.cache.clone(), key.clone());
        let load = move || {
            let found = numbers.into_iter().map(|number| Some((number, cache.load(cache.block(&key, number))?)));
            found.flatten().collect()
        };
        Ok(tokio::task::spawn_blocking(load).await?)
    }

    /// Fetches each of these neighbours once, those that nobody fetches yet with one request.
    fn fetch(&self, key: &Key, run: &[u64]) -> Vec<(u64, Fetch)> {
        let mut under_way = self.under_way.lock();
        let new: Vec<u64> =
            run.iter().copied().filter(|number| !under_way.contains_key(&(key.clone(), *number))).collect();
        for run in new.chunk_by(|a, b| a + 1 == *b) {
            let Some((first, count)) = run.first().map(|first| (*first, run.len() as u64)) else { continue };
            let whole = self.fetch_run(key.clone(), first, count);
            for number in run {
                let (whole, at) = (whole.clone(), (number - first) * BLOCK_BYTES);
                let part = async move {
                    let whole = whole.await?;
                    let from = at.min(whole.len() as u64) as usize;
                    let to = (at + BLOCK_BYTES).min(whole.len() as u64) as usize;
                    Ok(whole.slice(from..to))
                };
                under_way.insert((key.clone(), *number), part.boxed().shared());
            }
        }
        let found = run.iter().map(|number| Some((*number, under_way.get(&(key.clone(), *number))?.clone())));
        found.flatten().collect()
    }

    /// One request, as a task: it ends, and is kept, whoever still waits for it.
    fn fetch_run(&self, key: Key, first: u64, count: u64) -> Fetch {
        let (inner, cache, under_way) = (self.inner.clone(), self.cache.clone(), self.under_way.clone());
        let task = self.runtime.spawn(async move {
            let range = first * BLOCK_BYTES..(first + count) * BLOCK_BYTES;
            // Who looked before another fetch ended, and asks after it, finds here what that has kept.
            let kept = kept(&cache, &key, first, count).await;
            let is_kept = kept.is_some();
            let fetched = match kept {
                Some(whole) => Ok(whole),
                None => inner.get_range(&key, range).await.map_err(Arc::new),
            };
            if let Some(whole) = fetched.as_ref().ok().filter(|_| !is_kept) {
                counter!(names::CACHE_FETCHED_BYTES).increment(whole.len() as u64);
                let (cache, key, whole) = (cache.clone(), key.clone(), whole.clone());
                let keep = move || {
                    for (at, content) in whole.chunks(BLOCK_BYTES as usize).enumerate() {
                        cache.store(cache.block(&key, first + at as u64), content);
                    }
                };
                tokio::task::spawn_blocking(keep).await.ok();
            }
            let mut under_way = under_way.lock();
            for number in first..first + count {
                under_way.remove(&(key.clone(), number));
            }
            fetched
        });
        let joined = async move { task.await.unwrap_or_else(|error| Err(Arc::new(Error::from(error)))) };
        joined.boxed().shared()
    }
}

/// A run of blocks, if the cache has all of them.
async fn kept(cache: &Arc<BlockCache>, key: &Key, first: u64, count: u64) -> Option<Bytes> {
    let (cache, key) = (cache.clone(), key.clone());
    let load = move || {
        let blocks = (first..first + count).map(|number| cache.load(cache.block(&key, number)));
        blocks.collect::<Option<Vec<Bytes>>>().map(|blocks| Bytes::from(blocks.concat()))
    };
    tokio::task::spawn_blocking(load).await.ok().flatten()
}

/// The numbers of the blocks that hold the ranges, in order, each once.
fn wanted(ranges: &[Range<u64>]) -> Vec<u64> {
    let filled = ranges.iter().filter(|range| range.start < range.end);
    let mut numbers: Vec<u64> =
        filled.flat_map(|range| range.start / BLOCK_BYTES..=(range.end - 1) / BLOCK_BYTES).collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers
}

/// The bytes of a range. Copies only where a range spans blocks.
fn cut(blocks: &BTreeMap<u64, Bytes>, range: &Range<u64>) -> Result<Bytes> {
    let short = || Error::Generic { store: "cache", source: "the object is shorter than the manifest says".into() };
    let mut joined = BytesMut::new();
    let mut at = range.start;
    while at < range.end {
        let number = at / BLOCK_BYTES;
        let block = blocks.get(&number).ok_or_else(short)?;
        let from = (at - number * BLOCK_BYTES) as usize;
        let to = ((range.end - number * BLOCK_BYTES).min(BLOCK_BYTES) as usize).min(block.len());
        if from >= to {
            return Err(short());
        }
        let piece = block.slice(from..to);
        if at == range.start && at + piece.len() as u64 == range.end {
            return Ok(piece);
        }
        at += piece.len() as u64;
        joined.extend_from_slice(&piece);
    }
    Ok(joined.freeze())
}

impl fmt::Display for CachedReads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cached {}", self.inner)
    }
}

#[async_trait]
impl ObjectStore for CachedReads {
    async fn put_opts(&self, location: &Key, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.inner.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Key,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Key, options: GetOptions) -> Result<GetResult> {
        let plain = options.if_match.is_none() && options.version.is_none() && !options.head;
        let (true, Some(GetRange::Bounded(range))) = (plain, &options.range) else {
            return self.inner.get_opts(location, options).await;
        };
        let range = range.clone();
        let bytes = self.read(location, std::slice::from_ref(&range)).await?.pop().unwrap_or_default();
        let meta = ObjectMeta {
            location: location.clone(),
            last_modified: chrono::DateTime::UNIX_EPOCH,
            size: range.end,
            e_tag: None,
            version: None,
        };
        let payload = GetResultPayload::Stream(futures::stream::once(async { Ok(bytes) }).boxed());
        Ok(GetResult { payload, meta, range, attributes: Default::default() })
    }

    async fn get_ranges(&self, location: &Key, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.read(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Key>>) -> BoxStream<'static, Result<Key>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Key>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Key>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Key, to: &Key, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

//! Checkpoints of the run loop: the state of every operator *at* an offset of the ingest log.
//!
//! A checkpoint is a [sealed file](crate::sealed) in `<data>/checkpoint/`. Its body, little-endian:
//!
//! | bytes | what |
//! |---|---|
//! | 8 | the ingest offset up to which everything was processed, and its alerts are durable |
//! | 8 | the next offset of the output log at that moment |
//! | 8 | the watermark (µs), `i64::MIN` for none |
//! | 4 | number of operators; for each: 4 bytes length and its name, 8 bytes length and its state |

use std::path::Path;
use std::sync::Arc;

use crate::error::PipelineError;
use crate::fs::Fs;
use crate::log::Offset;
use crate::sealed::{Loaded, SealedFiles};

const MAGIC: [u8; 8] = *b"TGCKPT01";

/// Everything that the run loop needs to go on where it was.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Checkpoint {
    /// Rows of the ingest log below this offset are processed.
    pub offset: Offset,
    /// The alerts of those rows lie below this offset of the output log.
    pub output_offset: Offset,
    /// The watermark (µs), if there is one yet.
    pub watermark: Option<i64>,
    /// The saved state of each operator, by name.
    pub states: Vec<(String, Vec<u8>)>,
}

impl Checkpoint {
    /// The saved state of the operator of this name.
    pub fn state(&self, name: &str) -> Option<&[u8]> {
        self.states.iter().find(|(known, _)| known == name).map(|(_, state)| state.as_slice())
    }

    /// The body of its file.
    pub fn encode(&self) -> Vec<u8> {
        let states: usize = self.states.iter().map(|(name, state)| name.len() + state.len() + 12).sum();
        let mut body = Vec::with_capacity(28 + states);
        body.extend(self.offset.to_le_bytes());
        body.extend(self.output_offset.to_le_bytes());
        body.extend(self.watermark.unwrap_or(i64::MIN).to_le_bytes());
        body.extend((self.states.len() as u32).to_le_bytes());
        for (name, state) in &self.states {
            body.extend((name.len() as u32).to_le_bytes());
            body.extend(name.as_bytes());
            body.extend((state.len() as u64).to_le_bytes());
            body.extend(state);
        }
        body
    }

    /// The checkpoint in the body of a file.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn decode(body: &[u8]) -> Result<Self, String> {
        let mut body = Body(body);
        let offset = u64::from_le_bytes(body.take()?);
        let output_offset = u64::from_le_bytes(body.take()?);
        let watermark = Some(i64::from_le_bytes(body.take()?)).filter(|at| *at != i64::MIN);
        let mut states = Vec::new();
        for _ in 0..u32::from_le_bytes(body.take()?) {
            let name_bytes = u64::from(u32::from_le_bytes(body.take()?));
            let name = String::from_utf8(body.bytes(name_bytes)?.to_vec()).map_err(|error| error.to_string())?;
            let state_bytes = u64::from_le_bytes(body.take()?);
            states.push((name, body.bytes(state_bytes)?.to_vec()));
        }
        if body.0.is_empty() {
            Ok(Self { offset, output_offset, watermark, states })
        } else {
            Err(format!("{} bytes too many", body.0.len()))
        }
    }
}

/// What is left of a body.
struct Body<'a>(&'a [u8]);

impl<'a> Body<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let (taken, rest) = self.0.split_first_chunk().ok_or("cut")?;
        self.0 = rest;
        Ok(*taken)
    }

    fn bytes(&mut self, count: u64) -> Result<&'a [u8], String> {
        let count = usize::try_from(count).map_err(|error| error.to_string())?;
        let (taken, rest) = self.0.split_at_checked(count).ok_or("cut")?;
        self.0 = rest;
        Ok(taken)
    }
}

/// The checkpoints of one run loop on disk: the newest and the one before.
#[derive(Debug)]
pub struct Checkpoints {
    files: SealedFiles,
    /// Offsets (ingest, output) of the newest and of the one before it.
    kept: [Option<(Offset, Offset)>; 2],
}

impl Checkpoints {
    /// Opens the folder and loads the newest checkpoint that is whole. Newer ones that are not are told about and passed
    /// over.
    ///
    /// # Errors
    /// [`PipelineError::Io`] when the folder cannot be made or listed.
    pub fn open(fs: Arc<dyn Fs>, dir: &Path, bytes_max: u64) -> Result<(Self, Option<Checkpoint>), PipelineError> {
        let mut files = SealedFiles::open(fs, dir, MAGIC, bytes_max)?;
        let Loaded { value, damaged } = files.load(Checkpoint::decode)?;
        for error in damaged {
            tracing::warn!(%error, "passed over a damaged checkpoint: the rows after the one before it are replayed");
        }
        let newest = value.as_ref().map(|checkpoint| (checkpoint.offset, checkpoint.output_offset));
        // The logs are kept for the older one too, in case the newest is damaged when it is needed.
        let older = files.load_older(Checkpoint::decode)?;
        let older = older.map(|checkpoint| (checkpoint.offset, checkpoint.output_offset));
        Ok((Self { files, kept: [newest, older] }, value))
    }

    /// Empties the folder and puts the checkpoint there that another place has; nothing when it has none.
    ///
    /// # Errors
    /// [`PipelineError::Io`] when the folder cannot be made, emptied or written to.
    pub fn put(
        fs: Arc<dyn Fs>,
        dir: &Path,
        bytes_max: u64,
        checkpoint: Option<&Checkpoint>,
    ) -> Result<(), PipelineError> {
        let mut files = SealedFiles::open(fs, dir, MAGIC, bytes_max)?;
        files.clear()?;
        checkpoint.map_or(Ok(()), |checkpoint| files.save(&checkpoint.encode()))
    }

    /// Saves a checkpoint, durably.
    ///
    /// # Errors
    /// As [`SealedFiles::save`]; the checkpoints before it are untouched then.
    pub fn save(&mut self, checkpoint: &Checkpoint) -> Result<(), PipelineError> {
        self.files.save(&checkpoint.encode())?;
        self.kept = [Some((checkpoint.offset, checkpoint.output_offset)), self.kept[0]];
        Ok(())
    }

    /// The offset of the newest checkpoint; zero without one.
    pub fn newest_offset(&self) -> Offset {
        self.kept[0].map_or(0, |(offset, _)| offset)
    }

    /// The offsets (ingest log, output log) from which on rows are needed to go on from the *oldest* kept checkpoint.
    pub fn needed_from(&self) -> (Offset, Offset) {
        self.kept.iter().flatten().copied().reduce(|a, b| (a.0.min(b.0), a.1.min(b.1))).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_decodes_to_what_was_encoded_and_every_cut_is_an_error() {
        let checkpoint = Checkpoint {
            offset: 7,
            output_offset: 3,
            watermark: Some(-5),
            states: vec![("sigma".into(), vec![1, 2, 3]), ("empty".into(), Vec::new())],
        };
        let body = checkpoint.encode();
        assert_eq!(Checkpoint::decode(&body).as_ref(), Ok(&checkpoint));
        assert_eq!(checkpoint.state("sigma"), Some([1, 2, 3].as_slice()));
        assert_eq!(checkpoint.state("other"), None);
        for cut in 0..body.len() {
            assert!(Checkpoint::decode(&body[..cut]).is_err(), "cut at {cut}");
        }
        assert!(Checkpoint::decode(&[body.as_slice(), &[0]].concat()).is_err(), "too long");
    }

    #[test]
    fn the_logs_are_kept_for_the_older_checkpoint_too_also_after_a_restart() {
        let fs: Arc<dyn Fs> = Arc::new(crate::fs::SimFs::new());
        let open = || Checkpoints::open(fs.clone(), Path::new("/data/checkpoint"), 1 << 20).expect("opens");
        let (mut checkpoints, found) = open();
        assert_eq!((found, checkpoints.needed_from()), (None, (0, 0)));
        for (offset, output_offset) in [(5, 2), (9, 3)] {
            let checkpoint = Checkpoint { offset, output_offset, ..Checkpoint::default() };
            checkpoints.save(&checkpoint).expect("saved");
        }
        assert_eq!((checkpoints.newest_offset(), checkpoints.needed_from()), (9, (5, 2)));
        let (checkpoints, found) = open();
        assert_eq!(found.map(|checkpoint| checkpoint.offset), Some(9));
        assert_eq!((checkpoints.newest_offset(), checkpoints.needed_from()), (9, (5, 2)));
    }

    #[test]
    fn no_watermark_stays_none() {
        assert_eq!(Checkpoint::decode(&Checkpoint::default().encode()), Ok(Checkpoint::default()));
    }
}

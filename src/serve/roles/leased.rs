//! The checkpoint of a partition as the database has it: with the tails of the logs that it goes by.
//!
//! ```text
//! body := "TGLC0001", the tails of log, output and changes (each length 4, bytes), then the checkpoint of the run loop
//! ```

use tidegate_pipeline::Offset;
use tidegate_pipeline::checkpoint::Checkpoint;
use tidegate_sinks::fluvio::LogTail;

const MAGIC: &[u8; 8] = b"TGLC0001";

/// A checkpoint with the ends that the logs had then.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Leased {
    pub(super) checkpoint: Checkpoint,
    /// Of the log, the output log and the changes.
    pub(super) tails: [LogTail; 3],
}

impl Leased {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut body = MAGIC.to_vec();
        for tail in self.tails.iter().map(LogTail::encode) {
            body.extend((tail.len() as u32).to_le_bytes());
            body.extend(tail);
        }
        body.extend(self.checkpoint.encode());
        body
    }

    /// Goes back to an offset of the log, or of the output log: what stood there is lost.
    pub(super) fn go_back(&mut self, log: usize, to: Offset) {
        let offset = if log == 0 { &mut self.checkpoint.offset } else { &mut self.checkpoint.output_offset };
        *offset = to.min(*offset);
        if let Some(tail) = self.tails.get_mut(log) {
            *tail = LogTail::default();
        }
    }

    /// # Errors
    /// What is wrong with it.
    pub(super) fn decode(body: &[u8]) -> Result<Self, String> {
        let mut rest = body.strip_prefix(MAGIC).ok_or("no checkpoint of a partition")?;
        let mut tails: [LogTail; 3] = Default::default();
        for tail in &mut tails {
            let (length, after) = rest.split_first_chunk().ok_or("cut")?;
            let length = u32::from_le_bytes(*length) as usize;
            let (bytes, after) = after.split_at_checked(length).ok_or("cut")?;
            *tail = LogTail::decode(bytes).ok_or("no tail of a log")?;
            rest = after;
        }
        Ok(Self { checkpoint: Checkpoint::decode(rest)?, tails })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_encoded_is_decoded_and_nothing_else_is() {
        let checkpoint =
            Checkpoint { offset: 7, output_offset: 8, watermark: Some(9), states: vec![("a".to_owned(), vec![1, 2])] };
        let tail = |bytes: &[u8]| LogTail::decode(bytes).expect("a tail");
        let tails = [tail(&[2, 0, 0, 0, 0, 0, 0, 0, 5, 6, 7, 8]), LogTail::default(), tail(&[1, 0, 0, 0, 0, 0, 0, 0])];
        let leased = Leased { checkpoint: checkpoint.clone(), tails };
        let body = leased.encode();
        assert_eq!(Leased::decode(&body), Ok(leased));
        for cut in 0..body.len() {
            assert!(Leased::decode(&body[..cut]).is_err(), "{cut}");
        }
        Leased::decode(&checkpoint.encode()).expect_err("without the tails");
        let mut back = Leased::decode(&body).expect("a checkpoint");
        back.go_back(0, 3);
        back.go_back(1, 30);
        assert_eq!((back.checkpoint.offset, back.checkpoint.output_offset), (3, 8));
        assert_eq!(back.tails[0], LogTail::default());
    }
}

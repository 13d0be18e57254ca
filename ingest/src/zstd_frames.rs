//! The frames of a zstd body, one after the other (RFC 8878, section 3.1).
//!
//! libzstd decodes a frame that fits into the buffer of whoever reads in another way than one that does not, and then checks
//! more: the length of a frame whose last block is empty, but not its window. Here both are checked always, so that a body is
//! good or bad whatever the buffer is.

use std::io::{Error, ErrorKind, Read};

use zstd::zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer, ResetDirective, get_error_name, get_frame_content_size};

/// The largest window that a frame may ask for, as a power of two: 8 MiB, which RFC 8878 recommends every decoder to support
/// at least (3.1.1.1.2), and `zstd -19` needs.
const WINDOW_LOG_MAX: u32 = 23;

const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Reads what the frames of `rest` have inflated.
pub(crate) struct Frames<'a> {
    context: DCtx<'static>,
    rest: &'a [u8],
    /// The frame that was begun.
    frame: Option<Frame>,
}

#[derive(Clone, Copy)]
struct Frame {
    /// The bytes that its header says it has.
    declared: Option<u64>,
    /// The bytes that it had so far.
    len: u64,
}

impl<'a> Frames<'a> {
    /// # Errors
    /// There is no memory for a decoder.
    pub(crate) fn new(sent: &'a [u8]) -> Result<Self, Error> {
        let mut context = DCtx::try_create().ok_or(ErrorKind::OutOfMemory)?;
        context.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX)).map_err(named)?;
        Ok(Self { context, rest: sent, frame: None })
    }

    fn begin(&mut self) -> Result<Frame, Error> {
        if window_bytes(self.rest).is_some_and(|bytes| bytes > 1 << WINDOW_LOG_MAX) {
            return Err(Error::new(ErrorKind::InvalidData, "a frame asks for a window of more than 8 MiB"));
        }
        self.context.reset(ResetDirective::SessionOnly).map_err(named)?;
        // What is no frame at all is for the decoder to name.
        Ok(Frame { declared: get_frame_content_size(self.rest).ok().flatten(), len: 0 })
    }
}

impl Read for Frames<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            let frame = match self.frame {
                Some(frame) => frame,
                None if self.rest.is_empty() => return Ok(0),
                None => self.begin()?,
            };
            let (mut input, mut output) = (InBuffer::around(self.rest), OutBuffer::around(buffer));
            let wanted = self.context.decompress_stream(&mut output, &mut input).map_err(named)?;
            let (taken, given) = (input.pos(), output.pos());
            self.rest = self.rest.get(taken..).unwrap_or_default();
            let len = frame.len + given as u64;
            self.frame = (wanted > 0).then_some(Frame { len, ..frame });
            match frame.declared {
                Some(declared) if wanted == 0 && declared != len => {
                    let wrong = format!("a frame has {len} bytes, its header says {declared}");
                    return Err(Error::new(ErrorKind::InvalidData, wrong));
                }
                _ if given > 0 => return Ok(given),
                _ if wanted > 0 && taken == 0 => return Err(Error::new(ErrorKind::UnexpectedEof, "incomplete frame")),
                _ => {}
            }
        }
    }
}

/// The window that a frame asks for (RFC 8878, 3.1.1.1.2); `None` for one that is skipped, and for a header that breaks off. A
/// frame of a single segment has its content for a window.
fn window_bytes(frame: &[u8]) -> Option<u64> {
    let header = frame.strip_prefix(&MAGIC)?;
    if header.first()? & 0x20 != 0 {
        return get_frame_content_size(frame).ok().flatten();
    }
    let descriptor = u64::from(*header.get(1)?);
    let base = 1u64 << (10 + (descriptor >> 3));
    Some(base + base / 8 * (descriptor & 7))
}

fn named(code: usize) -> Error {
    Error::other(get_error_name(code))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame whose blocks are not compressed: header behind the magic number, and what its blocks have.
    fn frame(header: &[u8], blocks: &[&[u8]]) -> Vec<u8> {
        let mut frame = [&MAGIC, header].concat();
        for (at, block) in blocks.iter().enumerate() {
            let head = (block.len() as u32) << 3 | u32::from(at + 1 == blocks.len());
            frame.extend_from_slice(&head.to_le_bytes()[..3]);
            frame.extend_from_slice(block);
        }
        frame
    }

    /// What comes out of `sent`, the same for buffers of all sizes.
    fn check(sent: &[u8]) -> Result<Vec<u8>, String> {
        let mut all = [1, 2, 3, 100, 1 << 10, 64 << 10, 32 << 20].map(|size| {
            let mut frames = Frames::new(sent).expect("memory");
            let (mut out, mut buffer) = (Vec::new(), vec![0; size]);
            loop {
                match frames.read(&mut buffer) {
                    Ok(0) => return Ok(out),
                    Ok(read) => out.extend_from_slice(&buffer[..read]),
                    Err(error) => return Err(error.to_string()),
                }
            }
        });
        assert!(all.windows(2).all(|two| two[0] == two[1] || two.iter().all(Result::is_err)), "{all:?}");
        std::mem::replace(&mut all[0], Ok(Vec::new()))
    }

    #[test]
    fn a_frame_has_the_bytes_that_its_header_says_whatever_the_buffer_is() {
        let wrong = |had: usize, said: usize| format!("a frame has {had} bytes, its header says {said}");
        // A single segment with a length of one byte.
        assert_eq!(check(&frame(&[0x20, 3], &[b"abc"])), Ok(b"abc".to_vec()));
        assert_eq!(check(&frame(&[0x20, 3], &[b"abc", b""])), Ok(b"abc".to_vec()));
        assert_eq!(check(&frame(&[0x20, 0], &[b""])), Ok(Vec::new()));
        assert_eq!(check(&frame(&[0x20, 3], &[b"ab", b""])), Err(wrong(2, 3)));
        assert_eq!(check(&frame(&[0x20, 3], &[b""])), Err(wrong(0, 3)));
        assert!(check(&frame(&[0x20, 3], &[b"ab"])).is_err());
        assert!(check(&frame(&[0x20, 3], &[b"abcd"])).is_err());
        // A window, and no length.
        assert_eq!(check(&frame(&[0x00, 0x50], &[b"ab", b""])), Ok(b"ab".to_vec()));
        // A window, and a length of two bytes, which is 256 more than it says: as libFuzzer found it.
        assert_eq!(check(&frame(&[0x50, 0x50, 0x2a, 0x4d], &[b""])), Err(wrong(0, 0x4d2a + 256)));
        // After one that is whole, and one that is skipped.
        let skipped = [0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 9, 9];
        let (whole, short) = (frame(&[0x20, 3], &[b"abc"]), frame(&[0x20, 3], &[b"ab", b""]));
        assert_eq!(check(&[&whole[..], &skipped, &whole].concat()), Ok(b"abcabc".to_vec()));
        assert_eq!(check(&[&whole[..], &skipped, &short].concat()), Err(wrong(2, 3)));
    }

    #[test]
    fn a_window_beyond_the_bound_is_refused_whatever_the_buffer_is() {
        let wide = Err("a frame asks for a window of more than 8 MiB".to_owned());
        for (descriptor, want) in [
            (13 << 3, Ok(b"abc".to_vec())),
            (13 << 3 | 1, wide.clone()),
            (14 << 3, wide.clone()),
            (31 << 3 | 7, wide.clone()),
        ] {
            assert_eq!(check(&frame(&[0x00, descriptor], &[b"abc"])), want, "{descriptor}");
        }
        // The same where a length is said too, which libzstd decodes at once when the buffer has room.
        assert_eq!(check(&frame(&[0x80, 13 << 3, 3, 0, 0, 0], &[b"abc"])), Ok(b"abc".to_vec()));
        assert_eq!(check(&frame(&[0x80, 14 << 3, 3, 0, 0, 0], &[b"abc"])), wide);
        let block = vec![7; 1 << 17];
        let blocks: Vec<&[u8]> = vec![&block; 64];
        let fits = [&[0xa0][..], &(8u32 << 20).to_le_bytes()].concat();
        assert_eq!(check(&frame(&fits, &blocks)).map(|out| out.len()), Ok(8 << 20));
        let beyond = [&[0xa0][..], &((8u32 << 20) + 1).to_le_bytes()].concat();
        assert_eq!(check(&frame(&beyond, &[&blocks[..], &[b"7"]].concat())), wide);
    }

    #[test]
    fn what_breaks_off_is_incomplete() {
        let whole = zstd::encode_all(&b"the quick brown fox ".repeat(100)[..], 3).expect("memory");
        assert!(check(&whole).is_ok());
        for cut in 1..whole.len() {
            assert!(check(&whole[..cut]).is_err(), "{cut}");
        }
        assert_eq!(check(&[]), Ok(Vec::new()));
    }
}

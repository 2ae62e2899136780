//! Compressed clusters as QEMU reads them.
//!
//! Knows: how QEMU calls zlib and zstd, and when it takes the result.
//! Does not know: the reader under test.

use flate2::{Decompress, FlushDecompress, Status};
use zstd::zstd_safe::{DCtx, InBuffer, OutBuffer};

use super::inflate::{Rules, inflate};

/// How clusters are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Raw deflate.
    Zlib,
    /// Zstandard.
    Zstd,
}

/// The cluster in `stream`, or nothing where QEMU answers an I/O error.
pub fn decompress(kind: Kind, stream: &[u8], cluster: usize) -> Option<Vec<u8>> {
    let mut out = vec![0; cluster];
    let taken = match kind {
        Kind::Zlib => zlib(stream, &mut out),
        Kind::Zstd => zstd(stream, &mut out),
    };
    taken.then_some(out)
}

/// The same for zlib without zlib: by the RFC and by what zlib refuses.
pub fn by_the_book(stream: &[u8], cluster: usize) -> Option<Vec<u8>> {
    let mut out = vec![0; cluster];
    let taken = inflate(stream, &mut out, Rules::Zlib).is_ok();
    taken.then_some(out)
}

/// What is taken although QEMU refuses it: see docs/decisions/0005.
pub fn tolerated(kind: Kind, stream: &[u8], cluster: usize) -> Option<Vec<u8>> {
    let mut out = vec![0; cluster];
    let taken = kind == Kind::Zlib && inflate(stream, &mut out, Rules::Lenient).is_ok();
    taken.then_some(out)
}

/// One call of inflate with Z_FINISH; any end will do as long as the output is full.
fn zlib(stream: &[u8], out: &mut [u8]) -> bool {
    let mut zlib = Decompress::new(false);
    let status = zlib.decompress(stream, out, FlushDecompress::Finish);
    let ended = matches!(status, Ok(Status::StreamEnd | Status::BufError));
    ended && zlib.total_out() == out.len() as u64
}

/// Frames one after another until the output is full, each call with some progress; the last
/// frame must be at its end.
fn zstd(stream: &[u8], out: &mut [u8]) -> bool {
    let mut context = DCtx::create();
    let room = out.len();
    let mut output = OutBuffer::around(out);
    let mut input = InBuffer::around(stream);
    let mut hint = 0;
    while output.pos() < room {
        let before = (input.pos, output.pos());
        hint = match context.decompress_stream(&mut output, &mut input) {
            Ok(hint) => hint,
            Err(_) => return false,
        };
        if (input.pos, output.pos()) == before {
            return false;
        }
    }
    hint == 0
}

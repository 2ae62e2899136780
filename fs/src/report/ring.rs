//! Lines kept for readers, the newest of them, read like a file that only grows: `log`, `events`.
//! It knows lines and offsets counted from the first byte there ever was; not what lines say.
//! Invariant: at most the limit is kept, and what fell out is said in one line to whoever would
//! have read it.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

/// How much is kept.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) lines: usize,
    pub(super) bytes: u64,
}

/// See the module.
pub struct Ring {
    limits: Limits,
    /// What stands where so many lines fell out.
    lost: fn(u64) -> String,
    lines: Mutex<Lines>,
}

struct Line {
    start: u64,
    /// With its newline.
    text: String,
}

#[derive(Default)]
struct Lines {
    kept: VecDeque<Line>,
    /// Lines that fell out.
    dropped: u64,
    /// Where the next line will start.
    end: u64,
    last: Option<SystemTime>,
}

impl Lines {
    fn oldest(&self) -> u64 {
        self.kept.front().map_or(self.end, |line| line.start)
    }
}

/// What a ring answers to a read.
enum Found {
    Bytes {
        bytes: Vec<u8>,
        /// The number of the first line that is not wholly among them.
        next_line: u64,
    },
    /// It fell out.
    Gone,
}

impl Ring {
    pub(super) fn new(limits: Limits, lost: fn(u64) -> String) -> Self {
        Ring {
            limits,
            lost,
            lines: Mutex::default(),
        }
    }

    /// Adds a line, written at `now`; `text` holds no newline.
    pub(super) fn push(&self, mut text: String, now: SystemTime) {
        text.push('\n');
        let mut lines = self.lock();
        let (start, length) = (lines.end, text.len() as u64);
        lines.kept.push_back(Line { start, text });
        lines.end += length;
        lines.last = Some(now);
        while lines.kept.len() > self.limits.lines
            || (lines.kept.len() > 1 && lines.end - lines.oldest() > self.limits.bytes)
        {
            lines.kept.pop_front();
            lines.dropped += 1;
        }
    }

    /// Bytes there ever were: the length of a file that is never cut, so that nobody who follows
    /// it takes it for another.
    pub fn length(&self) -> u64 {
        self.lock().end
    }

    /// When the last line was written.
    pub fn modified(&self) -> Option<SystemTime> {
        self.lock().last
    }

    /// Lines that fell out.
    #[cfg(test)]
    pub(super) fn dropped(&self) -> u64 {
        self.lock().dropped
    }

    /// All that is kept, and before it what fell out.
    pub fn text(&self) -> String {
        let mut reader = Reader::default();
        let mut text = Vec::new();
        loop {
            let more = reader.read(self, text.len() as u64, usize::MAX);
            if more.is_empty() {
                return String::from_utf8_lossy(&text).into_owned();
            }
            text.extend(more);
        }
    }

    fn read(&self, at: u64, size: usize) -> Found {
        let lines = self.lock();
        if at < lines.oldest() {
            return Found::Gone;
        }
        let mut bytes = Vec::new();
        let first = lines
            .kept
            .partition_point(|line| line.start + line.text.len() as u64 <= at);
        let mut next_line = lines.dropped + first as u64;
        for line in lines.kept.iter().skip(first) {
            let room = size - bytes.len();
            let skipped = usize::try_from(at.saturating_sub(line.start)).unwrap_or(usize::MAX);
            let rest = line.text.as_bytes().get(skipped..).unwrap_or_default();
            if rest.len() > room {
                bytes.extend_from_slice(&rest[..room]);
                break;
            }
            bytes.extend_from_slice(rest);
            next_line += 1;
        }
        Found::Bytes { bytes, next_line }
    }

    /// Where the oldest line starts, and its number.
    fn oldest(&self) -> (u64, u64) {
        let lines = self.lock();
        (lines.oldest(), lines.dropped)
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One reader of a ring. Offsets are those of the file, except that reading from the beginning,
/// or on from what has fallen out meanwhile, goes on with the oldest line that is kept.
#[derive(Debug, Default)]
pub struct Reader {
    /// From this offset of its own on ...
    from: u64,
    /// ... it sees what the file has from here on.
    at: u64,
    /// What stands before `from`, about the lines that are gone.
    note: Vec<u8>,
    /// Behind the last bytes it got.
    next: u64,
    /// The first line it has not seen whole.
    line: u64,
    /// The last bytes it got ended within a line.
    within_line: bool,
}

impl Reader {
    /// At most `size` bytes from `offset` on; none at the end.
    pub fn read(&mut self, ring: &Ring, offset: u64, size: usize) -> Vec<u8> {
        if offset == 0 {
            *self = Reader::default();
            self.go_on_with_the_oldest(ring);
        }
        let bytes = self.bytes(ring, offset, size);
        self.next = offset + bytes.len() as u64;
        if let Some(last) = bytes.last() {
            self.within_line = *last != b'\n';
        }
        bytes
    }

    fn bytes(&mut self, ring: &Ring, offset: u64, size: usize) -> Vec<u8> {
        let note_from = self.from - self.note.len() as u64;
        if offset < note_from {
            return hole(note_from - offset, size);
        }
        if offset < self.from {
            // both are within the note
            let skipped = (offset - note_from) as usize;
            return self.note[skipped..].iter().copied().take(size).collect();
        }
        let at = self.at + (offset - self.from);
        match ring.read(at, size) {
            Found::Bytes { bytes, next_line } => {
                self.line = next_line;
                bytes
            }
            Found::Gone if offset == self.next => {
                self.go_on_with_the_oldest(ring);
                self.bytes(ring, offset, size)
            }
            // Whoever looks for lines backwards finds none there.
            Found::Gone => hole(ring.oldest().0.saturating_sub(at), size),
        }
    }

    fn go_on_with_the_oldest(&mut self, ring: &Ring) {
        let (oldest, number) = ring.oldest();
        let gone = number.saturating_sub(self.line);
        self.note.clear();
        if gone > 0 {
            if self.within_line {
                self.note.push(b'\n');
            }
            self.note.extend_from_slice((ring.lost)(gone).as_bytes());
            self.note.push(b'\n');
        }
        self.from = self.next + self.note.len() as u64;
        self.at = oldest;
        self.line = number;
    }
}

fn hole(length: u64, size: usize) -> Vec<u8> {
    vec![0; usize::try_from(length).unwrap_or(usize::MAX).min(size)]
}

#[cfg(test)]
mod tests {
    use super::{Limits, Reader, Ring};
    use std::time::SystemTime;

    fn ring(lines: usize, bytes: u64) -> Ring {
        Ring::new(Limits { lines, bytes }, |gone| format!("({gone} gone)"))
    }

    fn push(ring: &Ring, lines: std::ops::Range<u32>) {
        lines.for_each(|number| ring.push(format!("line {number}"), SystemTime::now()));
    }

    fn all(reader: &mut Reader, ring: &Ring, mut offset: u64, size: usize) -> (String, u64) {
        let mut text = Vec::new();
        loop {
            let more = reader.read(ring, offset, size);
            if more.is_empty() {
                return (String::from_utf8(text).expect("text"), offset);
            }
            offset += more.len() as u64;
            text.extend(more);
        }
    }

    #[test]
    fn a_reader_from_the_start_gets_what_is_kept_and_then_what_comes() {
        let ring = ring(3, 1000);
        push(&ring, 0..5);
        for size in [1, 3, 7, 1000] {
            let mut reader = Reader::default();
            let (text, _) = all(&mut reader, &ring, 0, size);
            assert_eq!(text, "(2 gone)\nline 2\nline 3\nline 4\n", "{size}");
        }
        let mut reader = Reader::default();
        let (_, offset) = all(&mut reader, &ring, 0, 4);
        push(&ring, 5..6);
        assert_eq!(all(&mut reader, &ring, offset, 4).0, "line 5\n");
        assert_eq!(ring.length(), 6 * 7);
        assert_eq!(ring.text(), "(3 gone)\nline 3\nline 4\nline 5\n");
    }

    #[test]
    fn a_reader_that_begins_near_the_end_as_tail_does() {
        let ring = ring(100, 10_000);
        push(&ring, 0..300);
        let end = ring.length();
        let mut reader = Reader::default();
        assert_eq!(reader.read(&ring, end - 9, 9), b"line 299\n");
        assert!(reader.read(&ring, end, 100).is_empty());
        push(&ring, 300..301);
        assert_eq!(reader.read(&ring, end, 100), b"line 300\n");
        // further back than anything kept: no lines there, and the beginning is what is kept
        let mut reader = Reader::default();
        assert_eq!(reader.read(&ring, 8, 16), [0; 16]);
        assert!(reader.read(&ring, 0, 1000).starts_with(b"(201 gone)\n"));
    }

    #[test]
    fn a_slow_reader_is_told_what_it_missed() {
        let ring = ring(3, 1000);
        push(&ring, 0..3);
        let mut reader = Reader::default();
        assert_eq!(reader.read(&ring, 0, 10), b"line 0\nlin");
        push(&ring, 3..9);
        let (text, offset) = all(&mut reader, &ring, 10, 6);
        assert_eq!(text, "\n(5 gone)\nline 6\nline 7\nline 8\n");
        push(&ring, 9..10);
        assert_eq!(all(&mut reader, &ring, offset, 100).0, "line 9\n");
    }

    #[test]
    fn bytes_are_bounded_too_and_one_long_line_stays() {
        let ring = ring(1000, 20);
        push(&ring, 0..9);
        assert_eq!(ring.text(), "(7 gone)\nline 7\nline 8\n");
        ring.push("x".repeat(50), SystemTime::now());
        assert_eq!(ring.text(), format!("(9 gone)\n{}\n", "x".repeat(50)));
        assert_eq!(ring.dropped(), 9);
    }
}

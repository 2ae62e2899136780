//! A file in memory of which only some pages are kept: large clusters cost nothing.
//!
//! Knows: bytes by their place, zeros elsewhere.
//! Does not know: what the bytes mean.

use std::io;

use qmpfs_qcow2::ReadAt;

const PAGE: u64 = 4096;

/// A file with holes.
#[derive(Debug, Default)]
pub struct File {
    pages: Vec<Option<Box<[u8; PAGE as usize]>>>,
    size: u64,
}

impl File {
    /// Puts `bytes` at `at`, over what was there; the file grows to hold them.
    pub fn put(&mut self, at: u64, bytes: impl AsRef<[u8]>) {
        let bytes = bytes.as_ref();
        self.size = self.size.max(at + bytes.len() as u64);
        let needed = self.size.div_ceil(PAGE) as usize;
        if self.pages.len() < needed {
            self.pages.resize_with(needed, || None);
        }
        let mut done = 0;
        while done < bytes.len() {
            let at = at + done as u64;
            let within = (at % PAGE) as usize;
            let len = (bytes.len() - done).min(PAGE as usize - within);
            let page = self.pages[(at / PAGE) as usize].get_or_insert_with(|| Box::new([0; _]));
            page[within..within + len].copy_from_slice(&bytes[done..done + len]);
            done += len;
        }
    }

    /// Lets the file end with a hole.
    pub fn grow(&mut self, size: u64) {
        self.size = self.size.max(size);
    }

    /// Cuts the file; what was behind is zeros, as it is for whoever reads there.
    pub fn cut(&mut self, size: u64) {
        self.size = self.size.min(size);
        self.pages.truncate(self.size.div_ceil(PAGE) as usize);
        // Where the file ends within a page, that is the last one.
        if let Some(Some(last)) = self.pages.get_mut((self.size / PAGE) as usize) {
            last[(self.size % PAGE) as usize..].fill(0);
        }
    }

    /// Where the file ends: its size in bytes.
    pub fn end(&self) -> u64 {
        self.size
    }

    /// Fills `buf` from `at`; zeros in holes and behind the end.
    pub fn read(&self, at: u64, buf: &mut [u8]) {
        let mut done = 0;
        while done < buf.len() {
            let at = at.saturating_add(done as u64);
            let within = (at % PAGE) as usize;
            let len = (buf.len() - done).min(PAGE as usize - within);
            let part = &mut buf[done..done + len];
            match self.pages.get((at / PAGE) as usize) {
                Some(Some(page)) => part.copy_from_slice(&page[within..within + len]),
                Some(None) => part.fill(0),
                None => {
                    buf[done..].fill(0);
                    break;
                }
            }
            done += len;
        }
    }

    /// A big-endian word; zeros behind the end.
    pub fn word(&self, at: u64) -> u64 {
        let mut word = [0; 8];
        self.read(at, &mut word);
        u64::from_be_bytes(word)
    }

    /// The whole file, for tools that want a real one.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.size as usize];
        self.read(0, &mut bytes);
        bytes
    }
}

impl ReadAt for File {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = self.size.saturating_sub(offset);
        let len = buf.len().min(usize::try_from(rest).unwrap_or(usize::MAX));
        self.read(offset, &mut buf[..len]);
        Ok(len)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.size)
    }
}

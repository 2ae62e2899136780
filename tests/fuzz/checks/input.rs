//! The fuzzer's bytes as a row of decisions.
//!
//! Knows: how to take numbers off the front; an input that has run out gives zeros.
//! Does not know: what is decided. The same bytes always give the same decisions.

/// Bytes, consumed from the front.
#[derive(Clone)]
pub struct Input<'a> {
    rest: &'a [u8],
}

impl<'a> Input<'a> {
    /// All of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Input<'a> {
        Input { rest: bytes }
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Up to `len` bytes.
    pub fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.rest.split_at(len.min(self.rest.len()));
        self.rest = rest;
        taken
    }

    /// Whatever is left.
    pub fn rest(&mut self) -> &'a [u8] {
        self.take(usize::MAX)
    }

    fn number<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let taken = self.take(N);
        bytes[..taken.len()].copy_from_slice(taken);
        bytes
    }

    /// One byte.
    pub fn u8(&mut self) -> u8 {
        self.number::<1>()[0]
    }

    /// Two bytes.
    pub fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.number())
    }

    /// Four bytes.
    pub fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.number())
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.number())
    }

    /// A number below `n`, which is at most 2^16.
    pub fn below(&mut self, n: usize) -> usize {
        let number = match n {
            0..=0x100 => usize::from(self.u8()),
            _ => usize::from(self.u16()),
        };
        number % n.max(1)
    }

    /// Yes once in `n` times.
    pub fn one_in(&mut self, n: u8) -> bool {
        self.u8() % n == 1 % n
    }

    /// One of these.
    pub fn choose<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
}

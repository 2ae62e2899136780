//! The bytes of the disks: the same at every run, never zeros by chance, cheap to make.

/// The cluster size of all images.
pub(crate) const CLUSTER: usize = 64 << 10;

const PAGE: usize = 4096;
/// One page in five does not compress, as in a disk of text, programs, and things compressed already.
const RANDOM_PAGES: u64 = 5;
/// The words that text is made of: few enough that zlib gets about 2:1 out of the whole.
const WORDS: usize = 128;

/// A generator of numbers (splitmix64).
#[derive(Debug, Clone)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// The numbers below `count` in random order.
    pub(crate) fn shuffled(&mut self, count: u64) -> Vec<u64> {
        let mut all: Vec<u64> = (0..count).collect();
        for i in (1..all.len()).rev() {
            all.swap(i, self.below(i as u64 + 1) as usize);
        }
        all
    }
}

/// What a disk holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// Bytes that do not compress.
    Random,
    /// Pages of text between pages of random bytes.
    Mixed,
}

/// Makes the bytes of clusters.
#[derive(Debug)]
pub(crate) struct Maker {
    content: Content,
    words: Vec<String>,
}

impl Maker {
    pub(crate) fn new(content: Content) -> Self {
        let mut dice = Dice::new(11);
        let word = |dice: &mut Dice| {
            let length = 2 + dice.below(8);
            let letters = (0..length).map(|_| char::from(b'a' + dice.below(26) as u8));
            letters.chain([' ']).collect()
        };
        let words = (0..WORDS).map(|_| word(&mut dice)).collect();
        Self { content, words }
    }

    /// Fills `cluster` with what stands in cluster `index` of the disk.
    pub(crate) fn fill(&self, cluster: &mut [u8], index: u64) {
        let mut dice = Dice::new(index ^ 0x5bd1_e995_0000_0000);
        for page in cluster.chunks_mut(PAGE) {
            if self.content == Content::Random || dice.below(RANDOM_PAGES) == 0 {
                for eight in page.chunks_mut(8) {
                    eight.copy_from_slice(&dice.next().to_le_bytes()[..eight.len()]);
                }
            } else {
                self.text(page, &mut dice);
            }
        }
    }

    fn text(&self, page: &mut [u8], dice: &mut Dice) {
        let mut at = 0;
        while at < page.len() {
            let word = self.words[dice.below(WORDS as u64) as usize].as_bytes();
            let length = word.len().min(page.len() - at);
            page[at..at + length].copy_from_slice(&word[..length]);
            at += length;
        }
    }
}

//! Damages an image where damage matters: in its header and the tables that the header names.
//!
//! Knows: where those tables are, as long as they can be found.
//! Does not know: what becomes of it. The same seed always does the same damage.

/// Numbers from a seed.
pub struct Numbers(pub u64);

impl Numbers {
    /// Any number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.number() % n.max(1)
    }
}

/// Changes one to four places.
pub fn damage(image: &mut [u8], numbers: &mut Numbers) {
    for _ in 0..=numbers.below(4) {
        let (at, len) = place(image, numbers);
        let old = number(image, at, len);
        let all = u64::MAX >> (64 - 8 * len);
        let cluster_bits = number(image, 20, 4).min(21);
        let new = match numbers.below(10) {
            0 => 0,
            1 => old ^ 1 << numbers.below(8 * len),
            2 => old.wrapping_add(1),
            3 => old.wrapping_sub(1),
            4 => numbers.number() >> numbers.below(64),
            // Somewhere in the file.
            5 => numbers.below(2 * image.len() as u64) >> cluster_bits << cluster_bits,
            6 => numbers.below(2 * image.len() as u64) >> cluster_bits << cluster_bits | 1 << 63,
            // What another entry says.
            7 => {
                let (at, len) = place(image, numbers);
                number(image, at, len)
            }
            8 => 1 << 62 | old,
            _ => all,
        };
        put(image, at, len, new & all);
    }
}

/// A field or an entry: where it is, and its length.
fn place(image: &[u8], numbers: &mut Numbers) -> (u64, u64) {
    let word = |at| number(image, at, 8);
    let within = |start: u64, len: u64, numbers: &mut Numbers| {
        start.wrapping_add(numbers.below(len / 8) * 8)
    };
    let l1 = word(40);
    let l1_len = number(image, 36, 4).min(64) * 8;
    let l2 = word(within(l1, l1_len, numbers)) & 0x00ff_ffff_ffff_fe00;
    let l2_len = 1 << number(image, 20, 4).clamp(9, 12);
    match numbers.below(16) {
        0..=3 => (numbers.below(30) * 4, 4),
        4 => (numbers.below(120) * 4, 4),
        5 | 6 => (within(l1, l1_len, numbers), 8),
        7..=10 => (within(l2, l2_len, numbers), 8),
        11 | 12 => (word(64).wrapping_add(numbers.below(48) * 4), 4),
        // A snapshot's L1 table.
        13 => (within(word(word(64)), 64, numbers), 8),
        // A compressed stream, or data.
        14 => {
            let host = word(within(l2, l2_len, numbers)) & 0xffff_ffff;
            (host + numbers.below(64), 1)
        }
        _ => (numbers.below(image.len() as u64), 1),
    }
}

fn number(image: &[u8], at: u64, len: u64) -> u64 {
    let bytes = usize::try_from(at)
        .ok()
        .and_then(|at| image.get(at..at.checked_add(len as usize)?));
    bytes
        .unwrap_or(&[])
        .iter()
        .fold(0, |number, &byte| number << 8 | u64::from(byte))
}

fn put(image: &mut [u8], at: u64, len: u64, value: u64) {
    let place = usize::try_from(at)
        .ok()
        .and_then(|at| image.get_mut(at..at.checked_add(len as usize)?));
    if let Some(place) = place {
        place.copy_from_slice(&value.to_be_bytes()[8 - len as usize..]);
    }
}

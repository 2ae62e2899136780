//! Any bytes as a whole image.
#![no_main]

use checks::damage::{Numbers, damage};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| checks::image::check(bytes));

// Half of all changes go where they matter; the others anywhere.
libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let mut numbers = Numbers(seed.into());
    if size >= 512 && numbers.below(2) == 0 {
        damage(&mut data[..size], &mut numbers);
        return size;
    }
    libfuzzer_sys::fuzzer_mutate(data, size, max_size)
});

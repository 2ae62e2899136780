//! Chains of layers, against the bytes that were put into them.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| checks::chain::check(bytes));

//! L1 and L2 tables of any content, against the specification.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| checks::tables::check(bytes));

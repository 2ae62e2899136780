//! A valid header with some fields changed.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| checks::header::check_fields(bytes));

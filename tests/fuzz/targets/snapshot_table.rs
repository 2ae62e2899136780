//! Any bytes as a snapshot table.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| checks::snapshot_table::check(bytes));

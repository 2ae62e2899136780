//! Any bytes as a compressed cluster, against what QEMU takes.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| checks::compressed::check(bytes));

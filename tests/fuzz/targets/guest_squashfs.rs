//! A squashfs.
#![no_main]

#[path = "../guests/mod.rs"]
mod guests;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| guests::check("guest_squashfs", bytes));

//! A physical volume of LVM2.
#![no_main]

#[path = "../guests/mod.rs"]
mod guests;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| guests::check("guest_lvm", bytes));

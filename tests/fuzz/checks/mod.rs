//! What must hold of the qcow2 reader, whatever bytes it is given: one property a module.
//!
//! Knows: the reader's public interface, and the format by the book.
//! Does not know: libFuzzer. `fs/qcow2/tests/regressions.rs` runs the same checks on stable.
//! Invariant: a check panics where the property does not hold, and only there.

pub mod agree;
pub mod chain;
pub mod compressed;
pub mod damage;
pub mod encode;
pub mod file;
pub mod header;
pub mod image;
pub mod inflate;
pub mod input;
pub mod layers;
pub mod snapshot_table;
pub mod spec;
pub mod streams;
pub mod tables;
pub mod writer;

/// A name, and what is checked of the fuzzer's bytes under that name.
pub type Target = (&'static str, fn(&[u8]));

/// Every fuzz target.
pub const TARGETS: [Target; 7] = [
    ("header", header::check),
    ("header_fields", header::check_fields),
    ("tables", tables::check),
    ("snapshot_table", snapshot_table::check),
    ("compressed", compressed::check),
    ("chain", chain::check),
    ("image", image::check),
];

//! Valid images of every kind, small enough that a lie about each of their fields is tried.
//!
//! Knows: how each is made by the tools. Does not know: what will be changed in it.

use crate::common::Lab;

/// Bytes of each specimen's disk. With clusters of 512 bytes it takes several L1 entries.
pub(crate) const DISK: u64 = 512 << 10;

/// A valid image, and the files that must lie beside it.
pub(crate) struct Specimen {
    pub(crate) name: &'static str,
    pub(crate) bytes: Vec<u8>,
    pub(crate) beside: Vec<(&'static str, Vec<u8>)>,
}

/// Name, options of `create`, files beside it, the data file, and whether it gets a backing file.
type Kind = (&'static str, &'static str, Option<&'static str>, bool);

const KINDS: [Kind; 9] = [
    ("v2", "compat=0.10,cluster_size=4k", None, false),
    ("v3", "cluster_size=4k", None, false),
    ("v3-512", "cluster_size=512,refcount_bits=64", None, false),
    ("v3-64k", "cluster_size=64k,lazy_refcounts=on", None, false),
    ("zstd", "cluster_size=4k,compression_type=zstd", None, false),
    ("subclusters", "cluster_size=16k,extended_l2=on", None, true),
    (
        "data-file",
        "cluster_size=4k,data_file=d.raw",
        Some("d.raw"),
        false,
    ),
    (
        "raw-data-file",
        "cluster_size=4k,data_file=d.raw,data_file_raw=on",
        Some("d.raw"),
        false,
    ),
    ("overlay", "cluster_size=4k", None, true),
];

/// One of each kind, with data, zeros, compressed clusters, internal snapshots and a bitmap where
/// the kind may have them.
pub(crate) fn all() -> Vec<Specimen> {
    KINDS.iter().map(make).collect()
}

fn make(&(name, options, data_file, overlay): &Kind) -> Specimen {
    let lab = Lab::new();
    let mut backing = "";
    if overlay {
        lab.img(&format!("create -q -f qcow2 base.qcow2 {DISK}"));
        lab.io("base.qcow2", &format!("write -P 9 0 {DISK}"));
        backing = "-b base.qcow2 -F qcow2";
    }
    lab.img(&format!(
        "create -q -f qcow2 -o {options} {backing} m.qcow2 {DISK}"
    ));
    lab.io(
        "m.qcow2",
        "write -P 1 0 48k; write -P 2 180k 20k; write -P 7 320k 64k",
    );
    if data_file.is_none() {
        lab.io("m.qcow2", "write -c -P 3 64k 64k");
        lab.img("snapshot -c first m.qcow2");
        lab.io("m.qcow2", "write -P 4 0 20k; write -P 5 230k 3k");
        lab.img("snapshot -c second m.qcow2");
    }
    if name != "v2" {
        // In version 2 a zero cluster has no entry.
        lab.io(
            "m.qcow2",
            "write -z 320k 64k; write -z -u 256k 64k; write -z 450k 2k",
        );
        if name != "overlay" {
            lab.img("bitmap --add m.qcow2 dirty0");
            lab.io("m.qcow2", "write -P 6 400k 4k");
        }
    }
    let read = |file: &str| std::fs::read(lab.path(file)).expect("a file of the specimen");
    let mut beside = Vec::new();
    if overlay {
        beside.push(("base.qcow2", read("base.qcow2")));
    }
    if let Some(data) = data_file {
        beside.push((data, read(data)));
    }
    Specimen {
        name,
        bytes: read("m.qcow2"),
        beside,
    }
}

//! One test a feature of the format, each against what the real tools read.

mod common;

use common::Lab;

#[test]
fn version_2_and_3_read_the_same() {
    for compat in ["0.10", "1.1"] {
        let lab = Lab::new();
        lab.img(&format!("create -f qcow2 -o compat={compat} a.qcow2 5M"));
        lab.io(
            "a.qcow2",
            "write -P 1 100k 300k; write -P 2 3M 1k; write -P 3 4M 1M",
        );
        lab.check("a.qcow2");
    }
}

#[test]
fn every_cluster_size_from_512_bytes_to_2_mib() {
    for bits in 9..=21 {
        let lab = Lab::new();
        lab.img(&format!(
            "create -f qcow2 -o cluster_size={} a.qcow2 9M",
            1 << bits
        ));
        lab.io(
            "a.qcow2",
            "write -P 1 0 512; write -P 2 700k 300k; write -P 3 8M 1M",
        );
        lab.io("a.qcow2", "write -c -P 4 6M 2M; write -z 730k 100k");
        lab.check("a.qcow2");
    }
}

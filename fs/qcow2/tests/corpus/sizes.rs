//! Disks of every size: none at all, odd ones, and the largest there are.
//!
//! Knows: that a disk of exabytes is compared where something lies, and beside it.

use crate::builder::Builder;
use crate::common::Lab;
use crate::verify::Tally;

/// What is compared of a disk too large to be converted.
const PIECE: u64 = 64 << 10;
/// The tools' limit of 32 MiB for the L1 table.
const MAX_L1_ENTRIES: u64 = 4 << 20;

#[test]
fn no_bytes_one_sector_and_sizes_that_are_no_whole_clusters() {
    let mut tally = Tally::default();
    for (cluster, options) in [
        (512u64, ",compat=0.10"),
        (4096, ""),
        (65536, ""),
        (65536, ",extended_l2=on"),
        (2 << 20, ""),
        (2 << 20, ",extended_l2=on"),
    ] {
        for size in [
            0,
            512,
            1536,
            cluster,
            cluster + 512,
            3 * cluster - 512,
            // The last L2 table is begun and not filled.
            (cluster / 8 * cluster).min(5 << 20) + 512,
        ] {
            let lab = Lab::new();
            let mut image = Builder::create(&lab, "a.qcow2", options, cluster, size);
            if size > 0 {
                image.write(1, 0, 512);
                image.write(2, size - 512, 512);
            }
            tally.built(&lab, &mut image);
            if size > 0 {
                image.snapshot("s");
                image.write_zeros(size - 512, 512, true);
                tally.built(&lab, &mut image);
            }
        }
    }
}

/// Compares pieces of a disk with the tools, and the sum of its data with what was written.
fn check_pieces(lab: &Lab, tally: &mut Tally, places: &[u64], data: u64) {
    let chain = lab.chain("a.qcow2");
    for &place in places {
        let at = place / PIECE * PIECE;
        let expected = lab.try_piece("a.qcow2", at, PIECE).expect("a piece");
        let mut ours = vec![0xee; PIECE as usize];
        let read = chain.read_at(&mut ours, at).expect("read");
        ours.truncate(read);
        assert!(ours == expected, "{at:#x} of {:#x}", chain.virtual_size());
    }
    tally.add(places.len() as u64 * PIECE);
    assert_eq!(chain.allocated_bytes().expect("allocated"), data);
}

#[test]
fn sparse_disks_of_gigabytes_and_of_64_tib() {
    let mut tally = Tally::default();
    for (size, cluster, options) in [
        ((5u64 << 30) + 512, 65536u64, ""),
        ((7 << 30) - 1536, 4096, ",compat=0.10"),
        ((40 << 30) + 512, 2 << 20, ""),
        (3 << 40, 65536, ",extended_l2=on"),
        (64 << 40, 65536, ""),
    ] {
        let lab = Lab::new();
        let places = [
            0,
            size / 3 / cluster * cluster,
            size / 2 / 512 * 512,
            size - 512,
        ];
        let options = format!("cluster_size={cluster}{options}");
        lab.img(&format!("create -q -f qcow2 -o {options} a.qcow2 {size}"));
        for (pattern, at) in places.iter().enumerate() {
            lab.io("a.qcow2", &format!("write -P {} {at} 512", pattern + 1));
        }
        lab.check_map("a.qcow2", &lab.chain("a.qcow2"));
        let chain = lab.chain("a.qcow2");
        let data = chain.allocated_bytes().expect("allocated");
        // A subcluster or a cluster each; the last may be cut by the end of the disk.
        assert!((3 * 512 + 512..=4 * cluster).contains(&data), "{data}");
        check_pieces(&lab, &mut tally, &[&places[..], &[size / 5]].concat(), data);
    }
}

#[test]
fn the_largest_disk_that_the_tools_make() {
    let mut tally = Tally::default();
    for (cluster, options) in [
        (512u64, ""),
        (4096, ",compat=0.10"),
        (65536, ""),
        (65536, ",extended_l2=on"),
        (2 << 20, ""),
        (2 << 20, ",extended_l2=on"),
    ] {
        let lab = Lab::new();
        let created = |sectors: u64| {
            let size = sectors * 512;
            lab.img_succeeds(&format!(
                "create -q -f qcow2 -o cluster_size={cluster}{options} a.qcow2 {size}"
            ))
        };
        let entry = if options.contains("extended") { 16 } else { 8 };
        let sectors = MAX_L1_ENTRIES * (cluster / entry) * (cluster / 512);
        assert!(!created(sectors + 1) && created(sectors));
        let size = sectors * 512;
        lab.io(
            "a.qcow2",
            &format!("write -P 1 0 512; write -P 2 {} 512", size - 512),
        );
        let chain = lab.chain("a.qcow2");
        assert_eq!(chain.virtual_size(), size);
        // One cluster at each end, or one subcluster.
        let data = 2 * if entry == 16 { cluster / 32 } else { cluster };
        check_pieces(&lab, &mut tally, &[0, size / 2, size - 512], data);
    }
}

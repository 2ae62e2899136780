//! Overlays on what is shorter, longer, empty, raw, or of other clusters.

use crate::builder::{Builder, Disk, Kinds};
use crate::common::Lab;
use crate::numbers::Numbers;
use crate::verify::Tally;

const SIZE: u64 = (1 << 20) + 1536;
const KINDS: Kinds = Kinds {
    compressed: false,
    discard: true,
};

/// Sizes of the file below, in bytes.
const BELOW: [u64; 6] = [
    0,
    512,
    SIZE / 2 / 512 * 512,
    SIZE - 512,
    SIZE,
    SIZE + (300 << 10),
];

fn overlays() -> Vec<(u64, &'static str)> {
    let mut overlays = vec![
        (65536, ""),
        (65536, ",extended_l2=on"),
        (4096, ",compat=0.10"),
        (512, ""),
    ];
    if crate::full() {
        overlays.extend([
            (2 << 20, ",extended_l2=on"),
            (2 << 20, ""),
            (16384, ",extended_l2=on,data_file=d.raw"),
        ]);
    }
    overlays
}

#[test]
fn qcow2_files_of_every_size_below() {
    let (mut tally, mut numbers) = (Tally::default(), Numbers::new("qcow2 below"));
    for (cluster, options) in overlays() {
        for size in BELOW {
            let lab = Lab::new();
            let other = *numbers.pick(&[512u64, 4096, 65536, 2 << 20]);
            let mut base = Builder::create(&lab, "base.qcow2", "", other, size);
            if size > 0 {
                base.write(9, 0, size);
                base.scribble(&mut numbers, KINDS);
                base.snapshot("below");
                base.scribble(&mut numbers, KINDS);
            }
            let backing = ("base.qcow2", "qcow2", &base.disk);
            let mut top = Builder::over(&lab, "a.qcow2", options, cluster, backing, Some(SIZE));
            top.scribble(&mut numbers, KINDS);
            tally.built(&lab, &mut base);
            tally.built(&lab, &mut top);
        }
    }
}

#[test]
fn raw_files_of_every_size_below() {
    let (mut tally, mut numbers) = (Tally::default(), Numbers::new("raw below"));
    for (cluster, options) in overlays() {
        for size in BELOW.into_iter().chain([1, 513, SIZE - 77]) {
            let lab = Lab::new();
            let bytes: Vec<u8> = (0..size).map(|i| (i % 251) as u8 | 1).collect();
            std::fs::write(lab.path("base.raw"), &bytes).expect("write");
            let below = Disk::of(bytes);
            let backing = ("base.raw", "raw", &below);
            let mut top = Builder::over(&lab, "a.qcow2", options, cluster, backing, Some(SIZE));
            top.scribble(&mut numbers, KINDS);
            tally.built(&lab, &mut top);
        }
    }
}

#[test]
fn a_short_layer_hides_the_long_one_below_it() {
    let (mut tally, mut numbers) = (Tally::default(), Numbers::new("short in the middle"));
    for round in 0..if crate::full() { 40 } else { 6 } {
        let lab = Lab::new();
        let sizes = [0, 1, 2].map(|_| numbers.below(2048) * 512);
        let mut base = Builder::create(&lab, "l0.qcow2", "", 65536, sizes[0]);
        base.scribble(&mut numbers, KINDS);
        let mut below = base.disk.clone();
        let mut layers = vec![base];
        for (i, &size) in sizes.iter().enumerate().skip(1) {
            let cluster = *numbers.pick(&[512u64, 4096, 65536, 1 << 20]);
            let (name, file) = (format!("l{i}.qcow2"), format!("l{}.qcow2", i - 1));
            let backing = (file.as_str(), "qcow2", &below);
            let mut layer = Builder::over(&lab, &name, "", cluster, backing, Some(size));
            layer.scribble(&mut numbers, KINDS);
            // A resize in the middle of a chain is what makes layers differ in life.
            if round % 2 == 0 && size > 0 {
                layer.resize(numbers.below(2048) * 512);
                layer.scribble(&mut numbers, KINDS);
            }
            below = layer.disk.clone();
            layers.push(layer);
        }
        layers.iter_mut().for_each(|layer| tally.built(&lab, layer));
    }
}

#[test]
fn a_sparse_raw_file_and_one_with_a_data_file_below() {
    let (mut tally, mut numbers) = (Tally::default(), Numbers::new("sparse below"));
    let lab = Lab::new();
    lab.img(&format!("create -q -f raw base.raw {SIZE}"));
    lab.io_raw("base.raw", "write -P 3 64k 64k; write -P 4 500k 10k");
    let below = Disk::of(std::fs::read(lab.path("base.raw")).expect("read"));
    let backing = ("base.raw", "raw", &below);
    let mut middle = Builder::over(&lab, "m.qcow2", ",data_file=d.data", 65536, backing, None);
    middle.scribble(&mut numbers, KINDS);
    tally.built(&lab, &mut middle);
    let below = middle.disk.clone();
    let backing = ("m.qcow2", "qcow2", &below);
    let mut top = Builder::over(&lab, "a.qcow2", "", 4096, backing, None);
    top.scribble(&mut numbers, KINDS);
    tally.built(&lab, &mut top);
}

//! Internal snapshots: many, deleted, applied, of other sizes, and with a machine's memory.

use std::io::Write;
use std::process::Stdio;

use crate::builder::{Builder, Kinds};
use crate::common::Lab;
use crate::numbers::Numbers;
use crate::verify::Tally;

const SIZE: u64 = (1 << 20) + 512;
const PLAIN: Kinds = Kinds {
    compressed: false,
    discard: true,
};

/// Layouts whose entries, tables and refcounts differ.
fn layouts() -> &'static [(u64, &'static str)] {
    &[
        (512, ""),
        (4096, ",compat=0.10"),
        (65536, ",refcount_bits=64"),
        (65536, ",extended_l2=on"),
        (2 << 20, ",compression_type=zstd"),
    ]
}

#[test]
fn many_of_which_some_are_deleted_and_one_is_applied() {
    let (mut tally, mut numbers) = (Tally::default(), Numbers::new("many snapshots"));
    let many = if crate::full() { 60 } else { 9 };
    for &(cluster, options) in layouts() {
        let lab = Lab::new();
        let mut image = Builder::create(&lab, "a.qcow2", options, cluster, SIZE);
        for i in 0..many {
            image.write(i as u8 + 1, numbers.below(SIZE / 512 - 64) * 512, 32 << 10);
            if i % 5 == 0 {
                image.scribble(&mut numbers, PLAIN);
            }
            // Long names: a table of many goes over its first cluster.
            image.snapshot(&format!("{i}-{}", "x".repeat(numbers.below(60) as usize)));
        }
        for _ in 0..many / 3 {
            let index = numbers.below(image.snapshots.len() as u64) as usize;
            image.delete_snapshot(index);
        }
        tally.built(&lab, &mut image);
        let index = numbers.below(image.snapshots.len() as u64) as usize;
        image.apply_snapshot(index);
        image.scribble(&mut numbers, PLAIN);
        tally.built(&lab, &mut image);
        lab.img("check -q -f qcow2 a.qcow2");
    }
}

#[test]
fn of_disks_that_had_other_sizes() {
    let (mut tally, mut numbers) = (Tally::default(), Numbers::new("sizes of snapshots"));
    for &(cluster, options) in layouts() {
        let lab = Lab::new();
        let mut base = Builder::create(&lab, "base.qcow2", "", 65536, SIZE * 2);
        base.write(9, 0, SIZE * 2);
        base.flush();
        let backing = ("base.qcow2", "qcow2", &base.disk);
        let mut image = Builder::over(&lab, "a.qcow2", options, cluster, backing, Some(SIZE));
        for (i, size) in [SIZE * 3, SIZE / 2 / 512 * 512, SIZE + 512]
            .into_iter()
            .enumerate()
        {
            image.scribble(&mut numbers, PLAIN);
            image.snapshot(&format!("s{i}"));
            // In version 2 an image with snapshots cannot have another size.
            if !options.contains("0.10") {
                image.resize(size);
            }
        }
        image.scribble(&mut numbers, PLAIN);
        tally.built(&lab, &mut image);
    }
}

/// A machine that does not run, with the image as its disk, does what the monitor is told.
fn monitor(lab: &Lab, commands: &str) {
    let mut command = lab.command("qemu-system-x86_64");
    command.args("-machine pc,accel=tcg -m 8 -nodefaults -display none -S".split(' '));
    command.args("-drive file=a.qcow2,if=virtio,format=qcow2 -monitor stdio".split(' '));
    let mut machine = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("qemu-system-x86_64 must be installed");
    let mut words = machine.stdin.take().expect("it was asked for");
    write!(words, "{commands}\nquit\n").expect("the monitor listens");
    drop(words);
    assert!(machine.wait().expect("it ends").success(), "{commands}");
}

#[test]
fn with_the_memory_of_a_machine() {
    let (mut tally, mut numbers) = (Tally::default(), Numbers::new("machines"));
    // Half a sector over a cluster and whole clusters: memory lies right behind the disk.
    for (&(cluster, options), size) in layouts().iter().zip([SIZE, 1 << 20, SIZE, 4096, 2 << 20]) {
        let lab = Lab::new();
        let mut image = Builder::create(&lab, "a.qcow2", options, cluster, size);
        image.scribble(&mut numbers, PLAIN);
        image.snapshot("before");
        image.scribble(&mut numbers, PLAIN);
        monitor(&lab, "savevm one\nsavevm two");
        for name in ["one", "two"] {
            image.snapshots.push((name.into(), image.disk.clone()));
        }
        image.scribble(&mut numbers, PLAIN);
        let chain = lab.chain("a.qcow2");
        let snapshots = crate::common::top(&chain).snapshots().expect("the table");
        assert!(snapshots[0].vm_state_size == 0 && snapshots[2].vm_state_size > 0);
        tally.built(&lab, &mut image);
        image.delete_snapshot(1);
        image.apply_snapshot(1);
        tally.built(&lab, &mut image);
    }
}

//! Images after the tools changed them as a whole: another size, another version, another place in
//! a chain, a repair, or the death of whoever wrote them.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::builder::{Builder, Disk, Kinds};
use crate::common::Lab;
use crate::numbers::Numbers;
use crate::verify::Tally;

const SIZE: u64 = (1 << 20) + 512;
const PLAIN: Kinds = Kinds {
    compressed: false,
    discard: true,
};

/// A base full of data and an overlay with some, as `base.qcow2` and `a.qcow2`.
fn overlay<'a>(lab: &'a Lab, numbers: &mut Numbers, cluster: u64, options: &str) -> Builder<'a> {
    let mut base = Builder::create(lab, "base.qcow2", "", 65536, SIZE);
    base.write(9, 0, SIZE);
    base.scribble(numbers, PLAIN);
    let backing = ("base.qcow2", "qcow2", &base.disk);
    let mut image = Builder::over(lab, "a.qcow2", options, cluster, backing, None);
    image.scribble(numbers, PLAIN);
    image
}

#[test]
fn resized() {
    let (mut tally, mut numbers) = (Tally::default(), Numbers::new("resized"));
    for (cluster, options) in [
        (512, ""),
        (4096, ",compat=0.10"),
        (65536, ""),
        (65536, ",extended_l2=on"),
    ] {
        let lab = Lab::new();
        let mut image = overlay(&lab, &mut numbers, cluster, options);
        let sizes = [SIZE + 512, SIZE * 3, 512, SIZE * 2 - 512];
        // Version 2 has no zero clusters to hide the backing file with where the disk grows again.
        let possible = if options.contains("0.10") { 3 } else { 4 };
        for &size in &sizes[..possible] {
            image.resize(size);
            image.scribble(&mut numbers, PLAIN);
            tally.built(&lab, &mut image);
        }
        for how in ["metadata", "falloc", "full"] {
            let lab = Lab::new();
            let mut image = Builder::create(&lab, "a.qcow2", options, cluster, SIZE);
            image.scribble(&mut numbers, PLAIN);
            lab.img(&format!(
                "resize -q -f qcow2 --preallocation={how} a.qcow2 +{SIZE}"
            ));
            image.disk = image.disk.resized(2 * SIZE);
            image.scribble(&mut numbers, PLAIN);
            tally.built(&lab, &mut image);
        }
    }
}

#[test]
fn amended() {
    let (mut tally, mut numbers) = (Tally::default(), Numbers::new("amended"));
    for cluster in [512, 65536] {
        let lab = Lab::new();
        let mut image = overlay(&lab, &mut numbers, cluster, ",lazy_refcounts=on");
        for change in [
            "lazy_refcounts=off",
            "compat=0.10",
            "compat=1.1",
            "refcount_bits=64",
            "lazy_refcounts=on,size=3M",
            "refcount_bits=2",
        ] {
            lab.img(&format!("amend -q -f qcow2 -o {change} a.qcow2"));
            if change.contains("size") {
                image.disk = image.disk.resized(3 << 20);
            }
            tally.built(&lab, &mut image);
            image.scribble(&mut numbers, PLAIN);
            // Not before: the way to 0.10 damages snapshots that have zero clusters (10.0.2).
            if change == "compat=1.1" {
                image.snapshot("s");
                image.scribble(&mut numbers, PLAIN);
            }
        }
        let mut alone = Builder::create(&lab, "d.qcow2", ",data_file=one.raw", cluster, SIZE);
        alone.scribble(&mut numbers, PLAIN);
        std::fs::rename(lab.path("one.raw"), lab.path("two.raw")).expect("rename");
        lab.img("amend -q --image-opts driver=qcow2,file.filename=d.qcow2,data-file.driver=file,data-file.filename=two.raw -o data_file=two.raw");
        tally.built(&lab, &mut alone);
    }
}

#[test]
fn rebased_and_committed() {
    let (mut tally, mut numbers) = (Tally::default(), Numbers::new("rebased"));
    for (cluster, options) in [
        (4096, ",compat=0.10"),
        (65536, ""),
        (65536, ",extended_l2=on"),
    ] {
        let lab = Lab::new();
        let mut image = overlay(&lab, &mut numbers, cluster, options);
        let mut other = Builder::create(&lab, "other.qcow2", "", 4096, SIZE / 2 / 512 * 512);
        other.scribble(&mut numbers, PLAIN);
        // The copying rebase changes no byte of the disk, wherever it goes.
        for below in ["-b other.qcow2 -F qcow2", "-b base.qcow2 -F qcow2"] {
            lab.img(&format!("rebase -q -f qcow2 {below} a.qcow2"));
            tally.built(&lab, &mut image);
        }
        // The other one changes what shines through, which only the tools know.
        lab.img("rebase -q -u -f qcow2 -b other.qcow2 -F qcow2 a.qcow2");
        tally.image(&lab, "a.qcow2", None);
        lab.img("rebase -q -u -f qcow2 -b base.qcow2 -F qcow2 a.qcow2");
        tally.built(&lab, &mut image);

        for keep in ["-d", ""] {
            image.scribble(&mut numbers, PLAIN);
            lab.img(&format!("commit -q -f qcow2 {keep} a.qcow2"));
            tally.image(&lab, "base.qcow2", Some(&image.disk));
            tally.built(&lab, &mut image);
        }
        image.scribble(&mut numbers, PLAIN);
        lab.img_args(&["rebase", "-q", "-f", "qcow2", "-b", "", "a.qcow2"]);
        assert!(lab.image("a.qcow2").header().backing.is_none());
        tally.built(&lab, &mut image);
    }
}

#[test]
fn converted() {
    let (mut tally, mut numbers) = (Tally::default(), Numbers::new("converted"));
    for (options, arguments) in [
        ("compression_type=zlib", "-c"),
        ("compression_type=zstd", "-c"),
        ("compression_type=zstd,cluster_size=2M", "-c -W -m 16"),
        ("compression_type=zlib,cluster_size=512", "-c"),
        ("extended_l2=on,compression_type=zstd", "-c"),
        ("extended_l2=on,cluster_size=16k", "-W -m 4"),
        ("cluster_size=4k,compat=0.10", "-c"),
        ("cluster_size=4k", "-S 0"),
        ("preallocation=metadata", ""),
        ("data_file=d.raw,data_file_raw=on", ""),
        ("lazy_refcounts=on", "-S 4k -B base.qcow2 -F qcow2"),
    ] {
        let lab = Lab::new();
        let image = overlay(&lab, &mut numbers, 65536, "");
        // Noise, so that some clusters do not get smaller and stay as they are.
        let noise: Vec<u8> = (0..300 << 10).map(|_| numbers.next() as u8).collect();
        std::fs::write(lab.path("noise"), &noise).expect("write");
        lab.io("a.qcow2", "write -s noise 100k 300k");
        let mut disk = image.disk.clone();
        disk.bytes[100 << 10..400 << 10].copy_from_slice(&noise);
        disk.doubtful[100 << 10..400 << 10].fill(false);
        lab.img(&format!(
            "convert -q -f qcow2 -O qcow2 -o {options} {arguments} a.qcow2 c.qcow2"
        ));
        tally.image(&lab, "c.qcow2", Some(&disk));
    }
}

#[test]
fn with_bitmaps() {
    let (mut tally, mut numbers) = (Tally::default(), Numbers::new("bitmaps"));
    for (cluster, options) in [
        (512, ""),
        (65536, ""),
        (65536, ",extended_l2=on"),
        (4096, ",data_file=d.raw"),
    ] {
        let lab = Lab::new();
        let mut image = overlay(&lab, &mut numbers, cluster, options);
        for (i, command) in [
            "--add -g 512",
            "--add --disable",
            "--add",
            "--clear",
            "--remove",
        ]
        .iter()
        .enumerate()
        {
            let name = format!("b{}", i % 3);
            lab.img(&format!("bitmap -f qcow2 {command} a.qcow2 {name}"));
            image.scribble(&mut numbers, PLAIN);
            tally.built(&lab, &mut image);
        }
        assert!(lab.image("a.qcow2").header().has_bitmaps);
    }
}

#[test]
fn written_by_bench() {
    let mut tally = Tally::default();
    for (cluster, options) in [
        (512, ""),
        (65536, ",lazy_refcounts=on"),
        (65536, ",extended_l2=on"),
        (2 << 20, ""),
    ] {
        let lab = Lab::new();
        let mut image = Builder::create(&lab, "a.qcow2", options, cluster, 4 << 20);
        lab.img("bench -w -f qcow2 -c 200 -d 16 -s 3072 -S 12288 --pattern=65 a.qcow2");
        for i in 0..200 {
            image.disk.bytes[i * 12288..i * 12288 + 3072].fill(65);
        }
        tally.built(&lab, &mut image);
    }
}

/// A storage daemon that has the image open for writing, on a socket.
fn daemon(lab: &Lab) -> Child {
    let mut command = lab.command("qemu-storage-daemon");
    let export = "type=nbd,id=e,node-name=a,name=a,writable=on";
    command.args([
        "--blockdev",
        "driver=file,node-name=f,filename=a.qcow2,discard=unmap",
    ]);
    command.args([
        "--blockdev",
        "driver=qcow2,node-name=a,file=f,discard=unmap",
    ]);
    command.args(["--nbd-server", "addr.type=unix,addr.path=s"]);
    command.args(["--export", export]);
    let daemon = command.stdin(Stdio::null()).spawn();
    let daemon = daemon.expect("qemu-storage-daemon must be installed");
    let deadline = Instant::now() + Duration::from_secs(20);
    while !lab.path("s").exists() {
        assert!(Instant::now() < deadline, "the daemon does not start");
        std::thread::sleep(Duration::from_millis(5));
    }
    daemon
}

#[test]
fn dirty_because_their_writer_was_killed() {
    let (mut tally, mut numbers) = (Tally::default(), Numbers::new("killed"));
    let mut dirty = 0;
    for round in 0..if crate::full() { 60 } else { 12 } {
        let lab = Lab::new();
        let (cluster, options) = [
            (65536, ",lazy_refcounts=on"),
            (4096, ",compat=0.10"),
            (512, ",lazy_refcounts=on"),
            (65536, ",extended_l2=on,lazy_refcounts=on"),
        ][round % 4];
        drop(overlay(&lab, &mut numbers, cluster, options));
        let mut daemon = daemon(&lab);
        let mut writer = lab.command("qemu-io");
        writer.args(["-f", "raw", "-t", "writeback"]);
        for _ in 0..400 {
            let at = numbers.below(SIZE / 512 - 128) * 512;
            let len = (1 + numbers.below(128)) * 512;
            let verb = *numbers.pick(&["write -P 7", "write -P 8", "write -z", "discard", "flush"]);
            match verb {
                "flush" => writer.args(["-c", "flush"]),
                _ => writer.args(["-c", &format!("{verb} {at} {len}")]),
            };
        }
        writer.arg("nbd+unix:///a?socket=s");
        let mut writer = writer
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("qemu-io must be installed");
        std::thread::sleep(Duration::from_millis(15 + numbers.below(120)));
        daemon.kill().expect("our own child");
        daemon.wait().expect("our own child");
        writer.wait().expect("our own child");
        dirty += u32::from(lab.image("a.qcow2").header().features.dirty());
        tally.image(&lab, "a.qcow2", None);
        tally.image(&lab, "base.qcow2", None);
        // Repaired, it reads as before.
        let before = lab.convert("a.qcow2");
        lab.img("check -q -r all -f qcow2 a.qcow2");
        tally.image(&lab, "a.qcow2", Some(&Disk::of(before)));
    }
    assert!(dirty > 0, "no image was dirty");
}

#[test]
fn repaired() {
    let (mut tally, mut numbers) = (Tally::default(), Numbers::new("repaired"));
    for (cluster, options) in [
        (512, ""),
        (4096, ",compat=0.10"),
        (65536, ",extended_l2=on"),
    ] {
        let lab = Lab::new();
        let mut image = overlay(&lab, &mut numbers, cluster, options);
        image.snapshot("s");
        image.scribble(&mut numbers, PLAIN);
        // All refcounts are lost: the first refcount block becomes zeros.
        let path = lab.path("a.qcow2");
        let block = crate::common::peek64(&path, crate::common::peek64(&path, 48));
        crate::common::poke(&path, block, &vec![0; cluster as usize]);
        tally.built(&lab, &mut image);
        lab.img("check -q -r all -f qcow2 a.qcow2");
        tally.built(&lab, &mut image);
        image.scribble(&mut numbers, PLAIN);
        tally.built(&lab, &mut image);
    }
}

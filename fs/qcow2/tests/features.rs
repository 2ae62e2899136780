//! One test a feature of the format, each against what the real tools read.

mod common;

use std::sync::Arc;

use common::{Lab, assert_reads, at_snapshot, peek64, poke, read_all, runs, top};
use qmpfs_qcow2::{Chain, Compression, Error, GuestOffset, Image, Layer, Mapping};

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
        assert_eq!(
            lab.image("a.qcow2").header().version,
            if compat == "1.1" { 3 } else { 2 }
        );
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

#[test]
fn compressed_clusters_of_zlib_and_zstd() {
    for (kind, expected) in [("zlib", Compression::Zlib), ("zstd", Compression::Zstd)] {
        for cluster in ["512", "4k", "64k", "2M"] {
            let lab = Lab::new();
            // Bytes that compress a little, so that streams have many lengths.
            let bytes: Vec<u8> = (0..5_000_000u32)
                .map(|i| (i.wrapping_mul(i) >> 7 & 0x3f) as u8)
                .collect();
            std::fs::write(lab.path("plain"), &bytes).expect("write");
            lab.img(&format!(
                "convert -c -f raw -O qcow2 -o compression_type={kind},cluster_size={cluster} \
                 plain a.qcow2"
            ));
            let image = lab.image("a.qcow2");
            assert_eq!(image.header().compression, expected);
            assert!(
                runs(&image)
                    .iter()
                    .any(|r| matches!(r.2, Mapping::Compressed { .. }))
            );
            let allocation = image.allocation().expect("allocation");
            assert!(allocation.compressed > 0);
            lab.check("a.qcow2");
        }
    }
}

#[test]
fn compressed_and_plain_clusters_side_by_side_over_a_backing_file() {
    let lab = Lab::new();
    lab.img("create -f qcow2 base.qcow2 4M");
    lab.io("base.qcow2", "write -P 9 0 4M");
    lab.img("create -f qcow2 -b base.qcow2 -F qcow2 a.qcow2");
    lab.io(
        "a.qcow2",
        "write -c -P 1 0 1M; write -P 2 100k 10k; write -c -P 3 2M 64k",
    );
    lab.check("a.qcow2");
}

#[test]
fn zero_clusters_plain_and_preallocated_hide_the_backing_file() {
    let lab = Lab::new();
    lab.img("create -f qcow2 base.qcow2 4M");
    lab.io("base.qcow2", "write -P 9 0 4M");
    lab.img("create -f qcow2 -b base.qcow2 -F qcow2 a.qcow2");
    lab.io(
        "a.qcow2",
        "write -z 0 1M; write -P 5 1M 1M; write -z 1M 512k; write -z -u 1600k 128k",
    );
    lab.io("a.qcow2", "write -z 3000k 3k");
    let runs = runs(&lab.image("a.qcow2"));
    assert!(
        runs.contains(&(0, 1536 << 10, Mapping::Zero)),
        "one run of zeros: {runs:?}"
    );
    lab.check("a.qcow2");
}

#[test]
fn preallocated_metadata_reads_as_zeros() {
    for how in ["metadata", "falloc", "full"] {
        let lab = Lab::new();
        lab.img(&format!(
            "create -f qcow2 -o preallocation={how} a.qcow2 3M"
        ));
        lab.io("a.qcow2", "write -P 5 1M 100k");
        lab.check("a.qcow2");
    }
}

#[test]
fn discarded_clusters_do_not_show_the_backing_file() {
    let lab = Lab::new();
    lab.img("create -f qcow2 base.qcow2 4M");
    lab.io("base.qcow2", "write -P 9 0 4M");
    lab.img("create -f qcow2 -b base.qcow2 -F qcow2 a.qcow2");
    lab.io(
        "a.qcow2",
        "write -P 1 0 2M; discard 512k 512k; discard 3M 64k",
    );
    lab.check("a.qcow2");
}

#[test]
fn extended_l2_entries_with_subclusters() {
    for cluster in ["16k", "64k", "128k", "2M"] {
        let lab = Lab::new();
        lab.img("create -f qcow2 base.qcow2 8M");
        lab.io("base.qcow2", "write -P 9 0 8M");
        let options = format!("extended_l2=on,cluster_size={cluster}");
        lab.img(&format!(
            "create -f qcow2 -o {options} -b base.qcow2 -F qcow2 a.qcow2"
        ));
        lab.io(
            "a.qcow2",
            "write -P 1 0 3k; write -P 2 20k 2k; write -z 10k 5k; write -P 3 5M 1M",
        );
        lab.io(
            "a.qcow2",
            "write -z -u 5200k 70k; write -c -P 4 6M 2M; write -z 4M 2k",
        );
        lab.io(
            "a.qcow2",
            "discard 5500k 100k; write -P 5 3M 512; write -P 6 4195k 1k",
        );
        lab.check("a.qcow2");
        assert!(lab.image("a.qcow2").header().features.extended_l2());
    }
}

#[test]
fn lazy_refcounts_and_the_dirty_bit_are_no_obstacle() {
    let lab = Lab::new();
    lab.img("create -f qcow2 -o lazy_refcounts=on a.qcow2 2M");
    lab.io("a.qcow2", "write -P 1 0 1M");
    poke(&lab.path("a.qcow2"), 79, &[1]);
    let image = lab.image("a.qcow2");
    assert!(image.header().features.dirty() && image.header().features.lazy_refcounts());
    lab.check("a.qcow2");
}

#[test]
fn the_corrupt_bit_does_not_keep_from_reading() {
    let lab = Lab::new();
    lab.img("create -f qcow2 a.qcow2 2M");
    lab.io("a.qcow2", "write -P 1 0 1M");
    poke(&lab.path("a.qcow2"), 79, &[2]);
    assert!(lab.image("a.qcow2").header().features.corrupt());
    lab.check("a.qcow2");
}

#[test]
fn external_data_files_raw_and_not() {
    for raw in ["on", "off"] {
        let lab = Lab::new();
        lab.img(&format!(
            "create -f qcow2 -o data_file=d.raw,data_file_raw={raw} a.qcow2 4M"
        ));
        lab.io(
            "a.qcow2",
            "write -P 1 0 64k; write -P 2 1M 1M; write -z 1100k 100k; discard 0 64k",
        );
        lab.io("a.qcow2", "write -P 3 3M 512");
        lab.check("a.qcow2");

        let alone = Image::open(lab.file("a.qcow2"));
        assert!(
            matches!(alone, Err(Error::Unsupported(_))),
            "needs its data file"
        );
        let image = Image::open_with_data_file(lab.file("a.qcow2"), lab.file("d.raw"));
        let image = image.expect("with its data file");
        assert_eq!(image.header().data_file.as_deref(), Some(&b"d.raw"[..]));
        assert_eq!(image.header().features.data_file_raw(), raw == "on");
        lab.img("create -f qcow2 plain.qcow2 1M");
        poke(&lab.path("plain.qcow2"), 95, &[2]);
        assert!(matches!(
            Image::open(lab.file("plain.qcow2")),
            Err(Error::Corrupt(_))
        ));
        assert!(!lab.img_succeeds("convert -O raw plain.qcow2 b.raw"));
        poke(&lab.path("plain.qcow2"), 95, &[0]);
        let unexpected = Image::open_with_data_file(lab.file("plain.qcow2"), lab.file("d.raw"));
        assert!(matches!(unexpected, Err(Error::Unsupported(_))));
    }
}

#[test]
fn a_data_file_that_is_cut_short_reads_as_the_tools_read_it() {
    for raw in ["on", "off"] {
        let lab = Lab::new();
        lab.img(&format!(
            "create -f qcow2 -o data_file=d.raw,data_file_raw={raw} a.qcow2 1M"
        ));
        lab.io("a.qcow2", "write -P 1 0 1M; write -z 200k 50k");
        for len in [1048575, 700_000, 131_072, 65_537, 512, 511, 1, 0] {
            let data = std::fs::File::options().write(true).open(lab.path("d.raw"));
            data.expect("the data file").set_len(len).expect("cut");
            lab.check("a.qcow2");
        }
    }
}

#[test]
fn internal_snapshots_keep_their_bytes() {
    for compat in ["0.10", "1.1"] {
        let lab = Lab::new();
        lab.img("create -f qcow2 base.qcow2 4M");
        lab.io("base.qcow2", "write -P 9 0 4M");
        lab.img(&format!(
            "create -f qcow2 -o compat={compat} -b base.qcow2 -F qcow2 a.qcow2"
        ));
        for i in 1..=5 {
            lab.io(
                "a.qcow2",
                &format!("write -P {i} {i}00k 500k; write -P {i} 3M {i}k"),
            );
            lab.img(&format!("snapshot -c s{i} a.qcow2"));
        }
        lab.img("snapshot -d s2 a.qcow2");
        lab.io("a.qcow2", "write -P 7 0 2M");
        lab.check("a.qcow2");
        let chain = lab.chain("a.qcow2");
        let names: Vec<_> = top(&chain)
            .snapshots()
            .expect("table")
            .iter()
            .map(|s| s.name.clone())
            .collect();
        assert_eq!(names, [b"s1", b"s3", b"s4", b"s5"]);
        for name in ["s1", "s3", "s4", "s5"] {
            let options = format!("-f qcow2 -l snapshot.name={name}");
            let expected = lab.try_convert("a.qcow2", &options).expect("convert");
            assert_reads(&at_snapshot(&chain, name), &expected);
        }
    }
}

#[test]
fn an_internal_snapshot_has_its_own_virtual_size() {
    let lab = Lab::new();
    lab.img("create -f qcow2 a.qcow2 3M");
    lab.io("a.qcow2", "write -P 1 0 3M");
    lab.img("snapshot -c small a.qcow2");
    lab.img("resize -q a.qcow2 9M");
    lab.io("a.qcow2", "write -P 2 2M 7M");
    lab.img("snapshot -c large a.qcow2");
    lab.img("resize -q --shrink a.qcow2 1M");
    let chain = lab.chain("a.qcow2");
    assert_eq!(chain.virtual_size(), 1 << 20);
    for (name, size) in [("small", 3 << 20), ("large", 9 << 20)] {
        std::fs::copy(lab.path("a.qcow2"), lab.path("applied.qcow2")).expect("copy");
        lab.img(&format!("snapshot -a {name} applied.qcow2"));
        let expected = lab.convert("applied.qcow2");
        assert_eq!(expected.len(), size);
        assert_reads(&at_snapshot(&chain, name), &expected);
    }
}

#[test]
fn vm_state_behind_the_disk_is_never_shown() {
    let lab = Lab::new();
    lab.img("create -f qcow2 -o cluster_size=512 a.qcow2 1M");
    lab.io("a.qcow2", "write -P 1 0 100k; write -b -P 0xbb 0 200k");
    lab.img("snapshot -c s a.qcow2");
    lab.check("a.qcow2");
    let expected = lab
        .try_convert("a.qcow2", "-l snapshot.name=s")
        .expect("convert");
    assert_reads(&at_snapshot(&lab.chain("a.qcow2"), "s"), &expected);
}

/// Rewrites the only entry of a snapshot table with extra data of another length.
fn with_extra_data(lab: &Lab, name: &str, extra: &[u8]) {
    let path = lab.path(name);
    let at = peek64(&path, 64);
    let bytes = std::fs::read(&path).expect("read");
    let entry = &bytes[at as usize..];
    let length = |at: usize| usize::from(u16::from_be_bytes([entry[at], entry[at + 1]]));
    let old_extra = u32::from_be_bytes(entry[36..40].try_into().expect("4 bytes")) as usize;
    let strings = &entry[40 + old_extra..][..length(12) + length(14)];
    let mut new = entry[..36].to_vec();
    new.extend((extra.len() as u32).to_be_bytes());
    new.extend(extra);
    new.extend(strings);
    let end = (bytes.len() as u64).next_multiple_of(1 << 16);
    poke(&path, end, &new);
    poke(&path, 64, &end.to_be_bytes());
}

#[test]
fn snapshot_entries_with_every_length_of_extra_data() {
    for len in [0usize, 8, 16, 20, 24, 32, 100, 1024] {
        let lab = Lab::new();
        lab.img("create -f qcow2 a.qcow2 1M");
        lab.io("a.qcow2", "write -P 1 0 1M");
        lab.img("snapshot -c name a.qcow2");
        lab.io("a.qcow2", "write -P 2 0 1M");
        let mut extra = vec![0; len.max(24)];
        extra[..8].copy_from_slice(&(5u64 << 32).to_be_bytes());
        extra[8..16].copy_from_slice(&(512u64 << 10).to_be_bytes());
        extra[16..24].copy_from_slice(&77u64.to_be_bytes());
        with_extra_data(&lab, "a.qcow2", &extra[..len]);

        let chain = lab.chain("a.qcow2");
        let snapshot = &top(&chain).snapshots().expect("table")[0];
        assert_eq!(
            (snapshot.id_str(), snapshot.name_str()),
            ("1".into(), "name".into())
        );
        assert_eq!(snapshot.vm_state_size, if len >= 8 { 5 << 32 } else { 0 });
        assert_eq!(
            snapshot.virtual_size,
            if len >= 16 { 512 << 10 } else { 1 << 20 }
        );
        assert_eq!(snapshot.icount, (len >= 24).then_some(77));
        assert!(snapshot.date_secs > 1_600_000_000);
        let json = lab.img("info --output=json a.qcow2");
        let json: serde_json::Value = serde_json::from_str(&json).expect("json");
        assert_eq!(
            json["snapshots"][0]["vm-state-size"],
            snapshot.vm_state_size
        );

        // Applying may overwrite our table, whose cluster has no refcount: so in a copy.
        std::fs::copy(lab.path("a.qcow2"), lab.path("applied.qcow2")).expect("copy");
        lab.img("snapshot -a name applied.qcow2");
        assert_reads(&at_snapshot(&chain, "name"), &lab.convert("applied.qcow2"));
    }
    let lab = Lab::new();
    lab.img("create -f qcow2 a.qcow2 1M");
    lab.img("snapshot -c name a.qcow2");
    with_extra_data(&lab, "a.qcow2", &[0; 1025]);
    assert!(!lab.img_succeeds("convert -O raw a.qcow2 b.raw"));
    assert!(matches!(
        lab.image("a.qcow2").snapshots(),
        Err(Error::Corrupt(_))
    ));
}

#[test]
fn backing_files_shorter_and_longer_than_the_overlay() {
    let lab = Lab::new();
    lab.img("create -f qcow2 base.qcow2 8M");
    lab.io("base.qcow2", "write -P 1 0 8M");
    lab.img("create -f qcow2 -b base.qcow2 -F qcow2 mid.qcow2 2560k");
    lab.io("mid.qcow2", "write -P 2 1M 100k; write -P 2 2500k 60k");
    lab.img("create -f qcow2 -b mid.qcow2 -F qcow2 top.qcow2 7M");
    lab.io("top.qcow2", "write -P 3 3M 1k");
    // Beyond the end of the short layer, the long base below it must not shine through.
    lab.check("mid.qcow2");
    lab.check("top.qcow2");
}

#[test]
fn raw_backing_files_also_of_odd_size() {
    for size in [0usize, 1, 511, 512, 1_000_001, 3 << 20] {
        let lab = Lab::new();
        let bytes: Vec<u8> = (0..size).map(|i| (i % 251) as u8 | 1).collect();
        std::fs::write(lab.path("base.raw"), bytes).expect("write");
        lab.img("create -f qcow2 -b base.raw -F raw a.qcow2 2M");
        lab.io("a.qcow2", "write -P 3 300k 1k; write -z 500k 100k");
        lab.check("a.qcow2");
        let expected = lab.try_convert("base.raw", "-f raw").expect("convert");
        let chain = lab.chain("a.qcow2");
        assert_reads(&Chain::new(vec![Arc::clone(&chain.layers()[0])]), &expected);
    }
}

#[test]
fn odd_virtual_sizes() {
    for size in [512u64, 65536 + 512, (5 << 20) - 512, (5 << 20) + 1536] {
        let lab = Lab::new();
        lab.img(&format!("create -f qcow2 a.qcow2 {size}"));
        lab.io(
            "a.qcow2",
            &format!("write -P 1 0 512; write -P 2 {} 512", size - 512),
        );
        lab.check("a.qcow2");
        // QEMU writes no size but whole sectors, and shows the whole sectors of any other.
        poke(&lab.path("a.qcow2"), 24, &(size + 511).to_be_bytes());
        lab.check("a.qcow2");
    }
}

#[test]
fn a_disk_of_0_bytes() {
    let lab = Lab::new();
    lab.img("create -f qcow2 a.qcow2 0");
    lab.check("a.qcow2");
    let image = lab.image("a.qcow2");
    assert_eq!(image.map(GuestOffset(0), 4096).expect("map").len, 0);
    let chain = lab.chain("a.qcow2");
    assert_eq!(chain.extent_at(0, 4096).expect("extent").len, 0);
    assert_eq!(chain.allocated_bytes().expect("allocated"), 0);
}

#[test]
fn a_disk_of_64_tib() {
    let lab = Lab::new();
    lab.img("create -f qcow2 a.qcow2 64T");
    lab.io(
        "a.qcow2",
        "write -P 1 0 1M; write -P 2 33T 1M; write -P 3 70368744177152 512",
    );
    let chain = lab.chain("a.qcow2");
    lab.check_map("a.qcow2", &chain);
    assert_eq!(chain.virtual_size(), 64 << 40);
    assert_eq!(
        chain.allocated_bytes().expect("allocated"),
        (2 << 20) + (64 << 10)
    );
    for (at, pattern) in [
        (4096, 1),
        (33 << 40, 2),
        ((64 << 40) - 512, 3),
        (20 << 40, 0),
    ] {
        let mut buf = [0xee; 512];
        assert_eq!(chain.read_at(&mut buf, at).expect("read"), 512);
        assert_eq!(buf, [pattern; 512]);
    }
}

#[test]
fn header_extensions_known_and_unknown() {
    let lab = Lab::new();
    lab.img("create -f qcow2 base.qcow2 1M");
    lab.io("base.qcow2", "write -P 1 0 1M");
    lab.img("create -f qcow2 -b base.qcow2 -F qcow2 a.qcow2");
    lab.img("bitmap --add a.qcow2 dirty0");
    lab.io("a.qcow2", "write -P 2 0 100k");
    let header = lab.image("a.qcow2").header().clone();
    assert!(header.has_bitmaps);
    let backing = header.backing.expect("backing");
    assert_eq!(
        (backing.name, backing.format),
        (b"base.qcow2".to_vec(), Some("qcow2".into()))
    );
    lab.check("a.qcow2");

    // The feature name table becomes an extension that nobody knows.
    let bytes = std::fs::read(lab.path("a.qcow2")).expect("read");
    let at = bytes
        .windows(4)
        .position(|w| w == [0x68, 0x03, 0xf8, 0x57])
        .expect("the table");
    poke(&lab.path("a.qcow2"), at as u64, &[0x12, 0x34, 0x56, 0x78]);
    lab.check("a.qcow2");
}

#[test]
fn a_header_area_longer_than_the_first_read() {
    let lab = Lab::new();
    lab.img("create -f qcow2 base.qcow2 1M");
    lab.io("base.qcow2", "write -P 1 0 1M");
    lab.img("create -f qcow2 -o cluster_size=2M -b base.qcow2 -F qcow2 a.qcow2");
    let path = lab.path("a.qcow2");
    let far: u64 = (2 << 20) - 100;
    poke(&path, far, b"base.qcow2");
    poke(&path, 8, &far.to_be_bytes());
    lab.check("a.qcow2");
    let beyond: u64 = (2 << 20) - 5;
    poke(&path, 8, &beyond.to_be_bytes());
    assert!(!lab.img_succeeds("convert -O raw a.qcow2 b.raw"));
    assert!(matches!(
        Image::open(lab.file("a.qcow2")),
        Err(Error::Corrupt(_))
    ));
}

#[test]
fn encryption_is_refused_by_name() {
    let lab = Lab::new();
    lab.img("create -f qcow2 a.qcow2 1M");
    for (method, name) in [(1u32, "AES"), (2, "LUKS"), (9, "9")] {
        poke(&lab.path("a.qcow2"), 32, &method.to_be_bytes());
        let error = Image::open(lab.file("a.qcow2")).expect_err("refused");
        assert!(matches!(error, Error::Unsupported(_)));
        assert!(error.to_string().contains(name), "{error}");
    }
    lab.img(
        "create -f qcow2 --object secret,id=k,data=abc \
         -o encrypt.format=luks,encrypt.key-secret=k,encrypt.iter-time=10 luks.qcow2 1M",
    );
    let error = Image::open(lab.file("luks.qcow2")).expect_err("refused");
    assert_eq!(
        error.to_string(),
        "LUKS encryption is not supported (header at 0x20)"
    );
}

#[test]
fn unknown_incompatible_features_are_refused_by_name() {
    let lab = Lab::new();
    lab.img("create -f qcow2 a.qcow2 1M");
    let path = lab.path("a.qcow2");
    poke(&path, 72, &(1u64 << 63 | 1 << 4 | 1 << 40).to_be_bytes());
    // The first name of the table (of bit 0, "dirty bit") is given to bit 40.
    let bytes = std::fs::read(&path).expect("read");
    let at = bytes
        .windows(4)
        .position(|w| w == [0x68, 0x03, 0xf8, 0x57])
        .expect("the table");
    poke(&path, at as u64 + 9, &[40]);
    let error = Image::open(lab.file("a.qcow2")).expect_err("refused");
    assert_eq!(
        error.to_string(),
        "unknown incompatible features: dirty bit, bit 63 (header at 0x48)"
    );
    assert!(!lab.img_succeeds("convert -O raw a.qcow2 b.raw"));
}

#[test]
fn other_files_and_versions_are_refused() {
    for bytes in [
        vec![],
        b"QFI\xfb".to_vec(),
        vec![0; 4096],
        b"QFI".repeat(1000),
    ] {
        assert!(matches!(
            Image::open(Arc::new(bytes)),
            Err(Error::Corrupt(_))
        ));
    }
    let lab = Lab::new();
    lab.img("create -f qcow2 a.qcow2 1M");
    for version in [0u32, 1, 4, u32::MAX] {
        poke(&lab.path("a.qcow2"), 4, &version.to_be_bytes());
        assert!(matches!(
            Image::open(lab.file("a.qcow2")),
            Err(Error::Unsupported(_))
        ));
    }
}

#[test]
fn a_truncated_image_reads_as_the_tools_read_it() {
    for (compressed, name) in [(false, "plain.qcow2"), (true, "compressed.qcow2")] {
        let lab = Lab::new();
        let bytes: Vec<u8> = (0..1_500_000u32).map(|i| (i / 7 % 253) as u8).collect();
        std::fs::write(lab.path("plain.raw"), bytes).expect("write");
        let option = if compressed { "-c" } else { "" };
        lab.img(&format!(
            "convert {option} -f raw -O qcow2 plain.raw {name}"
        ));
        let whole = std::fs::read(lab.path(name)).expect("read");
        for part in 0..=40 {
            let len = whole.len() * part / 40 + part % 3;
            std::fs::write(lab.path(name), &whole[..len.min(whole.len())]).expect("write");
            let expected = lab.try_convert(name, "-f qcow2");
            let got = Image::open(lab.file(name))
                .map(|image| Chain::new(vec![Arc::new(Layer::Qcow2(image))]))
                .and_then(|chain| read_all(&chain));
            match (expected, got) {
                (Some(expected), Ok(got)) => assert!(expected == got, "{name} cut at {len}"),
                (None, Err(_)) => {}
                (expected, got) => panic!(
                    "{name} cut at {len}: tools {}, we {:?}",
                    expected.is_some(),
                    got.map(|bytes| bytes.len())
                ),
            }
        }
    }
}

#[test]
fn a_chain_of_300_layers() {
    let lab = Lab::new();
    lab.img("create -f qcow2 -o cluster_size=4k l0.qcow2 2M");
    lab.io("l0.qcow2", "write -P 1 0 2M");
    let mut expected = vec![1; 2 << 20];
    let bytes = std::fs::read(lab.path("l0.qcow2")).expect("read");
    let base = Image::open(Arc::new(bytes)).expect("base");
    let mut layers = vec![Arc::new(Layer::Qcow2(base))];
    // Twenty overlays that differ, each many times in the chain.
    let overlays: Vec<Vec<u8>> = (0..20u64)
        .map(|i| {
            lab.img("create -f qcow2 -o cluster_size=4k o.qcow2 2M");
            lab.io("o.qcow2", &format!("write -P {} {} 36k", i + 2, i * 32768));
            std::fs::read(lab.path("o.qcow2")).expect("read")
        })
        .collect();
    for i in 1..300usize {
        let which = i % overlays.len();
        let image = Image::open(Arc::new(overlays[which].clone())).expect("layer");
        layers.push(Arc::new(Layer::Qcow2(image)));
        expected[which * 32768..which * 32768 + 36864].fill(which as u8 + 2);
    }
    assert_reads(&Chain::new(layers), &expected);
}

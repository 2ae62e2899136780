//! Random chains of random images, every layer and every internal snapshot compared.

mod common;

use common::{Lab, assert_reads, at_snapshot, read_all, top};
use proptest::prelude::*;

/// Disks are small, so that writes meet often and a case takes a second at most.
const MAX_SECTORS: u64 = 6144;

/// Sixteen chains, or `QCOW2_TEST_EFFORT` times as many.
fn cases() -> u32 {
    let effort = std::env::var("QCOW2_TEST_EFFORT")
        .ok()
        .and_then(|n| n.parse().ok());
    effort.unwrap_or(1u32).saturating_mul(16)
}

#[derive(Clone, Debug)]
enum Step {
    Write {
        at: u64,
        len: u64,
        pattern: u8,
    },
    Compressed {
        at: u64,
        len: u64,
        pattern: u8,
    },
    Zero {
        at: u64,
        len: u64,
        unmap: bool,
    },
    Discard {
        at: u64,
        len: u64,
    },
    Snapshot,
    DeleteSnapshot(prop::sample::Index),
    ApplySnapshot(prop::sample::Index),
    /// What a machine's memory is: bytes behind the disk, which no view may show.
    VmState {
        at: u64,
        len: u64,
        pattern: u8,
    },
    Resize(u64),
}

#[derive(Clone, Debug)]
struct LayerPlan {
    cluster_bits: u32,
    v2: bool,
    zstd: bool,
    extended: bool,
    data_file: bool,
    lazy: bool,
    preallocated: bool,
    sectors: Option<u64>,
    steps: Vec<Step>,
}

fn step() -> impl Strategy<Value = Step> {
    let range = || (0..MAX_SECTORS, prop_oneof![1..16u64, 1..700u64]);
    prop_oneof![
        5 => (range(), 1..=255u8)
            .prop_map(|((at, len), pattern)| Step::Write { at, len, pattern }),
        2 => (range(), 1..=255u8)
            .prop_map(|((at, len), pattern)| Step::Compressed { at, len, pattern }),
        2 => (range(), any::<bool>()).prop_map(|((at, len), unmap)| Step::Zero { at, len, unmap }),
        1 => range().prop_map(|(at, len)| Step::Discard { at, len }),
        1 => Just(Step::Snapshot),
        1 => any::<prop::sample::Index>().prop_map(Step::DeleteSnapshot),
        1 => any::<prop::sample::Index>().prop_map(Step::ApplySnapshot),
        1 => (range(), 1..=255u8)
            .prop_map(|((at, len), pattern)| Step::VmState { at, len, pattern }),
        1 => (1..MAX_SECTORS).prop_map(Step::Resize),
    ]
}

fn layer() -> impl Strategy<Value = LayerPlan> {
    let flags = (
        prop::bool::weighted(0.2),
        any::<bool>(),
        prop::bool::weighted(0.4),
        prop::bool::weighted(0.1),
        any::<bool>(),
        prop::bool::weighted(0.1),
    );
    let sectors = prop::option::weighted(0.3, 0..MAX_SECTORS);
    (
        9..=21u32,
        flags,
        sectors,
        prop::collection::vec(step(), 0..8),
    )
        .prop_map(
            |(
                cluster_bits,
                (v2, zstd, extended, data_file, lazy, preallocated),
                sectors,
                steps,
            )| LayerPlan {
                cluster_bits,
                v2,
                zstd: zstd && !v2,
                extended: extended && !v2 && cluster_bits >= 14,
                data_file: data_file && !v2,
                lazy: lazy && !v2,
                preallocated,
                sectors,
                steps,
            },
        )
}

/// Makes the layer, and returns the names of its internal snapshots.
fn make(lab: &Lab, name: &str, plan: &LayerPlan, backing: Option<(&str, &str)>) -> Vec<String> {
    let mut options = format!("cluster_size={}", 1u32 << plan.cluster_bits);
    options += if plan.v2 {
        ",compat=0.10"
    } else {
        ",compat=1.1"
    };
    options += if plan.zstd {
        ",compression_type=zstd"
    } else {
        ""
    };
    options += if plan.extended { ",extended_l2=on" } else { "" };
    options += if plan.lazy { ",lazy_refcounts=on" } else { "" };
    // Over a backing file, only subclusters can be preallocated.
    if plan.preallocated && (backing.is_none() || plan.extended) {
        options += ",preallocation=metadata";
    }
    if plan.data_file {
        options += &format!(",data_file={name}.data");
    }
    let backing = backing.map(|(name, format)| format!("-b {name} -F {format}"));
    let size = match (plan.sectors, &backing) {
        (None, Some(_)) => String::new(),
        (sectors, _) => (sectors.unwrap_or(MAX_SECTORS / 2) * 512).to_string(),
    };
    let backing = backing.unwrap_or_default();
    lab.img(&format!(
        "create -q -f qcow2 -o {options} {backing} {name} {size}"
    ));

    let mut disk = lab.chain(name).virtual_size();
    let mut snapshots = Vec::new();
    let mut commands = Vec::new();
    let fit = |at: u64, len: u64, disk: u64| {
        let at = (at * 512).min(disk);
        (at, (len * 512).min(disk - at))
    };
    for (i, step) in plan.steps.iter().enumerate() {
        let command = match *step {
            Step::Write { at, len, pattern } => {
                let (at, len) = fit(at, len, disk);
                (len > 0).then(|| format!("write -P {pattern} {at} {len}"))
            }
            Step::Compressed { at, len, pattern } => {
                let cluster = 1u64 << plan.cluster_bits;
                let (at, len) = fit(at, len, disk);
                let at = at / cluster * cluster;
                let len = len.next_multiple_of(cluster).min(disk - at);
                (len > 0).then(|| format!("write -c -P {pattern} {at} {len}"))
            }
            Step::Zero { at, len, unmap } => {
                let (at, len) = fit(at, len, disk);
                let unmap = if unmap { "-u" } else { "" };
                (len > 0).then(|| format!("write -z {unmap} {at} {len}"))
            }
            Step::Discard { at, len } => {
                let (at, len) = fit(at, len, disk);
                (len > 0).then(|| format!("discard {at} {len}"))
            }
            Step::VmState { at, len, pattern } => {
                Some(format!("write -b -P {pattern} {} {}", at * 512, len * 512))
            }
            Step::Snapshot | Step::DeleteSnapshot(_) | Step::ApplySnapshot(_) | Step::Resize(_) => {
                None
            }
        };
        if let Some(command) = command {
            commands.push(command);
            continue;
        }
        lab.io_if_possible(name, &std::mem::take(&mut commands));
        match *step {
            // Images with an external data file cannot have internal snapshots.
            Step::Snapshot if lab.img_succeeds(&format!("snapshot -c s{i} {name}")) => {
                snapshots.push(format!("s{i}"));
            }
            Step::DeleteSnapshot(which) if !snapshots.is_empty() => {
                let gone = snapshots.remove(which.index(snapshots.len()));
                lab.img(&format!("snapshot -d {gone} {name}"));
            }
            // Refused where the disk had another size: then nothing is changed.
            Step::ApplySnapshot(which) if !snapshots.is_empty() => {
                let name_of_it = &snapshots[which.index(snapshots.len())];
                lab.img_succeeds(&format!("snapshot -a {name_of_it} {name}"));
                disk = lab.image(name).virtual_size();
            }
            Step::Resize(sectors)
                if lab.img_succeeds(&format!("resize -q --shrink {name} {}", sectors * 512)) =>
            {
                disk = sectors * 512;
            }
            _ => {}
        }
    }
    if !commands.is_empty() {
        lab.io_if_possible(name, &commands);
    }
    snapshots
}

fn check_snapshots(lab: &Lab, name: &str, expected_names: &[String]) {
    let chain = lab.chain(name);
    let snapshots = top(&chain).snapshots().expect("table");
    let names: Vec<_> = snapshots
        .iter()
        .map(|s| s.name_str().into_owned())
        .collect();
    assert_eq!(names, expected_names);
    for (snapshot, snapshot_name) in snapshots.iter().zip(&names) {
        let view = at_snapshot(&chain, snapshot_name);
        assert_eq!(view.virtual_size(), snapshot.virtual_size);
        let option = format!("-f qcow2 -l snapshot.name={snapshot_name}");
        let expected = lab.try_convert(name, &option).expect("convert");
        if expected.len() as u64 == snapshot.virtual_size {
            assert_reads(&view, &expected);
            continue;
        }
        // The tool shows a snapshot in the current size of the disk: compare what both show.
        let bytes = read_all(&view).expect("read");
        let both = bytes.len().min(expected.len());
        assert!(
            bytes[..both] == expected[..both],
            "{snapshot_name} of {name}"
        );
        std::fs::copy(lab.path(name), lab.path("applied.qcow2")).expect("copy");
        if lab.img_succeeds(&format!("snapshot -a {snapshot_name} applied.qcow2")) {
            assert_reads(&view, &lab.convert("applied.qcow2"));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: cases(),
        max_shrink_iters: 40,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_layer_and_snapshot_of_a_random_chain_reads_as_the_tools_read_it(
        raw_base in prop::option::weighted(0.3, 0..(MAX_SECTORS * 512)),
        plans in prop::collection::vec(layer(), 1..=6),
    ) {
        let lab = Lab::new();
        let mut below = None;
        if let Some(len) = raw_base {
            let bytes: Vec<u8> = (0..len).map(|i| (i % 241) as u8 + 1).collect();
            std::fs::write(lab.path("base.raw"), bytes).expect("write");
            below = Some(("base.raw".to_owned(), "raw"));
        }
        for (i, plan) in plans.iter().enumerate() {
            let name = format!("l{i}.qcow2");
            let backing = below.as_ref().map(|(name, format)| (name.as_str(), *format));
            let snapshots = make(&lab, &name, plan, backing);
            lab.check(&name);
            check_snapshots(&lab, &name, &snapshots);
            below = Some((name, "qcow2"));
        }
    }
}

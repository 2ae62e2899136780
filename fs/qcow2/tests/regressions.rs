//! What the fuzzer found, and some of what it tried, checked once more without it.
//!
//! Knows: the inputs under tests/fuzz/regressions, one directory a target, and the fuzzer's checks.

#[allow(
    clippy::arithmetic_side_effects,
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "it is the library of another package"
)]
#[path = "../../../tests/fuzz/checks/mod.rs"]
mod checks;

use std::fs;
use std::panic::catch_unwind;
use std::path::Path;
use std::sync::Arc;

use checks::input::Input;
use checks::{compressed, streams};
use qmpfs_qcow2::{Chain, Image, Layer};

const INPUTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fuzz/regressions");

#[test]
fn inputs_that_the_fuzzer_kept_hold() {
    let inputs = Path::new(INPUTS);
    let mut failed = Vec::new();
    for (target, check) in checks::TARGETS {
        let entries = fs::read_dir(inputs.join(target)).expect("a directory of each target");
        let mut checked = 0;
        for entry in entries {
            let path = entry.expect("an entry").path();
            let bytes = fs::read(&path).expect("an input");
            if catch_unwind(|| check(&bytes)).is_err() {
                failed.push(path);
            }
            checked += 1;
        }
        assert!(checked > 0, "no inputs for {target}");
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

/// docs/decisions/0005: if one is refused some day, the decision is to be told.
#[test]
fn each_kind_of_stream_that_only_libdeflate_takes_is_taken() {
    let kinds = [
        "length-286",
        "distance-30",
        "288-codes",
        "one-distance",
        "no-distance",
    ];
    for kind in kinds {
        let path = Path::new(INPUTS).join(format!("compressed/lenient-{kind}"));
        let bytes = fs::read(path).expect("an input");
        let made = compressed::make(&mut Input::new(&bytes));
        let size = 1 << made.cluster_bits;
        let qemu = streams::decompress(made.kind, &made.stream, size);
        assert_eq!(qemu, None, "{kind}: zlib takes it");

        let (file, _) = compressed::image(&made);
        let image = Image::open(Arc::new(file)).expect("an image");
        let chain = Chain::new(vec![Arc::new(Layer::Qcow2(image))]);
        let mut ours = vec![0; size];
        chain.read_at(&mut ours, 0).expect(kind);
        let lenient = streams::tolerated(made.kind, &made.stream, size);
        assert!(lenient == Some(ours), "{kind}: other bytes");
    }
}

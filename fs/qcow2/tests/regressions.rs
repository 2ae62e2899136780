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

#[test]
fn inputs_that_the_fuzzer_kept_hold() {
    let inputs = Path::new(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/fuzz/regressions"
    ));
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

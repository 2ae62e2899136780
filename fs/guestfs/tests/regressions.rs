//! What fuzzing has found, checked on every run: tests/fuzz/regressions/guest_*, by the checks of the targets; and
//! the checks themselves on disks that are sound.

#[path = "../../../tests/fuzz/guests/mod.rs"]
mod guests;

use std::path::Path;
use std::process::Command;

#[test]
fn what_was_found_stays_mended() {
    let all = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fuzz/regressions");
    for (target, check) in guests::TARGETS {
        let Ok(found) = std::fs::read_dir(Path::new(all).join(target)) else {
            continue;
        };
        for entry in found {
            let path = entry.expect("a finding").path();
            println!("{}", path.display());
            check(&std::fs::read(path).expect("it can be read"));
        }
    }
}

#[test]
fn a_disk_comes_back_from_its_packed_form() {
    let directory = tempfile::tempdir().expect("a scratch directory");
    let path = directory.path().join("disk.raw");
    let file = std::fs::File::create(&path).expect("room");
    file.set_len(2 << 20).expect("a sparse file");
    let made = Command::new("/usr/sbin/mke2fs")
        .args(["-q", "-F", "-b", "1024", "-t", "ext4"])
        .arg(&path)
        .status();
    assert!(
        made.expect("mke2fs: mountscripts/setup installs it")
            .success()
    );
    let disk = std::fs::read(&path).expect("made");
    let packed = guests::sparse::pack(&disk).expect("it is short");
    assert!(packed.len() < disk.len() / 4, "most of it is zeros");
    assert!(guests::sparse::unpack(&packed) == disk);
    guests::check("guest_ext", &packed);
    guests::check("guest_partitions", &packed);
    // What is cut or doubled is some disk, too.
    for length in [0, 1, 2, 3, 1500, packed.len() - 1] {
        guests::check("guest_ext", &packed[..length]);
    }
}

//! Writes a disk to standard output as the targets for guests' disks take it: `pack DISK`.

#[path = "guests/sparse.rs"]
mod sparse;

use std::io::Write;

fn main() {
    let path = std::env::args_os().nth(1).expect("usage: pack DISK");
    let mut disk = std::fs::read(path).expect("the disk can be read");
    forget_stamps(&mut disk);
    let packed = sparse::pack(&disk).expect("at most 64 MiB");
    std::io::stdout()
        .write_all(&packed)
        .expect("somebody reads");
    // Nothing is lost on the way.
    assert!(sparse::unpack(&packed).starts_with(&disk));
}

/// Ahead of its log's head the kernel of XFS stamps two mebibytes with headers of the cycle before, which is no cycle in
/// a log that is new: they say what zeros say.
fn forget_stamps(disk: &mut [u8]) {
    const STAMP: [u8; 8] = [0xfe, 0xed, 0xba, 0xbe, 0, 0, 0, 0];
    for sector in disk.chunks_exact_mut(512) {
        if sector.starts_with(&STAMP) {
            sector.fill(0);
        }
    }
}

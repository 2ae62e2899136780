//! Whether an image, as the reader under test has it, is what the specification says.
//!
//! Knows: runs cover a disk without gap or overlap; bytes are the same, or both sides refuse.
//! Does not know: how the image came to be.

use std::sync::Arc;

use qmpfs_qcow2::{Allocation, Chain, ExtentKind, GuestOffset, Image, Layer, Mapping, Run};

use super::input::Input;
use super::spec::{Disk, Place, Refused};

/// Looks at one run; more would make one input take seconds.
const LOOKS_PER_RUN: u64 = 2048;
/// A disk up to this size is read as a whole.
const READ_WHOLE: u64 = 1 << 20;
/// Reads and questions at places that the input chooses.
const CHOSEN_READS: u32 = 8;
/// The longest of the chosen reads.
const LONGEST_READ: u64 = 128 << 10;

/// Panics where the two differ.
pub fn check(image: Image, disk: &Disk<'_>, input: &mut Input<'_>) {
    assert_eq!(image.virtual_size(), disk.size, "size of the disk");
    let walked = walk(&image, disk, disk.size);
    match (walked, image.allocation()) {
        (Some(walked), Ok(allocation)) => assert_eq!(walked, allocation),
        (None, Err(_)) => {}
        (walked, counted) => panic!("walked {walked:?}, counted {counted:?}"),
    }
    for _ in 0..CHOSEN_READS {
        map_somewhere(&image, disk, input);
    }

    let chain = Chain::new(vec![Arc::new(Layer::Qcow2(image))]);
    if disk.size <= READ_WHOLE {
        let mut at = 0;
        while at < disk.size {
            at += read(&chain, disk, at, 64 << 10);
        }
        read(&chain, disk, 0, disk.size);
    }
    for _ in 0..CHOSEN_READS {
        let at = u64::from(input.u32()) % (disk.size + 1);
        let len = u64::from(input.u32()) % LONGEST_READ;
        read(&chain, disk, at, len);
        extent(&chain, disk, at, len);
    }
}

/// All runs from front to back; the bytes of each kind if nothing was refused.
fn walk(image: &Image, disk: &Disk<'_>, max_len: u64) -> Option<Allocation> {
    let mut sum = Some(Allocation::default());
    let mut at = 0;
    while at < disk.size {
        let Some(run) = map(image, disk, at, max_len) else {
            sum = None;
            at = (at / disk.cluster() + 1) * disk.cluster();
            continue;
        };
        if let Some(sum) = &mut sum {
            match run.what {
                Mapping::Data { .. } => sum.data += run.len,
                Mapping::Compressed { .. } => sum.compressed += run.len,
                Mapping::Zero => sum.zero += run.len,
                Mapping::Unallocated => {}
            }
        }
        at += run.len;
    }
    let run = image.map(GuestOffset(disk.size), max_len).expect("the end");
    assert_eq!(run.len, 0, "behind the end");
    sum
}

fn map_somewhere(image: &Image, disk: &Disk<'_>, input: &mut Input<'_>) {
    let at = u64::from(input.u32()) % (disk.size + 1);
    let max_len = u64::from(input.u32()) % (disk.size + 1);
    if at < disk.size && max_len > 0 {
        map(image, disk, at, max_len);
    }
}

/// One run, compared at each place where the disk may change.
fn map(image: &Image, disk: &Disk<'_>, at: u64, max_len: u64) -> Option<Run> {
    let run = match (image.map(GuestOffset(at), max_len), disk.place(at)) {
        (Ok(run), Ok(_)) => run,
        (Err(_), Err(Refused)) => return None,
        (ours, spec) => panic!("at {at:#x}: we {ours:?}, specification {spec:?}"),
    };
    assert!(run.len > 0, "no progress at {at:#x}");
    assert!(run.len <= max_len && run.len <= disk.size - at, "too long");
    let look = |place: u64| {
        let what = match run.what {
            Mapping::Unallocated => Place::Unallocated,
            Mapping::Zero => Place::Zero,
            Mapping::Data { host } => Place::Data(host.0 + (place - at)),
            Mapping::Compressed { cluster, within } => Place::Compressed(
                cluster.host.0,
                cluster.len.into(),
                u64::from(within) + (place - at),
            ),
        };
        assert_eq!(disk.place(place), Ok(what), "at {place:#x}, run at {at:#x}");
    };
    let step = (disk.cluster() / 32).max(512).max(run.len / LOOKS_PER_RUN);
    let mut place = at;
    while place < at + run.len {
        look(place);
        place = (place / step + 1) * step;
    }
    look(at + run.len - 1);
    Some(run)
}

/// Reads, and returns how far to go on.
fn read(chain: &Chain, disk: &Disk<'_>, at: u64, len: u64) -> u64 {
    let mut ours = vec![0xee; len as usize];
    let mut spec = vec![0xdd; len.min(disk.size - at) as usize];
    match (chain.read_at(&mut ours, at), disk.read(at, &mut spec)) {
        (Ok(n), Ok(())) => {
            assert_eq!(n, spec.len(), "length of a read");
            assert!(ours[..n] == spec, "bytes at {at:#x}+{len:#x} differ");
        }
        (Err(_), Err(Refused)) => {}
        (ours, spec) => panic!("at {at:#x}+{len:#x}: we {ours:?}, specification {spec:?}"),
    }
    len.max(1)
}

fn extent(chain: &Chain, disk: &Disk<'_>, at: u64, len: u64) {
    match (chain.extent_at(at, len), disk.place(at)) {
        (Ok(extent), _) if at >= disk.size || len == 0 => assert_eq!(extent.len, 0),
        (_, _) if at >= disk.size || len == 0 => panic!("an error for nothing"),
        (Err(_), Err(Refused)) => {}
        (Ok(extent), Ok(place)) => {
            assert!(extent.len > 0 && extent.len <= len, "length of an extent");
            let hole = matches!(place, Place::Unallocated | Place::Zero);
            assert_eq!(extent.kind == ExtentKind::Hole, hole, "kind at {at:#x}");
            let last = disk.place(at + extent.len - 1);
            let hole_at_end = matches!(last, Ok(Place::Unallocated | Place::Zero));
            assert!(last.is_ok() && hole_at_end == hole, "end of an extent");
        }
        (ours, spec) => panic!("at {at:#x}: extent {ours:?}, specification {spec:?}"),
    }
}

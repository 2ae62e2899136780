//! Filesystems that lie: whatever is changed in an image, a reader answers or gives an error. It does not panic,
//! does not go on for ever, and does not take the machine's memory.

use qmpfs_guestfs::{Error, FileKind, Filesystem, Kind, ReadAt, open};
use std::collections::HashSet;
use std::io;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tempfile::TempDir;

/// Reads that one walk may need; more is a loop. A whole walk of an image here needs some thousands.
const READS_MAX: u64 = 3_000_000;
/// Files that one walk looks at.
const NODES_MAX: usize = 500;
/// Changed images of each filesystem.
const ROUNDS: u64 = 400;

/// An image with some bytes changed.
struct Changed {
    image: Arc<Vec<u8>>,
    changes: Vec<(u64, u8)>,
    reads: AtomicU64,
}

impl ReadAt for Changed {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let reads = self.reads.fetch_add(1, Ordering::Relaxed);
        assert!(reads < READS_MAX, "it does not end");
        assert!(buffer.len() <= 64 << 20, "it wants too much at once");
        self.image.read_at(offset, buffer)?;
        for (at, byte) in &self.changes {
            if let Some(within) = at.checked_sub(offset)
                && let Some(changed) = buffer.get_mut(within as usize)
            {
                *changed = *byte;
            }
        }
        Ok(())
    }

    fn size(&self) -> u64 {
        self.image.len() as u64
    }
}

/// Draws numbers, the same ones each time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// Asks all that can be asked of what is in a filesystem; gives how many files it found.
fn walk(filesystem: &dyn Filesystem) -> usize {
    let mut waiting = vec![filesystem.root()];
    let mut seen = HashSet::new();
    while let Some(node) = waiting.pop() {
        if seen.len() >= NODES_MAX || !seen.insert(node) {
            continue;
        }
        let Ok(attributes) = filesystem.attributes(node) else {
            continue;
        };
        let _xattrs = filesystem.xattrs(node);
        match attributes.kind {
            FileKind::Directory => {
                let mut cookie = Some(0);
                let mut listings = 0;
                while let Some(at) = cookie {
                    let Ok(listing) = filesystem.list(node, at) else {
                        break;
                    };
                    assert!(listing.next.is_none_or(|next| next > at), "it goes back");
                    waiting.extend(listing.entries.iter().map(|entry| entry.node));
                    cookie = listing.next.filter(|_| listings < 100);
                    listings += 1;
                }
                let _found = filesystem.lookup(node, b"no such name");
                let _listing = filesystem.list(node, u64::MAX - 31);
            }
            FileKind::Symlink => drop(filesystem.target(node)),
            _ => {
                let _extents = filesystem.extents(node, 0, 4096);
                let _extents = filesystem.extents(node, attributes.size / 2, 16);
                let beyond = attributes.size.saturating_add(4096);
                for offset in [
                    0,
                    attributes.size / 2,
                    attributes.size.saturating_sub(1),
                    beyond,
                ] {
                    let read = filesystem.read(node, offset, 8192);
                    assert!(!read.is_ok_and(|bytes| bytes.len() > 8192));
                }
            }
        }
    }
    seen.len()
}

/// Every name that is listed leads where the listing says, whatever it is looked up by.
fn finds_what_it_lists(filesystem: &dyn Filesystem, directory: u64) {
    let mut cookie = Some(0);
    while let Some(at) = cookie {
        let listing = filesystem.list(directory, at).expect("it is whole");
        for entry in listing.entries {
            let found = filesystem.lookup(directory, &entry.name);
            assert_eq!(found.expect("it is listed"), entry.node);
            let kind = filesystem.attributes(entry.node).map(|it| it.kind);
            if kind.expect("it is whole") == FileKind::Directory {
                finds_what_it_lists(filesystem, entry.node);
            }
        }
        cookie = listing.next;
    }
    for name in [&b"no such name"[..], b".", b"..", b"", b"a/b"] {
        let found = filesystem.lookup(directory, name);
        assert!(matches!(found, Err(Error::NotFound)), "{found:?}");
    }
}

/// Changes an image in many ways: bytes that are not zero become others, mostly such that mean much.
fn survives(kind: Kind, image: Vec<u8>, files: usize) {
    let image = Arc::new(image);
    let with = |changes: Vec<(u64, u8)>| {
        let source = Arc::new(Changed {
            image: Arc::clone(&image),
            changes,
            reads: AtomicU64::new(0),
        });
        open(kind, source).map(|filesystem| walk(&*filesystem))
    };
    let found = with(Vec::new()).expect("it is whole");
    assert!(found >= files, "{found} files");
    let whole = open(kind, Arc::clone(&image) as _).expect("it is whole");
    finds_what_it_lists(&*whole, whole.root());
    let used: Vec<u64> = (0..image.len() as u64)
        .filter(|at| image[*at as usize] != 0)
        .collect();
    let near: Vec<u64> = used.iter().copied().take(600).collect();
    let mut dice = Dice(kind.name().len() as u64 + 77);
    for round in 0..ROUNDS {
        let count = 1 + dice.below(12);
        let changes = (0..count).map(|_| {
            // The first sectors say how all others are read.
            let among = if round % 4 == 0 { &near } else { &used };
            let at = among[dice.below(among.len() as u64) as usize] + dice.below(2);
            let byte = [0, 1, 0x7f, 0x80, 0xff, dice.below(256) as u8][dice.below(6) as usize];
            (at.min(image.len() as u64 - 1), byte)
        });
        let changes: Vec<(u64, u8)> = changes.collect();
        let _opened = with(changes);
    }
}

/// An image that a shell line makes of `$IMAGE`, with files from `$TREE`.
fn made(line: &str) -> Vec<u8> {
    let directory = TempDir::new().expect("room");
    let image = directory.path().join("image");
    let tree = directory.path().join("tree");
    std::fs::create_dir_all(tree.join("a/b/c")).expect("room");
    let name = "long name ".repeat(20);
    for number in 0..40 {
        let content = vec![number as u8 + 1; 40 * number];
        std::fs::write(tree.join(format!("a/file number {number}")), &content).expect("room");
    }
    std::fs::write(tree.join("a/b").join(name), vec![7; 100_000]).expect("room");
    std::fs::write(tree.join("short"), vec![b'x'; 30_000]).expect("room");
    std::os::unix::fs::symlink("a/b/c", tree.join("link")).expect("room");
    run(line, &image, &tree);
    std::fs::read(image).expect("the image")
}

fn run(line: &str, image: &Path, tree: &Path) {
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new("sh")
        .args(["-euc", line])
        .env("IMAGE", image)
        .env("TREE", tree)
        .env("LC_ALL", "C.UTF-8")
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .output()
        .expect("sh");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{line}: {said} (mountscripts/setup --tests)"
    );
}

#[test]
fn fat() {
    for (bits, size) in [(12, "2M"), (16, "20M"), (32, "40M")] {
        let image = made(&format!(
            "rm $TREE/link; truncate -s {size} $IMAGE; mkfs.vfat -F {bits} -s 1 $IMAGE; \
             cd $TREE; mcopy -s -i $IMAGE a short ::"
        ));
        survives(Kind::Fat, image, 45);
    }
}

/// Without privileges nobody but a mount can fill one: so it is what mkfs makes, and one file by hand.
#[test]
fn exfat() {
    let mut image = made("truncate -s 4M $IMAGE; mkfs.exfat -c 4096 $IMAGE");
    let le32 = |at: usize| u32::from_le_bytes(image[at..at + 4].try_into().expect("four"));
    let heap = le32(88) as usize * 512;
    let root = heap + (le32(96) as usize - 2) * 4096;
    let free = root
        + image[root..]
            .chunks(32)
            .position(|it| it[0] == 0)
            .expect("room")
            * 32;
    let mut set = [0u8; 96];
    (set[0], set[1], set[4]) = (0x85, 2, 0x20);
    (set[32], set[33], set[35]) = (0xc0, 3, 3);
    set[40..48].copy_from_slice(&5000u64.to_le_bytes());
    set[52..56].copy_from_slice(&20u32.to_le_bytes());
    set[56..64].copy_from_slice(&9000u64.to_le_bytes());
    (set[64], set[66], set[68], set[70]) = (0xc1, b'a', b'b', b'c');
    let sum = |sum: u16, (at, byte): (usize, &u8)| match at {
        2 | 3 => sum,
        _ => sum.rotate_right(1).wrapping_add((*byte).into()),
    };
    let checksum = set.iter().enumerate().fold(0, sum);
    set[2..4].copy_from_slice(&checksum.to_le_bytes());
    image[free..free + 96].copy_from_slice(&set);
    let filesystem = open(Kind::ExFat, Arc::new(image.clone())).expect("it is whole");
    let node = filesystem
        .lookup(filesystem.root(), b"abc")
        .expect("it is there");
    assert_eq!(filesystem.attributes(node).expect("a file").size, 9000);
    let extents = filesystem.extents(node, 0, 10).expect("a file");
    assert_eq!(
        extents.iter().map(|it| it.length).sum::<u64>(),
        5000,
        "what was written"
    );
    survives(Kind::ExFat, image, 2);
}

/// With checksums that are not known here, so that changes get through to all that reads the trees.
#[test]
fn btrfs() {
    let image =
        made("truncate -s 20M $IMAGE; mkfs.btrfs -q --mixed --csum xxhash --rootdir $TREE $IMAGE");
    survives(Kind::Btrfs, image, 45);
}

#[test]
fn iso9660() {
    let rock_ridge = made("genisoimage -quiet -R -J -o $IMAGE $TREE 2>/dev/null");
    survives(Kind::Iso9660, rock_ridge, 45);
    let joliet =
        made("rm $TREE/link; genisoimage -quiet -J -joliet-long -o $IMAGE $TREE 2>/dev/null");
    survives(Kind::Iso9660, joliet, 44);
}

/// As it is, so that changes get through to all that is read; and compressed, so that what unpacks is lied to.
#[test]
fn squashfs() {
    let plain = "-noI -noD -noF -noX";
    for options in [
        plain,
        "-comp gzip",
        "-comp zstd",
        "-comp xz",
        "-comp lz4",
        "-comp lzo",
    ] {
        let image = made(&format!(
            "mksquashfs $TREE $IMAGE -quiet -no-progress -noappend -b 16K {options} >&2"
        ));
        survives(Kind::Squashfs, image, 45);
    }
}

#[test]
fn ntfs() {
    let image = made(
        "truncate -s 12M $IMAGE; mkntfs -q -F -f $IMAGE >/dev/null; \
         for i in $(seq 1 40); do ntfscp -q $IMAGE \"$TREE/a/file number 7\" \"file number $i\"; done; \
         ntfscp -q $IMAGE $TREE/short short",
    );
    survives(Kind::Ntfs, image, 40);
}

/// A volume group whose text lies, with checksums that are right: what is given as a volume has places for all
/// its bytes.
#[test]
fn lvm() {
    use qmpfs_guestfs::lvm::Group;
    let text = "vg {\nid = \"aa-bb\"\nseqno = 3\nextent_size = 2048\n\
        physical_volumes {\npv0 {\nid = \"cc-dd\"\npe_start = 2048\npe_count = 60\n}\n\
        pv1 {\nid = \"ee-ff\"\npe_start = 2048\npe_count = 60\n}\n}\n\
        logical_volumes {\nroot {\nid = \"x\"\nstatus = [\"READ\", \"VISIBLE\"]\nsegment_count = 2\n\
        segment1 {\nstart_extent = 0\nextent_count = 20\ntype = \"striped\"\nstripe_count = 1\nstripes = [\n\"pv0\", 0\n]\n}\n\
        segment2 {\nstart_extent = 20\nextent_count = 20\ntype = \"striped\"\nstripe_count = 2\nstripe_size = 32\n\
        stripes = [\n\"pv0\", 30,\n\"pv1\", 9\n]\n}\n}\n}\n}\n";
    let whole = Group::parse(text.as_bytes()).expect("it is right");
    assert_eq!(whole.logical.len(), 1);
    let mut dice = Dice(5);
    let (mut right, mut wrong) = (0, 0);
    for _ in 0..20_000 {
        let mut changed = text.as_bytes().to_vec();
        for _ in 0..1 + dice.below(3) {
            let at = dice.below(changed.len() as u64) as usize;
            match dice.below(3) {
                0 => drop(changed.remove(at)),
                1 => changed[at] = b"0123456789{}[]\"\\,=#"[dice.below(19) as usize],
                _ => changed.insert(at, b'0' + dice.below(10) as u8),
            }
        }
        let Ok(group) = Group::parse(&changed) else {
            wrong += 1;
            continue;
        };
        right += 1;
        for layout in group
            .logical
            .iter()
            .filter_map(|it| it.layout.as_ref().ok())
        {
            for offset in [0, layout.length() / 2, layout.length().saturating_sub(1)] {
                let piece = layout.piece(offset, 1 << 20);
                assert_eq!(piece.is_some(), offset < layout.length());
                assert!(piece.is_none_or(|it| it.length > 0));
            }
            assert_eq!(layout.piece(layout.length(), 1), None);
        }
    }
    assert!(right > 100 && wrong > 100, "{right} {wrong}");
}

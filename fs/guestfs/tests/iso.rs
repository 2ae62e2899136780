//! ISO 9660 as xorriso (Rock Ridge) and 7z (Joliet) extract it.

use qmpfs_guestfs::{DirEntry, Error, FileKind, Filesystem, Kind, Place, ReadAt, open};
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use tempfile::TempDir;

/// The entries of the root, which have these names.
#[track_caller]
fn at_the_top(filesystem: &dyn Filesystem, names: &[&[u8]]) -> Vec<DirEntry> {
    let listing = filesystem.list(filesystem.root(), 0).expect("names");
    let found: Vec<_> = listing
        .entries
        .iter()
        .map(|entry| &entry.name[..])
        .collect();
    assert_eq!(found, names);
    listing.entries
}

/// What is in an image, with permissions and times or without: a line for each path.
fn shown(image: &Path, has_attributes: bool) -> Vec<String> {
    let source = Arc::new(File::open(image).expect("the image"));
    let filesystem = open(Kind::Iso9660, Arc::clone(&source) as Arc<dyn ReadAt>);
    let filesystem = filesystem.expect("it is whole");
    let mut lines = Vec::new();
    below(
        &*filesystem,
        &source,
        filesystem.root(),
        "",
        &mut |line, modified, permissions| {
            lines.push(match has_attributes {
                true => format!("{line} {modified} {permissions:o}"),
                false => line,
            });
        },
    );
    lines.sort();
    lines
}

fn below(
    filesystem: &dyn Filesystem,
    source: &File,
    directory: u64,
    path: &str,
    say: &mut dyn FnMut(String, i64, u16),
) {
    let mut cookie = Some(0);
    while let Some(at) = cookie {
        let listing = filesystem.list(directory, at).expect("a directory");
        for entry in listing.entries {
            let path = format!("{path}/{}", String::from_utf8_lossy(&entry.name));
            let found = filesystem.attributes(entry.node).expect("a file");
            assert_eq!(entry.kind, Some(found.kind), "{path}");
            assert_eq!(
                filesystem.lookup(directory, &entry.name).expect("it"),
                entry.node
            );
            let what = match found.kind {
                FileKind::Directory => String::new(),
                FileKind::Symlink => {
                    let target = filesystem.target(entry.node).expect("a link");
                    String::from_utf8(target).expect("text")
                }
                _ => {
                    let size = found.size as usize;
                    let whole = filesystem.read(entry.node, 0, size).expect("its bytes");
                    assert_eq!(whole.len(), size);
                    for extent in filesystem.extents(entry.node, 0, 100).expect("extents") {
                        let Place::At(start) = extent.place else {
                            panic!("it lies on the disk");
                        };
                        let bytes = source.bytes(start, extent.length as usize);
                        let from = extent.offset as usize;
                        let to = from + extent.length as usize;
                        assert_eq!(bytes.expect("its bytes"), whole[from..to]);
                    }
                    format!("{:08x} {size}", crc32fast::hash(&whole))
                }
            };
            // No program gives a link its time.
            let is_link = found.kind == FileKind::Symlink;
            let modified = if is_link { 0 } else { found.modified.seconds };
            say(format!("{path} {what}"), modified, found.permissions);
            if found.kind == FileKind::Directory {
                below(filesystem, source, entry.node, &path, say);
            }
        }
        cookie = listing.next;
    }
}

/// The same of a directory of the host.
fn expected(directory: &Path, path: &str, has_attributes: bool, lines: &mut Vec<String>) {
    for entry in fs::read_dir(directory).expect("a directory") {
        let entry = entry.expect("a name");
        let path = format!("{path}/{}", entry.file_name().to_string_lossy());
        let found = fs::symlink_metadata(entry.path()).expect("a file");
        let what = if found.is_dir() {
            expected(&entry.path(), &path, has_attributes, lines);
            String::new()
        } else if found.is_symlink() {
            let target = fs::read_link(entry.path()).expect("a link");
            target.to_string_lossy().into_owned()
        } else {
            let bytes = fs::read(entry.path()).expect("a file");
            format!("{:08x} {}", crc32fast::hash(&bytes), bytes.len())
        };
        let modified = if found.is_symlink() { 0 } else { found.mtime() };
        lines.push(match has_attributes {
            true => format!(
                "{path} {what} {modified} {:o}",
                found.permissions().mode() & 0o7777
            ),
            false => format!("{path} {what}"),
        });
    }
}

fn compared(make: &str, extract: &str, has_attributes: bool) {
    let directory = TempDir::new().expect("room");
    // A share every day; all of it with QMPFS_CORPUS=full.
    let (names, bytes) = match std::env::var_os("QMPFS_CORPUS") {
        Some(_) => (100_000, 1 << 30),
        None => (300, 3_000_000),
    };
    let line = format!(
        "mkdir tree extracted; cd tree; mkdir -p a/b/c/d/e/f/g/h/i/j many; echo deep >a/b/c/d/e/f/g/h/i/j/file; \
         for i in $(seq 1 {names}); do echo $i >\"many/a file with the number $i\"; done; \
         head -c {bytes} /dev/urandom >big; : >empty; echo x >'файл-文件'; \
         touch -d 1999-12-31T23:59:58Z big; chmod 640 empty; touch -d 2026-01-01Z a/b; {make}; cd ..; {extract}"
    );
    let output = Command::new("sh")
        .args(["-euc", &line])
        .current_dir(&directory)
        .env("LC_ALL", "C.UTF-8")
        .env("TZ", "UTC")
        .output()
        .expect("sh");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{said} (mountscripts/setup --tests)"
    );
    let mut lines = Vec::new();
    expected(
        &directory.path().join("extracted"),
        "",
        has_attributes,
        &mut lines,
    );
    lines.sort();
    let shown = shown(&directory.path().join("image"), has_attributes);
    for (shown, expected) in shown.iter().zip(&lines) {
        assert_eq!(shown, expected);
    }
    assert_eq!(shown.len(), lines.len());
    assert!(lines.len() > 300);
}

#[test]
fn rock_ridge_is_what_xorriso_extracts() {
    let name = "x".repeat(240);
    let make = format!(
        "ln -s ../many/nothing a/link; ln -s /absolute/{name} a/long; echo 1 >{name}; \
         genisoimage -quiet -R -J -joliet-long -o ../image . 2>&1"
    );
    let extract = "xorriso -osirrox on -indev image -extract / extracted 2>&1";
    compared(&make, extract, true);
}

#[test]
fn joliet_is_what_7z_extracts() {
    let make = "genisoimage -quiet -J -joliet-long -D -o ../image . 2>&1";
    compared(make, "7z x -oextracted image >&2", false);
}

/// A copy of the tree must not miss it without an error.
#[test]
fn an_interleaved_file_is_listed_and_not_read() {
    let directory = TempDir::new().expect("room");
    let made = Command::new("sh")
        .args(["-euc", "mkdir tree; echo x >tree/aaaa.txt; echo y >tree/bbbb.txt; genisoimage -quiet -o image tree 2>&1"])
        .current_dir(&directory)
        .status()
        .expect("sh");
    assert!(made.success(), "mountscripts/setup --tests");
    let image = directory.path().join("image");
    let mut bytes = fs::read(&image).expect("the image");
    // It and the next are the sizes of the pieces and of the gaps.
    let at = record(&bytes, b"AAAA.TXT;1") + 26;
    bytes[at] = 1;
    fs::write(&image, bytes).expect("the image");
    let source = Arc::new(File::open(&image).expect("the image"));
    let filesystem = open(Kind::Iso9660, source as Arc<dyn ReadAt>).expect("it is whole");
    let entries = at_the_top(&*filesystem, &[b"aaaa.txt", b"bbbb.txt"]);
    let [interleaved, plain] = [0, 1].map(|index| filesystem.read(entries[index].node, 0, 2));
    assert!(
        matches!(interleaved, Err(Error::Unsupported(_))),
        "{interleaved:?}"
    );
    assert_eq!(plain.expect("it can be read"), b"y\n");
}

/// Its name in small letters stands for the one that cannot be had.
#[test]
fn a_bad_record_hides_no_other_name() {
    let directory = TempDir::new().expect("room");
    let mut bytes = made(
        &directory,
        "echo x >tree/aaaa.txt; echo y >tree/bbbb.txt",
        "-R",
    );
    let at = record(&bytes, b"AAAA.TXT;1");
    let name = bytes[at..].windows(4).position(|it| it == b"NM\x0d\x01");
    // A field of which the last bytes are missing.
    bytes[at + name.expect("its name") + 2] = 0xff;
    let filesystem = open(Kind::Iso9660, Arc::new(bytes)).expect("it is whole");
    let entries = at_the_top(&*filesystem, &[b"aaaa.txt", b"bbbb.txt"]);
    let [bad, good] = [0, 1].map(|index| filesystem.attributes(entries[index].node));
    assert!(matches!(bad, Err(Error::Corrupt(_))), "{bad:?}");
    assert_eq!(good.expect("it is whole").size, 2);
}

/// As the resources of a file of a Mac, which stand before it under the same name.
#[test]
fn an_associated_file_is_not_listed() {
    let directory = TempDir::new().expect("room");
    let mut bytes = made(
        &directory,
        "echo x >tree/aaaa.txt; echo y >tree/aaab.txt",
        "",
    );
    let [resources, data] = [b"AAAA.TXT;1", b"AAAB.TXT;1"].map(|name| record(&bytes, name));
    bytes[resources + 25] |= 4;
    bytes[data + 33 + 3] = b'A';
    let filesystem = open(Kind::Iso9660, Arc::new(bytes)).expect("it is whole");
    at_the_top(&*filesystem, &[b"aaaa.txt"]);
    let node = filesystem
        .lookup(filesystem.root(), b"aaaa.txt")
        .expect("it is listed");
    assert_eq!(filesystem.read(node, 0, 9).expect("it can be read"), b"y\n");
}

/// The bytes of an image of what a script makes.
fn made(directory: &TempDir, script: &str, options: &str) -> Vec<u8> {
    let line = format!("mkdir tree; {script}; genisoimage -quiet {options} -o image tree 2>&1");
    let made = Command::new("sh")
        .args(["-euc", &line])
        .current_dir(directory)
        .status()
        .expect("sh");
    assert!(made.success(), "mountscripts/setup --tests");
    fs::read(directory.path().join("image")).expect("the image")
}

/// Where the record of a name is.
fn record(bytes: &[u8], name: &[u8]) -> usize {
    let at = bytes.windows(name.len()).position(|it| it == name);
    // The name is the 34th byte of it.
    at.expect("its record") - 33
}

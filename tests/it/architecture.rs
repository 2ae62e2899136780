//! Who may know what (docs/ARCHITECTURE.md), checked on the sources themselves.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// All Rust files below a directory, as paths from the root.
fn sources(below: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut directories = vec![root().join(below)];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).expect("a source directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path.strip_prefix(root()).expect("below the root").into());
            }
        }
    }
    assert!(!found.is_empty(), "no sources below {below}");
    found
}

/// Lines of code (no comments, no unit tests) that contain a word.
fn uses(file: &Path, word: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join(file)).expect("a source file");
    text.lines()
        .take_while(|line| !line.starts_with("#[cfg(test)]"))
        .filter(|line| !line.trim_start().starts_with("//") && line.contains(word))
        .map(|line| format!("{}: {}", file.display(), line.trim()))
        .collect()
}

fn used_outside(below: &str, word: &str, rooms: &[&str]) -> Vec<String> {
    sources(below)
        .iter()
        .filter(|file| !file.components().any(|part| part.as_os_str() == "tests"))
        .filter(|file| !rooms.iter().any(|room| file.starts_with(room)))
        .flat_map(|file| uses(file, word))
        .collect()
}

#[test]
fn fuser_is_named_in_its_rooms_alone() {
    let outside = used_outside("fs/src", "fuser::", &["fs/src/fuse.rs", "fs/src/fuse"]);
    assert_eq!(outside, Vec::<String>::new());
}

#[test]
fn unsafe_stands_in_sys_alone() {
    let rooms = ["fs/src/sys.rs", "fs/src/sys"];
    for below in ["fs/src", "fs/qcow2/src", "fs/guestfs/src", "qmpbridge/src"] {
        assert_eq!(
            used_outside(below, "unsafe {", &rooms),
            Vec::<String>::new()
        );
    }
}

#[test]
fn lock_bytes_are_named_in_one_file() {
    // claims lock directories, and no image
    let claims = "fs/src/layer_file/claim.rs";
    let outside = used_outside(
        "fs/src",
        "lock_byte_shared",
        &["fs/src/view/lock.rs", claims, "fs/src/sys.rs", "fs/src/sys"],
    );
    assert_eq!(outside, Vec::<String>::new());
}

#[test]
fn the_reader_and_the_bridge_depend_on_nothing_of_the_filesystem() {
    let forbidden = [
        (
            "fs/qcow2/Cargo.toml",
            vec!["fuser", "tokio", "serde", "qmpbridge", "libc"],
        ),
        (
            "fs/guestfs/Cargo.toml",
            vec!["fuser", "tokio", "qmpbridge", "libc", "qmpfs-qcow2"],
        ),
        ("qmpbridge/Cargo.toml", vec!["fuser", "qcow2", "libc"]),
    ];
    for (manifest, crates) in forbidden {
        let text = fs::read_to_string(root().join(manifest)).expect("a manifest");
        let dependencies = text
            .split("[dependencies]")
            .nth(1)
            .and_then(|rest| rest.split("\n[").next())
            .expect("a list of dependencies");
        for name in crates {
            let named = dependencies
                .lines()
                .any(|line| line.trim_start().starts_with(name));
            assert!(!named, "{manifest} depends on {name}");
        }
    }
}

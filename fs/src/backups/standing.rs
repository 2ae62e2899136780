//! What stands on a backup's file, whether it is listed or not: told by the headers of all files of the directory.
//! It knows where an image names what it stands on; of backups it knows their files' names.

use super::place::Place;
use crate::errno::Failure;
use crate::sys;
use std::ffi::OsStr;
use std::io::{ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Longest name that is looked at; QEMU writes 1023 bytes at most.
const NAME_MAX: usize = 4096;
/// The part of a header that leads to the name.
const HEADER: u64 = 64;

/// Files of the directory that name a backup's as what they stand on: backups, those that are being made, and what somebody
/// else put there. One that cannot be read is an error: nobody knows.
pub fn standing_on_file(place: &Place, name: &str) -> Result<Vec<PathBuf>, Failure> {
    let directory = place.directory();
    let list = || format!("list {}", directory.display());
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Failure::io(list(), &error)),
    };
    let file = place.file(name);
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| Failure::io(list(), &error))?.path();
        let is_ours = path
            .extension()
            .is_some_and(|end| end == "json" || end == "blake3");
        if !is_ours && stands_on_file(&path, &file)? {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn stands_on_file(path: &Path, file: &Path) -> Result<bool, Failure> {
    let named = match backing_of(path) {
        Ok(Some(named)) => named,
        Ok(None) => return Ok(false),
        // gone since it was listed
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => {
            let look = format!("see what {} stands on", path.display());
            return Err(Failure::io(look, &error));
        }
    };
    let plain = named.strip_prefix(b"file:").unwrap_or(&named);
    let below = path.parent().unwrap_or(Path::new("/"));
    let below = below.join(OsStr::from_bytes(plain));
    if below == file || sys::is_one_file(&below, file) {
        return Ok(true);
    }
    // options in JSON, and other protocols, are not taken apart: it may be named in there
    let name = file.file_name().unwrap_or_default().as_bytes();
    let begins = |at: usize| at == 0 || matches!(plain[at - 1], b'/' | b'"' | b':');
    let mut parts = plain.windows(name.len()).enumerate();
    Ok(plain.contains(&b':') && parts.any(|(at, part)| part == name && begins(at)))
}

/// The name in an image's header of what it stands on, whatever else that header asks for: of qcow2 and qcow (QEMU's
/// docs/interop/qcow2, "Header") and of qed (docs/interop/qed_spec, "Header"). Any other file stands on nothing.
fn backing_of(path: &Path) -> std::io::Result<Option<Vec<u8>>> {
    if !path.metadata()?.is_file() {
        return Ok(None);
    }
    let file = sys::open_for_reading(path)?;
    let mut header = Vec::new();
    (&file).take(HEADER).read_to_end(&mut header)?;
    let big = |at: usize, len: usize| Some(number(header.get(at..at + len)?.iter()));
    let little = |at: usize, len: usize| Some(number(header.get(at..at + len)?.iter().rev()));
    let (at, length) = match header.get(..4) {
        Some(b"QFI\xfb") => (big(8, 8), big(16, 4)),
        Some(b"QED\0") => (little(56, 4), little(60, 4)),
        Some(_) | None => (None, None),
    };
    let (Some(at @ 1..), Some(length @ 1..)) = (at, length) else {
        return Ok(None);
    };
    let length = usize::try_from(length).unwrap_or(NAME_MAX);
    let mut name = vec![0; length.min(NAME_MAX)];
    match file.read_exact_at(&mut name, at) {
        Ok(()) => Ok(Some(name)),
        // it leads nowhere
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

fn number<'a>(bytes: impl Iterator<Item = &'a u8>) -> u64 {
    bytes.fold(0, |all, byte| all << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_on_a_file_is_seen_in_every_spelling() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::at(dir.path());
        std::fs::write(place.file("base"), b"").unwrap();
        let image = |name: &str, backing: &str| {
            let mut header = b"QFI\xfb\0\0\0\x03".to_vec();
            header.extend(104_u64.to_be_bytes());
            header.extend(u32::try_from(backing.len()).unwrap().to_be_bytes());
            // whatever else it asks for
            header.resize(104, 0xff);
            header.extend(backing.as_bytes());
            std::fs::write(dir.path().join(name), header).unwrap();
        };
        let mut qed = b"QED\0".to_vec();
        qed.resize(56, 0);
        qed.extend(64_u32.to_le_bytes());
        qed.extend(10_u32.to_le_bytes());
        qed.extend(b"base.qcow2");
        std::fs::write(dir.path().join("qed"), qed).unwrap();
        image("plain", "base.qcow2");
        image("absolute", &place.file("base").display().to_string());
        image("protocol", "file:base.qcow2");
        image("json", r#"json:{"file":{"filename":"base.qcow2"}}"#);
        image(".hidden.qcow2.unfinished-1", "./base.qcow2");
        image("other", "other.qcow2");
        image("another-base", "other-base.qcow2");
        image(
            "another-json",
            r#"json:{"file":{"filename":"other-base.qcow2"}}"#,
        );
        std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
        std::fs::write(dir.path().join("text"), "base.qcow2").unwrap();
        std::fs::create_dir(dir.path().join("directory")).unwrap();
        let found = standing_on_file(&place, "base").unwrap();
        let names = found.iter().filter_map(|path| path.file_name()?.to_str());
        let expected = [
            ".hidden.qcow2.unfinished-1",
            "absolute",
            "json",
            "plain",
            "protocol",
            "qed",
        ];
        assert!(names.eq(expected), "{found:?}");
    }
}

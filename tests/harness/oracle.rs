//! What is right, by QEMU's own word: qemu-img gives the bytes of a layer or an internal snapshot, and draws the chain.

use std::ffi::CString;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::sh;

const CHUNK: usize = 1 << 20;

/// Makes an empty qcow2 image.
pub fn create(image: &Path, size: u64) {
    sh!("qemu-img create -q -f qcow2 {} {size}", image.display());
}

/// Makes a qcow2 overlay on a backing file.
pub fn create_overlay(image: &Path, backing: &Path, size: u64) {
    sh!(
        "qemu-img create -q -f qcow2 -b {} -F qcow2 {} {size}",
        backing.display(),
        image.display()
    );
}

/// The bytes of a layer with everything below it, as a raw file.
pub fn convert(layer: &Path, raw: &Path) {
    sh!(
        "qemu-img convert -U -f qcow2 -O raw {} {}",
        layer.display(),
        raw.display()
    );
}

/// The bytes of an internal snapshot, as a raw file.
pub fn convert_internal(image: &Path, snapshot: &str, raw: &Path) {
    sh!(
        "qemu-img convert -U -f qcow2 -l snapshot.name={snapshot} -O raw {} {}",
        image.display(),
        raw.display()
    );
}

/// The files of a chain, active layer first, as the headers say.
pub fn chain(active: &Path) -> Vec<PathBuf> {
    let text = sh!(
        "qemu-img info -U --backing-chain --output=json {}",
        active.display()
    );
    let infos: Value = serde_json::from_str(&text).expect("qemu-img speaks JSON");
    infos
        .as_array()
        .expect("a chain")
        .iter()
        .map(|i| PathBuf::from(i["filename"].as_str().expect("a name")))
        .collect()
}

/// Panics if qemu-img finds the image's structure damaged, or clusters leaked.
#[track_caller]
pub fn check(image: &Path) {
    sh!("qemu-img check -q -U -f qcow2 {}", image.display());
}

/// Panics if qemu-img finds the image's structure damaged. Clusters may have leaked: it was not closed.
#[track_caller]
pub fn check_after_a_fall(image: &Path) {
    let output = sh::attempt(&format!(
        "qemu-img check -q -U -f qcow2 {}",
        image.display()
    ));
    assert!(
        matches!(output.status.code(), Some(0 | 3)),
        "{}: {}",
        image.display(),
        sh::said(&output)
    );
}

/// Panics at the first byte where a view and the expected image differ; reads both from end to end.
#[track_caller]
pub fn assert_same(view: &Path, expected: &Path) {
    if let Err(difference) = compare(view, expected) {
        panic!(
            "{} is not as {}: {difference}",
            view.display(),
            expected.display()
        );
    }
}

/// Compares two files byte by byte.
pub fn compare(view: &Path, expected: &Path) -> Result<(), String> {
    let open = |path: &Path| File::open(path).map_err(|e| format!("{}: {e}", path.display()));
    let (ours, theirs) = (open(view)?, open(expected)?);
    let size = theirs.metadata().map_err(|e| e.to_string())?.len();
    let found = ours.metadata().map_err(|e| e.to_string())?.len();
    if found != size {
        return Err(format!("size {found} instead of {size}"));
    }
    let (mut a, mut b) = (vec![0; CHUNK], vec![0; CHUNK]);
    for offset in (0..size).step_by(CHUNK) {
        let length = usize::try_from(size - offset).unwrap_or(CHUNK).min(CHUNK);
        ours.read_exact_at(&mut a[..length], offset)
            .map_err(|e| format!("reading at {offset}: {e}"))?;
        theirs
            .read_exact_at(&mut b[..length], offset)
            .map_err(|e| e.to_string())?;
        if a[..length] != b[..length] {
            let at = (0..length)
                .find(|&i| a[i] != b[i])
                .expect("a difference was seen");
            return Err(format!(
                "byte {} is {:#04x} instead of {:#04x}",
                offset + at as u64,
                a[at],
                b[at]
            ));
        }
    }
    Ok(())
}

/// BLAKE3 of a file's bytes, in a manifest's words.
pub fn digest(raw: &Path) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut file = File::open(raw).unwrap_or_else(|e| panic!("{}: {e}", raw.display()));
    std::io::copy(&mut file, &mut hasher).expect("it can be read");
    format!("blake3:{}", hasher.finalize().to_hex())
}

/// The allocated ranges of a file, as SEEK_DATA and SEEK_HOLE tell them.
pub fn data_ranges(path: &Path) -> Vec<std::ops::Range<u64>> {
    use std::os::fd::AsRawFd;
    let file = File::open(path).expect("the file opens");
    let seek = |at: u64, whence| {
        // SAFETY: a plain lseek on a descriptor that `file` keeps open.
        let found = unsafe { libc::lseek(file.as_raw_fd(), at.cast_signed(), whence) };
        u64::try_from(found).ok()
    };
    let mut ranges = Vec::new();
    let mut at = 0;
    while let Some(data) = seek(at, libc::SEEK_DATA) {
        at = seek(data, libc::SEEK_HOLE).expect("a hole after data, at least at the end");
        assert!(at > data, "SEEK_HOLE({data}) went nowhere");
        ranges.push(data..at);
    }
    ranges
}

/// What `stat` says is allocated, in bytes.
pub fn allocated(path: &Path) -> u64 {
    path.metadata().expect("the file is there").blocks() * 512
}

/// The mark that qmpfs leaves on a file it sealed.
pub fn sealed_mark(path: &Path) -> Option<Vec<u8>> {
    mark(path, "point")
}

/// Takes the mark of a sealed file away: it is somebody else's from then on.
pub fn remove_mark(path: &Path) {
    sh!("setfattr -x user.qmpfs.point {}", path.display());
}

/// The note of a freeze on a file, as long as it has not ended.
pub fn freeze_note(path: &Path) -> Option<Vec<u8>> {
    mark(path, "freeze")
}

/// What qmpfs has written on a file under one name.
pub fn mark(path: &Path, name: &str) -> Option<Vec<u8>> {
    let path = CString::new(path.as_os_str().as_bytes()).expect("a path without NUL");
    let name = CString::new(format!("user.qmpfs.{name}")).expect("a name without NUL");
    let mut value = vec![0u8; 4096];
    // SAFETY: both strings end with NUL, and the buffer is as long as we say.
    let length = unsafe {
        libc::getxattr(
            path.as_ptr(),
            name.as_ptr(),
            value.as_mut_ptr().cast(),
            value.len(),
        )
    };
    value.truncate(usize::try_from(length).ok()?);
    Some(value)
}

/// The names of what qmpfs has written on a file.
pub fn marks(path: &Path) -> Vec<String> {
    let path = CString::new(path.as_os_str().as_bytes()).expect("a path without NUL");
    let mut names = vec![0u8; 4096];
    // SAFETY: the path ends with NUL, and the buffer is as long as we say.
    let length = unsafe { libc::listxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    names.truncate(usize::try_from(length).unwrap_or(0));
    let names = String::from_utf8_lossy(&names).into_owned();
    let ours = names
        .split('\0')
        .filter_map(|n| n.strip_prefix("user.qmpfs."));
    ours.map(str::to_owned).collect()
}

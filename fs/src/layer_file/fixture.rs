//! Where the tests of these rooms put their files.

use crate::sys;
use std::path::Path;

/// A directory for tests whose files can have user attributes: tmpfs has them since Linux 6.6
/// only, so the build directory stands in.
pub(crate) fn with_xattrs() -> tempfile::TempDir {
    let own = std::env::current_exe().expect("a running test has an executable");
    let build = own.parent().expect("an executable lies in a directory");
    [&std::env::temp_dir(), build]
        .into_iter()
        .find_map(|directory: &Path| {
            let dir = tempfile::tempdir_in(directory).ok()?;
            let probe = std::fs::File::create(dir.path().join("probe")).ok()?;
            sys::xattr_set(&probe, c"user.qmpfs.probe", b"x").ok()?;
            std::fs::remove_file(dir.path().join("probe")).ok()?;
            Some(dir)
        })
        .expect("a filesystem with user attributes, under /tmp or the build directory")
}

/// Runs qemu-img, which the tests take for the truth.
pub(crate) fn qemu_img(arguments: &[&str]) {
    let output = std::process::Command::new("qemu-img")
        .args(arguments)
        .output()
        .expect("qemu-img is installed");
    assert!(
        output.status.success(),
        "qemu-img {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

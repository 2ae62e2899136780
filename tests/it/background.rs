//! `qmpfs mount` without `-f`: what the daemon takes along from whoever has started it.

use std::path::PathBuf;

use qmpfs_tests::mounted::program;
use qmpfs_tests::scratch::Scratch;
use qmpfs_tests::{oracle, sh};

/// Taken away again, also when the test fails.
struct Background(PathBuf);

impl Drop for Background {
    fn drop(&mut self) {
        let line = format!("{} umount {}", program().display(), self.0.display());
        sh::attempt(&line);
    }
}

/// `exec 9>lock; flock 9`, as a script keeps others out that would do the same at once.
#[test]
fn a_daemon_keeps_no_lock_of_the_script_that_starts_it() {
    let scratch = Scratch::new("background-lock");
    let image = scratch.dir("images").join("web1.qcow2");
    oracle::create(&image, 8 << 20);
    let (lock, mountpoint) = (scratch.file("lock"), scratch.dir("mnt"));
    let mount = Background(mountpoint.clone());
    // a path may be one of its descriptors, as of `>(logger)`
    sh!(
        "exec 9>{0} 3>{0}.other; flock 9; {1} mount -o ro,log=/dev/fd/3 {2} {3}",
        lock.display(),
        program().display(),
        image.display(),
        mountpoint.display()
    );
    assert!(mountpoint.join("disks/web1").is_dir(), "it is mounted");
    sh!("flock -n {} true", lock.display());
    sh!("grep -q mounted {}.other", lock.display());
    drop(mount);
    assert!(!mountpoint.join("disks").exists());
}

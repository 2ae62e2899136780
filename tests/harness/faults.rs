//! Things that go wrong: a filesystem that is too small, and what else the machine may do to us.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use crate::scratch::Scratch;
use crate::sh;

/// A small ext4 on a loop device, unmounted when dropped.
#[derive(Debug)]
pub struct SmallFilesystem {
    mountpoint: PathBuf,
}

impl SmallFilesystem {
    /// Mounts a new one; `None` where only root could.
    pub fn new(scratch: &Scratch, mebibytes: u64) -> Option<Self> {
        if !sh::is_root() {
            eprintln!("left out: a small filesystem needs root");
            return None;
        }
        let image = scratch.file("small.ext4");
        let mountpoint = scratch.dir("small");
        sh!(
            "truncate -s {mebibytes}M {0}; mkfs.ext4 -q -m 0 -O ^has_journal {0}",
            image.display()
        );
        sh!(
            "mount -o loop,user_xattr {} {}",
            image.display(),
            mountpoint.display()
        );
        Some(Self { mountpoint })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mountpoint
    }

    /// Fills it, but for `spare` bytes. What a test cannot wait for is filled before: only the rest is written then.
    pub fn fill_but(&self, spare: u64) {
        let path = self.mountpoint.join("filler");
        let filler = File::options().create(true).append(true).open(&path);
        let mut filler = filler.expect("a filler");
        let chunk = vec![0x5a; 4096];
        while filler.write_all(&chunk).is_ok() {}
        let kept = filler
            .metadata()
            .expect("its size")
            .len()
            .saturating_sub(spare);
        filler.set_len(kept).expect("a shorter filler");
        filler.sync_all().expect("a filler on the disk");
    }

    /// Makes room again.
    pub fn make_room(&self) {
        std::fs::remove_file(self.mountpoint.join("filler")).expect("the filler goes");
    }
}

impl Drop for SmallFilesystem {
    fn drop(&mut self) {
        // Lazily: what still has a file open there ends with its own value.
        sh::attempt(&format!("umount -l {}", self.mountpoint.display()));
    }
}

/// The names in a directory, sorted.
pub fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let mut names: Vec<String> = entries
        .map(|e| {
            e.expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    names.sort();
    names
}

/// A file or directory that nobody may change, root included, until this is dropped.
#[derive(Debug)]
pub struct Immutable {
    path: PathBuf,
}

impl Immutable {
    /// Makes it so; `None` where only root could.
    pub fn new(path: &Path) -> Option<Self> {
        if !sh::is_root() {
            eprintln!("left out: chattr +i needs root");
            return None;
        }
        sh!("chattr +i {}", path.display());
        Some(Self {
            path: path.to_path_buf(),
        })
    }
}

impl Drop for Immutable {
    fn drop(&mut self) {
        // Not sh!, which may panic: this also runs while a test is failing.
        let _ = std::process::Command::new("chattr")
            .arg("-i")
            .arg(&self.path)
            .status();
    }
}

/// What a mount in another network namespace (a container) holds as long as it changes what is called `name` in a directory:
/// a lock on that. It goes with the file.
#[track_caller]
pub fn claimed_elsewhere(directory: &Path, name: &str) -> File {
    let digest = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let file = File::open(directory).expect("a directory");
    // SAFETY: `flock` is plain integers, for which all zeroes is a value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = i16::try_from(libc::F_RDLCK).expect("small");
    lock.l_start = i64::try_from(digest >> 1).expect("63 bits");
    lock.l_len = 1;
    // SAFETY: the descriptor is open, and the lock lives across the call.
    let locked = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw mut lock) };
    assert_eq!(locked, 0, "{}", std::io::Error::last_os_error());
    file
}

//! Who changes a disk, or stops a guest: one process at a time on this host, also where two mounts
//! came through two monitors of one VM. It knows the disk's path; it does not know what is done to it.
//! A claim is a name among abstract sockets: it ends with its process, and leaves no file. Another network namespace (a
//! container) has other such names: so a disk's is a lock on its directory as well, of one byte for each name in it.

use super::record::QemuIdentity;
use crate::errno::{Errno, Failure};
use crate::sys;
use std::fs::File;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;

/// The right of this process to change one disk, until it is dropped.
#[derive(Debug)]
pub struct Claim {
    _name: UnixDatagram,
    _seat: Option<Seat>,
}

/// Claims the disk of an active path; EBUSY while another process has it.
pub fn claim(active: &Path) -> Result<Claim, Failure> {
    let doing = || format!("claim {}", active.display());
    let directory = active.parent().unwrap_or(Path::new("/"));
    let place = sys::file_id(directory).map_err(|error| Failure::io(doing(), &error))?;
    let file = digest(active.file_name().unwrap_or_default().as_bytes());
    let taken = || {
        Failure::new(
            Errno::EBUSY,
            format!("another qmpfs is at work on {}", active.display()),
        )
        .next("wait for it, or use the other mount")
    };
    let claim = bind(format!("qmpfs/{:x}/{:x}/{file:x}", place.dev, place.ino));
    let claim = claim.map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => taken(),
        _ => Failure::io(doing(), &error),
    })?;
    match Seat::take(directory, file >> 1) {
        Ok(seat) => Ok(Claim {
            _seat: Some(seat),
            ..claim
        }),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Err(taken()),
        // a filesystem without locks
        Err(_) => Ok(claim),
    }
}

/// A lock on one byte of a directory. There are no exclusive ones: of two that are shared each sees the other.
#[derive(Debug)]
struct Seat {
    directory: File,
    byte: u64,
}

impl Seat {
    fn take(directory: &Path, byte: u64) -> std::io::Result<Seat> {
        let directory = File::open(directory)?;
        sys::lock_byte_shared(&directory, byte)?;
        let seat = Seat { directory, byte };
        match sys::byte_held_elsewhere(&seat.directory, byte)? {
            false => Ok(seat),
            true => Err(std::io::ErrorKind::WouldBlock.into()),
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        // by name: a child that is being started has a copy of the descriptor
        let _ = sys::unlock_byte(&self.directory, self.byte);
    }
}

/// Claims the right to stop the guest of a QEMU, and to let it go on; EBUSY while another process has it.
/// None where the QEMU is on another machine: nobody there can be seen.
pub fn claim_guest(qemu: QemuIdentity) -> Result<Option<Claim>, Failure> {
    let Some(pid) = qemu.pid else {
        return Ok(None);
    };
    let processor = qemu.processor.unwrap_or_default();
    let claim = bind(format!("qmpfs/guest/{pid:x}/{processor:x}"));
    claim.map(Some).map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            Failure::new(Errno::EBUSY, "another qmpfs has stopped the guest")
        }
        _ => Failure::io(format!("claim the guest of process {pid}"), &error),
    })
}

/// Claims what a process keeps for as long as it lives, by the random digits in its name; EBUSY while
/// that process lives.
pub fn claim_kept(digits: &str) -> Result<Claim, Failure> {
    bind(format!("qmpfs/kept/{digits}")).map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => Failure::new(
            Errno::EBUSY,
            format!("another qmpfs is at work on {digits}"),
        ),
        _ => Failure::io(format!("claim {digits}"), &error),
    })
}

fn bind(name: String) -> std::io::Result<Claim> {
    let name = SocketAddr::from_abstract_name(name)?;
    UnixDatagram::bind_addr(&name).map(|name| Claim {
        _name: name,
        _seat: None,
    })
}

/// FNV-1a: a name of any length in the few bytes that a socket's name may have.
fn digest(name: &[u8]) -> u64 {
    name.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_claimed_once() {
        let dir = tempfile::tempdir().unwrap();
        let (one, other) = (dir.path().join("web1.qcow2"), dir.path().join("web2.qcow2"));
        let held = claim(&one).unwrap();
        assert_eq!(claim(&one).unwrap_err().errno, Errno::EBUSY);
        let _other = claim(&other).unwrap();
        drop(held);
        claim(&one).unwrap();
        claim(&dir.path().join("x".repeat(255))).unwrap();
    }

    #[test]
    fn a_disk_is_claimed_once_by_its_directory_alone() {
        let dir = tempfile::tempdir().unwrap();
        let held = Seat::take(dir.path(), 7).unwrap();
        let again = Seat::take(dir.path(), 7).unwrap_err();
        assert_eq!(again.kind(), std::io::ErrorKind::WouldBlock);
        let _other = Seat::take(dir.path(), 8).unwrap();
        drop(held);
        Seat::take(dir.path(), 7).unwrap();
    }

    #[test]
    fn a_guest_is_claimed_once() {
        // no process has such an id
        let behind = |processor| QemuIdentity {
            pid: Some(i32::MAX),
            processor: Some(processor),
        };
        let held = claim_guest(behind(1)).unwrap();
        assert_eq!(claim_guest(behind(1)).unwrap_err().errno, Errno::EBUSY);
        // another guest behind the same proxy
        claim_guest(behind(2)).unwrap();
        drop(held);
        claim_guest(behind(1)).unwrap();
    }

    #[test]
    fn a_disk_is_the_same_by_every_way_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path(), &link).unwrap();
        let _held = claim(&dir.path().join("web1.qcow2")).unwrap();
        assert_eq!(
            claim(&link.join("web1.qcow2")).unwrap_err().errno,
            Errno::EBUSY
        );
    }
}

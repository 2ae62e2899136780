//! What this machine has: FUSE, QEMU's programs, what readers of guests' files are confined by, dead mounts,
//! and what reads the filesystems that are not read here.

use super::{Finding, program};
use crate::guest;
use crate::run::mountpoint;
use crate::sys;
use std::io::ErrorKind;
use std::path::Path;
use std::process::{Command, Stdio};

pub(super) fn all() -> Vec<Finding> {
    let mut found = vec![fuse(), unmounting(), others(), confinement()];
    found.extend(programs());
    found.extend(dead_mounts());
    found.push(other_filesystems());
    found
}

fn fuse() -> Finding {
    let device = Path::new("/dev/fuse");
    match std::fs::File::options().read(true).write(true).open(device) {
        Ok(_) => Finding::Fit("/dev/fuse can be opened".to_owned()),
        Err(error) => Finding::Unfit(
            format!("/dev/fuse cannot be opened: {error}"),
            match error.kind() {
                ErrorKind::PermissionDenied => {
                    "let users open it, as udev does: chmod 666 /dev/fuse; or mount as root"
                }
                _ => {
                    "modprobe fuse; in a container: start it with --device /dev/fuse --cap-add SYS_ADMIN"
                }
            }
                .to_owned(),
        ),
    }
}

/// Root unmounts by itself, others by fusermount3.
fn unmounting() -> Finding {
    match (sys::own_ids().0, program("fusermount3")) {
        (_, Some(path)) => Finding::Fit(format!("{} is there", path.display())),
        (0, None) => Finding::Fit("fusermount3 is not there, and root needs none".to_owned()),
        (_, None) => Finding::Unfit(
            "fusermount3 is not there, and only root can mount without it".to_owned(),
            "install the package fuse3 (apt install fuse3)".to_owned(),
        ),
    }
}

fn others() -> Finding {
    const CONFIGURATION: &str = "/etc/fuse.conf";
    let text = std::fs::read_to_string(CONFIGURATION).unwrap_or_default();
    let allowed = text.lines().any(|line| line.trim() == "user_allow_other");
    match (sys::own_ids().0, allowed) {
        (0, _) => Finding::Fit("-o allow_other is root's to say".to_owned()),
        (_, true) => Finding::Fit(format!("-o allow_other is allowed ({CONFIGURATION})")),
        (_, false) => Finding::Lacking(
            format!(
                "-o allow_other and allow_root are refused: {CONFIGURATION} has no user_allow_other"
            ),
            format!("to show a mount to others, as root: echo user_allow_other >>{CONFIGURATION}"),
        ),
    }
}

fn confinement() -> Finding {
    let has_filter = Path::new("/proc/sys/kernel/seccomp/actions_avail").exists();
    match (sys::landlock_version(), has_filter) {
        (Some(version), true) => Finding::Fit(format!(
            "readers of guests' files are confined by seccomp and landlock (version {version})"
        )),
        (None, true) => Finding::Lacking(
            "readers of guests' files are confined by seccomp alone: this kernel has no landlock".to_owned(),
            "nothing has to be done; Linux 5.13 and newer have it, where lsm= names landlock".to_owned(),
        ),
        (_, false) => Finding::Lacking(
            "this kernel has no seccomp filters: guests' files cannot be shown".to_owned(),
            "read partitions/N.raw with another tool (below), or use a kernel with CONFIG_SECCOMP_FILTER".to_owned(),
        ),
    }
}

/// What QEMU's programs are needed for.
fn programs() -> impl Iterator<Item = Finding> {
    let wanted = [
        (
            "qemu-storage-daemon",
            "the images of a VM that is off cannot be changed, nor backups merged (with -o ro they are read)",
        ),
        (
            "qemu-img",
            "`qmpfs verify` does not check the structure of files",
        ),
    ];
    wanted.into_iter().map(|(name, without)| match version(name) {
        Some(version) => Finding::Fit(version),
        None => Finding::Lacking(
            format!("{name} is not there: {without}"),
            "install it (apt install qemu-utils; up to QEMU 7 the daemon is in qemu-system-common)".to_owned(),
        ),
    })
}

/// What a program says it is, on its first line.
fn version(name: &str) -> Option<String> {
    let path = program(name)?;
    let mut command = Command::new(path);
    let output = command
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    Some(text.lines().next()?.trim().to_owned())
}

/// Mounts of qmpfs whose daemon is gone.
fn dead_mounts() -> Vec<Finding> {
    let dead = mountpoint::dead().unwrap_or_default();
    dead.iter().map(|at| {
        let at = at.display();
        Finding::Lacking(
            format!("the daemon of the mount {at} is gone"),
            format!("qmpfs umount {at}, or mount there again: what was under way is finished or taken back"),
        )
    })
    .collect()
}

/// What is not read here, and what reads it.
fn other_filesystems() -> Finding {
    let read = guest::readable().join(", ");
    let tools = ["guestmount", "lklfuse", "cryptsetup"];
    let there: Vec<&str> = tools
        .into_iter()
        .filter(|name| program(name).is_some())
        .collect();
    let there = match there.is_empty() {
        true => "none is installed".to_owned(),
        false => format!("installed: {}", there.join(", ")),
    };
    Finding::Lacking(
        format!("guests' files are shown of {read}; of others by other tools ({there})"),
        "guestmount --ro -a P/disk.raw -i DIR, or lklfuse -o ro,type=TYPE P/partitions/N.raw DIR, with P the point; encrypted: first \
         cryptsetup open --readonly --type luks P/partitions/N.raw NAME. P/files/N.txt has the line for each partition"
            .to_owned(),
    )
}

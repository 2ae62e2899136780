//! Formats that QEMU reads and our reader does not: which of them are one file that can be opened by itself, and how large
//! the disk in it is, by QEMU's own word. No name in such a file is followed: it may be a guest's, or a stranger's.

use crate::errno::{Errno, Failure};
use crate::sys;
use qmpfs_qcow2::ReadAt;
use serde_json::{Value, json};
use std::fmt::Display;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The program.
const PROGRAM: &str = "qemu-img";
/// A look at a header; QEMU reads some tables with it.
const LOOK_DEADLINE: Duration = Duration::from_secs(20);
/// Between two looks whether it has ended.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// By QEMU's names: formats of one file, which needs no key.
const ALONE: [&str; 10] = [
    "bochs",
    "cloop",
    "dmg",
    "parallels",
    "qcow",
    "qed",
    "vdi",
    "vhdx",
    "vmdk",
    "vpc",
];
/// Those of them whose header can name a file that they stand on.
const OVER_ANOTHER: [&str; 3] = ["qcow", "qed", "vmdk"];

/// What a VMDK of one file begins with, and where its capacity stands. Everything else that is called VMDK
/// is a text that names other files.
const VMDK_SPARSE: &[u8; 4] = b"KDMV";
const VMDK_SPARSE_ESX: &[u8; 4] = b"COWD";
const VMDK_CAPACITY: std::ops::Range<usize> = 12..20;

/// Whether the header of such an image can name another that it stands on.
pub(crate) fn can_stand_on_another(format: &str) -> bool {
    OVER_ANOTHER.contains(&format)
}

/// Whether it is a format that the user may name.
pub(crate) fn is_known(format: &str) -> bool {
    ALONE.contains(&format)
}

/// The format that a file's name speaks of, if it is one of these.
pub(super) fn called_like(path: &Path) -> Option<&'static str> {
    let extension = path.extension()?.to_str()?.to_ascii_lowercase();
    let name = match &*extension {
        "vhd" => "vpc",
        "hdd" => "parallels",
        other => other,
    };
    ALONE.into_iter().find(|format| *format == name)
}

/// Refuses what is not one file in a format that needs no key.
pub(crate) fn refuse_unless_alone(path: &Path, format: &str) -> Result<(), Failure> {
    if !ALONE.contains(&format) {
        let why = "that takes a key, or other files, which only its VM's QEMU has";
        return Err(not_alone(path, format, why));
    }
    if format != "vmdk" {
        return Ok(());
    }
    let mut start = [0; 20];
    // of a shorter file the rest is zeros, which is no VMDK either
    sys::open_for_reading(path)
        .and_then(|file| ReadAt::read_at(&file, &mut start, 0))
        .map_err(|error| Failure::io(format_args!("read {}", path.display()), &error))?;
    let has_capacity = start[VMDK_CAPACITY].iter().any(|byte| *byte != 0);
    match &start[..4] {
        magic if magic == VMDK_SPARSE && has_capacity => Ok(()),
        magic if magic == VMDK_SPARSE_ESX => Ok(()),
        _ => Err(not_alone(
            path,
            format,
            "it names other files that hold its data",
        )),
    }
}

fn not_alone(path: &Path, format: &str, why: &str) -> Failure {
    Failure::new(
        Errno::EOPNOTSUPP,
        format!("{} is {format}, and {why}", path.display()),
    )
    .next("start the VM and mount its QMP socket, or qemu-img convert -O qcow2")
}

/// Bytes of the disk in such an image.
pub(super) fn virtual_size(path: &Path, format: &str) -> Result<u64, Failure> {
    refuse_unless_alone(path, format)?;
    let name = path.to_str().ok_or_else(|| {
        Failure::new(
            Errno::EOPNOTSUPP,
            format!(
                "{} is no name that QEMU can be told: it is not UTF-8",
                path.display()
            ),
        )
    })?;
    let mut image = json!({"driver": format, "file": {"driver": "file", "filename": name}});
    if can_stand_on_another(format) {
        image["backing"] = Value::Null;
    }
    let mut command = Command::new(PROGRAM);
    command
        .args(["info", "-U", "--output=json"])
        .arg(format!("json:{image}"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    sys::die_with_parent(&mut command);
    let child = command.spawn().map_err(|error| {
        Failure::io(
            format_args!("look at {} with {PROGRAM}", path.display()),
            &error,
        )
        .next("install it (Debian: qemu-utils); qmpfs reads qcow2 and raw without it")
    })?;
    let (ended_well, said, words) = ended(child)?;
    let told: Value = serde_json::from_slice(&said).unwrap_or_default();
    match (ended_well, told["virtual-size"].as_u64()) {
        (true, Some(size)) => match told["backing-filename"].as_str() {
            Some(below) => Err(stands_on_another(path, format, below)),
            None => Ok(size),
        },
        (true | false, _) => Err(Failure::new(
            Errno::EIO,
            format!(
                "QEMU does not open {} as {format}: {}",
                path.display(),
                String::from_utf8_lossy(&words).trim()
            ),
        )
        .next("its words say why; qemu-img check tells whether the image is sound")),
    }
}

/// What to say of a name in a header that is not followed.
pub(crate) fn stands_on_another(path: &Path, format: &str, below: impl Display) -> Failure {
    Failure::new(
        Errno::EOPNOTSUPP,
        format!(
            "{} stands on {below}, and a name in a header of {format} is not followed",
            path.display()
        ),
    )
    .next("with the VM off: qemu-img convert makes one image of both")
}

/// Whether it ended well, and what it said, which is little.
fn ended(mut child: Child) -> Result<(bool, Vec<u8>, Vec<u8>), Failure> {
    let deadline = Instant::now() + LOOK_DEADLINE;
    let trouble = |error| Failure::io(format_args!("wait for {PROGRAM}"), &error);
    let status = loop {
        if let Some(status) = child.try_wait().map_err(trouble)? {
            break status;
        }
        if Instant::now() >= deadline {
            // our own child, known by its handle
            let _ = child.kill();
            let _ = child.wait();
            return Err(
                Failure::new(Errno::ETIMEDOUT, format!("{PROGRAM} does not end"))
                    .next("see what holds the image's filesystem up"),
            );
        }
        std::thread::sleep(LOOK_EVERY);
    };
    let (mut said, mut words) = (Vec::new(), Vec::new());
    if let Some(mut out) = child.stdout.take() {
        out.read_to_end(&mut said).map_err(trouble)?;
    }
    if let Some(mut err) = child.stderr.take() {
        err.read_to_end(&mut words).map_err(trouble)?;
    }
    Ok((status.success(), said, words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vmdk_that_names_other_files_is_not_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.vmdk");
        let refused = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            refuse_unless_alone(&path, "vmdk").err().map(|it| it.errno)
        };
        let mut sparse = [0; 512];
        sparse[..4].copy_from_slice(VMDK_SPARSE);
        assert_eq!(
            refused(&sparse),
            Some(Errno::EOPNOTSUPP),
            "a text in disguise"
        );
        sparse[12] = 1;
        assert_eq!(refused(&sparse), None);
        let text = b"# Disk DescriptorFile\nRW 16384 FLAT \"/etc/shadow\" 0\n";
        assert_eq!(refused(text), Some(Errno::EOPNOTSUPP));
        assert_eq!(
            refuse_unless_alone(&path, "luks").err().map(|it| it.errno),
            Some(Errno::EOPNOTSUPP)
        );
    }
}

//! The structure of image files, by QEMU's own judgement: `qemu-img check`, which follows no name in
//! them and takes no lock that could disturb a QEMU.

use crate::errno::{Errno, Failure};
use crate::view;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The program.
const PROGRAM: &str = "qemu-img";

/// What was found.
pub(super) enum Structure {
    /// Nothing wrong, or nothing that has a structure.
    Sound,
    /// Clusters of these files are used by nobody.
    Leaks(String),
    /// Nobody looked, and why.
    NotChecked(String),
}

/// Checks the qcow2 files among these.
pub(super) fn check(files: &[PathBuf]) -> Result<Structure, Failure> {
    let mut leaks = Vec::new();
    for file in files {
        match kind(file) {
            Kind::Other => continue,
            Kind::Encrypted => {
                let shown = file.display();
                return Ok(Structure::NotChecked(format!("{shown} is encrypted")));
            }
            Kind::Qcow2 => {}
        }
        if view::written_by_someone(file)? {
            return Ok(Structure::NotChecked(format!(
                "{} is being written",
                file.display()
            )));
        }
        match one(file)? {
            Structure::Sound => {}
            Structure::Leaks(file) => leaks.push(file),
            not_checked @ Structure::NotChecked(_) => return Ok(not_checked),
        }
    }
    Ok(match leaks.is_empty() {
        true => Structure::Sound,
        false => Structure::Leaks(leaks.join(", ")),
    })
}

/// What a file begins like.
enum Kind {
    Qcow2,
    /// QEMU would need the key.
    Encrypted,
    Other,
}

/// Where a header of qcow2 says how it is encrypted; zero: not at all.
const ENCRYPTION: std::ops::Range<usize> = 32..36;

/// What cannot be read is told when it is checked, or read.
fn kind(file: &Path) -> Kind {
    let mut start = [0; ENCRYPTION.end];
    let opened = crate::sys::open_for_reading(file);
    let read = opened.and_then(|mut file| std::io::Read::read_exact(&mut file, &mut start));
    match read {
        Ok(()) if !start.starts_with(b"QFI\xfb") => Kind::Other,
        Ok(()) if start[ENCRYPTION] != [0; 4] => Kind::Encrypted,
        Ok(()) => Kind::Qcow2,
        Err(_) => Kind::Other,
    }
}

fn one(file: &Path) -> Result<Structure, Failure> {
    let shown = file.display();
    let Some(name) = file.to_str() else {
        return Ok(Structure::NotChecked(format!("{shown} is not UTF-8")));
    };
    let image = json!({
        "driver": "qcow2",
        "backing": null,
        "file": {"driver": "file", "filename": name},
    });
    let output = Command::new(PROGRAM)
        .args(["check", "-U", "--output=json"])
        .arg(format!("json:{image}"))
        .stdin(Stdio::null())
        .output();
    let output = match output {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Structure::NotChecked(format!("{PROGRAM} is not installed")));
        }
        Err(error) => return Err(Failure::io(format!("start {PROGRAM}"), &error)),
    };
    let told: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let count = |key: &str| told[key].as_u64().unwrap_or(0);
    match output.status.code() {
        Some(0) => Ok(Structure::Sound),
        Some(3) => Ok(Structure::Leaks(shown.to_string())),
        Some(2) => Err(Failure::new(
            Errno::EUCLEAN,
            format!(
                "{shown} is damaged: qemu-img check finds {} errors",
                count("corruptions")
            ),
        )
        .next(format!(
            "restore from another backup; qemu-img check {shown} says more"
        ))),
        Some(_) | None => Err(Failure::new(
            Errno::EIO,
            format!(
                "{shown} cannot be checked: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            ),
        )
        .next(format!("see what is wrong with it: qemu-img check {shown}"))),
    }
}

//! What an image is, and who has it open.

use super::Finding;
use crate::model::FileId;
use crate::sys;
use crate::view::{read_by_someone, written_by_someone};
use std::path::Path;

pub(super) fn all(path: &Path) -> Vec<Finding> {
    let mut found = vec![locks(path)];
    found.extend(
        holders(path)
            .into_iter()
            .map(|who| Finding::Fit(format!("{} is open in {who}", path.display()))),
    );
    found
}

fn locks(path: &Path) -> Finding {
    let shown = path.display();
    match (written_by_someone(path), read_by_someone(path)) {
        (Ok(true), _) => Finding::Unfit(
            format!("{shown} is locked for writing: a VM, or another program, uses it"),
            "mount the QMP socket of that VM instead of the image".to_owned(),
        ),
        (Ok(false), Ok(true)) => Finding::Fit(format!(
            "{shown} is read by somebody, and written by nobody"
        )),
        (Ok(false), Ok(false)) => Finding::Fit(format!("{shown} is locked by nobody")),
        (Err(failure), _) | (_, Err(failure)) => Finding::Unfit(
            failure.message,
            "see that you may read it: ls -l".to_owned(),
        ),
    }
}

/// The processes that have a file open, as far as we may look.
fn holders(path: &Path) -> Vec<String> {
    let Ok(file) = sys::file_id(path) else {
        return Vec::new();
    };
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let own = std::process::id().to_string();
    let pids = processes
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned());
    pids.filter(|pid| pid.bytes().all(|byte| byte.is_ascii_digit()) && *pid != own)
        .filter(|pid| has_open(pid, file))
        .map(|pid| {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            format!("process {pid} ({})", name.trim())
        })
        .collect()
}

fn has_open(pid: &str, file: FileId) -> bool {
    let Ok(descriptors) = std::fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    let mut paths = descriptors.flatten().map(|entry| entry.path());
    paths.any(|path| {
        // A socket or a file on a server that hangs is not followed.
        let is_file = std::fs::read_link(&path).is_ok_and(|target| target.is_absolute());
        is_file && sys::file_id(&path).is_ok_and(|found| found == file)
    })
}

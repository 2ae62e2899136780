//! Which options of the VM's own disk the nodes in its place must have too.
//! QEMU tells its cache mode and detect-zeroes; `discard` and `aio` are in no answer of QMP, so
//! they are looked for in QEMU's command line. How that is written is none of its business.

use super::command_line::CommandLine;
use super::nodes::Carried;
use crate::model::{Disk, Tuning};
use qmpbridge::command::CacheOptions;

/// The options to carry over for a disk of the QEMU that was started so, and what had to be assumed.
pub(super) fn for_disk(disk: &Disk, line: Option<&CommandLine>) -> (Carried, Vec<String>) {
    let mut assumed = Vec::new();
    let mut from_line =
        |option: &str, default: &str| match line.map(|line| line.option(disk, option)) {
            Some(Some(value)) => Some(value),
            Some(None) => {
                assumed.push(format!("{option}={default} (not on QEMU's command line)"));
                None
            }
            None => {
                assumed.push(format!(
                    "{option}={default} (QEMU's command line cannot be read)"
                ));
                None
            }
        };
    let mut discard = from_line("discard", "ignore").map(|value| {
        if value == "on" {
            "unmap".to_owned()
        } else {
            value
        }
    });
    let aio = from_line("aio", "threads");
    let detect_zeroes = disk.tuning.detect_zeroes.clone();
    if detect_zeroes.as_deref() == Some("unmap") {
        // QEMU accepts the one only with the other
        discard = Some("unmap".into());
    }
    let Tuning {
        direct,
        no_flush,
        file_direct,
        file_no_flush,
        ..
    } = disk.tuning;
    (
        Carried {
            cache: cache(direct, no_flush),
            file_cache: cache(file_direct, file_no_flush),
            detect_zeroes,
            discard,
            aio,
        },
        assumed,
    )
}

fn cache(direct: bool, no_flush: bool) -> Option<CacheOptions> {
    (direct || no_flush).then_some(CacheOptions { direct, no_flush })
}

/// Whether a `-drive` copies on read: QEMU then cannot seal its node (it stays writable).
pub(super) fn copies_on_read(disk: &Disk, line: &CommandLine) -> bool {
    line.option(disk, "copy-on-read")
        .is_some_and(|value| matches!(value.as_str(), "on" | "yes" | "true" | "y"))
}

/// Whether QEMU's command line says what the disk stands on. Started again, it would open the disk's path over
/// that, whatever its header says: past every layer that was sealed in between.
pub(super) fn names_its_backing(disk: &Disk, line: &CommandLine) -> bool {
    line.speaking_of(disk)
        .into_iter()
        .any(|argument| argument.has_backing())
}

//! Which point a line written to `rollback` names: `NAME`, or with the section it stands in,
//! `snapshots/NAME`, `layers/N-STEM`, `internal/NAME`. Pure.

use super::{Intent, Verbs, connected};
use crate::errno::{Errno, Failure};
use crate::model::{Disk, Internal, Model};
use crate::tree::{PointKey, PointKind, Section, section_entry};

/// The sections that a point is looked for in, as a person would.
const SECTIONS: [Section; 3] = [Section::Snapshots, Section::Layers, Section::Internal];

/// What a line written to `disks/DISK/rollback` means.
pub(super) fn write(
    model: &Model,
    verbs: Verbs,
    disk: &str,
    line: &str,
) -> Result<Intent, Failure> {
    let disk = model
        .disk(disk)
        .ok_or_else(|| Failure::new(Errno::ENOENT, format!("there is no disk '{disk}'")))?;
    connected(model)?;
    if let Some(why) = disk.no_seal() {
        return Err(Failure::new(
            Errno::EOPNOTSUPP,
            format!("disk '{}' is not rolled back: {why}", disk.name),
        ));
    }
    let intent = named_in(disk, line)?;
    if !model.vm.switched_off && !verbs.live_rollback {
        return Err(Failure::new(
            Errno::EPERM,
            "the VM is on, and a rollback takes its disk away from under it",
        )
        .next(format!(
            "switch the VM off, mount {} and write the name there; or mount with -o live_rollback, which resets the VM",
            disk.active_path.display()
        )));
    }
    Ok(intent)
}

/// What rolling `disk` back to the point that `line` names means.
fn named_in(disk: &Disk, line: &str) -> Result<Intent, Failure> {
    let (section, name) = spelled(line);
    let mut found: Vec<(Section, PointKey)> = Vec::new();
    for wanted in SECTIONS {
        if section.is_none_or(|section| section == wanted) {
            found.extend(named(disk, wanted, name).map(|point| (wanted, point)));
        }
    }
    // an external snapshot that is listed as a layer, too, is one point
    found.dedup_by(|b, a| a.1.identity == b.1.identity);
    let (section, point) = match found.len() {
        0 => {
            return Err(Failure::new(
                Errno::ENOENT,
                format!("disk '{}' has no point '{line}'", disk.name),
            )
            .next(format!(
                "see disks/{0}/snapshots and disks/{0}/layers",
                disk.name
            )));
        }
        1 => found.remove(0),
        _ => {
            let all: Vec<String> = found
                .iter()
                .map(|(section, _)| format!("{}/{name}", section.name()))
                .collect();
            return Err(Failure::new(
                Errno::EINVAL,
                format!("'{line}' may be {}", all.join(" or ")),
            )
            .next("write it with its directory"));
        }
    };
    if point.kind == PointKind::Internal
        && let Some(internal) = disk.internal(name)
    {
        return Err(to_internal(disk, internal));
    }
    Ok(Intent::Rollback {
        disk: disk.name.clone(),
        name: format!("{}/{name}", section.name()),
        point,
    })
}

/// The section, if the line says one, and the name. A shell completes a directory with a slash.
fn spelled(line: &str) -> (Option<Section>, &str) {
    let line = line.strip_suffix('/').unwrap_or(line);
    for section in SECTIONS {
        let rest = line.strip_prefix(section.name());
        if let Some(name) = rest.and_then(|rest| rest.strip_prefix('/')) {
            return (Some(section), name);
        }
    }
    (None, line)
}

fn named(disk: &Disk, section: Section, name: &str) -> Option<PointKey> {
    section_entry(disk, section, name)?.point().cloned()
}

/// Why a disk does not go back to an internal snapshot: nothing that does it is both cheap and safe.
pub(crate) fn to_internal(disk: &Disk, internal: &Internal) -> Failure {
    let refused = Failure::new(
        Errno::EOPNOTSUPP,
        format!(
            "'{}' is an internal snapshot: an overlay cannot stand on one, and going back to it in place overwrites the image's only table of what is where",
            internal.name
        ),
    );
    let image = disk.active_path.display();
    match internal.layer {
        None => refused.next(format!(
            "with the VM off and this mount gone: qemu-img snapshot -c present {image} && qemu-img snapshot -a '{}' {image}",
            internal.tag
        )),
        Some(_) => refused.next(format!(
            "copy it out: cp --sparse=always disks/{}/internal/{}/disk.raw NEW.raw",
            disk.name, internal.name
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::named_in;
    use crate::errno::Errno;
    use crate::intent::Intent;
    use crate::model::{Branch, Disk};
    use crate::tree::sample;

    fn disk() -> Disk {
        sample::two_disks().disks.remove(0)
    }

    fn point(disk: &Disk, line: &str) -> Result<String, Errno> {
        match named_in(disk, line) {
            Ok(Intent::Rollback { name, .. }) => Ok(name),
            Ok(other) => panic!("{other:?}"),
            Err(failure) => Err(failure.errno),
        }
    }

    #[test]
    fn a_point_is_named_with_or_without_its_directory() {
        let disk = disk();
        for line in ["before", "snapshots/before", "before/", "snapshots/before/"] {
            assert_eq!(point(&disk, line), Ok("snapshots/before".into()), "{line}");
        }
        for line in ["0-base", "layers/0-base"] {
            assert_eq!(point(&disk, line), Ok("layers/0-base".into()), "{line}");
        }
        assert_eq!(
            point(&disk, "1-web1.before"),
            Ok("layers/1-web1.before".into())
        );
        for line in [
            "",
            "no",
            "internal/before",
            "layers/before",
            "/",
            "../before",
            "snapshots/",
        ] {
            assert_eq!(point(&disk, line), Err(Errno::ENOENT), "{line}");
        }
    }

    #[test]
    fn a_name_in_two_directories_wants_its_directory() {
        let mut disk = disk();
        disk.internals[0].name = "before".into();
        assert_eq!(point(&disk, "before"), Err(Errno::EINVAL));
        assert_eq!(
            point(&disk, "snapshots/before"),
            Ok("snapshots/before".into())
        );
        assert_eq!(point(&disk, "internal/before"), Err(Errno::EOPNOTSUPP));
    }

    #[test]
    fn what_was_rolled_back_past_is_found_too() {
        let mut disk = disk();
        let layer = disk.layers.pop().expect("the sample has two");
        let below = disk.layers.clone();
        disk.branches.push(Branch { layer, below });
        assert_eq!(point(&disk, "before"), Ok("snapshots/before".into()));
    }
}

//! A directory of backups of any VMs, without the VMs: `ROOT/VM/DISK` with manifests in it. A disk there
//! is called `VM/DISK`: no name has a slash of its own.

use super::place::Place;
use crate::errno::Failure;
use crate::tree::{is_root_file, valid_name};
use std::path::Path;

/// What is added to the name of a VM that is called like a file of the mount.
const NOT_THE_FILE: &str = ".vm";
/// Disks that are listed; more is somebody's mistake.
const DISKS_MAX: usize = 4096;

/// Disks with backups, by their names.
pub fn shelf(root: &Path) -> Result<Vec<(String, Place)>, Failure> {
    let mut found = Vec::new();
    for vm in directories(root)? {
        // one that cannot be listed hides no other
        for disk in directories(&root.join(&vm)).unwrap_or_default() {
            let place = Place::at(&root.join(&vm).join(&disk));
            if found.len() < DISKS_MAX && has_manifests(place.directory()) {
                let shown = match is_root_file(&vm) {
                    true => format!("{vm}{NOT_THE_FILE}"),
                    false => vm.clone(),
                };
                found.push((format!("{shown}/{disk}"), place));
            }
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}

/// The directory of a disk that is listed under this name.
pub fn place_on_shelf(root: &Path, disk: &str) -> Option<Place> {
    let (vm, disk) = disk.split_once('/')?;
    let plain = vm.strip_suffix(NOT_THE_FILE);
    let vm = plain.filter(|vm| is_root_file(vm)).unwrap_or(vm);
    (valid_name(vm) && valid_name(disk)).then(|| Place::at(&root.join(vm).join(disk)))
}

fn directories(above: &Path) -> Result<Vec<String>, Failure> {
    let entries = std::fs::read_dir(above)
        .map_err(|error| Failure::io(format!("list {}", above.display()), &error))?;
    let names = entries.filter_map(|entry| {
        let entry = entry.ok()?;
        let name = entry.file_name().into_string().ok()?;
        (valid_name(&name) && entry.path().is_dir()).then_some(name)
    });
    Ok(names.collect())
}

fn has_manifests(directory: &Path) -> bool {
    let entries = std::fs::read_dir(directory).into_iter().flatten();
    let mut names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.any(|name| {
        name.strip_suffix(".json")
            .is_some_and(|name| valid_name(name.trim_start_matches('.')))
    })
}

#[cfg(test)]
mod tests {
    use super::{place_on_shelf, shelf};

    #[test]
    fn what_has_manifests_is_a_disk() {
        let dir = tempfile::tempdir().unwrap();
        for (path, file) in [
            ("web1/vda", "one.json"),
            ("web1/vdb", "notes.txt"),
            ("log/vda", "one.json"),
            (".hidden/vda", "one.json"),
        ] {
            let path = dir.path().join(path);
            std::fs::create_dir_all(&path).unwrap();
            std::fs::write(path.join(file), "{}").unwrap();
        }
        std::fs::write(dir.path().join("file.json"), "{}").unwrap();
        let found = shelf(dir.path()).unwrap();
        let names: Vec<_> = found.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["log.vm/vda", "web1/vda"]);
        for (name, place) in &found {
            assert_eq!(place_on_shelf(dir.path(), name).as_ref(), Some(place));
        }
        for strange in ["web1", "../x/y", "web1/..", "/etc"] {
            assert_eq!(place_on_shelf(dir.path(), strange), None, "{strange}");
        }
    }
}

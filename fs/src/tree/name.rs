//! Names: which a point may have, what a layer's directory is called, and what identifies a
//! point whatever its name. It knows text only.

use super::RootFile;
use crate::model::{Internal, Layer};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// Longest name of a point: leaves room in NAME_MAX for the file's stem and suffix around it.
const POINT_NAME_MAX: usize = 128;
/// Longest id shown behind a name that was taken: QEMU's are numbers, an image may say anything.
const SUFFIX_MAX: usize = 32;
/// Longest stem shown in a layer's directory name; with the index it stays below NAME_MAX.
const STEM_MAX: usize = 200;

/// A disk's name in its own directory, and among the disks of its VM.
pub fn short_name(disk: &str) -> &str {
    disk.split_once('/').map_or(disk, |(_, name)| name)
}

/// Where a disk is in the mount, for the log.
pub fn disk_path(disk: &str) -> String {
    match disk.split_once('/') {
        Some((vm, disk)) => format!("/{vm}/disks/{disk}"),
        None => format!("/disks/{disk}"),
    }
}

/// Whether a name is that of a file of the mount itself.
pub fn is_root_file(name: &str) -> bool {
    RootFile::ALL.iter().any(|file| file.name() == name)
}

/// Whether a point may be called so: letters, digits, `.`, `_`, `-`; not first `.` or `-`.
pub fn valid_name(name: &str) -> bool {
    name.len() <= POINT_NAME_MAX
        && name
            .bytes()
            .next()
            .is_some_and(|first| first != b'.' && first != b'-')
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

/// The nearest valid name: for what others have named.
pub fn fit_name(name: &str) -> String {
    let mut fit: String = name
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || "._-".contains(c) {
                c
            } else {
                '_'
            }
        })
        .take(POINT_NAME_MAX)
        .collect();
    if !valid_name(&fit) {
        fit = format!("d{fit}").chars().take(POINT_NAME_MAX).collect();
    }
    fit
}

/// A name of what others have named, with a number behind it where it is taken.
pub fn first_free(wanted: &str, separator: char, taken: impl Fn(&str) -> bool) -> String {
    let numbered = (2u64..).map(|number| suffixed(wanted, separator, &number.to_string()));
    let mut names = std::iter::once(wanted.to_owned()).chain(numbered);
    let free = names.find(|name| !taken(name));
    free.unwrap_or_else(|| wanted.to_owned())
}

/// Snapshots whose names look the same as directory entries are told apart by their id, and by a
/// number where that is not enough: what has another's name would be removed in its place.
pub fn name_internals(internals: &mut [Internal]) {
    for index in 1..internals.len() {
        let (before, from_here) = internals.split_at_mut(index);
        let this = &mut from_here[0];
        let taken = |name: &str| before.iter().any(|other| other.name == name);
        if !taken(&this.name) {
            continue;
        }
        let by_id = std::iter::once(this.id.clone());
        let free = by_id
            .chain((2u64..).map(|number| number.to_string()))
            .map(|word| suffixed(&this.name, '.', &word))
            .find(|name| !taken(name));
        if let Some(free) = free {
            this.name = free;
        }
    }
}

/// A fit name with a word after it, for which the name is cut short where it has to be.
fn suffixed(name: &str, separator: char, word: &str) -> String {
    let word: String = word.chars().take(SUFFIX_MAX).collect();
    let room = POINT_NAME_MAX - 1 - word.chars().count();
    let name: String = name.chars().take(room).collect();
    fit_name(&format!("{name}{separator}{word}"))
}

/// The name under layers/: the index in the chain and the file's stem.
pub fn layer_dir_name(index: usize, layer: &Layer) -> String {
    format!("{index}-{}", stem(&layer.path))
}

/// A file's stem, fit for a directory entry and a terminal.
fn stem(path: &Path) -> String {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let mut text = String::new();
    for letter in stem.chars() {
        let letter = if letter.is_control() || letter == '/' {
            '_'
        } else {
            letter
        };
        if text.len() + letter.len_utf8() > STEM_MAX {
            break;
        }
        text.push(letter);
    }
    text
}

/// What makes a layer this one: its record's id, or its file and when that was last written. A
/// file without a record is never written by us, but its owner may do so while the VM is off, and
/// an inode number is used again for another file.
pub fn layer_identity(layer: &Layer) -> String {
    match &layer.record {
        Some(record) => record.id.clone(),
        None => format!(
            "{}-{}",
            file_identity(layer),
            nanoseconds(layer.modified.unwrap_or(UNIX_EPOCH))
        ),
    }
}

/// What makes an internal snapshot this one: the file that holds it, its id there and its time,
/// to the last digit: QEMU gives a freed id again at once.
pub fn internal_identity(holder: &Layer, internal: &Internal) -> String {
    format!(
        "{}-{}-{}",
        file_identity(holder),
        internal.id,
        nanoseconds(internal.time)
    )
}

fn nanoseconds(time: SystemTime) -> u128 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos())
}

fn file_identity(layer: &Layer) -> String {
    match layer.file {
        Some(file) => format!("{:x}-{:x}", file.dev, file.ino),
        None => layer.path.to_string_lossy().into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        POINT_NAME_MAX, fit_name, internal_identity, layer_dir_name, layer_identity,
        name_internals, stem, valid_name,
    };
    use crate::model::Internal;
    use crate::tree::sample;
    use std::collections::BTreeSet;
    use std::path::Path;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn names_of_the_contract() {
        for good in [
            "a",
            "before-upgrade",
            "2026.01_x",
            "_x",
            "A",
            &"x".repeat(POINT_NAME_MAX),
        ] {
            assert!(valid_name(good), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            ".x",
            "-x",
            "a b",
            "a/b",
            "ä",
            "a\n",
            "a,b",
            &"x".repeat(POINT_NAME_MAX + 1),
        ] {
            assert!(!valid_name(bad), "{bad}");
        }
    }

    #[test]
    fn layers_are_called_after_index_and_stem() {
        let model = sample::two_disks();
        let disk = model.disk("vda").expect("the sample has vda");
        assert_eq!(layer_dir_name(0, &disk.layers[0]), "0-base");
        assert_eq!(layer_dir_name(1, &disk.layers[1]), "1-web1.before");
    }

    #[test]
    fn an_internal_snapshot_made_again_in_the_same_second_is_another() {
        let model = sample::two_disks();
        let disk = model.disk("vda").expect("the sample has vda");
        let mut again = disk.internals[0].clone();
        again.time += Duration::from_micros(1);
        assert_ne!(
            internal_identity(&disk.active, &disk.internals[0]),
            internal_identity(&disk.active, &again)
        );
    }

    #[test]
    fn a_base_that_was_written_is_another() {
        let model = sample::two_disks();
        let layers = &model.disk("vda").expect("the sample has vda").layers;
        let written = |layer: &crate::model::Layer| {
            let mut layer = layer.clone();
            layer.modified = layer.modified.map(|time| time + Duration::from_millis(4));
            layer_identity(&layer)
        };
        assert_ne!(layer_identity(&layers[0]), written(&layers[0]));
        // ours is told by its record: a merge may write it, and its state stays the same
        assert_eq!(layer_identity(&layers[1]), written(&layers[1]));
    }

    #[test]
    fn a_strange_stem_stays_one_short_line() {
        assert_eq!(stem(Path::new("/x/a\nb.qcow2")), "a_b");
        assert!(stem(Path::new(&format!("/x/{}.raw", "ä".repeat(300)))).len() <= 200);
    }

    #[test]
    fn no_two_internal_snapshots_have_one_name() {
        let long = "x".repeat(255);
        let tags = [
            ("1", format!("{long}a")),
            ("2", format!("{long}b")),
            ("3", format!("{long}c")),
            ("4", "a_b.6".into()),
            ("5", "a b".into()),
            ("6", "a/b".into()),
            ("7", "../../etc/passwd".into()),
            ("8", "new\nline".into()),
            ("9", String::new()),
            ("9", String::new()),
            ("../../../x\n", "a?b".into()),
            (&long, "a\0b".into()),
            (&long, "a|b".into()),
        ];
        let mut internals: Vec<Internal> = tags
            .iter()
            .map(|(id, tag)| Internal {
                id: (*id).to_owned(),
                name: fit_name(tag),
                tag: tag.clone(),
                time: UNIX_EPOCH,
                virtual_size: 0,
                vm_state_size: 0,
                layer: None,
                record: None,
            })
            .collect();
        name_internals(&mut internals);
        let names: BTreeSet<&str> = internals.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names.len(), tags.len(), "{names:?}");
        assert!(
            names
                .iter()
                .all(|name| valid_name(name) && name.len() <= POINT_NAME_MAX),
            "{names:?}"
        );
        assert!(
            names.contains("a_b.6") && names.contains("a_b.2"),
            "{names:?}"
        );
    }
}

//! `files/N.txt`: why the files of a partition are not shown, and what shows them. Pure.

use super::{Partly, Survey, Volume};
use crate::render::human;
use qmpfs_guestfs::Kind;
use std::fmt::Write;
use std::path::Path;

/// The text about one partition; `point` is the directory of the point. None for one that is gone.
/// `trouble` tells what went wrong when the files of a partition or volume were to be shown.
pub fn note(
    survey: &Survey,
    number: u32,
    point: &Path,
    trouble: impl Fn(u32) -> Option<String>,
) -> Option<String> {
    let volume = survey.volume(number)?;
    let Volume {
        partition, found, ..
    } = volume;
    let mut text = String::new();
    let what = match number {
        0 => "The whole disk, which has no partition table".to_owned(),
        number => format!("Partition {number}"),
    };
    let mut say = |line: String| {
        // Writing to a String cannot fail.
        let _ok = writeln!(text, "{line}");
    };
    say(format!(
        "{what}: {}, {}.",
        human(partition.length),
        described(volume)
    ));
    for note in &survey.notes {
        say(format!("The partition table: {note}."));
    }
    say(String::new());
    let raw = point.join("partitions").join(format!("{number}.raw"));
    let disk = point.join("disk.raw");
    let device = match number {
        0 => "/dev/sda".to_owned(),
        number => format!("/dev/sda{number}"),
    };
    let appliance = format!(
        "    guestmount --ro -a {} -m {device} DIRECTORY\n    lklfuse -o ro,type=TYPE {} DIRECTORY",
        disk.display(),
        raw.display()
    );
    match trouble(number) {
        Some(trouble) => {
            say(format!("Its files cannot be shown: {trouble}."));
            say("What may read it (guestmount is in libguestfs-tools):".to_owned());
            say(appliance);
        }
        None => match found.kind {
            Kind::Luks | Kind::BitLocker => {
                say("It is encrypted. With its passphrase, as root:".to_owned());
                let kind = match found.kind {
                    Kind::BitLocker => "bitlk",
                    _ => "luks",
                };
                say(format!(
                    "    cryptsetup open --readonly --type {kind} {} NAME\n    lklfuse -o ro,type=TYPE /dev/mapper/NAME DIRECTORY",
                    raw.display()
                ));
            }
            Kind::Swap => say("There are no files in it.".to_owned()),
            Kind::Empty => say("Nothing is in it that could be a filesystem.".to_owned()),
            Kind::Lvm2 => {
                logical(survey, trouble, &mut say);
                say("What reads all of them (libguestfs-tools):".to_owned());
                say(format!(
                    "    guestmount --ro -a {} -i DIRECTORY",
                    disk.display()
                ));
            }
            Kind::LinuxRaid => {
                say(
                    "Its volumes are not read here. What reads them (libguestfs-tools):".to_owned(),
                );
                say(format!(
                    "    guestmount --ro -a {} -i DIRECTORY",
                    disk.display()
                ));
            }
            Kind::Unknown => {
                say(
                    "It is none of the filesystems that are known here. Its bytes are in"
                        .to_owned(),
                );
                say(format!("    {}", raw.display()));
            }
            Kind::Ext2
            | Kind::Ext3
            | Kind::Ext4
            | Kind::Xfs
            | Kind::Btrfs
            | Kind::Ntfs
            | Kind::Fat
            | Kind::ExFat
            | Kind::Iso9660
            | Kind::Squashfs => {
                say("Its files are not read here yet. What reads them (guestmount is in libguestfs-tools):".to_owned());
                say(appliance);
            }
        },
    }
    Some(text)
}

/// The text about a logical volume of which only a part is here. `whole` is where all disks of that instant are,
/// if there is such a place.
pub fn partly(partly: &Partly, mountpoint: &Path, whole: Option<&Path>) -> String {
    let Partly { name, length, .. } = partly;
    let devices: Vec<String> = partly.elsewhere.iter().map(|it| printable(it)).collect();
    let mut text = format!(
        "{name}: a logical volume of {}, of which only a part is here. The rest is on what the guest calls {}.\n",
        human(*length),
        devices.join(", "),
    );
    let next = match whole {
        Some(whole) => format!(
            "All disks of this instant are together in\n    {}\n",
            whole.join("files").join(name).display()
        ),
        None => format!(
            "It is shown where all disks are of one instant:\n    mkdir {0}\n    ls {0}/files/{name}\n",
            mountpoint.join("snapshots/NAME").display()
        ),
    };
    text.push_str(&next);
    text
}

/// A line for each logical volume of the disk: where its files are, or why nowhere.
fn logical(survey: &Survey, trouble: impl Fn(u32) -> Option<String>, say: &mut impl FnMut(String)) {
    say("It is a part of a volume group. The logical volumes on this disk:".to_owned());
    for volume in &survey.logical {
        let (name, length) = (volume.directory(), human(volume.partition.length));
        let shown = match trouble(volume.partition.number) {
            Some(trouble) => format!("; its files cannot be shown: {trouble}"),
            None if volume.is_readable() => format!("; its files are in files/{name}/"),
            None => String::new(),
        };
        say(format!(
            "    {name}: {length}, {}{shown}",
            described(volume)
        ));
    }
    for partly in &survey.partly {
        let (name, length) = (&partly.name, human(partly.length));
        say(format!(
            "    {name}: {length}; a part of it is on another disk: files/{name}.txt"
        ));
    }
    for note in &survey.logical_notes {
        let printable = |c: char| if c.is_control() { '?' } else { c };
        let note: String = note.chars().map(printable).collect();
        say(format!("    {note}"));
    }
}

fn described(volume: &Volume) -> String {
    let found = &volume.found;
    let none = String::new();
    let called = match volume.logical {
        Some(_) => &none,
        None => &volume.partition.name,
    };
    let mut words = vec![found.kind.name().to_owned()];
    let named = [
        ("label", &found.label),
        ("uuid", &found.uuid),
        ("type", &volume.partition.kind),
        ("called", called),
    ];
    for (what, value) in named {
        if !value.is_empty() {
            words.push(format!("{what} {}", printable(value)));
        }
    }
    words.join(", ")
}

/// What a guest calls things, on one line and without what a terminal would obey.
fn printable(text: &str) -> String {
    let printable = |c: char| if c.is_control() { '?' } else { c };
    format!("'{}'", text.chars().map(printable).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::note;
    use crate::guest::{Survey, Volume};
    use qmpfs_guestfs::{Found, Kind, Partition};
    use std::path::Path;

    fn survey(kind: Kind) -> Survey {
        Survey {
            volumes: vec![Volume {
                partition: Partition {
                    number: 3,
                    start: 1 << 20,
                    length: 5 << 20,
                    kind: "83".into(),
                    name: "a\x1b[2Jb".into(),
                },
                allocated: 0,
                found: Found {
                    kind,
                    label: String::new(),
                    uuid: "1-2".into(),
                },
                logical: None,
            }],
            logical: Vec::new(),
            partly: Vec::new(),
            logical_notes: Vec::new(),
            members: Default::default(),
            notes: vec!["its first GPT is damaged; this is its backup".into()],
        }
    }

    #[test]
    fn it_says_what_it_is_and_what_reads_it() {
        let point = Path::new("/m/disks/vda/snapshots/a");
        let text = note(&survey(Kind::Luks), 3, point, |_| None).expect("a partition");
        assert!(
            text.contains("crypto_LUKS, uuid '1-2', type '83'"),
            "{text}"
        );
        assert!(
            text.contains("--type luks /m/disks/vda/snapshots/a/partitions/3.raw"),
            "{text}"
        );
        assert!(
            text.contains("this is its backup") && !text.contains('\x1b'),
            "{text}"
        );
        let text = note(&survey(Kind::Ext4), 3, point, |_| {
            Some("damaged: a node".into())
        })
        .expect("it is there");
        assert!(text.contains("cannot be shown: damaged: a node."), "{text}");
        assert!(text.contains("-m /dev/sda3"), "{text}");
        assert_eq!(note(&survey(Kind::Swap), 4, point, |_| None), None);
    }
}

//! What a mkdir or rmdir means: the one table from a place in the tree and a name to an
//! [`Intent`], or a refusal. Pure: it looks at the model, asks nobody and changes nothing.

use crate::errno::{Errno, Failure};
use crate::model::{ConnectionState, Model};
use crate::tree::{Found, NodeKey, Section, find_point, valid_name};

/// A verb, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Intent {
    /// `mkdir disks/DISK/snapshots/NAME`
    TakeExternal {
        /// The disk's name.
        disk: String,
        /// The point's name.
        name: String,
    },
    /// `rmdir disks/DISK/snapshots/NAME`
    DeleteExternal {
        /// The disk's name.
        disk: String,
        /// The point's name.
        name: String,
    },
    /// `mkdir disks/DISK/internal/NAME`
    TakeInternal {
        /// The disk's name.
        disk: String,
        /// The point's name.
        name: String,
    },
    /// `rmdir disks/DISK/internal/NAME`
    DeleteInternal {
        /// The disk's name.
        disk: String,
        /// The point's name.
        name: String,
    },
    /// `rmdir disks/DISK/jobs/ID`
    CancelJob {
        /// The disk's name.
        disk: String,
        /// QEMU's job id.
        id: String,
    },
}

impl Intent {
    /// The verb and the path it was asked of, for the log.
    pub fn describe(&self) -> (&'static str, String) {
        match self {
            Intent::TakeExternal { disk, name } => ("mkdir", format!("/disks/{disk}/snapshots/{name}")),
            Intent::DeleteExternal { disk, name } => ("rmdir", format!("/disks/{disk}/snapshots/{name}")),
            Intent::TakeInternal { disk, name } => ("mkdir", format!("/disks/{disk}/internal/{name}")),
            Intent::DeleteInternal { disk, name } => ("rmdir", format!("/disks/{disk}/internal/{name}")),
            Intent::CancelJob { disk, id } => ("rmdir", format!("/disks/{disk}/jobs/{id}")),
        }
    }
}

/// Which verbs a mount has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verbs {
    /// `-o ro`: none at all.
    pub read_only: bool,
    /// `-o no_delete`: none that destroys.
    pub no_delete: bool,
}

/// What `mkdir parent/name` means.
pub fn mkdir(model: &Model, verbs: Verbs, parent: &NodeKey, name: &str) -> Result<Intent, Failure> {
    let NodeKey::Section(disk, section) = parent else {
        return Err(no_verb("mkdir"));
    };
    let disk = model.disk(disk).ok_or_else(|| Failure::new(Errno::ENOENT, format!("there is no disk '{disk}'")))?;
    let (disk_name, point) = (disk.name.clone(), name.to_owned());
    let (intent, taken) = match section {
        Section::Snapshots => {
            let mut records = disk.layers.iter().filter_map(|layer| layer.record.as_ref());
            (Intent::TakeExternal { disk: disk_name, name: point }, records.any(|record| record.name == name))
        }
        Section::Internal => {
            let taken = disk.internals.iter().any(|internal| internal.name == name || internal.tag == name);
            (Intent::TakeInternal { disk: disk_name, name: point }, taken)
        }
        Section::Layers | Section::Jobs => return Err(no_verb("mkdir")),
    };
    allowed(verbs, Effect::Makes)?;
    if !valid_name(name) {
        return Err(Failure::new(Errno::EINVAL, format!("'{name}' is no name for a point"))
            .next("use letters, digits, '.', '_' and '-', not first '.' or '-', at most 128 bytes"));
    }
    if taken {
        // A point that is being merged away keeps its name until its file is gone.
        return Err(Failure::new(Errno::EEXIST, format!("'{name}' is taken"))
            .next("choose another name, or wait until no job works on this disk (cat its wait file)"));
    }
    connected(model)?;
    if let Some(why) = &disk.no_snapshots {
        return Err(Failure::new(Errno::EOPNOTSUPP, format!("no snapshots of disk '{}': {why}", disk.name)));
    }
    Ok(intent)
}

/// What `rmdir` of the directory `key` means.
pub fn rmdir(model: &Model, verbs: Verbs, key: &NodeKey) -> Result<Intent, Failure> {
    let intent = match key {
        NodeKey::Point(point) => match find_point(model, point) {
            None => return Err(Failure::new(Errno::ENOENT, "the point is gone")),
            Some(Found::Internal { disk, internal, .. }) => {
                Intent::DeleteInternal { disk: disk.name.clone(), name: internal.name.clone() }
            }
            Some(Found::Layer { disk, layer, .. }) => match &layer.record {
                Some(record) => Intent::DeleteExternal { disk: disk.name.clone(), name: record.name.clone() },
                None => {
                    return Err(Failure::new(
                        Errno::EPERM,
                        format!("{} was not sealed by qmpfs: it is never written and never unlinked", layer.path.display()),
                    ));
                }
            },
        },
        NodeKey::Job(disk, id) => Intent::CancelJob { disk: disk.clone(), id: id.clone() },
        NodeKey::Root
        | NodeKey::VmJson
        | NodeKey::Log
        | NodeKey::Readme
        | NodeKey::Wait
        | NodeKey::Disks
        | NodeKey::Disk(_)
        | NodeKey::DiskFile(..)
        | NodeKey::Section(..)
        | NodeKey::PointFile(..)
        | NodeKey::JobFile(..) => return Err(no_verb("rmdir")),
    };
    allowed(verbs, Effect::Destroys)?;
    connected(model)?;
    Ok(intent)
}

/// What a verb does to the points that exist.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Effect {
    Makes,
    Destroys,
}

fn allowed(verbs: Verbs, effect: Effect) -> Result<(), Failure> {
    if verbs.read_only {
        return Err(Failure::new(Errno::EROFS, "mounted with -o ro").next("mount without -o ro"));
    }
    if effect == Effect::Destroys && verbs.no_delete {
        return Err(Failure::new(Errno::EPERM, "mounted with -o no_delete").next("mount without -o no_delete"));
    }
    Ok(())
}

fn connected(model: &Model) -> Result<(), Failure> {
    match &model.vm.connection {
        ConnectionState::Up => Ok(()),
        ConnectionState::Down(reason) => Err(Failure::new(Errno::ENOTCONN, format!("QEMU does not answer: {reason}"))
            .next("start the VM again; qmpfs reconnects by itself")),
        ConnectionState::Offline => {
            Err(Failure::new(Errno::EROFS, "the images are mounted without a QEMU").next("mount without -o ro"))
        }
    }
}

fn no_verb(verb: &str) -> Failure {
    Failure::new(Errno::EPERM, format!("{verb} has no meaning here"))
        .next("points are made in disks/*/snapshots and disks/*/internal")
}

#[cfg(test)]
mod tests {
    use super::{Intent, Verbs, mkdir, rmdir};
    use crate::errno::Errno;
    use crate::model::{ConnectionState, Model};
    use crate::tree::{NodeKey, Section, lookup, sample};

    const ALL: Verbs = Verbs { read_only: false, no_delete: false };

    fn place(section: Section) -> NodeKey {
        NodeKey::Section("vda".into(), section)
    }

    fn made(model: &Model, verbs: Verbs, section: Section, name: &str) -> Result<Intent, Errno> {
        mkdir(model, verbs, &place(section), name).map_err(|failure| failure.errno)
    }

    fn removed(model: &Model, verbs: Verbs, section: Section, name: &str) -> Result<Intent, Errno> {
        let key = lookup(model, &place(section), name).expect("the entry exists");
        rmdir(model, verbs, &key).map_err(|failure| failure.errno)
    }

    #[test]
    fn mkdir_takes_points() {
        let model = sample::two_disks();
        let (disk, name) = ("vda".to_owned(), "new".to_owned());
        let external = Intent::TakeExternal { disk: disk.clone(), name: name.clone() };
        assert_eq!(made(&model, ALL, Section::Snapshots, "new"), Ok(external));
        assert_eq!(made(&model, ALL, Section::Internal, "new"), Ok(Intent::TakeInternal { disk, name }));
    }

    #[test]
    fn mkdir_is_refused_with_the_errno_of_the_contract() {
        let mut model = sample::two_disks();
        assert_eq!(made(&model, ALL, Section::Snapshots, "before"), Err(Errno::EEXIST));
        assert_eq!(made(&model, ALL, Section::Internal, "clean"), Err(Errno::EEXIST));
        assert_eq!(made(&model, ALL, Section::Snapshots, ".x"), Err(Errno::EINVAL));
        assert_eq!(made(&model, ALL, Section::Layers, "x"), Err(Errno::EPERM));
        assert_eq!(made(&model, ALL, Section::Jobs, "x"), Err(Errno::EPERM));
        assert_eq!(mkdir(&model, ALL, &NodeKey::Root, "x").map_err(|f| f.errno), Err(Errno::EPERM));
        let read_only = Verbs { read_only: true, ..ALL };
        assert_eq!(made(&model, read_only, Section::Snapshots, "x"), Err(Errno::EROFS));
        let no_delete = Verbs { no_delete: true, ..ALL };
        assert!(made(&model, no_delete, Section::Snapshots, "x").is_ok());

        let raw = NodeKey::Section("vdb".into(), Section::Snapshots);
        let refused = mkdir(&model, ALL, &raw, "x").expect_err("a raw disk has no snapshots");
        assert_eq!(refused.errno, Errno::EOPNOTSUPP);
        assert!(refused.message.contains("the active layer is raw"), "{refused}");

        model.vm.connection = ConnectionState::Down("the monitor closed".into());
        assert_eq!(made(&model, ALL, Section::Snapshots, "x"), Err(Errno::ENOTCONN));
        model.vm.connection = ConnectionState::Offline;
        assert_eq!(made(&model, ALL, Section::Snapshots, "x"), Err(Errno::EROFS));
    }

    #[test]
    fn a_name_that_is_leaving_is_still_taken() {
        let mut model = sample::two_disks();
        model.disks[0].layers[1].leaving = true;
        assert_eq!(made(&model, ALL, Section::Snapshots, "before"), Err(Errno::EEXIST));
    }

    #[test]
    fn rmdir_removes_what_is_ours_only() {
        let model = sample::two_disks();
        let (disk, name) = ("vda".to_owned(), "before".to_owned());
        let external = Intent::DeleteExternal { disk: disk.clone(), name };
        assert_eq!(removed(&model, ALL, Section::Snapshots, "before"), Ok(external.clone()));
        assert_eq!(removed(&model, ALL, Section::Layers, "1-web1.before"), Ok(external));
        assert_eq!(removed(&model, ALL, Section::Layers, "0-base"), Err(Errno::EPERM));
        let internal = Intent::DeleteInternal { disk: disk.clone(), name: "clean".into() };
        assert_eq!(removed(&model, ALL, Section::Internal, "clean"), Ok(internal));
        let cancel = Intent::CancelJob { disk, id: "qmpfs-stream-1".into() };
        assert_eq!(removed(&model, ALL, Section::Jobs, "qmpfs-stream-1"), Ok(cancel));
    }

    #[test]
    fn rmdir_is_refused_everywhere_else() {
        let model = sample::two_disks();
        for key in [NodeKey::Root, NodeKey::Disks, NodeKey::Disk("vda".into()), place(Section::Snapshots)] {
            assert_eq!(rmdir(&model, ALL, &key).map_err(|f| f.errno), Err(Errno::EPERM), "{key:?}");
        }
        let no_delete = Verbs { no_delete: true, ..ALL };
        assert_eq!(removed(&model, no_delete, Section::Snapshots, "before"), Err(Errno::EPERM));
        let read_only = Verbs { read_only: true, ..ALL };
        assert_eq!(removed(&model, read_only, Section::Internal, "clean"), Err(Errno::EROFS));
    }
}

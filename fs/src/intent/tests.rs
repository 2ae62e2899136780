//! The table, line by line, on a hand-made model.

use super::{Intent, JobCommand, Verbs, mkdir, rmdir, write};
use crate::errno::Errno;
use crate::model::{ConnectionState, Model};
use crate::tree::{
    DiskFile, GroupKey, GroupKind, JobFile, NodeKey, RootFile, Section, lookup, sample,
};
use qmpbridge::NodeName;

/// What a mount has without options.
pub(super) const ALL: Verbs = Verbs {
    read_only: false,
    no_delete: false,
    live_rollback: false,
    coexist: false,
    backups: false,
};

fn group(id: &str) -> GroupKey {
    GroupKey {
        kind: GroupKind::Snapshots,
        id: id.into(),
    }
}

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
    let external = Intent::TakeExternal {
        disk: disk.clone(),
        name: name.clone(),
    };
    assert_eq!(made(&model, ALL, Section::Snapshots, "new"), Ok(external));
    assert_eq!(
        made(&model, ALL, Section::Internal, "new"),
        Ok(Intent::TakeInternal { disk, name })
    );
}

#[test]
fn mkdir_is_refused_with_the_errno_of_the_contract() {
    let mut model = sample::two_disks();
    assert_eq!(
        made(&model, ALL, Section::Snapshots, "before"),
        Err(Errno::EEXIST)
    );
    assert_eq!(
        made(&model, ALL, Section::Internal, "clean"),
        Err(Errno::EEXIST)
    );
    assert_eq!(
        made(&model, ALL, Section::Snapshots, ".x"),
        Err(Errno::EINVAL)
    );
    assert_eq!(made(&model, ALL, Section::Layers, "x"), Err(Errno::EPERM));
    assert_eq!(made(&model, ALL, Section::Jobs, "x"), Err(Errno::EPERM));
    assert_eq!(
        mkdir(&model, ALL, &NodeKey::Root, "x").map_err(|f| f.errno),
        Err(Errno::EPERM)
    );
    let read_only = Verbs {
        read_only: true,
        ..ALL
    };
    assert_eq!(
        made(&model, read_only, Section::Snapshots, "x"),
        Err(Errno::EROFS)
    );
    let no_delete = Verbs {
        no_delete: true,
        live_rollback: false,
        coexist: false,
        backups: false,
        ..ALL
    };
    assert!(made(&model, no_delete, Section::Snapshots, "x").is_ok());

    let raw = NodeKey::Section("vdb".into(), Section::Snapshots);
    let refused = mkdir(&model, ALL, &raw, "x").expect_err("a raw disk has no snapshots");
    assert_eq!(refused.errno, Errno::EOPNOTSUPP);
    assert!(
        refused.message.contains("the active layer is raw"),
        "{refused}"
    );

    model.vm.connection = ConnectionState::Down("the monitor closed".into());
    assert_eq!(
        made(&model, ALL, Section::Snapshots, "x"),
        Err(Errno::ENOTCONN)
    );
    model.vm.connection = ConnectionState::Offline;
    assert_eq!(
        made(&model, ALL, Section::Snapshots, "x"),
        Err(Errno::EROFS)
    );
}

#[test]
fn a_name_that_is_leaving_is_still_taken() {
    let mut model = sample::two_disks();
    model.disks[0].layers[1].leaving = true;
    assert_eq!(
        made(&model, ALL, Section::Snapshots, "before"),
        Err(Errno::EEXIST)
    );
}

#[test]
fn rmdir_removes_what_is_ours_only() {
    let model = sample::two_disks();
    let (disk, name) = ("vda".to_owned(), "before".to_owned());
    let external = Intent::DeleteExternal {
        disk: disk.clone(),
        name,
    };
    assert_eq!(
        removed(&model, ALL, Section::Snapshots, "before"),
        Ok(external.clone())
    );
    assert_eq!(
        removed(&model, ALL, Section::Layers, "1-web1.before"),
        Ok(external)
    );
    let released = removed(&model, ALL, Section::Layers, "0-base");
    assert!(
        matches!(&released, Ok(Intent::ReleaseLayer { disk, name, .. }) if disk == "vda" && name == "0-base"),
        "{released:?}"
    );
    let internal = Intent::DeleteInternal {
        disk: disk.clone(),
        name: "clean".into(),
    };
    assert_eq!(
        removed(&model, ALL, Section::Internal, "clean"),
        Ok(internal)
    );
    let cancel = Intent::CancelJob {
        disk,
        id: "qmpfs-stream-1".into(),
    };
    assert_eq!(
        removed(&model, ALL, Section::Jobs, "qmpfs-stream-1"),
        Ok(cancel)
    );
}

#[test]
fn of_two_points_with_one_name_none_is_removed() {
    let mut model = sample::two_disks();
    let mut twin = sample::layer("/vm/web1.twin.qcow2", 0xf, Some("before"));
    twin.record.as_mut().expect("it has a record").id = "id-twin".into();
    model.disks[0].layers.push(twin);
    assert_eq!(
        removed(&model, ALL, Section::Snapshots, "before"),
        Err(Errno::EPERM)
    );
}

#[test]
fn rmdir_is_refused_everywhere_else() {
    let model = sample::two_disks();
    for key in [NodeKey::Root, NodeKey::Disks, place(Section::Snapshots)] {
        assert_eq!(
            rmdir(&model, ALL, &key).map_err(|f| f.errno),
            Err(Errno::EPERM),
            "{key:?}"
        );
    }
    let no_delete = Verbs {
        no_delete: true,
        live_rollback: false,
        coexist: false,
        backups: false,
        ..ALL
    };
    assert_eq!(
        removed(&model, no_delete, Section::Snapshots, "before"),
        Err(Errno::EPERM)
    );
    let read_only = Verbs {
        read_only: true,
        ..ALL
    };
    assert_eq!(
        removed(&model, read_only, Section::Internal, "clean"),
        Err(Errno::EROFS)
    );
}

#[test]
fn rmdir_of_a_disk_closes_what_is_ours_of_one_that_nobody_uses() {
    let mut model = sample::two_disks();
    let closed = |model: &Model| rmdir(model, ALL, &NodeKey::Disk("vda".into()));
    let errno = |model: &Model| closed(model).map_err(|failure| failure.errno);
    assert_eq!(errno(&model), Err(Errno::EBUSY));
    model.disks[0].tuning.unplugged = true;
    model.disks[0].root = Some(NodeName::new("disk0").unwrap());
    assert_eq!(errno(&model), Err(Errno::EPERM), "it has a name of its own");
    model.disks[0].root = Some(NodeName::fresh());
    let disk = "vda".to_owned();
    assert_eq!(closed(&model).unwrap(), Intent::CloseDisk { disk });
    model.vm.switched_off = true;
    assert_eq!(errno(&model), Err(Errno::EPERM));
}

fn written(model: &Model, verbs: Verbs, key: &NodeKey, data: &[u8]) -> Result<Intent, Errno> {
    write(model, verbs, key, data).map_err(|failure| failure.errno)
}

#[test]
fn a_line_written_to_ctl_is_a_verb_of_the_job() {
    let model = sample::two_disks();
    let key = |id: &str, file| NodeKey::JobFile("vda".into(), id.into(), file);
    let ctl = key("qmpfs-stream-1", JobFile::Ctl);
    let intent = |command| {
        Ok(Intent::ControlJob {
            disk: "vda".into(),
            id: "qmpfs-stream-1".into(),
            command,
        })
    };
    let no_delete = Verbs {
        no_delete: true,
        ..ALL
    };
    assert_eq!(
        written(&model, no_delete, &ctl, b"pause\n"),
        intent(JobCommand::Pause)
    );
    assert_eq!(
        written(&model, ALL, &ctl, b"cancel\n"),
        intent(JobCommand::Cancel)
    );
    assert_eq!(
        written(&model, no_delete, &ctl, b"cancel\n"),
        Err(Errno::EPERM)
    );
    assert_eq!(written(&model, ALL, &ctl, b"stop\n"), Err(Errno::EINVAL));
    assert_eq!(
        written(&model, ALL, &key("gone", JobFile::Ctl), b"pause\n"),
        Err(Errno::ENOENT)
    );
    let read_only = Verbs {
        read_only: true,
        ..ALL
    };
    assert_eq!(
        written(&model, read_only, &ctl, b"pause\n"),
        Err(Errno::EROFS)
    );
    let mut down = model.clone();
    down.vm.connection = ConnectionState::Down("gone".into());
    assert_eq!(written(&down, ALL, &ctl, b"pause\n"), Err(Errno::ENOTCONN));
    for key in [
        key("qmpfs-stream-1", JobFile::State),
        NodeKey::DiskFile("vda".into(), DiskFile::Json),
        NodeKey::RootFile(RootFile::VmJson),
    ] {
        assert_eq!(
            written(&model, ALL, &key, b"pause\n"),
            Err(Errno::EROFS),
            "{key:?}"
        );
    }
}

#[test]
fn a_snapshot_of_all_disks_wants_a_name_that_is_free_on_each() {
    let mut model = sample::two_disks_at_one_instant();
    let all = |model: &Model, verbs, name: &str| {
        mkdir(model, verbs, &NodeKey::Groups(GroupKind::Snapshots), name)
            .map_err(|failure| failure.errno)
    };
    let name = "new".to_owned();
    assert_eq!(all(&model, ALL, "new"), Ok(Intent::TakeGroup { name }));
    assert_eq!(all(&model, ALL, "all"), Err(Errno::EEXIST));
    let taken = mkdir(
        &model,
        ALL,
        &NodeKey::Groups(GroupKind::Snapshots),
        "before",
    )
    .expect_err("vda has it");
    assert_eq!(taken.errno, Errno::EEXIST);
    assert!(taken.message.contains("'vda'"), "{taken}");
    assert_eq!(all(&model, ALL, "-x"), Err(Errno::EINVAL));
    let read_only = Verbs {
        read_only: true,
        ..ALL
    };
    assert_eq!(all(&model, read_only, "new"), Err(Errno::EROFS));
    let group = NodeKey::Group(group("group-all"));
    assert_eq!(
        mkdir(&model, ALL, &group, "new").map_err(|failure| failure.errno),
        Err(Errno::EPERM)
    );
    for disk in &mut model.disks {
        disk.no_snapshots = Some(format!("{} is no good", disk.name));
    }
    let none =
        mkdir(&model, ALL, &NodeKey::Groups(GroupKind::Snapshots), "new").expect_err("no disk can");
    assert_eq!(none.errno, Errno::EOPNOTSUPP);
    for disk in &model.disks {
        let reason = format!("{0}: {0} is no good", disk.name);
        assert!(none.message.contains(&reason), "{none}");
    }
    model.disks.clear();
    assert_eq!(all(&model, ALL, "new"), Err(Errno::EOPNOTSUPP));
}

#[test]
fn rmdir_of_a_snapshot_of_all_disks_means_that_very_one() {
    let mut model = sample::two_disks_at_one_instant();
    let key = lookup(&model, &NodeKey::Groups(GroupKind::Snapshots), "all").expect("it is listed");
    let wanted = Intent::DeleteGroup {
        id: "group-all".into(),
        name: "all".into(),
    };
    assert_eq!(rmdir(&model, ALL, &key).map_err(|f| f.errno), Ok(wanted));
    let no_delete = Verbs {
        no_delete: true,
        ..ALL
    };
    assert_eq!(
        rmdir(&model, no_delete, &key).map_err(|f| f.errno),
        Err(Errno::EPERM)
    );
    for other in [
        NodeKey::Groups(GroupKind::Snapshots),
        NodeKey::GroupLink(group("group-all"), "vda".into()),
    ] {
        assert_eq!(
            rmdir(&model, ALL, &other).map_err(|f| f.errno),
            Err(Errno::EPERM),
            "{other:?}"
        );
    }
    let twin = model.disks[2].layers[0].clone();
    model.disks[2].layers.push(twin);
    assert_eq!(
        rmdir(&model, ALL, &key).map_err(|f| f.errno),
        Err(Errno::EPERM),
        "two of that name"
    );
    let gone = NodeKey::Group(group("gone"));
    assert_eq!(
        rmdir(&model, ALL, &gone).map_err(|f| f.errno),
        Err(Errno::ENOENT)
    );
}

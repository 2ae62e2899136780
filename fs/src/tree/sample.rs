//! Hand-made models for unit tests.

use crate::model::{
    Disk, FileId, Format, GroupRecord, Internal, Job, Layer, Model, PointRecord, Tuning, Vm,
};
use std::time::{Duration, UNIX_EPOCH};

const GIB: u64 = 1 << 30;

/// A layer `path` with inode `ino`, and a record when it has a point's name.
pub(crate) fn layer(path: &str, ino: u64, point: Option<&str>) -> Layer {
    Layer {
        node: None,
        path: path.into(),
        file: Some(FileId { dev: 0xfe01, ino }),
        format: Format::Qcow2,
        virtual_size: 10 * GIB,
        allocated_size: 100 << 20,
        modified: Some(UNIX_EPOCH + Duration::from_secs(1_600_000_000)),
        record: point.map(|name| PointRecord {
            id: format!("id-{name}"),
            name: name.into(),
            time: "2026-01-02T03:04:05Z".into(),
            consistency: "crash".into(),
            frozen_ms: None,
            quiesce_error: None,
            inode: ino,
            group: None,
        }),
        foreign_name: None,
        leaving: false,
    }
}

fn disk(name: &str, active: Layer, layers: Vec<Layer>) -> Disk {
    Disk {
        name: name.into(),
        root: None,
        active_path: active.path.clone(),
        active,
        layers,
        internals: Vec::new(),
        lives: Vec::new(),
        backups: Vec::new(),
        bitmaps: Vec::new(),
        jobs: Vec::new(),
        no_snapshots: None,
        tuning: Tuning::default(),
        branches: Vec::new(),
        no_overlay: None,
        assumed: Vec::new(),
        state_part: crate::model::StatePart::default(),
    }
}

/// vda: base ← before ← active, an internal snapshot, a job. vdb: raw, nothing else.
pub(crate) fn two_disks() -> Model {
    let mut vda = disk(
        "vda",
        layer("/vm/web1.qcow2", 0xd, None),
        vec![
            layer("/vm/base.qcow2", 0xb, None),
            layer("/vm/web1.before.qcow2", 0xc, Some("before")),
        ],
    );
    vda.internals.push(Internal {
        id: "1".into(),
        name: "clean".into(),
        tag: "clean".into(),
        time: UNIX_EPOCH + Duration::from_secs(1_700_000_000),
        virtual_size: 10 * GIB,
        vm_state_size: 0,
        layer: None,
        record: None,
    });
    vda.jobs.push(Job {
        id: "qmpfs-stream-1".into(),
        verb: "stream".into(),
        point: "old".into(),
        state: "running".into(),
        progress: (25, 100),
        rate: None,
        limit: None,
        error: None,
    });
    let mut vdb = disk("vdb", layer("/vm/data.raw", 0xe, None), Vec::new());
    vdb.active.format = Format::Raw;
    vdb.no_snapshots = Some("the active layer is raw".into());
    let vm = Vm {
        name: "web1".into(),
        run_state: Some("running".into()),
        qemu_version: "10.0.2".into(),
        source: "unix:/run/web1.qmp".into(),
        capabilities: vec!["snapshots".into(), "internal".into()],
        ..Vm::default()
    };
    Model {
        vm,
        disks: vec![vda, vdb],
    }
}

/// The same with a third disk, vdc, and a point of vda and vdc: all. vdb is raw and has none.
pub(crate) fn two_disks_at_one_instant() -> Model {
    let mut model = two_disks();
    let group = GroupRecord {
        id: "group-all".into(),
        members: [("vda", "id-all-vda"), ("vdc", "id-all-vdc")]
            .map(|(disk, id)| (disk.to_owned(), id.to_owned()))
            .into(),
        missing: [("vdb".to_owned(), "the active layer is raw".to_owned())].into(),
    };
    let member = |path: &str, ino: u64, disk: &str| {
        let mut layer = layer(path, ino, Some("all"));
        let record = layer.record.as_mut().expect("it was given a name");
        record.id = format!("id-all-{disk}");
        record.group = Some(group.clone());
        layer
    };
    model.disks[0]
        .layers
        .push(member("/vm/web1.all.qcow2", 0x20, "vda"));
    let vdc = disk(
        "vdc",
        layer("/vm/more.qcow2", 0x22, None),
        vec![member("/vm/more.all.qcow2", 0x21, "vdc")],
    );
    model.disks.push(vdc);
    model
}

/// The same with a checkpoint, ready: vda has the RAM, vdc a part, vdb is raw and has none.
pub(crate) fn a_checkpoint() -> Model {
    let mut model = two_disks_at_one_instant();
    let time = UNIX_EPOCH + Duration::from_secs(1_750_000_000);
    for (disk, vm_state_size) in [(0, 90 << 20), (2, 0)] {
        model.disks[disk].internals.push(Internal {
            id: "7".into(),
            name: "ready".into(),
            tag: "ready".into(),
            time,
            virtual_size: 10 * GIB,
            vm_state_size,
            layer: None,
            record: None,
        });
    }
    model
}

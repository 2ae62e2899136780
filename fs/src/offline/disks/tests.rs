use super::model;
use crate::layer_file::fixture::{self, qemu_img};
use crate::layer_file::{MergeJournal, write_merge, write_point};
use crate::model::{ConnectionState, Format, PointRecord};
use crate::sys;
use std::path::Path;

fn record(path: &Path, name: &str) -> PointRecord {
    PointRecord {
        id: format!("id-of-{name}"),
        name: name.into(),
        time: "2024-01-02T03:04:05Z".into(),
        consistency: "crash".into(),
        frozen_ms: None,
        quiesce_error: None,
        inode: sys::file_id(path).unwrap().ino,
        group: None,
    }
}

#[test]
fn switched_off_disks_with_their_points() {
    let dir = fixture::with_xattrs();
    let here = dir.path().canonicalize().unwrap();
    let text = |name: &str| here.join(name).to_str().unwrap().to_owned();
    qemu_img(&["create", "-q", "-f", "qcow2", &text("web1.one.qcow2"), "1M"]);
    qemu_img(&["snapshot", "-c", "old", &text("web1.one.qcow2")]);
    for (name, backing) in [
        ("web1.two.qcow2", "web1.one.qcow2"),
        ("web1.qcow2", "web1.two.qcow2"),
    ] {
        qemu_img(&[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-F",
            "qcow2",
            "-b",
            backing,
            &text(name),
            "2M",
        ]);
    }
    qemu_img(&["snapshot", "-c", "a/b", &text("web1.qcow2")]);
    qemu_img(&["snapshot", "-c", "a_b", &text("web1.qcow2")]);
    std::fs::create_dir(here.join("other")).unwrap();
    qemu_img(&["create", "-q", "-f", "raw", &text("other/web1.img"), "1M"]);
    let (one, two) = (here.join("web1.one.qcow2"), here.join("web1.two.qcow2"));
    write_point(&one, &record(&one, "one")).unwrap();
    write_point(&two, &record(&two, "two")).unwrap();
    let journal = MergeJournal {
        version: 1,
        verb: "commit-active".into(),
        job: "j".into(),
        point: record(&two, "two"),
        upper: here.join("web1.qcow2"),
        upper_record: None,
        below: Some(one.clone()),
        resume: false,
        moving: false,
        inode: sys::file_id(&two).unwrap().ino,
    };
    write_merge(&two, &journal).unwrap();

    let images = [here.join("web1.qcow2"), here.join("other/web1.img")];
    let model = model(&images, None, "web1.qcow2 other/web1.img").unwrap();
    assert_eq!(model.vm.connection, ConnectionState::Offline);
    assert_eq!(
        model
            .disks
            .iter()
            .map(|disk| disk.name.as_str())
            .collect::<Vec<_>>(),
        ["web1", "web1-2"]
    );

    let disk = &model.disks[0];
    assert_eq!(
        (disk.root.is_none(), disk.active.path.clone()),
        (true, here.join("web1.qcow2"))
    );
    assert_eq!(
        disk.active.file,
        Some(sys::file_id(&here.join("web1.qcow2")).unwrap())
    );
    assert_eq!(
        disk.layers
            .iter()
            .map(|layer| layer.leaving)
            .collect::<Vec<_>>(),
        [false, true]
    );
    assert!(disk.external("one").is_some() && disk.external("two").is_none());
    assert_eq!(
        (disk.layers[0].virtual_size, disk.active.virtual_size),
        (1 << 20, 2 << 20)
    );
    assert!(disk.active.allocated_size > 0 && disk.active.modified.is_some());

    let internals: Vec<_> = disk
        .internals
        .iter()
        .map(|i| (i.name.as_str(), i.tag.as_str(), i.layer))
        .collect();
    assert_eq!(
        internals,
        [
            ("old", "old", Some(0)),
            ("a_b", "a/b", None),
            ("a_b.2", "a_b", None)
        ]
    );
    assert_eq!(disk.internals[0].virtual_size, 1 << 20);
    assert!(disk.internals[0].time.elapsed().unwrap().as_secs() < 600);

    assert_eq!(model.disks[1].active.format, Format::Raw);
    assert!(model.disks[1].layers.is_empty());
}

//! The block graph of the real programs.

use crate::common::*;
use qmpbridge::command::{BlockdevAdd, BlockdevOptions, BlockdevSnapshotInternalSync, QueryStatus};
use qmpbridge::graph::RootKind;

#[tokio::test]
async fn a_machine_with_every_way_to_attach_a_disk() {
    let scratch = Scratch::new();
    let top = scratch.chain("a", 3);
    let (drive, filtered) = (scratch.chain("b", 2), scratch.chain("c", 1));
    let mut machine = Qemu::machine(
        &scratch,
        &[
            "-object",
            "throttle-group,id=tg,x-iops-total=1000",
            "-blockdev",
            &format!("driver=file,node-name=a-file,filename={}", top.display()),
            "-blockdev",
            "driver=qcow2,node-name=a,file=a-file",
            "-device",
            "virtio-blk-pci,drive=a,id=vda",
            "-drive",
            &format!("if=none,id=leg,file={},format=qcow2", drive.display()),
            "-device",
            "virtio-blk-pci,drive=leg,id=vdb",
            "-blockdev",
            &format!(
                "driver=qcow2,node-name=c,file.driver=file,file.filename={}",
                filtered.display()
            ),
            "-blockdev",
            "driver=copy-on-read,node-name=c-cor,file=c",
            "-blockdev",
            "driver=throttle,node-name=c-thr,throttle-group=tg,file=c-cor",
            "-device",
            "virtio-blk-pci,drive=c-thr,id=vdc",
            "-device",
            "virtio-scsi-pci",
            "-drive",
            "if=none,id=cd0",
            "-device",
            "scsi-cd,drive=cd0,id=cd",
        ],
    );
    let bridge = machine.bridge().await;
    let graph = bridge.graph().await.unwrap();
    let roots = graph.roots();
    let root = |id: &str| roots.iter().find(|r| r.device_id() == Some(id)).unwrap();
    assert_eq!(roots.len(), 3, "the empty drive is none: {roots:#?}");
    assert_eq!(
        (root("vda").node.as_str(), root("vda").drive.as_deref()),
        ("a", None)
    );
    assert_eq!(root("vdb").drive.as_deref(), Some("leg"));
    assert!(root("vdb").node.is_generated());
    assert_eq!(root("vdc").node, name("c"));
    assert_eq!(root("vdc").filters_above, [name("c-thr"), name("c-cor")]);
    let chain = graph.chain(&name("a"));
    let files: Vec<_> = chain.iter().map(|n| n.path.clone().unwrap()).collect();
    assert_eq!(
        files,
        [2, 1, 0].map(|layer| scratch.path(&format!("a{layer}.qcow2")))
    );
    assert_eq!(graph.nodes_by_path(&drive)[0].name, root("vdb").node);
    assert!(!bridge.run(QueryStatus).await.unwrap().running);
}

#[tokio::test]
async fn a_storage_daemon_with_an_export_and_a_free_node() {
    let scratch = Scratch::new();
    let top = scratch.chain("d", 2);
    let free = scratch.chain("f", 1);
    let mut daemon = exporting(&scratch, &top);
    let bridge = daemon.bridge().await;
    for add in add_qcow2("free", &free) {
        bridge.run(add).await.unwrap();
    }
    // A node whose options differ from its header has a `json:` name, and a path all the same.
    let odd = BlockdevOptions {
        backing: None.into(),
        ..BlockdevOptions::over("qcow2", name("odd"), name("odd-file"))
    };
    let odd = BlockdevOptions {
        read_only: Some(true),
        ..odd
    };
    let file = BlockdevOptions {
        read_only: Some(true),
        ..BlockdevOptions::file(name("odd-file"), scratch.path("d0.qcow2"))
    };
    bridge.run(BlockdevAdd(file)).await.unwrap();
    bridge.run(BlockdevAdd(odd)).await.unwrap();
    bridge
        .run(BlockdevSnapshotInternalSync {
            device: "free".into(),
            name: "a/b c".into(),
        })
        .await
        .unwrap();

    let graph = bridge.graph().await.unwrap();
    let roots = graph.roots();
    let seen: Vec<_> = roots
        .iter()
        .map(|r| (r.kind, r.node.as_str(), r.writable))
        .collect();
    assert_eq!(
        seen,
        [
            (RootKind::Export, "d", true),
            (RootKind::Unused, "free", true),
            (RootKind::Unused, "odd", false)
        ]
    );
    assert_eq!(roots[0].export_ids, ["ex"]);
    assert_eq!(
        graph.node(&name("free")).unwrap().snapshots[0].name,
        "a/b c"
    );
    assert_eq!(
        graph.node(&name("odd")).unwrap().path,
        Some(scratch.path("d0.qcow2"))
    );
    assert_eq!(graph.nodes_by_path(&scratch.path("d0.qcow2")).len(), 2);
}

#[tokio::test]
async fn a_chain_longer_than_parsers_recurse() {
    let scratch = Scratch::new();
    let mut previous = scratch.chain("base", 1);
    for layer in 0..140 {
        let next = scratch.path(&format!("l{layer}.qcow2"));
        let mut create = std::process::Command::new("qemu-img");
        create
            .args(["create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b"])
            .arg(&previous)
            .arg(&next)
            .arg("16M");
        run(&mut create);
        previous = next;
    }
    let drive = format!("if=virtio,id=long,file={},format=qcow2", previous.display());
    let mut machine = Qemu::machine(&scratch, &["-drive", &drive]);
    let bridge = machine.bridge().await;
    let graph = bridge.graph().await.unwrap();
    assert_eq!(graph.chain(&graph.roots()[0].node).len(), 141);
}

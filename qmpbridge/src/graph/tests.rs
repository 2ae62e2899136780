//! The graph from recorded answers of QEMU 10.0.2 and its storage daemon.

use std::path::Path;

use serde_json::Value;

use super::*;
use crate::command::ExportInfo;

const VM: &str = include_str!("recorded/vm.json");
const JOBS: &str = include_str!("recorded/storage-daemon-with-jobs.json");

fn parts(recorded: &str) -> Parts {
    let all: Value = serde_json::from_str(recorded).unwrap();
    let part = |name: &str| all[name].to_string();
    Parts {
        graph: serde_json::from_str(&part("x-debug-query-block-graph")).unwrap(),
        nodes: serde_json::from_str(&part("query-named-block-nodes")).unwrap(),
        devices: serde_json::from_str(&part("query-block")).unwrap(),
        exports: serde_json::from_str(&part("query-block-exports")).unwrap(),
    }
}

fn graph(recorded: &str) -> BlockGraph {
    BlockGraph::build(parts(recorded)).unwrap()
}

fn name(text: &str) -> NodeName {
    NodeName::new(text).unwrap()
}

fn paths(chain: &[&Node]) -> Vec<String> {
    let path = |node: &&Node| node.path.as_ref().unwrap().display().to_string();
    chain.iter().map(path).collect()
}

#[test]
fn guest_devices_in_the_order_of_query_block() {
    let roots = graph(VM).roots();
    let devices: Vec<_> = roots
        .iter()
        .map(|r| (r.device_id(), r.drive.as_deref(), r.node.as_str()))
        .collect();
    assert_eq!(
        devices,
        [
            (Some("vdb"), Some("leg1"), "#block721"),
            // No id was given to this device.
            (None, Some("leg0"), "#block1184"),
            (Some("vda"), None, "top"),
            (Some("vdc"), None, "thr"),
            (Some("vdd"), None, "rw"),
        ],
        "and the empty CD drive is no root"
    );
    assert!(
        roots
            .iter()
            .all(|r| r.kind == RootKind::Device && r.writable && !r.removable)
    );
}

#[test]
fn a_chain_from_top_to_base() {
    let graph = graph(VM);
    let chain = graph.chain(&name("top"));
    assert_eq!(
        paths(&chain),
        [
            "/images/top.qcow2",
            "/images/mid.qcow2",
            "/images/base.qcow2"
        ]
    );
    assert_eq!(
        chain.iter().map(|n| n.read_only).collect::<Vec<_>>(),
        [false, true, true]
    );
    assert_eq!(chain[0].backing_filename.as_deref(), Some("mid.qcow2"));
    assert_eq!(
        chain[0].full_backing_filename.as_deref(),
        Some("/images/mid.qcow2")
    );
    assert_eq!(chain[0].backing_format.as_deref(), Some("qcow2"));
    assert_eq!(chain[0].virtual_size, 16 << 20);
    assert_eq!(chain[0].corrupt, Some(false));
    let overlays = graph.overlays(&chain[1].name);
    assert_eq!(
        overlays.iter().map(|n| n.name.as_str()).collect::<Vec<_>>(),
        ["top"]
    );
    assert!(graph.chain(&name("nowhere")).is_empty());
}

#[test]
fn a_filter_has_the_path_of_what_it_filters_and_no_json_name() {
    let graph = graph(VM);
    let filter = graph.node(&name("thrf")).unwrap();
    assert!(filter.is_filter && filter.filename.starts_with("json:"));
    assert_eq!(filter.path.as_deref(), Some(Path::new("/images/thr.qcow2")));
    let root = graph
        .roots()
        .into_iter()
        .find(|r| r.node == name("thr"))
        .unwrap();
    assert_eq!(
        (root.top(), &*root.filters_above),
        (&name("thrf"), &[name("thrf")][..])
    );
    let node = graph.node(&root.node).unwrap();
    assert_eq!(
        (node.cache.direct, node.detect_zeroes.as_str()),
        (true, "on")
    );
    assert_eq!(node.snapshots.len(), 1);
    assert_eq!(
        (
            node.snapshots[0].name.as_str(),
            node.snapshots[0].vm_state_size
        ),
        ("int1", 0)
    );
    assert_eq!(
        graph.skip_filters(&name("thrf")).map(|n| &n.name),
        Some(&name("thr"))
    );
}

#[test]
fn nodes_are_found_by_their_file() {
    let graph = graph(VM);
    let names = |path: &str| {
        graph
            .nodes_by_path(Path::new(path))
            .iter()
            .map(|n| n.name.to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        names("/images/top.qcow2"),
        ["top"],
        "the format node, not its protocol node"
    );
    assert_eq!(names("/images/thr.qcow2"), ["thr"], "not its filter");
    assert!(names("/images/none").is_empty());
}

#[test]
fn disks_keep_their_place_under_every_job() {
    let graph = graph(JOBS);
    let roots = graph.roots();
    let find = |node: &str| {
        roots
            .iter()
            .find(|r| r.node == name(node))
            .unwrap_or_else(|| panic!("no root {node}"))
    };
    for (node, export, filters) in [("c", "ex-c", 0), ("m", "ex-m", 1), ("b", "ex-b", 1)] {
        let root = find(node);
        assert_eq!(
            (root.kind, root.export_ids.as_slice()),
            (RootKind::Export, &[export.to_owned()][..])
        );
        assert_eq!(root.filters_above.len(), filters);
        assert!(root.writable);
    }
    let streamed = find("u");
    assert_eq!(
        (streamed.kind, streamed.filters_above.len()),
        (RootKind::Unused, 1)
    );
    let free = find("free");
    assert_eq!((free.kind, free.writable), (RootKind::Unused, true));
    assert_eq!(roots.len(), 5, "targets of jobs are no disks: {roots:#?}");
}

#[test]
fn the_filter_of_a_commit_is_no_layer() {
    let graph = graph(JOBS);
    let chain = graph.chain(&name("c"));
    assert_eq!(
        paths(&chain),
        [
            "/images/c3.qcow2",
            "/images/c2.qcow2",
            "/images/c1.qcow2",
            "/images/c0.qcow2"
        ]
    );
    assert_eq!(graph.walk(&name("c")).len(), 5);
    assert_eq!(
        graph
            .overlays(&chain[1].name)
            .iter()
            .map(|n| &n.name)
            .collect::<Vec<_>>(),
        [&name("c")]
    );
    assert_eq!(
        graph.jobs_on(&chain[2].name),
        [&JobId::new("qmpfs-commit-1").unwrap()]
    );
}

#[test]
fn a_mirror_filters_its_backing() {
    let graph = graph(JOBS);
    let top = graph
        .roots()
        .into_iter()
        .find(|r| r.node == name("m"))
        .unwrap()
        .top()
        .clone();
    assert_eq!(graph.node(&top).unwrap().driver, "mirror_top");
    assert_eq!(graph.chain(&top).len(), 1);
}

#[test]
fn answers_of_different_moments_are_told() {
    let mut one_more = parts(VM);
    one_more.nodes.push(parts(JOBS).nodes.remove(0));
    assert!(matches!(
        BlockGraph::build(one_more),
        Err(BuildError::Changed { .. })
    ));
    let mut one_less = parts(VM);
    let gone = one_less.nodes.remove(0).node_name;
    assert_eq!(
        BlockGraph::build(one_less),
        Err(BuildError::Changed { node: gone })
    );
    let mut exported = parts(VM);
    let node_name = name("gone");
    exports_push(&mut exported.exports, node_name.clone());
    assert_eq!(
        BlockGraph::build(exported),
        Err(BuildError::Changed { node: node_name })
    );
    let mut cut = parts(VM);
    cut.graph.nodes.retain(|n| n.name != "leg1");
    assert!(matches!(
        BlockGraph::build(cut),
        Err(BuildError::Dangling { .. })
    ));
}

fn exports_push(exports: &mut Vec<ExportInfo>, node_name: NodeName) {
    exports.push(ExportInfo {
        id: "x".into(),
        r#type: "nbd".into(),
        node_name,
        shutting_down: false,
    });
}

#[test]
fn a_cycle_ends() {
    let mut looped = parts(VM);
    let id = |n: &str| {
        parts(VM)
            .graph
            .nodes
            .iter()
            .find(|d| d.name == n)
            .unwrap()
            .id
    };
    for edge in &mut looped.graph.edges {
        if edge.parent == id("top") && edge.name == "backing" {
            edge.child = id("top");
        }
        if edge.parent == id("thr") {
            edge.child = id("thrf");
        }
    }
    let graph = BlockGraph::build(looped).unwrap();
    assert_eq!(graph.chain(&name("top")).len(), 1);
    assert_eq!(graph.overlays(&name("top")).len(), 1);
    assert!(graph.walk(&name("thrf")).len() <= 2);
}

#[test]
fn the_path_inside_a_json_name_and_the_names_that_are_no_paths() {
    let path = |driver: &str, filename: &str| node::local_path(driver, filename);
    let json = r#"json:{"driver":"file","filename":"/images/a b.img","locking":"off"}"#;
    assert_eq!(
        path("file", json).as_deref(),
        Some(Path::new("/images/a b.img"))
    );
    assert_eq!(
        path("host_device", "/dev/sda").as_deref(),
        Some(Path::new("/dev/sda"))
    );
    assert_eq!(path("file", "/dev/fdset/3"), None);
    assert_eq!(path("nbd", "nbd://host/x"), None);
    assert_eq!(path("file", "json:{broken"), None);
    assert_eq!(path("file", ""), None);
}

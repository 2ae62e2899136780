//! QEMU's answers, put together to one graph.
//!
//! Knows which answer is to be trusted for what. The answers are of different moments: when they do not
//! fit each other, it says so, and the asker asks again.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use super::node::{self, Child, Node};
use super::roots;
use super::{BlockGraph, Parent, User};
use crate::command::{
    BlockInfo, DebugEdge, DebugGraph, DebugNode, DebugNodeType, ExportInfo, NodeInfo,
};
use crate::names::{JobId, NodeName};

/// QEMU's answers.
#[derive(Clone, Debug, PartialEq)]
pub struct Parts {
    /// `x-debug-query-block-graph`: how all hangs together.
    pub graph: DebugGraph,
    /// `query-named-block-nodes`: what each node is.
    pub nodes: Vec<NodeInfo>,
    /// `query-block`: the guest's devices; empty without a guest.
    pub devices: Vec<BlockInfo>,
    /// `query-block-exports`: the exports.
    pub exports: Vec<ExportInfo>,
}

/// Why the answers make no graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BuildError {
    /// The graph changed between the answers.
    Changed {
        /// A node that only one of them knows.
        node: NodeName,
    },
    /// An edge leads nowhere.
    Dangling {
        /// The id at its end.
        id: u64,
    },
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BuildError::Changed { node } => {
                write!(f, "the block graph changed while it was read (node {node})")
            }
            BuildError::Dangling { id } => write!(
                f,
                "the block graph has an edge to {id}, which it does not have"
            ),
        }
    }
}

impl std::error::Error for BuildError {}

/// The debug graph, by id.
pub(super) struct Debug<'a> {
    by_id: HashMap<u64, &'a DebugNode>,
    pub(super) edges: &'a [DebugEdge],
}

impl<'a> Debug<'a> {
    pub(super) fn get(&self, id: u64) -> Result<&'a DebugNode, BuildError> {
        self.by_id
            .get(&id)
            .copied()
            .ok_or(BuildError::Dangling { id })
    }

    pub(super) fn backends(&self) -> impl Iterator<Item = &'a DebugNode> {
        self.by_id
            .values()
            .copied()
            .filter(|n| n.r#type == DebugNodeType::BlockBackend)
    }
}

pub(super) fn build(parts: Parts) -> Result<BlockGraph, BuildError> {
    let Parts {
        graph: drawn,
        nodes: infos,
        devices,
        exports,
    } = parts;
    let by_id = drawn.nodes.iter().map(|n| (n.id, n)).collect();
    let debug = Debug {
        by_id,
        edges: &drawn.edges,
    };
    let mut nodes: BTreeMap<NodeName, Node> = infos
        .into_iter()
        .map(|info| (info.node_name.clone(), from_info(info)))
        .collect();
    check_same_nodes(&drawn, &nodes)?;
    let mut parents: BTreeMap<NodeName, Vec<Parent>> = BTreeMap::new();
    for edge in debug.edges {
        let (parent, child) = (debug.get(edge.parent)?, debug.get(edge.child)?);
        let child = name_of(child);
        let user = match parent.r#type {
            DebugNodeType::BlockBackend => User::Backend(parent.name.clone()),
            DebugNodeType::BlockJob => User::Job(JobId::as_told(&parent.name)),
            DebugNodeType::BlockDriver => {
                let name = name_of(parent);
                if let Some(node) = nodes.get_mut(&name) {
                    add_child(node, &edge.name, child.clone());
                }
                User::Node(name)
            }
        };
        let writes = edge.perm.iter().any(|p| p == "write");
        parents.entry(child).or_default().push(Parent {
            user,
            edge: edge.name.clone(),
            writes,
        });
    }
    name_files(&mut nodes);
    let mut graph = BlockGraph {
        nodes,
        parents,
        roots: Vec::new(),
    };
    graph.roots = roots::find(&graph, &debug, &devices, &exports)?;
    Ok(graph)
}

pub(super) fn name_of(node: &DebugNode) -> NodeName {
    NodeName::as_told(&node.name)
}

fn check_same_nodes(
    drawn: &DebugGraph,
    nodes: &BTreeMap<NodeName, Node>,
) -> Result<(), BuildError> {
    let drivers = drawn
        .nodes
        .iter()
        .filter(|n| n.r#type == DebugNodeType::BlockDriver);
    let drawn: std::collections::BTreeSet<NodeName> = drivers.map(name_of).collect();
    let only_drawn = drawn.iter().find(|name| !nodes.contains_key(*name));
    let only_listed = nodes.keys().find(|name| !drawn.contains(*name));
    match only_drawn.or(only_listed) {
        Some(node) => Err(BuildError::Changed { node: node.clone() }),
        None => Ok(()),
    }
}

fn add_child(node: &mut Node, edge: &str, child: NodeName) {
    match edge {
        "file" => node.file = Some(child.clone()),
        "backing" => node.backing = Some(child.clone()),
        _ => {}
    }
    node.children.push(Child {
        edge: edge.to_owned(),
        node: child,
    });
}

fn from_info(info: NodeInfo) -> Node {
    let mut specific = info.image.format_specific;
    let data = specific
        .get_mut("data")
        .map_or(serde_json::Value::Null, serde_json::Value::take);
    let text = |key: &str| {
        data.get(key)
            .and_then(serde_json::Value::as_str)
            .map(str::to_owned)
    };
    Node {
        path: node::local_path(&info.drv, &info.file),
        is_filter: node::is_filter(&info.drv),
        name: info.node_name,
        driver: info.drv,
        read_only: info.ro,
        file: None,
        backing: None,
        children: Vec::new(),
        filename: info.file,
        virtual_size: info.image.virtual_size,
        actual_size: info.image.actual_size,
        cluster_size: info.image.cluster_size,
        backing_filename: info.image.backing_filename,
        full_backing_filename: info.image.full_backing_filename,
        backing_format: info.image.backing_filename_format,
        data_file: text("data-file"),
        snapshots: info.image.snapshots,
        dirty_bitmaps: info.dirty_bitmaps,
        cache: info.cache,
        detect_zeroes: info.detect_zeroes,
        encrypted: info.encrypted,
        corrupt: data.get("corrupt").and_then(serde_json::Value::as_bool),
        active: info.active,
        format_specific: data,
    }
}

/// Gives every node the path of the protocol node that it reads through `file` edges, and filters that of what they filter.
fn name_files(nodes: &mut BTreeMap<NodeName, Node>) {
    let resolve = |start: &Node| {
        let mut node = start;
        // More steps than there are nodes is a cycle.
        for _ in 0..nodes.len() {
            if node.path.is_some() {
                return node.path.clone();
            }
            let below = if node.is_filter {
                node.below()
            } else {
                node.file.as_ref()
            };
            node = nodes.get(below?)?;
        }
        None
    };
    let found: Vec<_> = nodes.values().map(resolve).collect();
    for (node, path) in nodes.values_mut().zip(found) {
        node.path = path;
    }
}

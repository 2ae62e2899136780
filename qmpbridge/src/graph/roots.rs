//! Which nodes are disks.
//!
//! Knows how QEMU names the users of a node, and that exports and jobs use nodes without a name.
//! Does not know which of the disks its reader wants to show.

use std::collections::BTreeMap;

use super::build::{BuildError, Debug, name_of};
use super::{BlockGraph, Parent, User};
use crate::command::{BlockInfo, ExportInfo};
use crate::names::NodeName;

/// Why a node is a root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RootKind {
    /// A guest device, or a `-drive` no device has taken.
    Device,
    /// Exported, and no guest device has it.
    Export,
    /// Nothing uses it but perhaps a job.
    Unused,
}

/// A disk: a user of the graph and the node it sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// What makes it one.
    pub kind: RootKind,
    /// QEMU's name for the user: drive id or QOM path; empty for exports and unused nodes.
    pub backend_name: String,
    /// The device, as `query-block` names it: a QOM path or a plain id.
    pub qdev: Option<String>,
    /// The id of the `-drive`.
    pub drive: Option<String>,
    /// Exports of the same disk.
    pub export_ids: Vec<String>,
    /// Whether anyone of them may write.
    pub writable: bool,
    /// Whether the medium can be taken out.
    pub removable: bool,
    /// The active layer: the first node below the filters.
    pub node: NodeName,
    /// The filters above it, topmost first.
    pub filters_above: Vec<NodeName>,
}

impl Root {
    /// The topmost node: what the user is attached to.
    pub fn top(&self) -> &NodeName {
        self.filters_above.first().unwrap_or(&self.node)
    }

    /// The id of the device, if it was given one.
    pub fn device_id(&self) -> Option<&str> {
        let qdev = self.qdev.as_deref()?;
        match qdev.strip_prefix("/machine/peripheral/") {
            Some(path) => path.split('/').next(),
            None if qdev.starts_with('/') => None,
            None => Some(qdev),
        }
    }
}

pub(super) fn find(
    graph: &BlockGraph,
    debug: &Debug<'_>,
    devices: &[BlockInfo],
    exports: &[ExportInfo],
) -> Result<Vec<Root>, BuildError> {
    let mut roots = device_roots(graph, debug, devices)?;
    add_exports(graph, exports, &mut roots)?;
    let used: Vec<NodeName> = roots
        .iter()
        .flat_map(|root| root.filters_above.iter().chain([&root.node]))
        .cloned()
        .collect();
    for node in graph.nodes() {
        if !used.contains(&node.name) && !is_used(graph, &node.name) {
            roots.extend(root_at(graph, RootKind::Unused, &node.name));
        }
    }
    Ok(roots)
}

/// Shows what the node below held at an instant, and is no user of what that is now.
const SNAPSHOT_ACCESS: &str = "snapshot-access";

/// Whether anybody but a job at work on the node has it.
fn is_used(graph: &BlockGraph, name: &NodeName) -> bool {
    let parents = graph.parents(name);
    let shows_an_instant = |user| {
        let user = graph.node(user);
        user.is_some_and(|user| user.driver == SNAPSHOT_ACCESS)
    };
    let main_node =
        |parent: &Parent| matches!(parent.user, User::Job(_)) && parent.edge == "main node";
    let under_job = parents.iter().any(main_node);
    parents.iter().any(|parent| match &parent.user {
        User::Node(user) => !shows_an_instant(user),
        // A job has a backend without a name beside its edge; without a job that is somebody else's.
        User::Backend(name) => !name.is_empty() || !under_job,
        User::Job(_) => parent.edge == "target",
    })
}

fn device_roots(
    graph: &BlockGraph,
    debug: &Debug<'_>,
    devices: &[BlockInfo],
) -> Result<Vec<Root>, BuildError> {
    // The order of `query-block` is that of the command line; the graph's ids have none.
    let mut found = BTreeMap::new();
    for backend in debug.backends().filter(|backend| !backend.name.is_empty()) {
        let Some(edge) = debug.edges.iter().find(|edge| edge.parent == backend.id) else {
            continue;
        };
        let top = name_of(debug.get(edge.child)?);
        let Some(mut root) = root_at(graph, RootKind::Device, &top) else {
            continue;
        };
        let place = devices.iter().position(|device| {
            device.device == backend.name || device.qdev.as_deref() == Some(&*backend.name)
        });
        let device = place.map(|at| &devices[at]);
        root.backend_name = backend.name.clone();
        root.drive = device.map(|d| d.device.clone()).filter(|id| !id.is_empty());
        root.qdev = device.and_then(|d| d.qdev.clone());
        root.removable = device.is_some_and(|d| d.removable);
        root.writable = edge.perm.iter().any(|p| p == "write");
        found.insert((place.unwrap_or(usize::MAX), backend.name.clone()), root);
    }
    Ok(found.into_values().collect())
}

fn add_exports(
    graph: &BlockGraph,
    exports: &[ExportInfo],
    roots: &mut Vec<Root>,
) -> Result<(), BuildError> {
    for export in exports.iter().filter(|export| !export.shutting_down) {
        let top = &export.node_name;
        let Some(seen) = root_at(graph, RootKind::Export, top) else {
            return Err(BuildError::Changed { node: top.clone() });
        };
        let writable = graph
            .parents(top)
            .iter()
            .any(|parent| parent.writes && parent.user == User::Backend(String::new()));
        // Two devices may share a node; an export of it belongs to either, so to the first.
        let at = roots
            .iter()
            .position(|root| root.node == seen.node)
            .unwrap_or_else(|| {
                roots.push(seen);
                roots.len() - 1
            });
        roots[at].export_ids.push(export.id.clone());
        roots[at].writable |= writable;
    }
    Ok(())
}

fn root_at(graph: &BlockGraph, kind: RootKind, top: &NodeName) -> Option<Root> {
    let walk = graph.walk(top);
    let filters = walk.iter().take_while(|node| node.is_filter);
    let filters_above: Vec<NodeName> = filters.map(|node| node.name.clone()).collect();
    let node = walk.get(filters_above.len())?;
    Some(Root {
        kind,
        backend_name: String::new(),
        qdev: None,
        drive: None,
        export_ids: Vec::new(),
        writable: kind == RootKind::Unused && !node.read_only,
        removable: false,
        node: node.name.clone(),
        filters_above,
    })
}

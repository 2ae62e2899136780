//! QEMU's block graph: nodes, what lies below them, and who uses them.
//!
//! Pure data and questions to it; a picture of one moment. Knows QEMU's drivers, filters and edges.
//! Does not ask QEMU itself, and knows no files beyond the names QEMU gives.

mod build;
mod node;
mod roots;

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

pub use build::{BuildError, Parts};
pub use node::{CacheMode, Child, DirtyBitmap, InternalSnapshotInfo, Node};
pub use roots::{Root, RootKind};

use crate::names::{JobId, NodeName};

/// The block graph of one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BlockGraph {
    nodes: BTreeMap<NodeName, Node>,
    parents: BTreeMap<NodeName, Vec<Parent>>,
    roots: Vec<Root>,
}

/// A user of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parent {
    /// Who it is.
    pub user: User,
    /// What the node is to it: `root`, `file`, `backing`, `target`, …
    pub edge: String,
    /// Whether it may write.
    pub writes: bool,
}

/// What uses a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum User {
    /// A guest device (drive id or QOM path), or with an empty name an export or the inside of a job.
    Backend(String),
    /// Another node.
    Node(NodeName),
    /// A job. QEMU's own, unseen ones included.
    Job(JobId),
}

impl BlockGraph {
    /// Puts QEMU's answers together. Pure.
    pub fn build(parts: Parts) -> Result<BlockGraph, BuildError> {
        build::build(parts)
    }

    /// What the guest and others see as disks: guest devices, then exported nodes, then nodes nobody uses.
    pub fn roots(&self) -> Vec<Root> {
        self.roots.clone()
    }

    /// The node of that name.
    pub fn node(&self, name: &NodeName) -> Option<&Node> {
        self.nodes.get(name)
    }

    /// All nodes, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// The layers from `top` to the base: `backing` after `backing`, filters left out.
    /// Empty when there is no such node.
    pub fn chain(&self, top: &NodeName) -> Vec<&Node> {
        self.walk(top)
            .into_iter()
            .filter(|node| !node.is_filter)
            .collect()
    }

    /// As [`BlockGraph::chain`], with the filters.
    pub fn walk(&self, top: &NodeName) -> Vec<&Node> {
        let mut found = Vec::new();
        // QEMU refuses cycles; what we are told need not come from QEMU.
        let mut seen = HashSet::new();
        let mut next = self.nodes.get(top);
        while let Some(node) = next
            && seen.insert(&node.name)
        {
            found.push(node);
            next = node.below().and_then(|name| self.nodes.get(name));
        }
        found
    }

    /// The first node at or below `name` that is no filter.
    pub fn skip_filters(&self, name: &NodeName) -> Option<&Node> {
        self.walk(name).into_iter().find(|node| !node.is_filter)
    }

    /// Who uses the node.
    pub fn parents(&self, name: &NodeName) -> &[Parent] {
        self.parents.get(name).map_or(&[], Vec::as_slice)
    }

    /// The overlays of a node: those whose `backing` it is, seen through filters.
    pub fn overlays(&self, name: &NodeName) -> Vec<&Node> {
        let mut found = Vec::new();
        let mut seen = HashSet::new();
        let mut todo = vec![name];
        while let Some(name) = todo.pop() {
            if !seen.insert(name) {
                continue;
            }
            for parent in self.parents(name) {
                let User::Node(user) = &parent.user else {
                    continue;
                };
                let Some(user) = self.nodes.get(user) else {
                    continue;
                };
                if user.is_filter && user.below() == Some(name) {
                    todo.push(&user.name);
                } else if user.backing.as_ref() == Some(name) {
                    found.push(user);
                }
            }
        }
        found
    }

    /// The jobs at work on a node, as far as the graph shows them.
    pub fn jobs_on(&self, name: &NodeName) -> Vec<&JobId> {
        let jobs = self
            .parents(name)
            .iter()
            .filter_map(|parent| match &parent.user {
                User::Job(id) => Some(id),
                _ => None,
            });
        jobs.collect()
    }

    /// The format nodes (or, without one above, protocol nodes) whose data is in the file of that name.
    pub fn nodes_by_path(&self, path: &Path) -> Vec<&Node> {
        let named = |node: &&Node| node.path.as_deref() == Some(path) && !node.is_filter;
        let all: Vec<&Node> = self.nodes.values().filter(named).collect();
        let below: HashSet<&NodeName> = all.iter().filter_map(|node| node.file.as_ref()).collect();
        all.iter()
            .copied()
            .filter(|node| !below.contains(&node.name))
            .collect()
    }
}

#[cfg(test)]
mod tests;

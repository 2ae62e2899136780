//! What a tree's reader has said of names and nodes: a listing brings the attributes along, so that
//! who walks a tree waits once for a directory and not for each of its files.

use super::wire::{Answer, Node, Question};
use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Names and nodes that are kept, of each tree: a large directory, in some tens of megabytes.
const KEPT_MAX: usize = 128 << 10;

#[derive(Default)]
pub(super) struct Cache(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    names: HashMap<u64, HashMap<Vec<u8>, u64>>,
    count: usize,
    nodes: HashMap<u64, Node>,
    /// Nodes without extended attributes: nearly all, and `ls -l` asks each of them.
    bare: HashSet<u64>,
}

impl Cache {
    pub(super) fn node(&self, node: u64) -> Option<Node> {
        self.kept().nodes.get(&node).cloned()
    }

    pub(super) fn name(&self, directory: u64, name: &[u8]) -> Option<Node> {
        let kept = self.kept();
        let node = kept.names.get(&directory)?.get(name)?;
        kept.nodes.get(node).cloned()
    }

    /// Whether a node is known to have no extended attributes.
    pub(super) fn has_no_xattrs(&self, node: u64) -> bool {
        self.kept().bare.contains(&node)
    }

    pub(super) fn forget(&self) {
        *self.kept() = Kept::default();
    }

    pub(super) fn learn(&self, question: &Question, answer: &Answer) {
        match (question, answer) {
            (Question::Lookup { directory, name }, Answer::Node(node)) => {
                self.kept().add(*directory, name, node);
            }
            (Question::List { directory, .. }, Answer::Names { entries, .. }) => {
                let mut kept = self.kept();
                for entry in entries {
                    if let Some(node) = &entry.node {
                        kept.add(*directory, &entry.name, node);
                    }
                }
            }
            (Question::Xattrs(node), Answer::Xattrs(all)) if all.is_empty() => {
                let mut kept = self.kept();
                if kept.bare.len() >= KEPT_MAX {
                    kept.bare.clear();
                }
                kept.bare.insert(*node);
            }
            (_, Answer::Node(node)) => {
                self.kept().nodes.insert(node.number, node.clone());
            }
            _ => {}
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn add(&mut self, directory: u64, name: &[u8], node: &Node) {
        if self.count >= KEPT_MAX || self.nodes.len() >= KEPT_MAX {
            *self = Kept::default();
        }
        self.count += 1;
        let names = self.names.entry(directory).or_default();
        names.insert(name.to_vec(), node.number);
        self.nodes.insert(node.number, node.clone());
    }
}

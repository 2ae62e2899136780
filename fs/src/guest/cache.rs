//! What a tree's reader has said of names and nodes: a listing brings the attributes along, so that
//! who walks a tree waits once for a directory and not for each of its files.
//! When there is too much of it the older half goes: of a directory that is larger, names at its end are still known.

use super::wire::{Answer, Node, Question};
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes of one half of what is kept of a tree: both are a large directory.
const HALF_MAX: usize = 24 << 20;
/// About what a name and its node take up, besides their letters and those of a link's target.
const EACH: usize = 320;
/// Nodes without extended attributes that are remembered.
const BARE_MAX: usize = 128 << 10;

#[derive(Default)]
pub(super) struct Cache {
    kept: Mutex<Kept>,
    /// Whether something was found since that was asked last.
    used: AtomicBool,
}

#[derive(Default)]
struct Kept {
    newer: Half,
    older: Half,
    /// Nodes without extended attributes: nearly all, and `ls -l` asks each of them.
    bare: HashSet<u64>,
}

#[derive(Default)]
struct Half {
    names: HashMap<u64, HashMap<Vec<u8>, u64>>,
    bytes: usize,
    nodes: HashMap<u64, Node>,
}

impl Cache {
    pub(super) fn node(&self, node: u64) -> Option<Node> {
        let kept = self.kept();
        let found = kept.halves().find_map(|half| half.nodes.get(&node));
        self.found(found)
    }

    pub(super) fn name(&self, directory: u64, name: &[u8]) -> Option<Node> {
        let kept = self.kept();
        let found = kept.halves().find_map(|half| {
            let node = half.names.get(&directory)?.get(name)?;
            half.nodes.get(node)
        });
        self.found(found)
    }

    fn found(&self, node: Option<&Node>) -> Option<Node> {
        if node.is_some() {
            self.used.store(true, Ordering::Relaxed);
        }
        node.cloned()
    }

    /// Whether something was found since the last time that this was asked.
    pub(super) fn was_used(&self) -> bool {
        self.used.swap(false, Ordering::Relaxed)
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
                self.kept().add(Some((*directory, name)), node);
            }
            (Question::List { directory, .. }, Answer::Names { entries, .. }) => {
                let mut kept = self.kept();
                for entry in entries {
                    if let Some(node) = &entry.node {
                        kept.add(Some((*directory, &entry.name)), node);
                        if entry.bare {
                            kept.is_bare(node.number);
                        }
                    }
                }
            }
            (Question::Xattrs(node), Answer::Xattrs(all)) if all.is_empty() => {
                self.kept().is_bare(*node);
            }
            (_, Answer::Node(node)) => self.kept().add(None, node),
            _ => {}
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn halves(&self) -> impl Iterator<Item = &Half> {
        [&self.newer, &self.older].into_iter()
    }

    fn is_bare(&mut self, node: u64) {
        if self.bare.len() >= BARE_MAX {
            self.bare.clear();
        }
        self.bare.insert(node);
    }

    fn add(&mut self, name: Option<(u64, &[u8])>, node: &Node) {
        if self.newer.bytes >= HALF_MAX {
            self.older = std::mem::take(&mut self.newer);
        }
        let newer = &mut self.newer;
        let letters = name.map_or(0, |(_, name)| name.len());
        newer.bytes += EACH + letters + node.target.as_ref().map_or(0, Vec::len);
        if let Some((directory, name)) = name {
            let names = newer.names.entry(directory).or_default();
            names.insert(name.to_vec(), node.number);
        }
        newer.nodes.insert(node.number, node.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::{Cache, EACH, HALF_MAX};
    use crate::guest::wire::{Answer, Node, Question};
    use qmpfs_guestfs::{Attributes, FileKind, Time};

    fn node(number: u64) -> Node {
        let time = Time {
            seconds: 0,
            nanoseconds: 0,
        };
        let attributes = Attributes {
            kind: FileKind::File,
            permissions: 0,
            links: 1,
            owner: (0, 0),
            size: 0,
            blocks: 0,
            device: (0, 0),
            accessed: time,
            modified: time,
            changed: time,
        };
        Node {
            number,
            attributes,
            target: None,
        }
    }

    #[test]
    fn of_too_many_names_the_last_ones_are_known() {
        let cache = Cache::default();
        let name = |number: u64| format!("{number:08}").into_bytes();
        let half = HALF_MAX.div_ceil(EACH + 8) as u64;
        for number in 0..5 * half / 2 {
            let question = Question::Lookup {
                directory: 2,
                name: name(number),
            };
            cache.learn(&question, &Answer::Node(node(number)));
        }
        assert!(!cache.was_used());
        let known = |number| cache.name(2, &name(number)).is_some();
        assert!(!known(0) && !known(half - 1) && !cache.was_used());
        assert!(known(half) && known(5 * half / 2 - 1) && cache.node(half).is_some());
        assert!(cache.was_used() && !cache.was_used());
    }

    #[test]
    fn long_targets_are_counted() {
        let cache = Cache::default();
        let long = HALF_MAX / 8;
        for number in 0..24 {
            let node = Node {
                target: Some(vec![b'x'; long]),
                ..node(number)
            };
            cache.learn(&Question::Node(number), &Answer::Node(node));
        }
        assert!(cache.node(0).is_none() && cache.node(23).is_some());
    }
}

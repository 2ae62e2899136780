//! The reference: what must be there after each step, in plain memory, and which verb must be refused with which errno.
//! Knows the contract (docs/SEMANTICS.md); nothing of files, QEMU or qmpfs.

use std::collections::BTreeSet;

use libc::{EBUSY, EEXIST, ENOENT, EOPNOTSUPP};

use super::step::{DISK, Policy, Verb};

/// A point and its bytes.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    pub(super) name: String,
    pub(super) bytes: Vec<u8>,
}

/// An internal snapshot, and in which layer's file it lies: the number of sealed layers below that.
#[derive(Debug, Clone)]
pub(super) struct Inside {
    pub(super) kept: Kept,
    pub(super) home: usize,
}

/// The disk and its points, base first.
#[derive(Debug)]
pub(super) struct Reference {
    pub(super) disk: Vec<u8>,
    pub(super) sealed: Vec<Kept>,
    pub(super) inside: Vec<Inside>,
    /// A snapshot was taken since the storage daemon's start: its root node is one of qmpfs's.
    pub(super) root_is_ours: bool,
    policy: Policy,
}

/// What must come of a verb.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Expected {
    Done,
    Refused(BTreeSet<i32>),
}

fn refused(errnos: &[i32]) -> Expected {
    Expected::Refused(errnos.iter().copied().collect())
}

/// Names are letters with a digit.
pub(super) fn name(verb: Verb) -> String {
    match verb {
        Verb::Seal(n) | Verb::Remove(n) => format!("s{n}"),
        Verb::TakeInternal(n) | Verb::DeleteInternal(n) => format!("i{n}"),
    }
}

impl Reference {
    pub(super) fn new(policy: Policy) -> Self {
        Self {
            disk: vec![0; usize::try_from(DISK).expect("small")],
            sealed: Vec::new(),
            inside: Vec::new(),
            root_is_ours: false,
            policy,
        }
    }

    pub(super) fn position(&self, name: &str) -> Option<usize> {
        self.sealed.iter().position(|point| point.name == name)
    }

    pub(super) fn internal(&self, name: &str) -> Option<usize> {
        self.inside
            .iter()
            .position(|inside| inside.kept.name == name)
    }

    /// What a verb must answer.
    pub(super) fn expects(&self, verb: Verb) -> Expected {
        let name = name(verb);
        match verb {
            Verb::Seal(_) if self.position(&name).is_some() => refused(&[EEXIST]),
            Verb::Seal(_) => Expected::Done,
            Verb::Remove(_) => match self.position(&name) {
                None => refused(&[ENOENT]),
                Some(index) => self.removal(index),
            },
            Verb::TakeInternal(_) if self.internal(&name).is_some() => refused(&[EEXIST]),
            Verb::TakeInternal(_) => Expected::Done,
            Verb::DeleteInternal(_) => match self.internal(&name) {
                None => refused(&[ENOENT]),
                Some(index) if self.inside[index].home < self.sealed.len() => {
                    refused(&[EOPNOTSUPP])
                }
                Some(_) => Expected::Done,
            },
        }
    }

    fn removal(&self, index: usize) -> Expected {
        let lies_in = |home: usize| self.inside.iter().any(|inside| inside.home == home);
        if lies_in(index + 1) {
            return refused(&[EBUSY]); // its content would change
        }
        let stream = !lies_in(index);
        let commit = self.root_is_ours;
        match self.policy {
            Policy::Stream if !stream => refused(&[EBUSY]),
            Policy::Commit if !commit => refused(&[EOPNOTSUPP]),
            Policy::Auto if !stream && !commit => refused(&[EBUSY, EOPNOTSUPP]),
            Policy::Auto | Policy::Stream | Policy::Commit => Expected::Done,
        }
    }

    /// The verb was done.
    pub(super) fn done(&mut self, verb: Verb) {
        let name = name(verb);
        let bytes = self.disk.clone();
        match verb {
            Verb::Seal(_) => {
                self.sealed.push(Kept { name, bytes });
                self.root_is_ours = true;
            }
            Verb::Remove(_) => {
                let index = self.position(&name).expect("it was there");
                self.sealed.remove(index);
                for inside in &mut self.inside {
                    if inside.home > index {
                        inside.home -= 1;
                    }
                }
            }
            Verb::TakeInternal(_) => self.inside.push(Inside {
                kept: Kept { name, bytes },
                home: self.sealed.len(),
            }),
            Verb::DeleteInternal(_) => {
                let index = self.internal(&name).expect("it was there");
                self.inside.remove(index);
            }
        }
    }

    /// The names in `snapshots`, sorted.
    pub(super) fn snapshots(&self) -> Vec<String> {
        sorted(self.sealed.iter())
    }

    /// The names in `internal`, sorted.
    pub(super) fn internals(&self) -> Vec<String> {
        sorted(self.inside.iter().map(|inside| &inside.kept))
    }
}

fn sorted<'a>(points: impl Iterator<Item = &'a Kept>) -> Vec<String> {
    let mut names: Vec<String> = points.map(|point| point.name.clone()).collect();
    names.sort();
    names
}

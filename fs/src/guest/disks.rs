//! The disks that a filesystem lies on: nearly always one, several where a logical volume needs them; all of one
//! instant.

use super::gone;
use crate::errno::{Errno, Failure};
use crate::leases::MEASURING;
use crate::model::Model;
use crate::ops::{EngineHandle, Request};
use crate::tree::{GroupKey, Inside, NodeKey, PointKey, has_inside};
use crate::view::View;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

/// How long the engine may take to open a disk.
const OPENING: Duration = Duration::from_secs(30);

/// Where a filesystem is shown.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Home {
    /// In a point.
    Point(PointKey),
    /// In points of all disks: these.
    Group(GroupKey, Vec<PointKey>),
}

impl Home {
    /// The points that it is read from. There is one at least.
    pub fn points(&self) -> &[PointKey] {
        match self {
            Home::Point(point) => std::slice::from_ref(point),
            Home::Group(_, points) => points,
        }
    }

    /// The disk that it is read from; of several the first.
    pub fn disk(&self) -> &str {
        self.points().first().map_or("", |point| &point.disk)
    }

    /// The directory that is removed by those who remove it.
    pub fn owner(&self) -> NodeKey {
        match self {
            Home::Point(point) => NodeKey::Point(point.clone()),
            Home::Group(group, _) => NodeKey::Group(group.clone()),
        }
    }

    /// The directory of its files.
    pub fn files(&self) -> NodeKey {
        match self {
            Home::Point(point) => NodeKey::Inside(point.clone(), Inside::Files),
            Home::Group(group, _) => NodeKey::GroupFiles(group.clone()),
        }
    }

    /// Whether all of it is there.
    pub fn is_there(&self, model: &Model) -> bool {
        self.points().iter().all(|point| has_inside(model, point))
    }

    /// Opens all of its disks, and waits for that. Not for the engine's own thread.
    pub(super) fn open(&self, engine: &EngineHandle) -> Result<Disks, Failure> {
        let open = |point: &PointKey| {
            let (answer, opened) = sync_channel(1);
            engine.send(Request::Open {
                point: point.clone(),
                // it keeps nobody from removing the point
                pid: MEASURING,
                answer: Box::new(move |view| {
                    // Nobody waits that long.
                    let _late = answer.send(view);
                }),
            });
            let late = |_| {
                Failure::new(Errno::ETIMEDOUT, "the disk could not be opened in time")
                    .next("see whether QEMU answers: cat vm.json")
            };
            opened.recv_timeout(OPENING).map_err(late)?
        };
        let views: Result<Vec<_>, Failure> = self.points().iter().map(open).collect();
        Ok(Disks(views?))
    }
}

/// A stretch of one of the disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Which of them.
    pub disk: usize,
    /// Its first byte there.
    pub start: u64,
    /// Its bytes.
    pub length: u64,
}

/// Open disks, in the order of a home's points.
pub struct Disks(Vec<Arc<View>>);

impl Disks {
    /// The disk of a piece.
    pub fn view(&self, disk: usize) -> Result<&Arc<View>, Failure> {
        let lie = || Failure::new(Errno::EUCLEAN, "damaged: a stretch is on no disk");
        self.0.get(disk).ok_or_else(lie)
    }

    /// All of them.
    pub fn views(&self) -> &[Arc<View>] {
        &self.0
    }

    /// The same, held for a process; fails when a point is being removed.
    pub fn again(&self, process: u32) -> Result<Disks, Failure> {
        let again = |view: &Arc<View>| view.again(process).map(Arc::new).ok_or_else(gone);
        let views: Result<Vec<_>, Failure> = self.0.iter().map(again).collect();
        views.map(Disks)
    }

    /// Gives the points back: nobody reads them any more.
    pub fn give_back(&self) {
        self.0.iter().for_each(|view| view.give_back());
    }

    /// Whether some of it is read over a server.
    pub fn has_server(&self) -> bool {
        self.0.iter().any(|view| view.waits())
    }

    /// What tells the files that are read from others.
    pub fn fingerprint(&self) -> u64 {
        let own = self.0.iter().map(|view| view.fingerprint());
        own.reduce(|all, one| all.rotate_left(1) ^ one).unwrap_or(0)
    }
}

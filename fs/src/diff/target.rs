//! What a path to be compared means: a point, something in one, or points of all disks.

use crate::errno::{Errno, Failure};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};

/// What every point has.
const DISK_RAW: &str = "disk.raw";
/// What points, and points of all disks, have.
const POINT_JSON: &str = "point.json";

/// A point in a mount.
#[derive(Debug)]
pub(super) struct Point {
    pub(super) path: PathBuf,
    told: Value,
}

/// Where a partition is on its disk.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Partition {
    pub(super) start: u64,
    pub(super) number: u32,
    pub(super) size: u64,
}

#[derive(Debug)]
pub(super) enum Target {
    /// A point, and what of it: nothing means all.
    Point(Point, PathBuf),
    /// Points of several disks, by their names.
    Disks(BTreeMap<String, Point>),
}

impl Target {
    pub(super) fn of(path: &Path) -> Result<Target, Failure> {
        let there = std::fs::symlink_metadata(path);
        there.map_err(|error| Failure::io(format!("look at {}", path.display()), &error))?;
        let whole = std::path::absolute(path)
            .map_err(|error| Failure::io(format!("use {}", path.display()), &error))?;
        for above in whole.ancestors() {
            if above.join(DISK_RAW).is_file() && above.join(POINT_JSON).is_file() {
                let inside = whole.strip_prefix(above).unwrap_or(Path::new(""));
                return Ok(Target::Point(Point::at(above)?, inside.to_owned()));
            }
        }
        let disks = Self::disks(&whole)?;
        match disks.is_empty() {
            false => Ok(Target::Disks(disks)),
            true => Err(Failure::new(
                Errno::EINVAL,
                format!("{} is no point, and in none", path.display()),
            )
            .next("name a point in a mount, like MNT/disks/D/snapshots/N, or a file or directory in one; of one that is still made: qmpfs wait")),
        }
    }

    /// Points of all disks are links to them.
    fn disks(path: &Path) -> Result<BTreeMap<String, Point>, Failure> {
        let mut disks = BTreeMap::new();
        if !path.join(POINT_JSON).is_file() {
            return Ok(disks);
        }
        let io = |error| Failure::io(format!("list {}", path.display()), &error);
        for entry in std::fs::read_dir(path).map_err(io)? {
            let entry = entry.map_err(io)?;
            if entry.path().join(DISK_RAW).is_file() {
                let name = entry.file_name().to_string_lossy().into_owned();
                disks.insert(name, Point::at(&entry.path())?);
            }
        }
        Ok(disks)
    }
}

pub(super) fn not_alike() -> Failure {
    Failure::new(
        Errno::EINVAL,
        "one is a point of one disk and the other one of all disks",
    )
    .next("name two of a kind: MNT/disks/D/snapshots/N, or MNT/snapshots/N")
}

impl Point {
    fn at(path: &Path) -> Result<Point, Failure> {
        let file = path.join(POINT_JSON);
        let text = std::fs::read_to_string(&file);
        let text = text.map_err(|error| Failure::io(format!("read {}", file.display()), &error))?;
        let told = serde_json::from_str(&text).map_err(|error| {
            let words = format!("{} says nothing we know: {error}", file.display());
            Failure::new(Errno::EIO, words)
        })?;
        Ok(Point {
            path: path.to_owned(),
            told,
        })
    }

    pub(super) fn open_disk(&self) -> Result<File, Failure> {
        let raw = self.path.join(DISK_RAW);
        File::open(&raw).map_err(|error| {
            Failure::io(format!("open {}", raw.display()), &error)
                .next("see what the mount's log says of it")
        })
    }

    /// The logical volumes whose files can be read, by their names in `files/`.
    pub(super) fn volumes(&self) -> BTreeSet<OsString> {
        let told = self.told["filesystems"].as_array().into_iter().flatten();
        let names = told.filter_map(|told| told["volume"].as_str().map(OsString::from));
        let files = self.path.join("files");
        names.filter(|name| files.join(name).is_dir()).collect()
    }

    /// Whether logical volumes lie in a partition.
    pub(super) fn is_physical_volume(&self, number: u32) -> bool {
        let mut told = self.told["filesystems"].as_array().into_iter().flatten();
        let its = told.find(|told| told["partition"].as_u64() == Some(number.into()));
        its.is_some_and(|told| told["type"] == "LVM2_member")
    }

    /// Its partitions by their place; none where the disk could not be looked at.
    pub(super) fn partitions(&self) -> Vec<Partition> {
        let all = self.told["filesystems"].as_array();
        let one = |told: &Value| {
            Some(Partition {
                start: told["start"].as_u64()?,
                number: u32::try_from(told["partition"].as_u64()?).ok()?,
                size: told["size"].as_u64()?,
            })
        };
        let mut all: Vec<Partition> = all.into_iter().flatten().filter_map(one).collect();
        all.sort();
        all
    }
}

//! Partition tables: which stretches of a disk are partitions, and their numbers.
//! Knows MBR with its chain of logical partitions, and GPT with its backup. A disk without a table is
//! one stretch, number 0.
#![deny(clippy::arithmetic_side_effects)]

mod gpt;
mod mbr;

use crate::{Error, ReadAt};
use serde::{Deserialize, Serialize};

/// Partitions of one disk that are listed: as many as Linux has minor numbers for.
const PARTITIONS_MAX: usize = 256;

/// One partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partition {
    /// As Linux numbers it; 0 for a disk without a table.
    pub number: u32,
    /// Its first byte.
    pub start: u64,
    /// Its bytes, all of which are on the disk.
    pub length: u64,
    /// What the table says it is: two digits in an MBR, a GUID in a GPT, nothing without a table.
    pub kind: String,
    /// What a GPT calls it.
    pub name: String,
}

/// What kind of table a disk has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scheme {
    /// None: the disk is one stretch.
    None,
    /// The one of the PC.
    Mbr,
    /// The one of EFI.
    Gpt,
}

/// The partition table of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Its kind.
    pub scheme: Scheme,
    /// The partitions, by number. Extended ones, which only hold others, are left out.
    pub partitions: Vec<Partition>,
    /// What was wrong and worked around, in words.
    pub notes: Vec<String>,
}

impl Table {
    /// Reads the table of a disk.
    pub fn read(disk: &dyn ReadAt) -> Result<Table, Error> {
        let found = match mbr::first_sector(disk)? {
            mbr::First::Nothing => None,
            mbr::First::Protective => Some(gpt::read(disk)?),
            mbr::First::Entries(sector) => Some(mbr::read(disk, &sector)?),
        };
        let mut table = found.unwrap_or_else(|| Table {
            scheme: Scheme::None,
            partitions: vec![Partition {
                number: 0,
                start: 0,
                length: disk.size(),
                kind: String::new(),
                name: String::new(),
            }],
            notes: Vec::new(),
        });
        table.keep_what_is_there(disk.size());
        Ok(table)
    }

    /// Cuts partitions at the disk's end, leaves out those behind it, and notes both.
    fn keep_what_is_there(&mut self, size: u64) {
        let notes = &mut self.notes;
        self.partitions.retain_mut(|partition| {
            let rest = size.saturating_sub(partition.start);
            if rest == 0 {
                notes.push(format!(
                    "partition {} lies behind the end of the disk",
                    partition.number
                ));
            } else if partition.length > rest {
                notes.push(format!(
                    "partition {} is cut by the end of the disk",
                    partition.number
                ));
                partition.length = rest;
            }
            rest > 0 && partition.length > 0
        });
        self.partitions.sort_by_key(|partition| partition.number);
        self.partitions.truncate(PARTITIONS_MAX);
    }
}

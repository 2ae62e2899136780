//! Changes that the log has begun and not ended: an intent (`xfs_log_format.h`) without the item that says it is done. The
//! kernel ends them when it mounts; the crate does not. What lacks of extents freed, reverse mappings or counts of
//! references (EFI, RUI, CUI) nobody sees who only reads; the others are told of here.

use crate::Error;
use crate::bytes::{be32, le16, le32, le64, slice, u8};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Flags of an operation.
const START: u8 = 0x01;
const COMMIT: u8 = 0x02;
const CONTINUED: u8 = 0x18;
const UNMOUNTED: u8 = 0x20;
/// The bytes of the header of an operation (`xlog_op_header`).
const OPERATION: usize = 12;
/// What the header of a transaction begins with (`XFS_TRANS_HEADER_MAGIC`).
const TRANSACTION: u32 = 0x5452_414e;
/// As much of an item as says what it is of.
const FORMAT: usize = 48;
/// Transactions that are begun at once, and changes: a log that the kernel wrote has some dozens.
const OPEN_MAX: usize = 1 << 12;
const CHANGES_MAX: usize = 1 << 16;
/// The extent of a mapping is one of the attributes' (`XFS_BMAP_EXTENT_ATTR_FORK`).
const OF_ATTRIBUTES: u32 = 1 << 31;

/// The intents that matter to who reads, and what says that they are done (`XFS_LI_*`).
const MAPPING: u16 = 0x1244;
const MAPPING_DONE: u16 = 0x1245;
const ATTRIBUTE: u16 = 0x1246;
const ATTRIBUTE_DONE: u16 = 0x1247;
const EXCHANGE: u16 = 0x1248;
const EXCHANGE_DONE: u16 = 0x1249;

const DAMAGED: Error = Error::Corrupt("the log of the XFS");

/// The inodes of changes that are not at their end.
#[derive(Default)]
pub(super) struct Unfinished {
    /// Those whose bytes are elsewhere afterwards.
    pub(super) data: BTreeSet<u64>,
    /// Those whose extended attributes are others.
    pub(super) attributes: BTreeSet<u64>,
}

/// Reads the records of a log in their order.
#[derive(Default)]
pub(super) struct Intents {
    open: HashMap<u32, Transaction>,
    /// The items of what was begun, by their intent's kind and number.
    begun: BTreeMap<(u16, u64), Vec<u8>>,
}

/// A transaction whose end was not seen yet.
#[derive(Default)]
struct Transaction {
    /// The beginnings of its items, if they are of those that matter; of the last one, whatever it is.
    items: Vec<Vec<u8>>,
    /// Regions that are still to come of the last item.
    rest: u16,
    /// Whether the last region was the beginning of its item.
    is_format: bool,
}

impl Transaction {
    /// Adds what an operation holds.
    fn add(&mut self, body: &[u8], flags: u8) {
        if flags & CONTINUED != 0 {
            if let Some(item) = self.items.last_mut().filter(|_| self.is_format) {
                let room = FORMAT.saturating_sub(item.len()).min(body.len());
                item.extend(&body[..room]);
            }
            return;
        }
        let is_header = le32(body, 0).is_ok_and(|magic| magic == TRANSACTION);
        if body.is_empty() || self.items.is_empty() && is_header {
            return;
        }
        self.is_format = self.rest == 0;
        match self.rest {
            0 => {
                self.items.pop_if(|item| !matters(item));
                self.rest = le16(body, 2).unwrap_or(1).saturating_sub(1);
                self.items.push(body[..body.len().min(FORMAT)].to_vec());
            }
            _ => self.rest -= 1,
        }
    }
}

fn matters(item: &[u8]) -> bool {
    le16(item, 0).is_ok_and(|kind| (MAPPING..=EXCHANGE_DONE).contains(&kind))
}

impl Intents {
    /// Reads the operations of one record.
    pub(super) fn record(&mut self, data: &[u8], operations: u32) -> Result<(), Error> {
        let mut at = 0;
        for _ in 0..operations {
            let (number, length) = (be32(data, at)?, be32(data, at + 4)? as usize);
            let flags = u8(data, at + 9)?;
            let body = slice(data, at + OPERATION, length)?;
            at += OPERATION + length;
            self.operation(number, flags, body)?;
        }
        Ok(())
    }

    fn operation(&mut self, number: u32, flags: u8, body: &[u8]) -> Result<(), Error> {
        if flags & UNMOUNTED != 0 {
            return Ok(());
        }
        if flags & START != 0 {
            self.open.insert(number, Transaction::default());
        } else if flags & COMMIT != 0 {
            // One that began before the tail is on the disk already.
            let items = self.open.remove(&number).map(|it| it.items);
            items
                .into_iter()
                .flatten()
                .try_for_each(|it| self.item(it))?;
        } else if let Some(transaction) = self.open.get_mut(&number) {
            transaction.add(body, flags);
            if transaction.items.len() > CHANGES_MAX {
                return Err(DAMAGED);
            }
        }
        match self.open.len() > OPEN_MAX || self.begun.len() > CHANGES_MAX {
            true => Err(DAMAGED),
            false => Ok(()),
        }
    }

    fn item(&mut self, item: Vec<u8>) -> Result<(), Error> {
        if !matters(&item) {
            return Ok(());
        }
        let (kind, number) = (le16(&item, 0)?, le64(&item, 8)?);
        match kind {
            MAPPING_DONE | ATTRIBUTE_DONE | EXCHANGE_DONE => {
                self.begun.remove(&(kind - 1, number));
            }
            _ => drop(self.begun.insert((kind, number), item)),
        }
        Ok(())
    }

    /// What is not done at the end of the log.
    pub(super) fn unfinished(&self) -> Result<Unfinished, Error> {
        let mut unfinished = Unfinished::default();
        for ((kind, _), item) in &self.begun {
            let inode = le64(item, 16)?;
            match *kind {
                MAPPING if le32(item, 4)? == 0 => {}
                MAPPING if le32(item, 44)? & OF_ATTRIBUTES == 0 => {
                    unfinished.data.insert(inode);
                }
                EXCHANGE => unfinished.data.extend([inode, le64(item, 24)?]),
                MAPPING | ATTRIBUTE => {
                    unfinished.attributes.insert(inode);
                }
                _ => {}
            }
        }
        Ok(unfinished)
    }
}

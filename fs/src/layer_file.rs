//! What lies on the host's disk around an active image: names, hard links, extended attributes.
//! It knows how layers are named, which files are ours, and how a name changes hands so that
//! every moment leaves a bootable disk. It does not know QMP, FUSE, or which verb is at work.

mod claim;
mod create;
mod foreign;
mod links;
mod names;
mod neighbours;
mod record;

pub use claim::{Claim, claim, claim_guest, claim_kept};
pub use create::create_like;
pub use foreign::name_foreign;
pub use links::{fsync_dir, fsync_file, link_new, replace};
pub use names::{active_of_alias, alias_path, random_hex, resolve, sealed_path};
pub use neighbours::{
    backing_file, dependents, free_bytes, is_kept_from_us, is_name_of, namesakes, said_by_sibling,
    siblings, strays,
};
pub use record::{
    FreezeMark, FreezeNote, GuestDebt, LoadJournal, LoadStep, MergeJournal, QemuIdentity,
    RollbackJournal, SealMarker, clear_load, clear_merge, clear_point, clear_rollback, clear_seal,
    is_scratch, mark_scratch, read_freeze, read_internals, read_load, read_merge, read_point,
    read_rollback, read_seal, write_freeze, write_internals, write_load, write_merge, write_point,
    write_rollback, write_seal,
};

#[cfg(test)]
pub(crate) mod fixture;

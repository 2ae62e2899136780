//! Tests of qmpfs with real parts, in one binary. Each file is named after what it asks about.
//! The contract they quote is docs/SEMANTICS.md.

/// Runs a test over the attachments that QEMU treats differently.
macro_rules! over_attachments {
    ($(#[$doc:meta])* $name:ident => $body:expr) => {
        $(#[$doc])*
        mod $name {
            use super::*;
            use qmpfs_tests::machine::Attachment;

            #[test]
            fn blockdev() {
                $body(concat!(stringify!($name), "-blockdev"), Attachment::Blockdev);
            }
            #[test]
            fn drive() {
                $body(concat!(stringify!($name), "-drive"), Attachment::Drive);
            }
            #[test]
            fn storage_daemon() {
                $body(concat!(stringify!($name), "-qsd"), Attachment::StorageDaemon);
            }
        }
    };
}

mod architecture;
mod background;
mod backup;
mod backup_directory;
mod backup_merge;
mod backup_removal;
mod bad_input;
mod checkpoint;
mod checkpoint_kill;
mod checkpoint_load;
mod control;
mod cut_short;
mod diff;
mod doctor;
mod embedded;
mod faults;
mod faults_to_survive;
mod files;
mod files_limits;
mod filesystems;
mod foreign;
mod guest;
mod guest_backups;
mod guest_files;
mod hanging;
mod harness;
mod inside;
mod internal;
mod live;
mod merge;
mod migration;
mod model;
mod others;
mod outside;
mod pivot;
mod proofs;
mod queue;
mod quiesce;
mod readers;
mod reading;
mod recovery;
mod release;
mod report;
mod restore;
mod rollback;
mod several;
mod several_faults;
mod snapshot;
mod stable_path;
mod tree;
mod unplug;
mod unreadable;
mod verify;
mod waiting;

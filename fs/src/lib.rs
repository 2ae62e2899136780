//! qmpfs: QEMU's snapshots and backups as plain files and directories.
//!
//! The rooms, from the outside in: [`cli`] and [`run`] start things, [`fuse`] translates the
//! kernel's requests, [`tree`] and [`intent`] decide without I/O, [`ops`] do what was decided by
//! asking QEMU, [`view`] reads sealed layers. docs/ARCHITECTURE.md draws the map.

pub mod backups;
mod bytes;
pub mod cat;
pub mod cli;
pub mod diff;
pub mod digest;
pub mod doctor;
pub mod errno;
pub mod fuse;
pub mod guest;
pub mod intent;
pub mod layer_file;
pub mod leases;
pub mod model;
pub mod nbd;
pub mod offline;
pub mod ops;
pub mod origin;
pub mod render;
pub mod report;
pub mod run;
pub mod sys;
pub mod tree;
pub mod verify;
pub mod view;
pub mod wait;

//! A client of QEMU's machine protocol (QMP), made for block graphs, snapshots and block jobs.
//!
//! Knows QEMU: its commands, its jobs, its block graph, and how a monitor connection is kept.
//! Does not know what its user makes of it: no filesystem, no image format, no files.
//! Start at [`Bridge::connect`].

mod address;
mod bridge;
pub mod command;
mod connection;
mod error;
mod event;
pub mod graph;
mod guest_agent;
mod job;
mod names;
mod session;
pub mod wire;

pub use address::{Address, InvalidAddress};
pub use bridge::Bridge;
pub use command::{Command, TransactionAction};
pub use connection::QemuVersion;
pub use error::Error;
pub use event::{Event, EventKind};
pub use graph::{BlockGraph, Node, Root};
pub use guest_agent::{AgentError, FreezeStatus, GuestAgent};
pub use job::{Cancel, JobHandle, JobInfo, JobStage, JobStatus};
pub use names::{InvalidName, JobId, NodeName};
pub use session::Connection;

//! The virtual machine as a whole: what vm.json says, and how the mount was asked to treat it.

use super::StateJob;

/// What vm.json says.
#[derive(Debug, Clone, Default)]
pub struct Vm {
    /// The guest's name, or the source's when it has none.
    pub name: String,
    /// Its disks are image files that nobody but we have open: there is no guest to be disturbed.
    pub switched_off: bool,
    /// QEMU's run state ("running", "paused"); None for a storage daemon or a switched-off VM.
    pub run_state: Option<String>,
    /// "10.0.2"; empty without a QEMU.
    pub qemu_version: String,
    /// What was mounted, as the user named it.
    pub source: String,
    /// Whether QEMU answers.
    pub connection: ConnectionState,
    /// What can be done here: "snapshots", "internal", ...
    pub capabilities: Vec<String>,
    /// Which verb removes points.
    pub merge: MergePolicy,
    /// Whether the guest's filesystems are frozen for the instant of a point.
    pub quiesce: Quiesce,
    /// The guest agent, where one was named.
    pub agent: Option<Agent>,
    /// Who else believes to know the VM's disks.
    pub manager: Option<Manager>,
    /// A checkpoint is being made, loaded or removed.
    pub state_job: Option<StateJob>,
    /// Whose disks these are.
    pub contents: Contents,
}

/// What a mount shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Contents {
    /// The disks of one VM.
    #[default]
    Machine,
    /// Backups of any VMs, each disk called `VM/DISK`.
    Backups,
}

/// `-o quiesce=`: what a point asks of the guest agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Quiesce {
    /// Nothing.
    #[default]
    Off,
    /// To freeze the guest's filesystems; if that fails the point is made without.
    Try,
    /// The same; if that fails no point is made.
    Require,
}

/// The guest agent, as it was seen last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agent {
    /// Its socket.
    pub address: String,
    /// Whether it answered.
    pub state: AgentState,
}

/// How the guest agent was when it was last asked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum AgentState {
    /// It has not been asked yet.
    #[default]
    Unknown,
    /// It answered, and can freeze.
    Answers {
        /// Its own version.
        version: String,
    },
    /// It did not, or cannot freeze, with the reason.
    Silent(String),
}

/// A program that keeps books of its own about a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manager {
    /// Its nodes are called `libvirt-N-format`, `libvirt-N-storage`.
    Libvirt,
}

impl Manager {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Manager::Libvirt => "libvirt",
        }
    }
}

/// `-o merge=`: which verb a user prefers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MergePolicy {
    /// Whichever copies less.
    #[default]
    Auto,
    /// Only block-stream.
    Stream,
    /// Only block-commit.
    Commit,
}

/// Whether there is a QEMU behind the tree.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ConnectionState {
    /// It answers.
    #[default]
    Up,
    /// It went away, with the reason.
    Down(String),
    /// There is none: images read as they are.
    Offline,
}

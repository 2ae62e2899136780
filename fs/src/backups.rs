//! The backup directory on the host's disk: `DIR/VM/DISK/NAME.qcow2`, a manifest `NAME.json` beside
//! each, and while one is made a hidden file and a hidden journal. It knows names, manifests and
//! which file stands on which; it does not know QMP, jobs or the tree.
//! Invariants: a final name is given to complete files alone and never taken from another; a
//! hidden file is removed only where a journal names it.

mod digests;
mod journal;
mod list;
mod merged;
mod place;
mod shelf;
mod standing;
mod unnamed;

pub use digests::{known_tree, record};
pub use journal::{Journal, Merge, MergeVerb, Stage, Unfinished, finished};
pub use list::{Listing, Stamp, is_changed, list, manifest_at, stamp};
pub use merged::is_merged;
pub use place::{Place, is_unfinished, sweep};
pub use shelf::{place_on_shelf, shelf};
pub use standing::standing_on_file;
pub use unnamed::Unnamed;

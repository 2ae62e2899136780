//! Node-names and job ids: QEMU's identifiers, checked once.
//!
//! Knows QEMU's rule for identifiers and the pattern of our own.
//! A name that came from QEMU is taken as it is; a name we make is well-formed.

use std::borrow::Borrow;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest node-name QEMU accepts ("Node name too long" above it).
const NODE_NAME_MAX: usize = 31;
/// QEMU has no limit for job ids; a longer one is a mistake.
const JOB_ID_MAX: usize = 128;
/// Marks what we made, so that a restarted daemon knows its own.
const OURS: &str = "qmpfs-";

/// The text is no identifier QEMU would accept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidName(String);

impl fmt::Display for InvalidName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not a QEMU identifier: {:?}", self.0)
    }
}

impl std::error::Error for InvalidName {}

/// The rule of QEMU's `id_wellformed`.
fn well_formed(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphabetic())
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
}

/// 48 random bits: `RandomState` is seeded by the operating system, no dependency needed.
fn random_hex() -> String {
    let bits = RandomState::new().hash_one(std::time::SystemTime::now());
    format!("{:012x}", bits & 0xffff_ffff_ffff)
}

macro_rules! identifier {
    ($name:ident) => {
        impl $name {
            /// The name as QEMU spells it.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// What QEMU calls it, well-formed or not.
            pub(crate) fn as_told(text: &str) -> Self {
                $name(text.to_owned())
            }

            /// Whether the name follows our own pattern.
            pub fn is_ours(&self) -> bool {
                self.0.starts_with(OURS)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;
            fn from_str(text: &str) -> Result<Self, InvalidName> {
                $name::new(text)
            }
        }
    };
}

/// The name of a node of the block graph.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeName(String);

identifier!(NodeName);

impl NodeName {
    /// A name by the rules; QEMU's own `#block123` is accepted too.
    pub fn new(text: impl Into<String>) -> Result<Self, InvalidName> {
        let text = text.into();
        let body = text.strip_prefix('#').unwrap_or(&text);
        if text.len() > NODE_NAME_MAX || !well_formed(body) {
            return Err(InvalidName(text));
        }
        Ok(NodeName(text))
    }

    /// A new name of ours: `qmpfs-<12 hex>`.
    pub fn fresh() -> Self {
        NodeName(format!("{OURS}{}", random_hex()))
    }

    /// Whether QEMU made the name up. Such a node cannot be reopened, and is called otherwise after a restart.
    pub fn is_generated(&self) -> bool {
        self.0.starts_with('#')
    }
}

/// The id of a job.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(String);

identifier!(JobId);

impl JobId {
    /// An id by the rules.
    pub fn new(text: impl Into<String>) -> Result<Self, InvalidName> {
        let text = text.into();
        if text.len() > JOB_ID_MAX || !well_formed(&text) {
            return Err(InvalidName(text));
        }
        Ok(JobId(text))
    }

    /// A new id of ours: `qmpfs-<op>-<12 hex>`.
    pub fn fresh(op: &str) -> Result<Self, InvalidName> {
        JobId::new(format!("{OURS}{op}-{}", random_hex()))
    }

    /// The op of an id of ours.
    pub fn op(&self) -> Option<&str> {
        let (op, hex) = self.0.strip_prefix(OURS)?.rsplit_once('-')?;
        (!op.is_empty() && hex.bytes().all(|b| b.is_ascii_hexdigit())).then_some(op)
    }
}

#[cfg(test)]
mod tests {
    use super::{JobId, NodeName};

    #[test]
    fn node_names() {
        for good in [
            "a",
            "qmpfs-0123456789ab",
            "#block123",
            "libvirt-1-format",
            "a.b_c",
        ] {
            assert!(NodeName::new(good).is_ok(), "{good}");
        }
        for bad in ["", "#", "1a", "a b", "a/b", "ä", "a\0", &"a".repeat(32)] {
            assert!(NodeName::new(bad).is_err(), "{bad}");
        }
        assert!(NodeName::new("#block1").unwrap().is_generated());
        let fresh = NodeName::fresh();
        assert!(fresh.is_ours() && !fresh.is_generated());
        assert_eq!(NodeName::new(fresh.as_str()), Ok(fresh.clone()));
        assert_ne!(fresh, NodeName::fresh());
    }

    #[test]
    fn job_ids_tell_their_op() {
        let id = JobId::fresh("stream").unwrap();
        assert_eq!(id.op(), Some("stream"));
        assert_eq!(JobId::new("drive0").unwrap().op(), None);
        assert!(JobId::fresh("bad op").is_err());
        assert!(JobId::new("#block1").is_err());
    }
}

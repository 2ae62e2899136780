//! What everything that belongs to one instant is called, in QEMU and on the host's disk: so that
//! whoever comes after a killed daemon knows what to take down. Pure.

use crate::ops::scratch::Called;
use qmpbridge::{JobId, NodeName};
use std::fmt;

/// Whose NBD server the instant is read over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::ops) enum Server {
    /// One that we had started: it goes with the last instant.
    Ours,
    /// One that was there: its owner ends it.
    Given,
}

impl Server {
    fn prefix(self) -> &'static str {
        match self {
            Server::Ours => "qmpfs-live-",
            Server::Given => "qmpfs-livex-",
        }
    }
}

/// Hex digits of an instant.
const DIGITS: usize = 12;
/// Behind the name of the node that opens the scratch file.
const FILE: &str = "-f";
/// Before and behind the digits in the scratch file's name.
const SCRATCH: (&str, &str) = (".qmpfs-live-", ".qcow2");

/// The names of one instant. As text they are its job and its export, and its node in QEMU.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Names {
    pub(super) server: Server,
    pub(super) digits: String,
}

impl Names {
    /// Those of a new instant.
    pub(super) fn fresh(server: Server) -> Self {
        let digits = crate::layer_file::random_hex();
        Names { server, digits }
    }

    /// Those that the name of a job, an export or a node belongs to.
    pub(super) fn of(text: &str) -> Option<Self> {
        let text = text.strip_suffix(FILE).unwrap_or(text);
        [Server::Ours, Server::Given]
            .into_iter()
            .find_map(|server| {
                let digits = text.strip_prefix(server.prefix())?;
                is_digits(digits).then(|| Names {
                    server,
                    digits: digits.to_owned(),
                })
            })
    }

    /// The digits in the name of a scratch file.
    pub(super) fn digits_of_scratch(file_name: &str) -> Option<&str> {
        let digits = file_name.strip_prefix(SCRATCH.0)?.strip_suffix(SCRATCH.1)?;
        is_digits(digits).then_some(digits)
    }

    /// What is exported.
    pub(super) fn node(&self) -> NodeName {
        NodeName::new(self.to_string()).expect("a prefix and digits are a short identifier")
    }

    /// What opens the scratch file.
    pub(super) fn file_node(&self) -> NodeName {
        NodeName::new(format!("{self}{FILE}")).expect("a prefix and digits are a short identifier")
    }

    /// The job that saves the old bytes.
    pub(super) fn job(&self) -> JobId {
        JobId::new(self.to_string()).expect("a prefix and digits are an identifier")
    }

    /// The scratch file.
    pub(super) fn scratch(&self) -> String {
        format!("{}{}{}", SCRATCH.0, self.digits, SCRATCH.1)
    }

    /// It, and what belongs to it.
    pub(super) fn called(&self) -> Called {
        Called {
            file: self.scratch(),
            node: self.node(),
            file_node: self.file_node(),
            job: self.job(),
        }
    }
}

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.server.prefix(), self.digits)
    }
}

pub(in crate::ops) fn is_digits(text: &str) -> bool {
    text.len() == DIGITS
        && text
            .bytes()
            .all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::{Names, Server};

    #[test]
    fn every_name_leads_back() {
        for server in [Server::Ours, Server::Given] {
            let names = Names::fresh(server);
            for text in [
                names.node().as_str(),
                names.file_node().as_str(),
                names.job().as_str(),
            ] {
                assert_eq!(Names::of(text).as_ref(), Some(&names), "{text}");
            }
            let scratch = names.scratch();
            assert_eq!(Names::digits_of_scratch(&scratch), Some(&*names.digits));
        }
        for other in [
            "qmpfs-live-",
            "qmpfs-live-0123456789AB",
            "qmpfs-stream-0123456789ab",
            "qmpfs-0123456789ab",
            "x",
        ] {
            assert_eq!(Names::of(other), None, "{other}");
        }
        assert_eq!(Names::digits_of_scratch("web1.qcow2"), None);
    }
}

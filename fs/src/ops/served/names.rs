//! What belongs to one served layer is called after it, in QEMU, so that whoever comes after a killed daemon
//! knows what to take down. Pure, but for the claim that says that its mount lives.

use crate::errno::Failure;
use crate::layer_file::{self, Claim};
use crate::ops::live::{Server, is_digits};
use qmpbridge::NodeName;
use std::fmt;

/// Behind the name of the node that opens the file.
const FILE: &str = "-f";

/// The names of one served layer: as text they are its export, and its node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Names {
    server: Server,
    digits: String,
}

impl Names {
    /// New ones, and what says to other mounts that theirs lives.
    pub(super) fn claimed(server: Server) -> Result<(Self, Claim), Failure> {
        let digits = layer_file::random_hex();
        let claim = layer_file::claim_kept(&digits)?;
        Ok((Names { server, digits }, claim))
    }

    /// Those that an export's id belongs to.
    pub(super) fn of(id: &str) -> Option<Self> {
        [Server::Ours, Server::Given]
            .into_iter()
            .find_map(|server| {
                let digits = id.strip_prefix(prefix(server))?;
                is_digits(digits).then(|| Names {
                    server,
                    digits: digits.to_owned(),
                })
            })
    }

    /// Whose NBD server it is.
    pub(super) fn server(&self) -> Server {
        self.server
    }

    pub(super) fn digits(&self) -> &str {
        &self.digits
    }

    /// What is exported.
    pub(super) fn node(&self) -> NodeName {
        NodeName::new(self.to_string()).expect("a prefix and digits are a short identifier")
    }

    /// What opens the file.
    pub(super) fn file_node(&self) -> NodeName {
        NodeName::new(format!("{self}{FILE}")).expect("a prefix and digits are a short identifier")
    }
}

fn prefix(server: Server) -> &'static str {
    match server {
        Server::Ours => "qmpfs-view-",
        Server::Given => "qmpfs-viewx-",
    }
}

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", prefix(self.server), self.digits)
    }
}

#[cfg(test)]
mod tests {
    use super::Names;
    use crate::ops::live::Server;

    #[test]
    fn an_export_leads_back() {
        for server in [Server::Ours, Server::Given] {
            let (names, _claim) = Names::claimed(server).expect("nobody else has it");
            assert_eq!(Names::of(&names.to_string()), Some(names));
        }
        for other in [
            "qmpfs-view-",
            "qmpfs-view-0123456789AB",
            "qmpfs-live-0123456789ab",
            "x",
        ] {
            assert_eq!(Names::of(other), None, "{other}");
        }
    }
}

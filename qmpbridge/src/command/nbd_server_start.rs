//! `nbd-server-start`: starts the one NBD server.

use std::path::PathBuf;

use serde::Serialize;

use super::{Command, Empty};

/// `nbd-server-start`
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct NbdServerStart {
    /// Where it listens.
    pub addr: SocketAddress,
    /// 0 for no limit; 100 when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u32>,
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "type", content = "data", rename_all = "kebab-case")]
pub enum SocketAddress {
    /// A unix socket.
    Unix {
        /// Its path.
        path: PathBuf,
    },
}

impl Command for NbdServerStart {
    const NAME: &str = "nbd-server-start";
    type Reply = Empty;
}

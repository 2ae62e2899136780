//! Where a monitor listens, as people write it.
//!
//! Knows the two transports QMP is served on. Does not connect.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// The address of a QMP monitor: `/run/x.qmp`, `unix:/run/x.qmp` or `tcp:127.0.0.1:4444`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A unix stream socket.
    Unix(PathBuf),
    /// `host:port`
    Tcp(String),
}

/// The text is no address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidAddress(String);

impl fmt::Display for InvalidAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "not a QMP address: {:?} (expected a socket path, unix:PATH or tcp:HOST:PORT)",
            self.0
        )
    }
}

impl std::error::Error for InvalidAddress {}

impl FromStr for Address {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let invalid = || InvalidAddress(text.to_owned());
        if let Some(endpoint) = text.strip_prefix("tcp:") {
            let (host, port) = endpoint.rsplit_once(':').ok_or_else(invalid)?;
            if host.is_empty() || port.parse::<u16>().is_err() {
                return Err(invalid());
            }
            return Ok(Address::Tcp(endpoint.to_owned()));
        }
        let path = text.strip_prefix("unix:").unwrap_or(text);
        // QEMU's own spelling has options after a comma ("unix:/x,server=on"); they are not ours to guess at.
        if path.is_empty() || path.contains(",server") || path.contains('\0') {
            return Err(invalid());
        }
        Ok(Address::Unix(PathBuf::from(path)))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
            Address::Tcp(endpoint) => write!(f, "tcp:{endpoint}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Address;

    #[test]
    fn the_three_spellings() {
        let unix = Address::Unix("/run/x.qmp".into());
        assert_eq!("/run/x.qmp".parse(), Ok(unix.clone()));
        assert_eq!("unix:/run/x.qmp".parse(), Ok(unix));
        let tcp = Address::Tcp("127.0.0.1:4444".into());
        assert_eq!("tcp:127.0.0.1:4444".parse(), Ok(tcp.clone()));
        assert_eq!(tcp.to_string().parse(), Ok(tcp));
        let six: Result<Address, _> = "tcp:[::1]:4444".parse();
        assert_eq!(six, Ok(Address::Tcp("[::1]:4444".into())));
    }

    #[test]
    fn what_is_no_address() {
        for text in [
            "",
            "unix:",
            "tcp:",
            "tcp:host",
            "tcp::1",
            "tcp:h:99999",
            "unix:/x,server=on",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text:?}");
        }
    }
}

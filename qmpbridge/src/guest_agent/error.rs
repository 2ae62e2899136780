//! What can go wrong between us and the guest agent. The agent's words are kept verbatim.

use std::fmt;

/// Why the guest agent did not do what it was asked.
#[derive(Debug)]
pub enum AgentError {
    /// There is no socket at the address, or nobody listens on it.
    NobodyThere {
        /// The address.
        address: String,
        /// The bridge's words.
        why: String,
    },
    /// Others wait for the socket before us.
    Taken,
    /// No answer in time: no agent runs in the guest, it hangs, or another client has the socket. What was asked may
    /// still be done.
    TimedOut {
        /// The agent's name of the command.
        command: &'static str,
    },
    /// The connection ended. What was asked may have been done.
    Closed,
    /// The agent said no.
    Refused {
        /// The agent's name of the command.
        command: &'static str,
        /// Its error class.
        class: String,
        /// Its words.
        desc: String,
    },
    /// The agent has a command switched off, or is too old to have it.
    SwitchedOff {
        /// The agent's name of the command.
        command: &'static str,
    },
    /// What came is no answer.
    Garbage {
        /// The agent's name of the command.
        command: &'static str,
        /// The start of what was received.
        got: String,
    },
    /// A line longer than any answer.
    TooLong {
        /// The limit in bytes.
        limit: usize,
    },
    /// The operating system refused the connection for another reason.
    Io(std::io::Error),
}

impl fmt::Display for AgentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AgentError::NobodyThere { why, .. } => write!(f, "the guest agent's socket: {why}"),
            AgentError::Taken => f.write_str("the guest agent's socket is taken by other clients"),
            AgentError::TimedOut { command } => {
                write!(f, "the guest agent did not answer {command} in time")
            }
            AgentError::Closed => f.write_str("the guest agent's connection was closed"),
            AgentError::Refused {
                command,
                class,
                desc,
            } if class.is_empty() || class == "GenericError" => {
                write!(f, "the guest agent refuses {command}: {desc}")
            }
            AgentError::Refused {
                command,
                class,
                desc,
            } => write!(f, "the guest agent refuses {command}: {desc} ({class})"),
            AgentError::SwitchedOff { command } => {
                write!(f, "the guest agent has {command} switched off")
            }
            AgentError::Garbage { command, got } => {
                write!(f, "the guest agent answers {command} with {got:?}")
            }
            AgentError::TooLong { limit } => {
                write!(f, "the guest agent sent a line longer than {limit} bytes")
            }
            AgentError::Io(_) => f.write_str("cannot reach the guest agent's socket"),
        }
    }
}

impl std::error::Error for AgentError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            AgentError::Io(source) => Some(source),
            AgentError::NobodyThere { .. }
            | AgentError::Taken
            | AgentError::TimedOut { .. }
            | AgentError::Closed
            | AgentError::Refused { .. }
            | AgentError::SwitchedOff { .. }
            | AgentError::Garbage { .. }
            | AgentError::TooLong { .. } => None,
        }
    }
}

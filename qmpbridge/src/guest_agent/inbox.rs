//! What the agent sent, cut into answers. Pure: bytes in, lines out.
//!
//! Knows the sentinel, a byte that JSON never has, which the agent puts before the answer to guest-sync-delimited.
//! Invariant: memory is bounded, whatever comes: what is skipped is not kept.

use super::AgentError;

/// Before the answer to guest-sync-delimited.
pub(super) const SENTINEL: u8 = 0xff;
/// The longest answer we ask for, guest-info, is below 10 KiB.
const LINE_MAX: usize = 1 << 20;
/// A monitor greets with less.
const GREETING_MAX: usize = 1024;
/// `{"return": NUMBER}` and a line end.
const SYNC_ANSWER_MAX: usize = 256;

#[derive(Default)]
pub(super) struct Inbox {
    buffer: Vec<u8>,
    /// The first bytes there were: they tell what this is, if it is no agent.
    first: Vec<u8>,
}

impl Inbox {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        let room = GREETING_MAX.saturating_sub(self.first.len());
        self.first
            .extend_from_slice(&bytes[..bytes.len().min(room)]);
        self.buffer.extend_from_slice(bytes);
    }

    /// What a monitor says to its client, if this is one.
    pub(super) fn greeting(&self) -> Option<&[u8]> {
        let line = self.first.split(|&b| b == b'\n').next()?;
        match crate::wire::parse(line) {
            Ok(crate::wire::Message::Greeting(_)) => Some(line),
            Ok(_) | Err(_) => None,
        }
    }

    /// Drops everything before the answer to guest-sync-delimited with this id, and that answer; false while it is not
    /// there. Late answers to earlier ones are skipped like everything else.
    pub(super) fn skip_to(&mut self, id: u64) -> bool {
        loop {
            let Some(start) = self.buffer.iter().position(|&b| b == SENTINEL) else {
                self.buffer.clear();
                return false;
            };
            self.buffer.drain(..start);
            let Some(end) = self.buffer.iter().position(|&b| b == b'\n') else {
                // an answer that was cut may stand before the whole one
                let last = self.buffer.iter().rposition(|&b| b == SENTINEL);
                self.buffer.drain(..last.unwrap_or(0));
                if self.buffer.len() > SYNC_ANSWER_MAX {
                    self.buffer.clear();
                }
                return false;
            };
            let line = &self.buffer[..end];
            let answer = line.rsplit(|&b| b == SENTINEL).next().unwrap_or(line);
            let found = answers(answer, id);
            self.buffer.drain(..=end);
            if found {
                return true;
            }
        }
    }

    /// The next whole line; blank ones are skipped.
    pub(super) fn next_line(&mut self) -> Result<Option<Vec<u8>>, AgentError> {
        while let Some(end) = self.buffer.iter().position(|&b| b == b'\n') {
            let line: Vec<u8> = self.buffer.drain(..=end).collect();
            let line = line.trim_ascii();
            if line.len() > LINE_MAX {
                return Err(AgentError::TooLong { limit: LINE_MAX });
            }
            if !line.is_empty() {
                return Ok(Some(line.to_vec()));
            }
        }
        if self.buffer.len() > LINE_MAX {
            self.buffer.clear();
            return Err(AgentError::TooLong { limit: LINE_MAX });
        }
        Ok(None)
    }
}

fn answers(line: &[u8], id: u64) -> bool {
    #[derive(serde::Deserialize)]
    struct Answer {
        #[serde(rename = "return")]
        value: u64,
    }
    serde_json::from_slice(line).is_ok_and(|answer: Answer| answer.value == id)
}

#[cfg(test)]
mod tests {
    use super::{Inbox, LINE_MAX, SYNC_ANSWER_MAX};

    /// What is left after skipping to 7, when `bytes` come one by one.
    fn left(bytes: &[u8]) -> Option<Vec<u8>> {
        let mut inbox = Inbox::default();
        let mut reached = false;
        for byte in bytes {
            inbox.push(&[*byte]);
            reached = reached || inbox.skip_to(7);
        }
        let mut whole = Inbox::default();
        whole.push(bytes);
        assert_eq!(whole.skip_to(7), reached, "in one piece and byte by byte");
        if reached {
            assert_eq!(whole.buffer, inbox.buffer);
        }
        reached.then_some(inbox.buffer)
    }

    #[test]
    fn everything_before_the_answer_is_skipped() {
        let cases: [&[u8]; 7] = [
            b"\xff{\"return\": 7}\nnext",
            b"{\"return\": {}}\n{\"error\": {}}\n\xff{\"return\": 7}\nnext",
            b"\xff{\"return\": 6}\n\xff{\"return\": 7}\nnext",
            b"half an ans\xff{\"return\": 7}\nnext",
            b"\xff{\"ret\xff{\"return\": 7}\r\nnext",
            b"\xff\xff\xff{\"return\":7}\nnext",
            b"\xff{\"return\": \"7\"}\n\xff\n\xff{\"return\": 7}\nnext",
        ];
        for case in cases {
            let left = left(case);
            assert_eq!(
                left.as_deref(),
                Some(&b"next"[..]),
                "{}",
                case.escape_ascii()
            );
        }
    }

    #[test]
    fn nothing_else_is_taken_for_it() {
        let cases: [&[u8]; 5] = [
            b"{\"return\": 7}\n",
            b"\xff{\"return\": 8}\n",
            b"\xff{\"return\": -7}\n",
            b"\xff{\"return\": 7}",
            b"\xff\n{\"return\": 7}\n",
        ];
        for case in cases {
            assert_eq!(left(case), None, "{}", case.escape_ascii());
        }
    }

    #[test]
    fn memory_is_bounded_while_skipping() {
        let mut inbox = Inbox::default();
        for _ in 0..1000 {
            inbox.push(&[b'x'; 4096]);
            assert!(!inbox.skip_to(7));
            inbox.push(&[0xff; 4096]);
            assert!(!inbox.skip_to(7));
            assert!(inbox.buffer.len() <= SYNC_ANSWER_MAX);
        }
        inbox.push(b"\xff{\"return\": 7}\n");
        assert!(inbox.skip_to(7));
    }

    #[test]
    fn lines_come_whole_and_not_endless() {
        let mut inbox = Inbox::default();
        inbox.push(b"\n\r\n{\"return\": 1}\r");
        assert!(inbox.next_line().expect("short").is_none());
        inbox.push(b"\nrest");
        let line = inbox.next_line().expect("short");
        assert_eq!(line.as_deref(), Some(&b"{\"return\": 1}"[..]));
        inbox.push(&vec![b'x'; LINE_MAX]);
        assert!(inbox.next_line().is_err());
        assert!(inbox.buffer.is_empty());
    }
}

//! The lines that control files take: one write(2), one line, one verb. Pure; it knows the words
//! and not what they do. What is not exactly one line of printable text is nobody's verb.

use crate::bytes;
use crate::errno::{Errno, Failure};
use std::fmt;

/// The longest line: a file name of the host (255 bytes) and words before it.
const LINE_MAX: usize = 512;
/// So much of a line that is not understood is repeated in the log.
const SHOWN: usize = 40;

/// What `jobs/ID/ctl` takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobCommand {
    /// Hold it.
    Pause,
    /// Let it go on.
    Resume,
    /// At most so many bytes a second; 0 is no limit.
    Speed(u64),
    /// End it and undo it.
    Cancel,
    /// A mirror: end it and keep the copy.
    Finish,
    /// A mirror: end it and move the VM onto the copy.
    Pivot,
}

impl fmt::Display for JobCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            JobCommand::Pause => f.write_str("pause"),
            JobCommand::Resume => f.write_str("resume"),
            JobCommand::Speed(bytes) => write!(f, "speed {bytes}"),
            JobCommand::Cancel => f.write_str("cancel"),
            JobCommand::Finish => f.write_str("finish"),
            JobCommand::Pivot => f.write_str("pivot"),
        }
    }
}

/// What was written, as one line without its end.
pub(super) fn line(data: &[u8]) -> Result<&str, Failure> {
    let refused = |why: &str| {
        Err(Failure::new(Errno::EINVAL, why)
            .next("write one line at a time, as echo does; reading the file tells its words"))
    };
    let data = data.strip_suffix(b"\n").unwrap_or(data);
    if data.len() > LINE_MAX {
        return refused(&format!("a line has at most {LINE_MAX} bytes"));
    }
    let Ok(line) = std::str::from_utf8(data) else {
        return refused("the line is not UTF-8");
    };
    if line.contains('\n') {
        return refused("more than one line was written at once");
    }
    let line = line.trim();
    if line.is_empty() {
        return refused("the line is empty");
    }
    if line.contains(|letter: char| letter.is_control() && letter != '\t') {
        return refused("the line has control characters");
    }
    Ok(line)
}

/// The command that a line of `jobs/ID/ctl` is.
pub(super) fn job_command(line: &str) -> Result<JobCommand, Failure> {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words[..] {
        ["pause"] => Ok(JobCommand::Pause),
        ["resume"] => Ok(JobCommand::Resume),
        ["cancel"] => Ok(JobCommand::Cancel),
        ["finish"] => Ok(JobCommand::Finish),
        ["pivot"] => Ok(JobCommand::Pivot),
        ["speed", bytes] => speed(bytes),
        _ => Err(Failure::new(
            Errno::EINVAL,
            format!("'{}' is no command of a job", shown(line)),
        )
        .next("write pause, resume, cancel, or speed BYTES (speed 50M; speed 0 is no limit)")),
    }
}

/// QEMU takes a signed number.
fn speed(text: &str) -> Result<JobCommand, Failure> {
    let bytes = bytes::parse(text).ok();
    bytes
        .filter(|bytes| i64::try_from(*bytes).is_ok())
        .map(JobCommand::Speed)
        .ok_or_else(|| {
            Failure::new(
                Errno::EINVAL,
                format!("'{}' is no number of bytes", shown(text)),
            )
            .next("write it like 4096, 64k, 50M or 1G; 0 is no limit")
        })
}

fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(SHOWN).collect();
    if shown.len() < text.len() {
        shown.push_str("...");
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::{JobCommand, job_command, line};
    use crate::errno::Errno;

    fn understood(data: &[u8]) -> Result<JobCommand, Errno> {
        line(data)
            .and_then(job_command)
            .map_err(|failure| failure.errno)
    }

    #[test]
    fn the_words() {
        for (data, command) in [
            ("pause\n", JobCommand::Pause),
            ("pause", JobCommand::Pause),
            ("  resume \n", JobCommand::Resume),
            ("speed 50M\n", JobCommand::Speed(50 << 20)),
            ("speed\t0\n", JobCommand::Speed(0)),
            ("cancel\r\n", JobCommand::Cancel),
            ("finish\n", JobCommand::Finish),
            ("pivot\n", JobCommand::Pivot),
        ] {
            assert_eq!(understood(data.as_bytes()), Ok(command), "{data:?}");
        }
    }

    #[test]
    fn what_is_not_one_line_of_words_is_refused() {
        let long = "x".repeat(64 << 10);
        for data in [
            "",
            "\n",
            "   \n",
            "pau",
            "PAUSE\n",
            "pause resume\n",
            "pause\nresume\n",
            "\npause\n",
            "pause\n\n",
            "speed\n",
            "speed -1\n",
            "speed 1.5M\n",
            "speed 9223372036854775808\n",
            "speed 8388608T\n",
            "speed 1 2\n",
            "pause\0\n",
            "\0",
            "pau\u{1b}[2Jse\n",
            &long,
        ] {
            assert_eq!(understood(data.as_bytes()), Err(Errno::EINVAL), "{data:?}");
        }
        for data in [&b"\xff\xfe\n"[..], &[0x80; 600], &b"pause\xc3"[..]] {
            assert_eq!(understood(data), Err(Errno::EINVAL));
        }
    }

    #[test]
    fn a_command_is_written_as_it_is_read() {
        for command in [JobCommand::Pause, JobCommand::Speed(7), JobCommand::Pivot] {
            assert_eq!(job_command(&command.to_string()).ok(), Some(command));
        }
    }
}

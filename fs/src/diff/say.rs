//! What `qmpfs diff` writes: a line, or a JSON object, for each difference; and troubles on standard error.

use super::{Ended, Form};
use crate::errno::Failure;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io::{BufWriter, Stdout, Write as _};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// What is different of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    Kind,
    Size,
    Content,
    Time,
    Mode,
    Owner,
    Attributes,
    Target,
    Device,
}

impl What {
    fn name(self) -> &'static str {
        match self {
            What::Kind => "kind",
            What::Size => "size",
            What::Content => "content",
            What::Time => "time",
            What::Mode => "mode",
            What::Owner => "owner",
            What::Attributes => "attributes",
            What::Target => "target",
            What::Device => "device",
        }
    }
}

/// One difference.
#[derive(Debug)]
pub(super) enum Change {
    Added {
        path: PathBuf,
        is_dir: bool,
    },
    Removed {
        path: PathBuf,
        is_dir: bool,
    },
    /// A file that is in both.
    Changed {
        path: PathBuf,
        what: Vec<What>,
        sizes: (u64, u64),
    },
    /// A disk or partition of another size.
    Size {
        path: PathBuf,
        before: u64,
        after: u64,
    },
    /// Bytes of a disk or partition.
    Bytes {
        path: PathBuf,
        range: Range<u64>,
    },
}

/// What has been said so far.
pub(super) struct Report {
    form: Form,
    out: BufWriter<Stdout>,
    is_different: bool,
    troubles: usize,
    /// Nobody reads on.
    is_deaf: bool,
}

impl Report {
    pub(super) fn new(form: Form) -> Report {
        Report {
            form,
            out: BufWriter::new(std::io::stdout()),
            is_different: false,
            troubles: 0,
            is_deaf: false,
        }
    }

    pub(super) fn say(&mut self, change: &Change) {
        self.is_different = true;
        let line = match self.form {
            Form::Lines => line(change),
            Form::Json => object(change).to_string(),
        };
        self.is_deaf |= writeln!(self.out, "{line}").is_err();
    }

    /// What could not be compared; the rest is.
    pub(super) fn trouble(&mut self, path: &Path, failure: &Failure) {
        self.troubles += 1;
        eprintln!("qmpfs: {}: {}", shown(path), failure.message);
    }

    pub(super) fn end(mut self) -> Result<Ended, Failure> {
        self.is_deaf |= self.out.flush().is_err();
        Ok(
            match (self.troubles > 0 || self.is_deaf, self.is_different) {
                (true, _) => Ended::Trouble,
                (false, true) => Ended::Different,
                (false, false) => Ended::Same,
            },
        )
    }
}

fn line(change: &Change) -> String {
    let dir =
        |path: &Path, is_dir: bool| format!("{}{}", shown(path), if is_dir { "/" } else { "" });
    match change {
        Change::Added { path, is_dir } => format!("added    {}", dir(path, *is_dir)),
        Change::Removed { path, is_dir } => format!("removed  {}", dir(path, *is_dir)),
        Change::Changed { path, what, .. } => {
            format!("changed  {} ({})", shown(path), names(what).join(", "))
        }
        Change::Size {
            path,
            before,
            after,
        } => {
            format!("changed  {} (size {before} to {after})", shown(path))
        }
        Change::Bytes { path, range } => {
            let length = range.end - range.start;
            format!("changed  {} (bytes {}+{length})", shown(path), range.start)
        }
    }
}

fn names(what: &[What]) -> Vec<&'static str> {
    what.iter().map(|what| what.name()).collect()
}

fn object(change: &Change) -> Value {
    match change {
        Change::Added { path, is_dir } => {
            json!({"change": "added", "path": shown(path), "is_directory": is_dir})
        }
        Change::Removed { path, is_dir } => {
            json!({"change": "removed", "path": shown(path), "is_directory": is_dir})
        }
        Change::Changed { path, what, sizes } => json!({
            "change": "changed", "path": shown(path), "what": names(what),
            "size_before": sizes.0, "size_after": sizes.1
        }),
        Change::Size {
            path,
            before,
            after,
        } => json!({
            "change": "changed", "path": shown(path), "what": ["size"],
            "size_before": before, "size_after": after
        }),
        Change::Bytes { path, range } => json!({
            "change": "bytes", "path": shown(path), "offset": range.start,
            "length": range.end - range.start
        }),
    }
}

/// A path on one line, without what a terminal would obey: a guest's names may be anything. What is shown
/// otherwise is written as `printf %b` takes it.
fn shown(path: &Path) -> String {
    let mut text = String::new();
    for chunk in path.as_os_str().as_bytes().utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => text.push_str("\\\\"),
                c if c.is_control() => octal(&mut text, c.to_string().as_bytes()),
                c => text.push(c),
            }
        }
        octal(&mut text, chunk.invalid());
    }
    text
}

fn octal(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        // Writing to a String cannot fail.
        let _ok = write!(text, "\\0{byte:03o}");
    }
}

#[cfg(test)]
mod tests {
    use super::{Change, What, line, object, shown};
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;

    #[test]
    fn names_of_guests_stay_on_their_line() {
        let path = |name: &'static [u8]| Path::new(OsStr::from_bytes(name));
        assert_eq!(shown(path(b"files/1/a b")), "files/1/a b");
        assert_eq!(shown(path(b"a\nb\x1b[2J\\")), "a\\0012b\\0033[2J\\\\");
        assert_eq!(shown(path("ü\u{9b}".as_bytes())), "ü\\0302\\0233");
        assert_eq!(shown(path(b"\xff\xfe!")), "\\0377\\0376!");
    }

    #[test]
    fn a_difference_is_a_line_or_an_object() {
        let change = Change::Changed {
            path: "files/1/x".into(),
            what: vec![What::Size, What::Content],
            sizes: (1, 2),
        };
        assert_eq!(line(&change), "changed  files/1/x (size, content)");
        assert_eq!(object(&change)["what"][1], "content");
        let gone = Change::Removed {
            path: "files/1/d".into(),
            is_dir: true,
        };
        assert_eq!(line(&gone), "removed  files/1/d/");
        let bytes = Change::Bytes {
            path: "disk.raw".into(),
            range: 512..1536,
        };
        assert_eq!(line(&bytes), "changed  disk.raw (bytes 512+1024)");
        assert_eq!(object(&bytes)["length"], 1024);
    }
}

//! What `qemu-img convert` makes of a case.
//!
//! Knows: how to name every file of a graph itself, so that QEMU follows no name that an image
//! holds; and to end a QEMU that does not end.
//! Does not know: what we make of it.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::case::{Case, Layer};

/// A conversion of 64 MiB takes a second at most.
const DEADLINE: Duration = Duration::from_secs(30);

/// A directory where QEMU works.
pub(crate) struct Qemu {
    dir: PathBuf,
}

/// What QEMU answered.
pub(crate) enum Answer {
    Bytes(Vec<u8>),
    Refused(String),
    TimedOut,
}

impl Qemu {
    pub(crate) fn new() -> Qemu {
        let dir = std::env::temp_dir().join(format!("compare-{}", std::process::id()));
        fs::create_dir(&dir).expect("a directory of our own");
        Qemu { dir }
    }

    /// Writes the files of a case.
    pub(crate) fn put(&self, case: &Case) {
        for (i, layer) in case.layers.iter().enumerate() {
            fs::write(self.dir.join(format!("{i}")), &layer.file).expect("room");
            if let Some(data) = &layer.data {
                fs::write(self.dir.join(format!("{i}.data")), data).expect("room");
            }
        }
    }

    /// The bytes of the top layer, or of an internal snapshot of it.
    pub(crate) fn convert(&self, case: &Case, snapshot: Option<&str>) -> Answer {
        let out = self.dir.join("out");
        let _ = fs::remove_file(&out);
        let mut command = Command::new("qemu-img");
        command
            .current_dir(&self.dir)
            .args(["convert", "-U", "-O", "raw"]);
        if let Some(id) = snapshot {
            command.args(["-l", &format!("snapshot.id={id}")]);
        }
        command.args([&format!("json:{}", graph(&case.layers)), "out"]);
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        let Some(message) = finish(child.expect("qemu-img is installed")) else {
            return Answer::TimedOut;
        };
        match message {
            Ok(()) => Answer::Bytes(fs::read(&out).expect("the converted disk")),
            Err(message) => Answer::Refused(message),
        }
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// The node of the last layer, with all nodes below it. A node that is named here is not looked for
/// in the image: neither a backing file, nor a data file.
fn graph(layers: &[Layer]) -> String {
    let Some((top, below)) = layers.split_last() else {
        return "null".to_owned();
    };
    let file = |name: String| format!(r#"{{"driver":"file","filename":"{name}"}}"#);
    let i = below.len();
    if top.raw {
        return format!(r#"{{"driver":"raw","file":{}}}"#, file(format!("{i}")));
    }
    let data = match &top.data {
        Some(_) => format!(r#","data-file":{}"#, file(format!("{i}.data"))),
        None => String::new(),
    };
    format!(
        r#"{{"driver":"qcow2","file":{},"backing":{}{data}}}"#,
        file(format!("{i}")),
        graph(below)
    )
}

/// Whether it succeeded, and what it said; nothing if it had to be killed.
fn finish(mut child: Child) -> Option<Result<(), String>> {
    let end = Instant::now() + DEADLINE;
    loop {
        if child.try_wait().expect("our child").is_some() {
            break;
        }
        if Instant::now() > end {
            child.kill().expect("our child");
            let _ = child.wait();
            return None;
        }
        thread::sleep(Duration::from_millis(1));
    }
    let output = child.wait_with_output().expect("our child");
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Some(match output.status.success() {
        true => Ok(()),
        false => Err(format!("{} {message}", output.status)),
    })
}

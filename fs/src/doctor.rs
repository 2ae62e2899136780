//! `qmpfs doctor`: what of this machine, and of a source, is fit for a mount, and the next step where it is not.
//! It looks, and asks a monitor who it is; it changes nothing.

mod image;
mod machine;

use crate::errno::Failure;
use crate::ops::{Source, examine};
use std::io::Write as _;
use std::path::PathBuf;

/// What is said of one thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Finding {
    /// It is as it should be.
    Fit(String),
    /// It is not, and only some things need it; the next step.
    Lacking(String, String),
    /// Nothing can be mounted like this; the next step.
    Unfit(String, String),
}

/// Looks at the machine, and at a source; true when nothing keeps it from being mounted.
pub fn examine_all(source: Result<Option<Source>, Failure>) -> bool {
    let mut findings = machine::all();
    match source {
        Ok(None) => {}
        Err(failure) => findings.push(Finding::Unfit(failure.message, failure.next)),
        Ok(Some(Source::Qmp(address))) => findings.extend(monitor(address)),
        Ok(Some(Source::Images { paths, .. })) => {
            findings.extend(paths.iter().flat_map(|path| image::all(path)));
        }
        Ok(Some(Source::Backups(path))) => findings.push(Finding::Fit(format!(
            "{} is a directory of backups; `qmpfs verify {0}` reads them all",
            path.display()
        ))),
    }
    let is_fit = !findings.iter().any(|it| matches!(it, Finding::Unfit(..)));
    let mut out = std::io::stdout().lock();
    for finding in findings {
        // Whoever closed our output wants no more of it.
        let _ = match finding {
            Finding::Fit(what) => writeln!(out, "ok    {what}"),
            Finding::Lacking(what, next) => writeln!(out, "note  {what}\n      next: {next}"),
            Finding::Unfit(what, next) => writeln!(out, "NOT   {what}\n      next: {next}"),
        };
    }
    is_fit
}

fn monitor(address: qmpbridge::Address) -> Vec<Finding> {
    let examined = match examine(address) {
        Ok(examined) => examined,
        Err(failure) => {
            let next = match failure.next.is_empty() {
                true => "see that QEMU runs, and that the socket is the one of its -qmp".to_owned(),
                false => failure.next,
            };
            return vec![Finding::Unfit(failure.message, next)];
        }
    };
    let mut found = vec![Finding::Fit(format!("QEMU {} answers", examined.version))];
    for (what, commands) in examined.lacks {
        found.push(Finding::Lacking(
            format!("it cannot do {what}: it has no {}", commands.join(", ")),
            "a storage daemon has fewer commands than a VM; else use QEMU 7.2 or newer".to_owned(),
        ));
    }
    found
}

/// A program that is in one of the directories of `PATH`, or where administrators have theirs.
fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut directories: Vec<PathBuf> = std::env::split_paths(&path).collect();
    directories.extend(["/usr/sbin", "/sbin"].map(PathBuf::from));
    let mut found = directories
        .into_iter()
        .map(|directory| directory.join(name));
    found.find(|file| file.is_file())
}

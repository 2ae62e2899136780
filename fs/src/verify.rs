//! `qmpfs verify`: reads points whole, checks the structure of their files, and compares what they show
//! with the digest that was recorded when they were made. Knows a mount's own files, and backups where
//! they lie; asks no QEMU and changes nothing.
//! Invariant: "right" is said only when every byte was read and the digest is the recorded one.

mod structure;
mod target;

use crate::digest::{Content, measure};
use crate::errno::{Errno, Failure};
use crate::render::human;
use crate::sys;
use crate::view::LayerCache;
use crate::wait::{Bar, Say, Seen};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Instant;
use structure::Structure;
use target::{Bytes, Target};

/// Pieces that are read side by side.
const AT_ONCE: usize = 32;

/// What the command line asks for.
#[derive(Debug, Clone)]
pub struct Request {
    /// A point in a mount, a backup's file, or a directory of them.
    pub path: PathBuf,
    /// How much to say meanwhile, and of what is right.
    pub say: Say,
}

/// Verifies all that a path means; fails if anything of it is not right.
pub fn verify(request: &Request) -> Result<(), Failure> {
    if let Err(error) = sys::raise_file_limit() {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
    let targets = target::all(&request.path)?;
    let mut first = None;
    let (mut wrong, count) = (0, targets.len());
    for target in targets {
        match one(&target, request.say) {
            Ok(line) => {
                if request.say == Say::Progress {
                    // whoever closed our output wants no more of it
                    let _ = writeln!(std::io::stdout(), "{}: {line}", target.name);
                }
            }
            Err(failure) => {
                wrong += 1;
                let failure = Failure {
                    message: format!("{}: {}", target.name, failure.message),
                    ..failure
                };
                if count > 1 {
                    eprintln!("qmpfs: {}", failure.message);
                }
                first.get_or_insert(failure);
            }
        }
    }
    match first {
        None => Ok(()),
        Some(failure) if count == 1 => Err(failure),
        Some(failure) => Err(Failure::new(
            failure.errno,
            format!("{wrong} of {count} are not right"),
        )
        .next(failure.next)),
    }
}

fn one(target: &Target, say: Say) -> Result<String, Failure> {
    if let Some(error) = &target.error {
        return Err(Failure::new(Errno::EIO, error.clone())
            .next("see whether its files, and those it stands on, are all there"));
    }
    let structure = structure::check(&target.files)?;
    let cache = LayerCache::default();
    let opened;
    let content: &dyn Content = match &target.bytes {
        Bytes::View(file) => file,
        Bytes::Chain(specs) => {
            opened = cache.open(specs, None)?;
            &*opened
        }
    };
    let size = content.size();
    let (mut bar, began) = (Bar::new(say), Instant::now());
    let read = measure(content, None, AT_ONCE, &mut |done| {
        bar.show(&[seen(&target.name, done, size, began)]);
        Ok(())
    });
    bar.end();
    let (digest, _) = read?;
    let mut line = String::new();
    match &target.digest {
        Some(recorded) if *recorded == digest => {
            let _ = write!(line, "right, {} {digest}", human(size));
        }
        Some(recorded) => {
            return Err(Failure::new(
                Errno::EUCLEAN,
                format!("it does not show what it showed when it was made: {digest} instead of {recorded}"),
            )
            .next("restore from another backup: its files, or those it stands on, were damaged or changed"));
        }
        None => {
            let _ = write!(
                line,
                "read whole, {}, and there is no digest to compare it with; now it is {digest}",
                human(size)
            );
        }
    }
    match structure {
        Structure::Sound => {}
        Structure::Leaks(files) => {
            let _ = write!(line, " (unused clusters in {files}: no harm)");
        }
        Structure::NotChecked(why) => {
            let _ = write!(line, " (structure not checked: {why})");
        }
    }
    Ok(line)
}

/// As the bar shows a job.
fn seen(name: &str, done: u64, size: u64, began: Instant) -> Seen {
    let millis = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    let rate = done.saturating_mul(1000).checked_div(millis);
    Seen {
        disk: "verify".into(),
        id: name.into(),
        verb: "verify".into(),
        point: name.into(),
        state: "running".into(),
        current: done,
        total: size,
        rate,
        left: rate.and_then(|rate| size.saturating_sub(done).checked_div(rate)),
        error: String::new(),
    }
}

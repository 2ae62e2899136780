//! `qmpfs cat`: the bytes of an image and its chain on standard output, without a mount.
//! It knows chains, their reader, and who writes an image; it asks no QEMU and changes nothing.
//! Invariant: "whole" is said only when every byte asked for was written, and nobody has written
//! to the files meanwhile.

use crate::errno::{Errno, Failure};
use crate::model::Format;
use crate::offline;
use crate::sys;
use crate::view::{self, Cursor, InternalRef, LayerCache, LayerSpec, OpenChain, Reach};
use qmpfs_qcow2::{InternalSnapshot, Layer};
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes read and written at once: enough that system calls cost nothing beside the copying.
const BUFFER: usize = 4 << 20;

/// What to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The image at the top.
    pub image: PathBuf,
    /// Its format, where the user says.
    pub format: Option<Format>,
    /// An internal snapshot of it instead of its newest state: an id or a name.
    pub snapshot: Option<String>,
    /// The first byte of the disk.
    pub offset: u64,
    /// How many bytes; None: to the end of the disk.
    pub length: Option<u64>,
    /// How far names in headers are followed.
    pub reach: Reach,
}

/// How it ended, when nothing failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Every byte was written.
    Whole,
    /// The reader of our output has gone away.
    NobodyReads,
}

/// Writes what was asked for to standard output.
pub fn to_standard_output(request: &Request) -> Result<Ended, Failure> {
    if let Err(error) = sys::raise_file_limit() {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
    // Not `Stdout`, which looks for the ends of lines.
    let out = std::io::stdout().as_fd().try_clone_to_owned();
    let out = out.map_err(|error| Failure::io("use standard output", &error))?;
    write_to(request, &mut File::from(out))
}

/// Writes what was asked for.
pub fn write_to(request: &Request, out: &mut impl Write) -> Result<Ended, Failure> {
    let image = request
        .image
        .canonicalize()
        .map_err(|error| Failure::io(format_args!("open {}", request.image.display()), &error))?;
    // An image that somebody writes is not even parsed.
    offline::refuse_if_written(&image)?;
    let source = Source::open(request, &image)?;
    source.refuse_if_changed()?;
    let range = range(request, source.opened.chain().virtual_size())?;
    let mut buffer = vec![0; BUFFER];
    let (mut at, cursor) = (range.start, Cursor::default());
    while at < range.end {
        let stopped = |failure: Failure| Failure {
            message: format!(
                "{}; {} of {} bytes were written",
                failure.message,
                at - range.start,
                range.end - range.start
            ),
            ..failure
        };
        let rest = usize::try_from(range.end - at).unwrap_or(usize::MAX);
        let part = &mut buffer[..rest.min(BUFFER)];
        let chain = source.opened.chain();
        cursor.read(chain, at..at + part.len() as u64, at);
        let read = chain.read_at(part, at);
        let read = read.map_err(|error| stopped(view::failure_of(&image, &error)))?;
        if read < part.len() {
            // Cannot be: the range ends where the disk does.
            return Err(stopped(
                Failure::new(Errno::EIO, "the disk has shrunk")
                    .next("run it again; somebody resized the image meanwhile"),
            ));
        }
        match out.write_all(part) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(Ended::NobodyReads),
            written => {
                written.map_err(|error| stopped(Failure::io("write to standard output", &error)))?
            }
        }
        at += read as u64;
    }
    let flushed = out.flush();
    flushed.map_err(|error| Failure::io("write to standard output", &error))?;
    source.refuse_if_changed()?;
    Ok(Ended::Whole)
}

/// What is read.
struct Source {
    opened: Arc<OpenChain>,
    specs: Vec<LayerSpec>,
}

impl Source {
    fn open(request: &Request, image: &Path) -> Result<Source, Failure> {
        // By the name it was given: what it stands on may be named relative to that.
        let (format, reach) = (request.format.clone(), request.reach);
        let chain = offline::resolve_chain_within(&request.image, format, reach)?;
        let specs: Vec<LayerSpec> = chain
            .into_iter()
            .map(|layer| LayerSpec {
                path: layer.path,
                file: None,
                format: layer.format,
            })
            .collect();
        let cache = LayerCache::new(request.reach);
        let mut opened = cache.open(&specs, None)?;
        if let Some(wanted) = &request.snapshot {
            let at = snapshot(image, &opened, wanted)?;
            opened = cache.open(&specs, Some(&at))?;
        }
        Ok(Source { opened, specs })
    }

    /// What is read while somebody writes is of no one instant.
    fn refuse_if_changed(&self) -> Result<(), Failure> {
        for spec in &self.specs {
            offline::refuse_if_written(&spec.path)?;
        }
        if self.opened.unchanged() {
            return Ok(());
        }
        Err(Failure::new(
            Errno::EBUSY,
            "an image was written to while it was read: what came out is of no one instant",
        )
        .next("try again when nobody works on the images"))
    }
}

/// As QEMU does it: an id first, then a name.
fn snapshot(image: &Path, opened: &OpenChain, wanted: &str) -> Result<InternalRef, Failure> {
    let snapshots = match opened.chain().layers().last().map(|top| &**top) {
        Some(Layer::Qcow2(top)) => top
            .snapshots()
            .map_err(|error| view::failure_of(image, &error))?,
        Some(Layer::Raw(_)) | None => Vec::new(),
    };
    let with = |matches: &dyn Fn(&InternalSnapshot) -> bool| -> Vec<&InternalSnapshot> {
        snapshots.iter().filter(|one| matches(one)).collect()
    };
    let mut found = with(&|one| one.id_str() == wanted);
    if found.is_empty() {
        found = with(&|one| one.name_str() == wanted);
    }
    match found[..] {
        [one] => Ok(InternalRef {
            id: one.id_str().into_owned(),
            tag: one.name_str().into_owned(),
        }),
        [] => Err(Failure::new(
            Errno::ENOENT,
            format!("{} has no internal snapshot '{wanted}'", image.display()),
        )
        .next(format!(
            "see which it has: qemu-img snapshot -l {}",
            image.display()
        ))),
        _ => Err(Failure::new(
            Errno::EINVAL,
            format!(
                "{} has {} internal snapshots called '{wanted}'",
                image.display(),
                found.len()
            ),
        )
        .next(format!(
            "say one's id: qemu-img snapshot -l {}",
            image.display()
        ))),
    }
}

fn range(request: &Request, size: u64) -> Result<std::ops::Range<u64>, Failure> {
    let start = request.offset;
    let end = match request.length {
        Some(length) => start.checked_add(length),
        None => Some(size.max(start)),
    };
    match end {
        Some(end) if end <= size => Ok(start..end),
        _ => Err(Failure::new(
            Errno::EINVAL,
            format!("the range ends beyond the disk, which has {size} bytes"),
        )
        .next("ask for less with --offset and --length")),
    }
}

//! From an image to the files it stands on, as their headers say.
//! It knows backing names and formats; it reads nothing beyond headers.

use super::json_name;
use crate::errno::{Errno, Failure};
use crate::model::{FileId, Format};
use crate::sys;
use crate::view::{Reach, find_data_file};
use qmpfs_qcow2::{BackingRef, Header, RawLayer, ReadAt};
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// QEMU has no limit, and dies of chains of about a thousand (10.0.2); longer ones than this are
/// taken for a mistake, or for an attack on our stack of open files.
const MAX_LAYERS: usize = 1024;

/// What a qcow2 file begins with.
const MAGIC: &[u8; 4] = b"QFI\xfb";

/// One file of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedLayer {
    /// Its real path: symlinks are resolved.
    pub path: PathBuf,
    /// Its format, as the overlay or the user says it.
    pub format: Format,
    /// Bytes of the disk.
    pub virtual_size: u64,
    /// What its header calls the file below; None for a base.
    pub backing_name: Option<String>,
}

/// The chain of an image, base first. `format` is that of the image itself, where the user says.
pub fn resolve_chain(image: &Path, format: Option<Format>) -> Result<Vec<ResolvedLayer>, Failure> {
    resolve_chain_within(image, format, Reach::Guarded)
}

/// The same, with names of other forms where `reach` allows them.
pub fn resolve_chain_within(
    image: &Path,
    format: Option<Format>,
    reach: Reach,
) -> Result<Vec<ResolvedLayer>, Failure> {
    let mut layers: Vec<ResolvedLayer> = Vec::new();
    let mut seen: Vec<FileId> = Vec::new();
    let mut next = Some((image.to_owned(), format));
    while let Some((name, format)) = next {
        let overlay = layers.last().map(|layer| layer.path.clone());
        let path = name
            .canonicalize()
            .map_err(|error| missing(&name, overlay.as_deref(), &error))?;
        let file = open(&path)?;
        let id = sys::file_id_of(&file)
            .map_err(|error| Failure::io(format_args!("look at {}", path.display()), &error))?;
        if seen.contains(&id) {
            return Err(Failure::new(
                Errno::EUCLEAN,
                format!("{} stands on itself", path.display()),
            )
            .next("give it the right backing file: qemu-img rebase -u"));
        }
        seen.push(id);
        if seen.len() > MAX_LAYERS {
            return Err(Failure::new(
                Errno::EOPNOTSUPP,
                format!(
                    "{} stands on more than {MAX_LAYERS} layers",
                    image.display()
                ),
            )
            .next("shorten the chain with the VM off: qemu-img convert makes one image of it"));
        }
        let format = match format {
            Some(format) => format,
            None => format_of_image(&path, &file)?,
        };
        let backing;
        let named = Named {
            name: &name,
            path: &path,
        };
        (backing, next) = below(named, &file, &format, reach)?;
        layers.push(ResolvedLayer {
            virtual_size: backing.0,
            backing_name: backing.1,
            path,
            format,
        });
    }
    layers.reverse();
    Ok(layers)
}

/// A file by the name it was given, and where that leads. A relative backing name is taken against
/// the directory of the first, as QEMU does it: through a symlink the two are not the same.
#[derive(Clone, Copy)]
struct Named<'a> {
    name: &'a Path,
    path: &'a Path,
}

/// A layer to go on with: its name, and its format as the overlay says it.
type Next = Option<(PathBuf, Option<Format>)>;

/// The size of a layer's disk and its backing name; and the layer below.
fn below(
    named: Named<'_>,
    file: &File,
    format: &Format,
    reach: Reach,
) -> Result<((u64, Option<String>), Next), Failure> {
    let path = named.path;
    match format {
        Format::Qcow2 => {
            let header =
                Header::read(file).map_err(|error| crate::view::failure_of(path, &error))?;
            if header.features.data_file() {
                refuse_ambiguous_data_file(named, &header)?;
                find_data_file(path, header.data_file.as_deref(), reach)?;
            }
            let Some(backing) = header.backing else {
                return Ok(((header.virtual_size, None), None));
            };
            let shown = String::from_utf8_lossy(&backing.name).into_owned();
            let next = backing_file(named, &backing, &shown, reach)?;
            Ok(((header.virtual_size, Some(shown)), Some(next)))
        }
        Format::Raw => {
            let file = file
                .try_clone()
                .map_err(|error| Failure::io(format_args!("open {}", path.display()), &error))?;
            let raw = RawLayer::open(Arc::new(file))
                .map_err(|error| crate::view::failure_of(path, &error))?;
            Ok(((raw.virtual_size(), None), None))
        }
        Format::Other(name) => Ok(((super::foreign::virtual_size(path, name)?, None), None)),
    }
}

/// QEMU takes a relative data file name against the directory it is started in; we take it against
/// the image's. Where both are files, and not the same, nobody knows which was meant.
fn refuse_ambiguous_data_file(named: Named<'_>, header: &Header) -> Result<(), Failure> {
    let Some(name) = header.data_file.as_deref() else {
        return Ok(());
    };
    let name = Path::new(OsStr::from_bytes(name));
    if name.is_absolute() {
        return Ok(());
    }
    let here = sys::file_id(name).ok();
    let beside = sys::file_id(&named.path.with_file_name(name)).ok();
    if here.is_none() || here == beside {
        return Ok(());
    }
    Err(Failure::new(
        Errno::EINVAL,
        format!(
            "{} keeps its data in {}, of which there is another in the present directory, and that is the one QEMU would take",
            named.path.display(),
            name.display()
        ),
    )
    .next("change to the image's directory"))
}

fn backing_file(
    Named {
        name: given,
        path: overlay,
    }: Named<'_>,
    backing: &BackingRef,
    shown: &str,
    reach: Reach,
) -> Result<(PathBuf, Option<Format>), Failure> {
    // QEMU takes what follows `file:` as it is, and a relative name there against its own directory.
    let after_file = backing
        .name
        .strip_prefix(b"file:")
        .filter(|name| name.starts_with(b"/"));
    let name = after_file.unwrap_or(&backing.name);
    let recorded = backing.format.as_deref().map(named_format);
    if reach == Reach::Trusting
        && let Some((path, format)) = json_name::plain_file(name)
        && recorded.as_ref().is_none_or(|recorded| *recorded == format)
    {
        return Ok((path, Some(format)));
    }
    if has_protocol(name) {
        return Err(Failure::new(
            Errno::EOPNOTSUPP,
            format!(
                "{} stands on {shown}, which is no plain file name",
                overlay.display()
            ),
        )
        .next("start the VM and mount its QMP socket"));
    }
    let directory = given.parent().unwrap_or(Path::new("/"));
    let path = directory.join(OsStr::from_bytes(name));
    let format = recorded.ok_or_else(|| {
        Failure::new(
            Errno::EINVAL,
            format!(
                "{} does not record the format of its backing file {shown}, and guessing it would let a guest \
                 choose which files of the host it reads",
                overlay.display()
            ),
        )
        .next(format!(
            "if it is qcow2: qemu-img rebase -u -F qcow2 -b {} {}",
            quoted(shown),
            quoted(&overlay.to_string_lossy())
        ))
    })?;
    Ok((path, Some(format)))
}

/// A format by the name that an overlay records.
fn named_format(name: &str) -> Format {
    match name {
        "qcow2" => Format::Qcow2,
        "raw" | "file" | "host_device" => Format::Raw,
        other => Format::Other(other.to_owned()),
    }
}

/// Whether QEMU takes a name for something else than a file: `nbd:...`, `json:...`.
fn has_protocol(name: &[u8]) -> bool {
    let before = name.iter().position(|byte| matches!(byte, b':' | b'/'));
    before.is_some_and(|at| name[at] == b':')
}

/// The format of an image nobody has named one for. This is the user's own file, on the command
/// line; and still a guest that owns a raw disk may have written any magic into it.
fn format_of_image(path: &Path, file: &File) -> Result<Format, Failure> {
    let mut magic = [0; 4];
    let read = ReadAt::read_at(file, &mut magic, 0)
        .map_err(|error| Failure::io(format_args!("read {}", path.display()), &error))?;
    let is_called = |word: &str| {
        path.extension()
            .is_some_and(|extension| extension.eq_ignore_ascii_case(word))
    };
    if read < magic.len() || &magic != MAGIC {
        if is_called("qcow2") || is_called("qcow") {
            return Err(Failure::new(
                Errno::EUCLEAN,
                format!("{} is not a qcow2 image", path.display()),
            )
            .next("if it really is raw, say so: -o format=raw (qmpfs cat: --format raw)"));
        }
        if let Some(other) = super::foreign::called_like(path) {
            return Err(Failure::new(
                Errno::EINVAL,
                format!(
                    "{} is called like {other}, and no format is guessed",
                    path.display()
                ),
            )
            .next(format!(
                "say -o format={other}, or format=raw if it is that"
            )));
        }
        return Ok(Format::Raw);
    }
    if is_called("raw") {
        return Err(Failure::new(
            Errno::EINVAL,
            format!(
                "{} is called raw, but begins like a qcow2 image",
                path.display()
            ),
        )
        .next("say -o format=raw or format=qcow2"));
    }
    Ok(Format::Qcow2)
}

fn open(path: &Path) -> Result<File, Failure> {
    let io = |error| Failure::io(format_args!("open {}", path.display()), &error);
    let file = sys::open_for_reading(path).map_err(io)?;
    let kind = file.metadata().map_err(io)?.file_type();
    if kind.is_file() || kind.is_block_device() {
        return Ok(file);
    }
    Err(Failure::new(
        Errno::EINVAL,
        format!(
            "{} is neither a regular file nor a block device",
            path.display()
        ),
    )
    .next("name an image file"))
}

fn missing(name: &Path, overlay: Option<&Path>, error: &std::io::Error) -> Failure {
    match overlay {
        None => Failure::io(format_args!("open {}", name.display()), error),
        Some(overlay) => Failure::io(
            format_args!(
                "open {}, on which {} stands,",
                name.display(),
                overlay.display()
            ),
            error,
        ),
    }
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    if !word.is_empty()
        && word
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"/._-+=:@%".contains(&b))
    {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests;

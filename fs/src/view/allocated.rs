//! How much of a disk one layer holds by itself: what a merge of it would copy.
//! It remembers answers by file and time of change, because a plan is read again and again.

use super::cache::LayerCache;
use super::failure_of;
use super::layer::{LayerSpec, Stamp, look};
use crate::errno::Failure;
use crate::model::{FileId, Format};
use crate::sys;
use qmpfs_qcow2::{Header, Layer};
use std::collections::HashMap;
use std::path::Path;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

/// Answers that are remembered: a few times the layers of the longest chain anybody has. When
/// full, all are forgotten.
const MAX_ANSWERS: usize = 4096;

/// A file changed more recently than this may change again without its time telling (clocks of
/// filesystems tick in milliseconds, on some in seconds), so what it holds now is not remembered.
const SETTLED_AFTER: Duration = Duration::from_secs(3);

static ANSWERS: LazyLock<Mutex<HashMap<FileId, (Stamp, Holds)>>> = LazyLock::new(Mutex::default);

/// Bytes of the disk that a layer itself says something about.
#[derive(Clone, Copy)]
struct Holds {
    /// Data, compressed or zero.
    all: u64,
    /// Those in compressed clusters.
    compressed: u64,
}

/// Bytes of the disk that the layer itself says something about: data, compressed or zero.
pub fn layer_allocated(spec: &LayerSpec) -> Result<u64, Failure> {
    Ok(holds(spec)?.all)
}

/// Bytes of the disk that the layer holds compressed.
pub fn layer_compressed(spec: &LayerSpec) -> Result<u64, Failure> {
    Ok(holds(spec)?.compressed)
}

/// Whether a commit of `above` into a layer moves bytes that `above` does not cover: a compressed cluster that is written in
/// part is written anew as a whole, elsewhere, and what it took is free for the next one. Maps made before are wrong then.
pub fn moves_when_committed_into(spec: &LayerSpec, above: &Path) -> Result<bool, Failure> {
    if spec.format != Format::Qcow2 || holds(spec)?.compressed == 0 {
        return Ok(false);
    }
    let header = |path: &Path| {
        let file = sys::open_for_reading(path)
            .map_err(|error| Failure::io(format_args!("open {}", path.display()), &error))?;
        Header::read(&file).map_err(|error| failure_of(path, &error))
    };
    Ok(header(&spec.path)?.cluster_bits.size() > header(above)?.mapped_unit())
}

fn holds(spec: &LayerSpec) -> Result<Holds, Failure> {
    let (file, stamp) = look(&spec.path)?;
    let known = answers().get(&file).copied();
    if let Some((of, holds)) = known
        && of == stamp
        && spec.file.is_none_or(|wanted| wanted == file)
    {
        return Ok(holds);
    }
    // A cache of its own: walking all tables must not push out those that views read.
    let opened = LayerCache::default().layer(spec)?;
    let holds = match &**opened.layer() {
        Layer::Qcow2(image) => {
            let held = image
                .allocation()
                .map_err(|error| failure_of(&spec.path, &error))?;
            let all = held.data.saturating_add(held.compressed);
            Holds {
                all: all.saturating_add(held.zero),
                compressed: held.compressed,
            }
        }
        Layer::Raw(raw) => {
            let data = raw_data(&opened, raw.virtual_size());
            let look = format_args!("look at {}", spec.path.display());
            Holds {
                all: data.map_err(|error| Failure::io(look, &error))?,
                compressed: 0,
            }
        }
    };
    if !opened.stamp().settled(SETTLED_AFTER) {
        return Ok(holds);
    }
    let mut answers = answers();
    if answers.len() >= MAX_ANSWERS {
        answers.clear();
    }
    answers.insert(opened.id(), (opened.stamp(), holds));
    Ok(holds)
}

fn raw_data(opened: &super::OpenLayer, size: u64) -> std::io::Result<u64> {
    let (mut sum, mut at) = (0, 0);
    while at < size {
        let stretch = sys::stretch_at(opened.file(), at)?;
        let end = stretch.end.clamp(at + 1, size);
        if stretch.data {
            sum += end - at;
        }
        at = end;
    }
    Ok(sum)
}

fn answers() -> std::sync::MutexGuard<'static, HashMap<FileId, (Stamp, Holds)>> {
    // No change of the map can panic halfway.
    ANSWERS.lock().unwrap_or_else(PoisonError::into_inner)
}

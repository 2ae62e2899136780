//! How much of a disk one layer holds by itself: what a merge of it would copy.
//! It remembers answers by file and time of change, because a plan is read again and again.

use super::cache::LayerCache;
use super::failure_of;
use super::layer::{LayerSpec, Stamp, look};
use crate::errno::Failure;
use crate::model::FileId;
use crate::sys;
use qmpfs_qcow2::Layer;
use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

/// Answers that are remembered: a few times the layers of the longest chain anybody has. When
/// full, all are forgotten.
const MAX_ANSWERS: usize = 4096;

/// A file changed more recently than this may change again without its time telling (clocks of
/// filesystems tick in milliseconds, on some in seconds), so what it holds now is not remembered.
const SETTLED_AFTER: Duration = Duration::from_secs(3);

static ANSWERS: LazyLock<Mutex<HashMap<FileId, (Stamp, u64)>>> = LazyLock::new(Mutex::default);

/// Bytes of the disk that the layer itself says something about: data, compressed or zero.
pub fn layer_allocated(spec: &LayerSpec) -> Result<u64, Failure> {
    let (file, stamp) = look(&spec.path)?;
    let known = answers().get(&file).copied();
    if let Some((of, bytes)) = known
        && of == stamp
        && spec.file.is_none_or(|wanted| wanted == file)
    {
        return Ok(bytes);
    }
    // A cache of its own: walking all tables must not push out those that views read.
    let opened = LayerCache::default().layer(spec)?;
    let bytes = match &**opened.layer() {
        Layer::Qcow2(image) => {
            let held = image
                .allocation()
                .map_err(|error| failure_of(&spec.path, &error))?;
            held.data
                .saturating_add(held.compressed)
                .saturating_add(held.zero)
        }
        Layer::Raw(raw) => raw_data(&opened, raw.virtual_size()).map_err(|error| {
            Failure::io(format_args!("look at {}", spec.path.display()), &error)
        })?,
    };
    if !opened.stamp().settled(SETTLED_AFTER) {
        return Ok(bytes);
    }
    let mut answers = answers();
    if answers.len() >= MAX_ANSWERS {
        answers.clear();
    }
    answers.insert(opened.id(), (opened.stamp(), bytes));
    Ok(bytes)
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

fn answers() -> std::sync::MutexGuard<'static, HashMap<FileId, (Stamp, u64)>> {
    // No change of the map can panic halfway.
    ANSWERS.lock().unwrap_or_else(PoisonError::into_inner)
}

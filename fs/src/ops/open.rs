//! Opening a view: which files a point is made of, as QEMU's graph says it at this moment, and
//! the lease that keeps a merge from changing them. When QEMU is gone its last word counts: a
//! chain without a QEMU does not change.

use super::engine::Engine;
use super::served;
use crate::errno::{Errno, Failure};
use crate::leases::{Lease, LeaseKey};
use crate::model::{FileId, Internal, Layer};
use crate::nbd;
use crate::tree::{Found, PointKey, find_point};
use crate::view::{InternalRef, LayerCache, LayerSpec, View};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long an open waits for QEMU before it goes by what is known.
const LOOK_DEADLINE: Duration = Duration::from_secs(2);

/// Between looking at the graph and opening the files a merge may have ended and given the files
/// other names; then the next look is right. A disk that is being settled takes a little longer.
const RETRY_DEADLINE: Duration = Duration::from_secs(3);
/// A disk that nobody holds shows its true chain after one look; a few more do not hurt.
const LOOKS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(20);

/// Opens a view of a point for `pid`.
pub(super) async fn open(
    engine: &Engine,
    point: &PointKey,
    pid: u32,
) -> Result<Arc<View>, Failure> {
    let began = Instant::now();
    let mut looks = 0;
    loop {
        // what is seen while somebody changes the disk may be old, also when he has just ended
        let changing = engine.is_held(&point.disk) || engine.is_settling();
        looks += u32::from(!changing);
        match try_open(engine, point, pid).await {
            Err(failure)
                if matches!(failure.errno, Errno::ENOENT | Errno::ESTALE)
                    && (looks < LOOKS || changing)
                    && began.elapsed() < RETRY_DEADLINE =>
            {
                tokio::time::sleep(PAUSE).await;
            }
            outcome => return outcome,
        }
    }
}

async fn try_open(engine: &Engine, point: &PointKey, pid: u32) -> Result<Arc<View>, Failure> {
    match tokio::time::timeout(LOOK_DEADLINE, engine.refresh(&[])).await {
        Ok(Ok(())) => {}
        Ok(Err(failure)) => tracing::debug!(%failure, "opening by the last look"),
        Err(_) => tracing::debug!("QEMU does not answer; opening by the last look"),
    }
    let model = engine.current();
    let gone = || {
        Failure::new(Errno::ESTALE, "this point is gone")
            .next("see which there are: ls the directory again")
    };
    let found = find_point(&model, point).ok_or_else(gone)?;
    if let Found::Live { live, .. } = found {
        return super::live::open(engine, live, pid).await;
    }
    let chain = found.layers();
    let internal = match found {
        Found::Internal { internal, .. } => Some(internal.clone()),
        Found::Layer { .. } | Found::Branch { .. } | Found::Backup { .. } | Found::Live { .. } => {
            None
        }
    };
    let merged = matches!(found, Found::Backup { .. }) && engine.merges_backups(&point.disk);
    // What our own merge writes is read through maps made before. An internal snapshot is no exception: where QEMU has the
    // file that holds it, we are told when it goes, but who writes a file that we know by its name alone (-o ro) may remove
    // it, and write over its clusters, while they are read.
    let unguarded = match merged {
        true => Vec::new(),
        false => unguarded(&chain),
    };
    let top = chain.last().ok_or_else(gone)?;
    let file = seen(top)?;
    for layer in &chain {
        seen(layer)?;
    }
    let above = served::topmost(&chain).map_or(0, |at| at + 1);
    let specs: Vec<LayerSpec> = chain.iter().map(|layer| LayerSpec::from(*layer)).collect();
    let key = LeaseKey {
        file,
        internal: internal.as_ref().map(|internal| internal.id.clone()),
    };
    let lease = engine.leases.hold(key, pid).ok_or_else(gone)?;
    if let (Some(internal), true) = (&internal, above == chain.len()) {
        return Err(Failure::new(
            Errno::EOPNOTSUPP,
            format!(
                "'{}' lies in {} ({}), of which QEMU shows nothing but the newest state",
                internal.tag,
                top.path.display(),
                top.format.name()
            ),
        )
        .next("with the VM off: qemu-img convert -l NAME"));
    }
    let base = match above {
        0 => None,
        above => Some(served::disk(engine, &chain[..above]).await?),
    };
    let cache = engine.cache.clone();
    super::blocking::blocking(move || {
        refuse_if_one_is_written(&unguarded)?;
        let base = base.as_ref().map(|disk| (&specs[above - 1], disk));
        let upper = &specs[above..];
        match internal {
            None => {
                let opened = cache.open_over(base, upper, None)?;
                Ok(Arc::new(View::new(opened, lease)))
            }
            Some(internal) => at_internal(&cache, base, upper, &internal, lease),
        }
    })
    .await
}

/// A layer without a node is one that QEMU does not guard: somebody may have started a VM on it.
fn unguarded(chain: &[&Layer]) -> Vec<PathBuf> {
    let layers = chain.iter().filter(|layer| layer.node.is_none());
    layers.map(|layer| layer.path.clone()).collect()
}

/// Refused while somebody writes a layer that QEMU does not guard.
pub(super) fn refuse_if_written(chain: &[&Layer]) -> Result<(), Failure> {
    refuse_if_one_is_written(&unguarded(chain))
}

fn refuse_if_one_is_written(layers: &[PathBuf]) -> Result<(), Failure> {
    for layer in layers {
        if crate::view::written_by_someone(layer)? {
            return Err(Failure::new(
                Errno::EBUSY,
                format!("{} is being written", layer.display()),
            )
            .next("a program has that file open for writing: end it; a layer that others stand on must not change"));
        }
    }
    Ok(())
}

fn at_internal(
    cache: &LayerCache,
    base: Option<(&LayerSpec, &Arc<nbd::Disk>)>,
    specs: &[LayerSpec],
    internal: &Internal,
    lease: Lease,
) -> Result<Arc<View>, Failure> {
    let at = InternalRef {
        id: internal.id.clone(),
        tag: internal.tag.clone(),
    };
    let view = View::new(cache.open_over(base, specs, Some(&at))?, lease);
    // One that somebody made again has the id and the name, but another instant.
    let opened = view.opened();
    if opened
        .map(|opened| opened.snapshot_time(&at))
        .transpose()?
        .flatten()
        != Some(internal.time)
    {
        return Err(Failure::new(
            Errno::ESTALE,
            format!("'{}' was removed and made again", internal.tag),
        )
        .next("open it again"));
    }
    Ok(Arc::new(view))
}

fn seen(layer: &Layer) -> Result<FileId, Failure> {
    layer.file.ok_or_else(|| {
        Failure::new(
            Errno::EOPNOTSUPP,
            format!(
                "{}, which QEMU has open, cannot be seen from here",
                layer.path.display()
            ),
        )
        .next("run qmpfs where QEMU's paths lead to the same files: on its host, in its container")
    })
}

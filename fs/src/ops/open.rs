//! Opening a view: which files a point is made of, as QEMU's graph says it at this moment, and
//! the lease that keeps a merge from changing them. When QEMU is gone its last word counts: a
//! chain without a QEMU does not change.

use super::engine::Engine;
use crate::errno::{Errno, Failure};
use crate::leases::LeaseKey;
use crate::model::{Disk, FileId, Internal, Layer};
use crate::tree::{PointKey, PointKind, Section, point_place};
use crate::view::{InternalRef, LayerSpec, View};
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
        looks += 1;
        match try_open(engine, point, pid).await {
            Err(failure)
                if matches!(failure.errno, Errno::ENOENT | Errno::ESTALE)
                    && (looks < LOOKS || engine.is_held(&point.disk))
                    && began.elapsed() < RETRY_DEADLINE =>
            {
                tokio::time::sleep(PAUSE).await;
            }
            outcome => return outcome,
        }
    }
}

async fn try_open(engine: &Engine, point: &PointKey, pid: u32) -> Result<Arc<View>, Failure> {
    match tokio::time::timeout(LOOK_DEADLINE, engine.refresh(None)).await {
        Ok(Ok(())) => {}
        Ok(Err(failure)) => tracing::debug!(%failure, "opening by the last look"),
        Err(_) => tracing::debug!("QEMU does not answer; opening by the last look"),
    }
    let model = engine.current();
    let gone = || Failure::new(Errno::ESTALE, "this point is gone");
    let (disk, section, name) = point_place(&model, point).ok_or_else(gone)?;
    let disk = model.disk(&disk).ok_or_else(gone)?;
    let (chain, internal) = files(disk, point.kind, section, &name).ok_or_else(gone)?;
    let top = chain.last().ok_or_else(gone)?;
    let file = seen(top)?;
    for layer in &chain {
        seen(layer)?;
    }
    let specs: Vec<LayerSpec> = chain.iter().map(|layer| LayerSpec::from(*layer)).collect();
    let lease = engine.leases.hold(
        LeaseKey {
            file,
            internal: internal.map(|internal| internal.id.clone()),
        },
        pid,
    );
    let at = internal.map(|internal| InternalRef {
        id: internal.id.clone(),
        tag: internal.tag.clone(),
    });
    let cache = engine.cache.clone();
    super::snapshot::blocking(move || View::open(&cache, &specs, at.as_ref(), lease).map(Arc::new))
        .await
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
    })
}

/// The layers of a point, base first.
fn files<'a>(
    disk: &'a Disk,
    kind: PointKind,
    section: Section,
    name: &str,
) -> Option<(Vec<&'a Layer>, Option<&'a Internal>)> {
    let up_to = |index: usize| disk.layers[..=index].iter().collect::<Vec<_>>();
    match kind {
        PointKind::Internal => {
            let internal = disk.internal(name)?;
            let chain = match internal.layer {
                Some(index) => up_to(index),
                None => disk.layers.iter().chain([&disk.active]).collect(),
            };
            Some((chain, Some(internal)))
        }
        PointKind::Layer | PointKind::External => {
            let index = super::merge::layer_index(disk, name, section)?;
            Some((up_to(index), None))
        }
    }
}

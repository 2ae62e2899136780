//! The end of instants that nobody asked for: those whose QEMU or job is gone, those of a mount that was
//! killed, and all of a mount that ends. Nothing of another mount that lives is touched.

use super::dismantle::dismantle;
use super::names::{Names, Server};
use super::server;
use crate::errno::Failure;
use crate::layer_file;
use crate::model::{FileId, Live};
use crate::ops::engine::Engine;
use crate::ops::{blocking::blocking, scratch, served};
use crate::sys;
use qmpbridge::Bridge;
use qmpbridge::command::QueryBlockExports;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

/// How long the end of a mount waits for QEMU.
const END_DEADLINE: Duration = Duration::from_secs(15);

/// Ends what is lost, and takes down what a killed mount left: at every mount and every new
/// connection, and after a verb whose outcome was not known.
pub(in crate::ops) async fn sweep(engine: &Engine) -> Result<(), Failure> {
    if engine.config.verbs.read_only {
        return Ok(());
    }
    let bridge = engine.bridge()?;
    if !bridge.supports("query-block-exports") {
        return Ok(());
    }
    let _turn = engine.lives.turn().await?;
    let jobs: BTreeSet<String> = bridge
        .jobs()
        .await?
        .iter()
        .map(|job| job.id.to_string())
        .collect();
    for (names, disk, live) in engine.lives.all() {
        if !jobs.contains(&names.to_string()) {
            engine.lives.break_off(&names, "its QEMU has ended");
            super::end(engine, &names, &live).await?;
            let name = &live.record.name;
            engine.log.note(&format!(
                "disk '{disk}': the live instant '{name}' is gone: QEMU was started again, or somebody ended its job"
            ));
        }
    }
    served::sweep(engine, bridge).await?;
    super::forget_a_server_without_use(engine);
    for (names, left) in left_in_qemu(engine, bridge, jobs).await? {
        // who claims it lives
        if let Ok(_claim) = layer_file::claim_kept(&names.digits) {
            dismantle(engine, &names, left.scratch).await?;
            if left.is_served && names.server == Server::Ours {
                server::stop_unless_used(bridge).await?;
            }
            engine.log.note(&format!(
                "{names}: a live instant of a killed mount is taken down"
            ));
        }
    }
    scratch::sweep(engine, Names::digits_of_scratch).await?;
    server::sweep(bridge).await
}

/// What is left of an instant in QEMU.
#[derive(Default)]
struct Left {
    /// The scratch file, where its node is there.
    scratch: Option<(PathBuf, FileId)>,
    /// Its export is there, and with it the server that it was made for.
    is_served: bool,
}

/// What QEMU has that no instant of ours is.
async fn left_in_qemu(
    engine: &Engine,
    bridge: &Bridge,
    jobs: BTreeSet<String>,
) -> Result<BTreeMap<Names, Left>, Failure> {
    let exports = bridge.run(QueryBlockExports).await?;
    let graph = bridge.graph().await?;
    let sight = engine.sight(bridge);
    let known: BTreeSet<Names> = engine
        .lives
        .all()
        .into_iter()
        .map(|(names, ..)| names)
        .collect();
    let mut left: BTreeMap<Names, Left> = BTreeMap::new();
    for names in jobs.iter().filter_map(|id| Names::of(id)) {
        left.entry(names).or_default();
    }
    for names in exports.iter().filter_map(|export| Names::of(&export.id)) {
        left.entry(names).or_default().is_served = true;
    }
    for node in graph.nodes() {
        let Some(names) = Names::of(node.name.as_str()) else {
            continue;
        };
        let path = node.path.as_deref().and_then(|path| sight.resolve(path));
        let scratch = path.and_then(|path| Some((path.clone(), sys::file_id(&path).ok()?)));
        let is_scratch =
            |(path, _): &(PathBuf, FileId)| path.file_name() == Some(names.scratch().as_ref());
        let scratch = scratch.filter(is_scratch);
        let known = &mut left.entry(names).or_default().scratch;
        *known = known.take().or(scratch);
    }
    left.retain(|names, _| !known.contains(names));
    Ok(left)
}

/// Takes all instants down: the mount ends.
pub(in crate::ops) async fn end_all(engine: &Engine) {
    let all = engine.lives.all();
    if all.is_empty() {
        return;
    }
    if tokio::time::timeout(END_DEADLINE, end_each(engine, &all))
        .await
        .is_err()
    {
        tracing::error!(
            "QEMU does not let go of live instants; the next mount of it takes them down"
        );
    }
}

async fn end_each(engine: &Engine, all: &[(Names, String, Live)]) {
    let Ok(_turn) = engine.lives.turn().await else {
        return;
    };
    for (names, disk, live) in all {
        if let Err(failure) = super::end(engine, names, live).await {
            tracing::warn!(%failure, disk, "a live instant is not taken down in QEMU");
            let scratch = live.scratch.clone();
            let removed = blocking(move || {
                scratch::remove_unused(&scratch);
                Ok(())
            });
            // what cannot be removed was told
            let _told = removed.await;
        }
    }
}

//! Dirty bitmaps of backups follow the disk: they are on its active layer and on no other. A seal takes
//! them onto the overlay within its transaction; a commit of the active layer onto the layer below,
//! before the pivot. It knows QEMU's nodes; no backup, no file.
//! Invariant: whichever layer is active, a bitmap there marks all that was written since its instant.
//! What cannot be brought along is left out, and the next incremental backup is a whole one.

use super::plan;
use super::prepare::{Persistence, persistence_of};
use crate::errno::Failure;
use crate::model::Disk;
use qmpbridge::command::{
    BitmapSource, BlockDirtyBitmapAdd, BlockDirtyBitmapMerge, BlockDirtyBitmapRemove,
    TransactionAction,
};
use qmpbridge::{BlockGraph, Bridge, NodeName};

/// One that can be brought along.
pub(super) struct Mark<'a> {
    pub(super) tag: &'a str,
    pub(super) granularity: u64,
}

impl Mark<'_> {
    /// An end mark marks no write.
    fn disabled(&self) -> Option<bool> {
        plan::is_end_mark(self.tag).then_some(true)
    }
}

/// What a seal's transaction has to do, behind the snapshot itself: from there on nobody writes until
/// the transaction is over.
pub(in crate::ops) fn onto_overlay(
    disk: &Disk,
    sealed: &NodeName,
    overlay: &NodeName,
) -> Vec<TransactionAction> {
    let whole = disk
        .bitmaps
        .iter()
        .filter(|it| plan::is_ours(&it.tag) && it.recording && !it.inconsistent && !it.busy);
    whole
        .flat_map(|bitmap| {
            let end_mark = bitmap.end_mark.map(|_| plan::end_mark_name(&bitmap.tag));
            let granularity = bitmap.granularity;
            let tags = [Some(bitmap.tag.clone()), end_mark];
            tags.into_iter()
                .flatten()
                .map(move |tag| (tag, granularity))
        })
        .flat_map(|(tag, granularity)| {
            let mark = Mark {
                tag: &tag,
                granularity,
            };
            // an overlay of ours can store them
            let mut actions = copy(&mark, sealed, overlay, Persistence::Stored).to_vec();
            actions.push(TransactionAction::BlockDirtyBitmapRemove(
                BlockDirtyBitmapRemove {
                    node: sealed.clone(),
                    name: tag,
                },
            ));
            actions
        })
        .collect()
}

/// Before the pivot of a commit of `upper` into `lower`, at READY. Each write of the guest goes to the
/// upper layer first, whose bitmap marks it, and to the lower one later, whose bitmap marks it as well:
/// begun on the lower one, and then merged from the upper one, it misses none.
pub(in crate::ops) async fn before_pivot(
    bridge: &Bridge,
    upper: &NodeName,
    lower: &NodeName,
) -> Result<(), Failure> {
    let graph = bridge.graph().await?;
    forget(bridge, &graph, lower).await?;
    let (Some(from), Some(to)) = (graph.node(upper), graph.node(lower)) else {
        return Ok(());
    };
    let actions: Vec<_> = from
        .dirty_bitmaps
        .iter()
        .filter(|it| !it.inconsistent && !it.busy)
        .filter_map(|it| {
            let tag = it.name.as_deref().filter(|tag| plan::is_ours(tag))?;
            if !it.recording && !plan::is_end_mark(tag) {
                return None;
            }
            let mark = Mark {
                tag,
                granularity: it.granularity,
            };
            Some(copy(&mark, upper, lower, persistence_of(to)))
        })
        .flatten()
        .collect();
    if !actions.is_empty() {
        bridge.transaction(actions).await?;
    }
    Ok(())
}

/// The pivot does not come: the layer below has them no more.
pub(in crate::ops) async fn after_no_pivot(
    bridge: &Bridge,
    lower: &NodeName,
) -> Result<(), Failure> {
    let graph = bridge.graph().await?;
    forget(bridge, &graph, lower).await
}

/// What an attempt before this one left, or an earlier life of the layer as the active one.
async fn forget(bridge: &Bridge, graph: &BlockGraph, node: &NodeName) -> Result<(), Failure> {
    let bitmaps = graph.node(node).map(|it| it.dirty_bitmaps.as_slice());
    let tags = bitmaps.unwrap_or_default().iter();
    for tag in tags.filter_map(|it| it.name.as_deref().filter(|tag| plan::is_ours(tag))) {
        let remove = BlockDirtyBitmapRemove {
            node: node.clone(),
            name: tag.to_owned(),
        };
        bridge.run(remove).await?;
    }
    Ok(())
}

/// A bitmap of the same name that marks what `from`'s marks, and all from now on.
pub(super) fn copy(
    mark: &Mark<'_>,
    from: &NodeName,
    to: &NodeName,
    persistence: Persistence,
) -> [TransactionAction; 2] {
    [
        TransactionAction::BlockDirtyBitmapAdd(BlockDirtyBitmapAdd {
            node: to.clone(),
            name: mark.tag.to_owned(),
            granularity: u32::try_from(mark.granularity).ok(),
            persistent: Some(persistence == Persistence::Stored),
            disabled: mark.disabled(),
        }),
        TransactionAction::BlockDirtyBitmapMerge(BlockDirtyBitmapMerge {
            node: to.clone(),
            target: mark.tag.to_owned(),
            bitmaps: vec![BitmapSource::External {
                node: from.clone(),
                name: mark.tag.to_owned(),
            }],
        }),
    ]
}

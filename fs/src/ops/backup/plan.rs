//! What a backup copies, and onto what: decided from what lies in the directory and which dirty
//! bitmaps the active layer has. Pure. A bitmap belongs to one backup for all its life (its name ends
//! with the backup's id) and marks what was written since that instant; so which backup is stood on
//! and what is copied can never disagree. When in doubt, the whole disk.

use crate::model::{Backup, BackupKind, Bitmap, Copied, LayerState, Previous};

/// What our bitmaps are called, before the id.
const BITMAP: &str = "qmpfs-";
/// What the bitmap with the end mark has behind the name of the one that it is for.
const END: &str = "-end";

/// What to copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    /// What will be in the file.
    pub(super) copied: Copied,
    /// The backup to stand on; none of the top layer alone where it is to be made as well.
    pub(super) previous: Option<Previous>,
    /// The bitmap that says what was written since.
    pub(super) bitmap: Option<String>,
    /// Why it is the whole disk, though less was asked for.
    pub(super) why_full: Option<String>,
    /// Bytes that bitmap marks now.
    pub(super) marked: u64,
}

impl Plan {
    fn full(why_full: Option<String>) -> Self {
        Plan {
            copied: Copied::Full,
            previous: None,
            bitmap: None,
            why_full,
            marked: 0,
        }
    }
}

/// The bitmap of a backup.
pub(super) fn bitmap_name(id: &str) -> String {
    format!("{BITMAP}{id}")
}

/// The bitmap beside that one in which only the disk's end is marked.
pub(super) fn end_mark_name(tag: &str) -> String {
    format!("{tag}{END}")
}

/// Whether it is such a one.
pub(super) fn is_end_mark(tag: &str) -> bool {
    is_ours(tag) && tag.ends_with(END)
}

/// The bitmaps of a node as they are shown: an end mark is part of the one that it is for.
pub(in crate::ops) fn with_end_marks(mut found: Vec<Bitmap>) -> Vec<Bitmap> {
    let marks: Vec<(String, u64)> = found
        .iter()
        .filter(|it| is_end_mark(&it.tag))
        .map(|it| (it.tag.clone(), if it.inconsistent { 0 } else { it.count }))
        .collect();
    for (tag, count) in marks {
        if let Some(of) = found.iter_mut().find(|it| end_mark_name(&it.tag) == tag) {
            of.end_mark = Some(count);
            found.retain(|it| it.tag != tag);
        }
    }
    found
}

/// Whether a bitmap is of a backup of ours.
pub(super) fn is_ours(tag: &str) -> bool {
    tag.strip_prefix(BITMAP).is_some_and(|id| !id.is_empty())
}

/// The disk as it is asked of.
pub(super) struct Now<'a> {
    /// Dirty bitmaps of the active layer.
    pub(super) bitmaps: &'a [Bitmap],
    /// Names of those of the layers below it.
    pub(super) below: &'a [String],
    pub(super) virtual_size: u64,
    pub(super) beneath: &'a Beneath,
}

/// What the active layer stands on.
pub(super) enum Beneath {
    Nothing,
    /// A layer that a merge has begun to change.
    HalfMerged,
    /// Layers, by what they are known again.
    Layers(Vec<LayerState>),
}

/// Decides. `backups` are in the order they were made.
pub(super) fn choose(kind: BackupKind, backups: &[Backup], now: &Now<'_>) -> Plan {
    match kind {
        BackupKind::Full | BackupKind::Mirror => return Plan::full(None),
        BackupKind::Top => return top(backups, now.beneath),
        BackupKind::Incremental => {}
    }
    // the newest one says why, if none will do
    let mut why = None;
    for backup in backups.iter().rev() {
        match usable(backup, now) {
            Ok(bitmap) => {
                return Plan {
                    copied: Copied::Changes,
                    previous: Some(Previous {
                        id: backup.manifest.id.clone(),
                        name: backup.manifest.name.clone(),
                    }),
                    bitmap: Some(bitmap.tag.clone()),
                    why_full: None,
                    marked: bitmap.count,
                };
            }
            Err(reason) => why = why.or(Some(reason)),
        }
    }
    let why = why.unwrap_or_else(|| "there is no backup before it".to_owned());
    Plan::full(Some(why))
}

/// The active layer alone, on a copy of what it stands on.
fn top(backups: &[Backup], beneath: &Beneath) -> Plan {
    let layers = match beneath {
        Beneath::Layers(layers) => layers,
        Beneath::Nothing => {
            return Plan::full(Some("the active layer stands on no other".into()));
        }
        Beneath::HalfMerged => {
            return Plan::full(Some("a merge has begun to change the layer below".into()));
        }
    };
    let told = layers.iter().all(|layer| layer.file.is_some());
    let copy_of_it = |backup: &&Backup| {
        let right = backup.is_complete() && backup.doubt.is_none();
        right && told && backup.manifest.layers == *layers
    };
    Plan {
        copied: Copied::Top,
        previous: backups
            .iter()
            .rfind(copy_of_it)
            .map(|copy| Previous::of(&copy.manifest)),
        bitmap: None,
        why_full: None,
        marked: 0,
    }
}

/// The bitmap by which a further backup can stand on this one.
fn usable<'a>(backup: &Backup, now: &Now<'a>) -> Result<&'a Bitmap, String> {
    let name = &backup.manifest.name;
    if !backup.is_complete() {
        return Err(format!("'{name}' cannot be read"));
    }
    if let Some(doubt) = &backup.doubt {
        return Err(doubt.clone());
    }
    if backup.manifest.virtual_size != now.virtual_size {
        return Err(format!("the disk had another size at '{name}'"));
    }
    let tag = match &backup.manifest.bitmap {
        Some(tag) if *tag == bitmap_name(&backup.manifest.id) => tag,
        Some(_) | None => return Err(format!("no dirty bitmap was made with '{name}'")),
    };
    let mut found = now.bitmaps.iter().filter(|bitmap| bitmap.tag == *tag);
    let (bitmap, twin) = (found.next(), found.next());
    let Some(bitmap) = bitmap.filter(|_| twin.is_none()) else {
        return Err(format!(
            "the active layer has no dirty bitmap {tag} of '{name}': it was removed, was lost with QEMU's end, or the layer is another one since"
        ));
    };
    if now.below.contains(tag) {
        return Err(format!(
            "a layer below the active one has a dirty bitmap {tag}, too: what another tool began on the active one later does not mark all since '{name}'"
        ));
    }
    let trouble = if bitmap.inconsistent {
        "was not stored when QEMU ended, as after kill -9 or a power cut"
    } else if !bitmap.recording {
        "is disabled, and may not have marked all that was written"
    } else if bitmap.busy {
        "is in use by another job"
    } else if backup.manifest.end_mark.is_none() {
        return Ok(bitmap);
    } else {
        // QEMU marks nothing where a disk is cut and then is zeros
        match bitmap.end_mark {
            Some(0) => return Err(format!("the disk was smaller since '{name}'")),
            Some(_) => return Ok(bitmap),
            None => "has lost its end mark: the disk may have been smaller since",
        }
    };
    Err(format!("the dirty bitmap {tag} of '{name}' {trouble}"))
}

#[cfg(test)]
mod tests {
    use super::{Beneath, Now, Plan, bitmap_name, choose, end_mark_name, with_end_marks};
    use crate::model::{
        Backup, BackupKind, BackupStage, Bitmap, Copied, Finished, LayerState, Manifest,
    };

    const SIZE: u64 = 1 << 30;

    fn backup(id: &str) -> Backup {
        let manifest = Manifest {
            version: 1,
            id: id.into(),
            kind: BackupKind::Incremental,
            name: format!("name-{id}"),
            vm: "web1".into(),
            disk: "vda".into(),
            time: String::new(),
            copied: Copied::Full,
            why_full: None,
            previous: None,
            layers: Vec::new(),
            bitmap: Some(bitmap_name(id)),
            end_mark: Some(end_mark_name(&bitmap_name(id))),
            virtual_size: SIZE,
            file: None,
            digest: None,
            consistency: "crash".into(),
            frozen_ms: None,
            quiesce_error: None,
            group: None,
            qemu_version: String::new(),
            qmpfs_version: String::new(),
        };
        Backup::new(manifest, BackupStage::Complete)
    }

    fn bitmap(id: &str) -> Bitmap {
        Bitmap {
            name: bitmap_name(id),
            tag: bitmap_name(id),
            granularity: 65536,
            count: 5 << 16,
            recording: true,
            persistent: true,
            busy: false,
            inconsistent: false,
            end_mark: Some(65536),
        }
    }

    fn now(bitmaps: &[Bitmap]) -> Now<'_> {
        Now {
            bitmaps,
            below: &[],
            virtual_size: SIZE,
            beneath: &Beneath::Nothing,
        }
    }

    fn incremental(backups: &[Backup], bitmaps: &[Bitmap]) -> Plan {
        choose(BackupKind::Incremental, backups, &now(bitmaps))
    }

    /// Why the whole disk is copied.
    fn why(backups: &[Backup], bitmaps: &[Bitmap]) -> String {
        let plan = incremental(backups, bitmaps);
        assert_eq!((plan.copied, &plan.bitmap), (Copied::Full, &None));
        assert_eq!(plan.previous, None);
        plan.why_full.expect("a reason")
    }

    #[test]
    fn what_was_written_since_the_newest_is_copied() {
        let plan = incremental(&[backup("a"), backup("b")], &[bitmap("b"), bitmap("a")]);
        assert_eq!(plan.copied, Copied::Changes);
        assert_eq!(plan.bitmap.as_deref(), Some("qmpfs-b"));
        assert_eq!(plan.previous.map(|it| it.name).as_deref(), Some("name-b"));
        // the newest was removed, or its bitmap was: the one before it does as well
        let plan = incremental(&[backup("a"), backup("b")], &[bitmap("a")]);
        assert_eq!(plan.previous.map(|it| it.id).as_deref(), Some("a"));
        let full = choose(BackupKind::Full, &[backup("a")], &now(&[bitmap("a")]));
        assert_eq!(full, Plan::full(None));
    }

    #[test]
    fn in_doubt_it_is_the_whole_disk() {
        assert!(why(&[], &[bitmap("a")]).contains("no backup before"));
        assert!(why(&[backup("a")], &[]).contains("no dirty bitmap"));
        let mut lost = bitmap("a");
        lost.inconsistent = true;
        assert!(why(&[backup("a")], &[lost]).contains("kill -9"));
        let mut disabled = bitmap("a");
        disabled.recording = false;
        assert!(why(&[backup("a")], &[disabled]).contains("disabled"));
        let mut busy = bitmap("a");
        busy.busy = true;
        assert!(why(&[backup("a")], &[busy]).contains("another job"));
        let twins = [bitmap("a"), bitmap("a")];
        assert!(why(&[backup("a")], &twins).contains("no dirty bitmap"));
        let mut changed = backup("a");
        changed.doubt = Some("not as it was".into());
        assert!(why(&[changed], &[bitmap("a")]).contains("not as it was"));
        let mut broken = backup("a");
        broken.stage = BackupStage::Broken("gone".into());
        assert!(why(&[broken], &[bitmap("a")]).contains("cannot be read"));
        let mut resized = backup("a");
        resized.manifest.virtual_size = SIZE / 2;
        assert!(why(&[resized], &[bitmap("a")]).contains("another size"));
        let mut cut = bitmap("a");
        cut.end_mark = Some(0);
        assert!(why(&[backup("a")], &[cut.clone()]).contains("was smaller"));
        cut.end_mark = None;
        assert!(why(&[backup("a")], &[cut]).contains("lost its end mark"));
        let mut foreign = backup("a");
        foreign.manifest.bitmap = Some("qmpfs-b".into());
        assert!(why(&[foreign], &[bitmap("b")]).contains("no dirty bitmap was made"));
    }

    #[test]
    fn a_bitmap_that_also_lies_below_began_later() {
        let (bitmaps, below) = ([bitmap("a")], [bitmap_name("a")]);
        let asked = Now {
            below: &below,
            ..now(&bitmaps)
        };
        let plan = choose(BackupKind::Incremental, &[backup("a")], &asked);
        assert!(plan.why_full.is_some_and(|why| why.contains("below")));
    }

    #[test]
    fn the_top_layer_stands_on_a_copy_of_the_same_layers_or_on_a_new_one() {
        let layer = |inode, modified| LayerState {
            point: "p".into(),
            inode,
            file: Some(Finished {
                length: 1 << 20,
                modified,
            }),
        };
        let mut copy = backup("a");
        copy.manifest.layers = vec![layer(1, 7), layer(2, 7)];
        let copies = [backup("b"), copy.clone()];
        let top = |beneath: Beneath| {
            let asked = Now {
                beneath: &beneath,
                ..now(&[])
            };
            choose(BackupKind::Top, &copies, &asked)
        };
        let found = top(Beneath::Layers(copy.manifest.layers.clone()));
        assert_eq!(found.copied, Copied::Top);
        assert_eq!(found.previous.map(|it| it.id).as_deref(), Some("a"));
        for other in [
            vec![layer(1, 8), layer(2, 7)],
            vec![layer(1, 7), layer(2, 8)],
            vec![layer(1, 7)],
        ] {
            let plan = top(Beneath::Layers(other));
            assert_eq!((plan.copied, plan.previous), (Copied::Top, None));
        }
        for (beneath, why) in [
            (Beneath::Nothing, "stands on no other"),
            (Beneath::HalfMerged, "begun to change"),
        ] {
            let plan = top(beneath);
            assert_eq!(plan.copied, Copied::Full);
            assert!(plan.why_full.is_some_and(|it| it.contains(why)), "{why}");
        }
    }

    #[test]
    fn of_what_does_not_tell_that_it_was_written_no_copy_is_used_again() {
        let layers = vec![LayerState {
            point: String::new(),
            inode: 1,
            file: None,
        }];
        let mut copy = backup("a");
        copy.manifest.layers.clone_from(&layers);
        let beneath = Beneath::Layers(layers);
        let asked = Now {
            beneath: &beneath,
            ..now(&[])
        };
        let plan = choose(BackupKind::Top, &[copy], &asked);
        assert_eq!((plan.copied, plan.previous), (Copied::Top, None));
    }

    #[test]
    fn an_end_mark_is_shown_with_its_bitmap_alone() {
        let bare = |tag: &str| super::Bitmap {
            name: tag.into(),
            tag: tag.into(),
            end_mark: None,
            ..bitmap("a")
        };
        let shown = with_end_marks(vec![
            bare("qmpfs-a-end"),
            bare("qmpfs-a"),
            bare("qmpfs-b-end"),
        ]);
        let names: Vec<_> = shown
            .iter()
            .map(|it| (it.tag.as_str(), it.end_mark))
            .collect();
        assert_eq!(names, [("qmpfs-a", Some(5 << 16)), ("qmpfs-b-end", None)]);
    }
}

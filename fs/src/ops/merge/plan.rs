//! Which of stream and commit removes a point, and why: the table of docs/SEMANTICS.md.
//! Pure: it is given the disk and what was found out about its files, and decides.

use crate::errno::{Errno, Failure};
use crate::model::{Disk, Format, Layer, MergePolicy};
use crate::tree::layer_dir_name;
use std::path::PathBuf;

/// How a point is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Its bytes go up into the layer above; its file goes.
    Stream,
    /// The sealed layer above goes down into its file, which takes that layer's name.
    Commit,
    /// The active layer goes down into its file, which becomes the active layer.
    CommitActive,
    /// Somebody else's layer: its bytes go up into the layer above; its file stays as it is.
    Release,
}

impl Verb {
    /// The word in journals and jobs.
    pub fn word(self) -> &'static str {
        match self {
            Verb::Stream => "stream",
            Verb::Commit => "commit",
            Verb::CommitActive => "commit-active",
            Verb::Release => "release",
        }
    }

    /// The verb a journal names.
    pub fn from_word(word: &str) -> Option<Verb> {
        [
            Verb::Stream,
            Verb::Commit,
            Verb::CommitActive,
            Verb::Release,
        ]
        .into_iter()
        .find(|verb| verb.word() == word)
    }

    /// Which of QEMU's two jobs it is.
    pub fn job(self) -> &'static str {
        match self {
            Verb::Stream | Verb::Release => "stream",
            Verb::Commit | Verb::CommitActive => "commit",
        }
    }
}

/// What was found out about the files of the two layers.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Bytes that block-stream would copy: what the point's own layer holds.
    pub stream_bytes: u64,
    /// Bytes that block-commit would copy: what the layer above holds.
    pub commit_bytes: u64,
    /// A commit would move bytes of the point's file that the layer above does not cover.
    pub moves: bool,
    /// Other images that stand on the point's file.
    pub dependents: Vec<PathBuf>,
    /// Names of the point's file on its filesystem.
    pub names: u64,
    /// Bytes free where the layer above lies.
    pub free_above: u64,
    /// Bytes free where the point's file lies.
    pub free_here: u64,
}

/// What `rmdir` of a point does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Stream or commit.
    pub verb: Verb,
    /// Bytes to copy, at most.
    pub copy: u64,
    /// Why this verb.
    pub because: String,
}

/// The layer above `layers[index]`.
pub fn above(disk: &Disk, index: usize) -> &Layer {
    disk.layers.get(index + 1).unwrap_or(&disk.active)
}

/// Room a job may take beyond the bytes it copies: new tables of the image.
pub(in crate::ops) const METADATA_RESERVE: u64 = 16 << 20;

/// Decides, or says why nothing can be done.
pub fn choose(
    disk: &Disk,
    index: usize,
    facts: &Facts,
    policy: MergePolicy,
) -> Result<Plan, Failure> {
    let here = &disk.layers[index];
    let up = above(disk, index);
    let up_is_active = index + 1 == disk.layers.len();
    if here.record.is_none() {
        return release(disk, index, facts, policy);
    }
    if here.format != Format::Qcow2 || up.format != Format::Qcow2 {
        return Err(
            Failure::new(Errno::EOPNOTSUPP, "only qcow2 layers are merged")
                .next("with the VM off: qemu-img convert makes one image of the chain"),
        );
    }
    if let Some(other) = facts.dependents.first() {
        let next = disk.goes_first(other).unwrap_or_else(|| {
            format!("remove that image, or give it another backing file with qemu-img rebase, then try again ({} in all)", facts.dependents.len())
        });
        return Err(Failure::new(
            Errno::EBUSY,
            format!("{} stands on {}", other.display(), here.path.display()),
        )
        .next(next));
    }
    if let Some(name) = internal_in_upper(disk, index) {
        return Err(internal_above(disk, name));
    }
    let stream = stream_allowed(disk, index, facts, up_is_active);
    let commit = commit_allowed(disk, index, facts, up_is_active);
    let commit_verb = if up_is_active {
        Verb::CommitActive
    } else {
        Verb::Commit
    };
    let streamed = |because: String| Plan {
        verb: Verb::Stream,
        copy: facts.stream_bytes,
        because,
    };
    let committed = |because: String| Plan {
        verb: commit_verb,
        copy: facts.commit_bytes,
        because,
    };
    match policy {
        MergePolicy::Stream => return stream.map(|()| streamed("-o merge=stream".into())),
        MergePolicy::Commit => return commit.map(|()| committed("-o merge=commit".into())),
        MergePolicy::Auto => {}
    }
    match (stream, commit) {
        (Ok(()), Ok(())) if up_is_active && disk.tuning.exported => Ok(streamed(format!(
            "stream copies {} bytes; a commit would move the disk, and its clients cannot be stopped for that",
            facts.stream_bytes
        ))),
        (Ok(()), Ok(())) if facts.commit_bytes < facts.stream_bytes => Ok(committed(format!(
            "commit copies {} bytes, stream would copy {}",
            facts.commit_bytes, facts.stream_bytes
        ))),
        (Ok(()), Ok(())) => Ok(streamed(format!(
            "stream copies {} bytes, commit would copy {}",
            facts.stream_bytes, facts.commit_bytes
        ))),
        (Ok(()), Err(no)) => Ok(streamed(format!("commit is not possible: {}", no.message))),
        (Err(no), Ok(())) => Ok(committed(format!("stream is not possible: {}", no.message))),
        (Err(no), Err(_)) => Err(no),
    }
}

/// A layer that somebody else made: it is read, and never written nor removed.
fn release(disk: &Disk, index: usize, facts: &Facts, policy: MergePolicy) -> Result<Plan, Failure> {
    let here = &disk.layers[index];
    let up = above(disk, index);
    let up_is_active = index + 1 == disk.layers.len();
    if policy == MergePolicy::Commit {
        return Err(Failure::new(
            Errno::EPERM,
            format!(
                "{} was not sealed by qmpfs: nothing is committed into it",
                here.path.display()
            ),
        )
        .next("mount without -o merge=commit: a stream leaves the file as it is"));
    }
    if !matches!(here.format, Format::Qcow2 | Format::Raw) || up.format != Format::Qcow2 {
        return Err(Failure::new(
            Errno::EOPNOTSUPP,
            "only qcow2 and raw layers are taken out of a chain, and only from below qcow2",
        ));
    }
    if !up_is_active && up.record.is_none() {
        return Err(Failure::new(
            Errno::EPERM,
            format!(
                "the layer above, {}, was not made by qmpfs and is not written",
                up.path.display()
            ),
        )
        .next(format!(
            "take that one out first: rmdir disks/{}/layers/{}",
            disk.name,
            layer_dir_name(index + 1, up)
        )));
    }
    if let Some(name) = internal_in_upper(disk, index) {
        return Err(internal_above(disk, name));
    }
    room(facts.stream_bytes, facts.free_above)?;
    Ok(Plan {
        verb: Verb::Release,
        copy: facts.stream_bytes,
        because: format!(
            "{} was not made by qmpfs: it is read, never written, and not removed",
            here.path.display()
        ),
    })
}

fn internal_above(disk: &Disk, name: &str) -> Failure {
    Failure::new(
        Errno::EBUSY,
        format!("the layer above holds internal snapshot '{name}', which would change or be lost"),
    )
    .next(format!("rmdir disks/{}/internal/{name} first", disk.name))
}

/// Whether the nodes are ours to re-arrange, and the root is one that QEMU commits below.
pub fn may_commit(disk: &Disk) -> bool {
    disk.root.as_ref().is_some_and(|root| root.is_ours()) && !disk.tuning.filtered
}

/// An internal snapshot in the layer above one.
pub fn internal_in_upper(disk: &Disk, index: usize) -> Option<&str> {
    let up = index + 1;
    internal_in(disk, (up < disk.layers.len()).then_some(up))
}

fn internal_in(disk: &Disk, layer: Option<usize>) -> Option<&str> {
    disk.internals
        .iter()
        .find(|internal| internal.layer == layer)
        .map(|internal| internal.name.as_str())
}

fn stream_allowed(
    disk: &Disk,
    index: usize,
    facts: &Facts,
    up_is_active: bool,
) -> Result<(), Failure> {
    let up = above(disk, index);
    if !up_is_active && up.record.is_none() {
        return Err(Failure::new(
            Errno::EPERM,
            format!(
                "the layer above, {}, was not made by qmpfs and is not written",
                up.path.display()
            ),
        )
        .next("merge it with the tool that made it, with the VM off"));
    }
    if let Some(name) = internal_in(disk, Some(index)) {
        return Err(Failure::new(
            Errno::EBUSY,
            format!("its file holds internal snapshot '{name}', which would be lost"),
        )
        .next("remove that first: rmdir internal/NAME"));
    }
    room(facts.stream_bytes, facts.free_above)
}

fn commit_allowed(
    disk: &Disk,
    index: usize,
    facts: &Facts,
    up_is_active: bool,
) -> Result<(), Failure> {
    let here = &disk.layers[index];
    let up = above(disk, index);
    let no = |why: String| Err(Failure::new(Errno::EOPNOTSUPP, why));
    if disk.tuning.filtered {
        return no("a filter (throttle, copy-on-read) stands above the disk, and QEMU commits only below a root".into());
    }
    if !may_commit(disk) {
        return no("no snapshot was taken since the VM started, so the root node is not ours to re-arrange".into());
    }
    if !up_is_active && up.record.is_none() {
        return no(format!(
            "the layer above, {}, was not made by qmpfs and is not removed",
            up.path.display()
        ));
    }
    if up.virtual_size != here.virtual_size {
        return no("the disk was resized in between".into());
    }
    if facts.moves {
        return no("its compressed clusters are larger than those of the layer above, and move when they are written in part, under whoever reads the points above".into());
    }
    if facts.names > 1 {
        return no(format!(
            "{} has {} names: somebody else may rely on its bytes",
            here.path.display(),
            facts.names
        ));
    }
    room(facts.commit_bytes, facts.free_here)
}

fn room(bytes: u64, free: u64) -> Result<(), Failure> {
    let needed = bytes.saturating_add(METADATA_RESERVE);
    if free >= needed {
        return Ok(());
    }
    Err(Failure::new(
        Errno::ENOSPC,
        format!("the merge may need {needed} bytes, {free} are free"),
    )
    .next("make room on that filesystem, then try again"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{FileId, Internal, PointRecord, Tuning};
    use qmpbridge::NodeName;
    use std::time::SystemTime;

    fn layer(name: &str, ours: bool) -> Layer {
        Layer {
            node: Some(NodeName::fresh()),
            path: format!("/vm/web1.{name}.qcow2").into(),
            file: Some(FileId { dev: 1, ino: 2 }),
            format: Format::Qcow2,
            virtual_size: 1 << 30,
            allocated_size: 1 << 20,
            modified: None,
            record: ours.then(|| PointRecord {
                id: name.into(),
                name: name.into(),
                time: String::new(),
                consistency: "crash".into(),
                frozen_ms: None,
                quiesce_error: None,
                inode: 2,
                group: None,
            }),
            foreign_name: None,
            leaving: false,
        }
    }

    /// base ← one ← two ← active, with a root of ours.
    fn disk() -> Disk {
        let mut active = layer("active", false);
        active.path = "/vm/web1.qcow2".into();
        Disk {
            name: "vda".into(),
            root: Some(NodeName::fresh()),
            active_path: active.path.clone(),
            active,
            layers: vec![layer("base", false), layer("one", true), layer("two", true)],
            internals: Vec::new(),
            lives: Vec::new(),
            backups: Vec::new(),
            bitmaps: Vec::new(),
            jobs: Vec::new(),
            no_snapshots: None,
            tuning: Tuning::default(),
            branches: Vec::new(),
            no_overlay: None,
            assumed: Vec::new(),
            state_part: crate::model::StatePart::default(),
        }
    }

    fn facts(stream: u64, commit: u64) -> Facts {
        Facts {
            moves: false,
            stream_bytes: stream,
            commit_bytes: commit,
            dependents: Vec::new(),
            names: 1,
            free_above: 1 << 40,
            free_here: 1 << 40,
        }
    }

    fn internal(layer: Option<usize>) -> Internal {
        Internal {
            id: "1".into(),
            name: "inside".into(),
            tag: "inside".into(),
            time: SystemTime::UNIX_EPOCH,
            virtual_size: 0,
            vm_state_size: 0,
            layer,
            record: None,
        }
    }

    fn verb(disk: &Disk, index: usize, facts: &Facts, policy: MergePolicy) -> Result<Verb, Errno> {
        choose(disk, index, facts, policy)
            .map(|plan| plan.verb)
            .map_err(|failure| failure.errno)
    }

    #[test]
    fn the_verb_that_copies_less_is_chosen() {
        let disk = disk();
        assert_eq!(
            verb(&disk, 1, &facts(10, 20), MergePolicy::Auto),
            Ok(Verb::Stream)
        );
        assert_eq!(
            verb(&disk, 1, &facts(20, 10), MergePolicy::Auto),
            Ok(Verb::Commit)
        );
        assert_eq!(
            verb(&disk, 2, &facts(20, 10), MergePolicy::Auto),
            Ok(Verb::CommitActive)
        );
        assert_eq!(
            verb(&disk, 1, &facts(20, 10), MergePolicy::Stream),
            Ok(Verb::Stream)
        );
        assert_eq!(
            verb(&disk, 1, &facts(10, 20), MergePolicy::Commit),
            Ok(Verb::Commit)
        );
    }

    #[test]
    fn a_file_of_somebody_else_is_read_and_neither_written_nor_removed() {
        let mut disk = disk();
        for policy in [MergePolicy::Auto, MergePolicy::Stream] {
            assert_eq!(verb(&disk, 0, &facts(20, 10), policy), Ok(Verb::Release));
        }
        assert_eq!(
            verb(&disk, 0, &facts(20, 10), MergePolicy::Commit),
            Err(Errno::EPERM)
        );
        let mut tight = facts(1 << 30, 1);
        tight.free_above = 1 << 20;
        assert_eq!(
            verb(&disk, 0, &tight, MergePolicy::Auto),
            Err(Errno::ENOSPC)
        );
        // what stands on it, and what lies in it, stays as it is
        let mut used = facts(10, 20);
        used.dependents.push("/vm/clone.qcow2".into());
        disk.internals = vec![internal(Some(0))];
        assert_eq!(verb(&disk, 0, &used, MergePolicy::Auto), Ok(Verb::Release));
        disk.layers[0].format = Format::Raw;
        assert_eq!(verb(&disk, 0, &used, MergePolicy::Auto), Ok(Verb::Release));
        disk.layers[0].format = Format::Other("vmdk".into());
        assert_eq!(
            verb(&disk, 0, &used, MergePolicy::Auto),
            Err(Errno::EOPNOTSUPP)
        );
        disk.internals = vec![internal(Some(1))];
        disk.layers[0].format = Format::Qcow2;
        assert_eq!(verb(&disk, 0, &used, MergePolicy::Auto), Err(Errno::EBUSY));
        disk.internals.clear();
        // below another file of somebody else
        disk.layers[1].record = None;
        assert_eq!(verb(&disk, 0, &used, MergePolicy::Auto), Err(Errno::EPERM));
        let mut disk = self::disk();
        disk.layers[2].record = None;
        assert_eq!(
            verb(&disk, 1, &facts(10, 20), MergePolicy::Auto),
            Err(Errno::EPERM)
        );
    }

    #[test]
    fn an_image_that_stands_on_the_point_keeps_it() {
        let mut facts = facts(10, 20);
        facts.dependents.push("/vm/clone.qcow2".into());
        assert_eq!(
            verb(&disk(), 1, &facts, MergePolicy::Auto),
            Err(Errno::EBUSY)
        );
    }

    #[test]
    fn internal_snapshots_keep_what_they_need() {
        let mut disk = disk();
        disk.internals = vec![internal(Some(2))];
        assert_eq!(
            verb(&disk, 1, &facts(10, 20), MergePolicy::Auto),
            Err(Errno::EBUSY)
        );
        disk.internals = vec![internal(None)];
        assert_eq!(
            verb(&disk, 2, &facts(10, 20), MergePolicy::Auto),
            Err(Errno::EBUSY)
        );
        // in the point's own file: it survives a commit, not a stream
        disk.internals = vec![internal(Some(1))];
        assert_eq!(
            verb(&disk, 1, &facts(10, 20), MergePolicy::Auto),
            Ok(Verb::Commit)
        );
        assert_eq!(
            verb(&disk, 1, &facts(10, 20), MergePolicy::Stream),
            Err(Errno::EBUSY)
        );
    }

    #[test]
    fn commit_waits_for_a_root_of_ours_and_an_unshared_file() {
        let mut disk = disk();
        disk.root = NodeName::new("#block123").ok();
        assert_eq!(
            verb(&disk, 2, &facts(20, 10), MergePolicy::Auto),
            Ok(Verb::Stream)
        );
        assert_eq!(
            verb(&disk, 2, &facts(20, 10), MergePolicy::Commit),
            Err(Errno::EOPNOTSUPP)
        );
        let mut shared = facts(20, 10);
        shared.names = 2;
        assert_eq!(
            verb(&self::disk(), 1, &shared, MergePolicy::Auto),
            Ok(Verb::Stream)
        );
        let mut resized = self::disk();
        resized.layers[2].virtual_size *= 2;
        assert_eq!(
            verb(&resized, 1, &facts(20, 10), MergePolicy::Auto),
            Ok(Verb::Stream)
        );
    }

    #[test]
    fn no_room_is_told_before_qemu_is_asked() {
        let mut tight = facts(1 << 30, 1 << 31);
        tight.free_above = 1 << 20;
        tight.free_here = 1 << 20;
        assert_eq!(
            verb(&disk(), 1, &tight, MergePolicy::Auto),
            Err(Errno::ENOSPC)
        );
        // the cheaper way does not fit, the other does
        tight.free_here = 1 << 40;
        assert_eq!(
            verb(&disk(), 1, &tight, MergePolicy::Auto),
            Ok(Verb::Commit)
        );
    }
}

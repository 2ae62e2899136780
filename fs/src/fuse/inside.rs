//! `partitions/` and `files/` of a point: what is listed there is on the point's disk, so every
//! answer comes from the thread that looked at it.

use super::handles::{Entry, Handle};
use super::names::reply_entry;
use super::shared::{Attributes, Shared, VIEW_TTL};
use super::{TEXT_FLAGS, errno, failed, guest};
use crate::errno::Errno;
use crate::guest::{Home, Number, Question, Survey, Volume, gone};
use crate::render::Sizes;
use crate::tree::{Inside, NodeKey, PointFile, PointKey};
use fuser::{FileType, ReplyEntry, ReplyOpen};
use std::sync::Arc;
use std::time::Duration;

/// How long point.json waits for what is on a disk that nobody has looked at.
const GLANCE: Duration = Duration::from_secs(1);

/// What is listed in a directory of a point's inside, besides the guests' own trees.
fn names(shared: &Shared, point: &PointKey, survey: &Survey, directory: &Inside) -> Vec<Inside> {
    let volumes = survey.volumes.iter();
    match directory {
        Inside::Partitions => volumes
            .map(|volume| Inside::Partition(volume.partition.number))
            .collect(),
        Inside::Files => volumes
            .filter(|volume| {
                let trouble = shared.guests.trouble(point, volume.partition.number);
                !volume.is_readable() || trouble.is_some()
            })
            .map(|volume| Inside::Note(volume.partition.number))
            .chain(partly(survey))
            .collect(),
        Inside::Partition(_) | Inside::Note(_) | Inside::VolumeNote(_) => Vec::new(),
    }
}

/// The texts about logical volumes of which only a part is here.
fn partly(survey: &Survey) -> impl Iterator<Item = Inside> {
    let partly = survey.partly.iter();
    partly.map(|partly| Inside::VolumeNote(partly.name.clone()))
}

/// The partitions whose files are listed in a directory.
fn trees<'a>(survey: &'a Survey, directory: &Inside) -> impl Iterator<Item = &'a Volume> {
    let are_listed = *directory == Inside::Files;
    let volumes = survey.volumes.iter().chain(&survey.logical);
    volumes.filter(move |volume| are_listed && volume.is_readable())
}

/// Answers with the root of a guest's tree.
pub(super) fn reply_root(shared: &Arc<Shared>, home: &Home, volume: &Volume, reply: ReplyEntry) {
    let tree = match shared.guests.tree(home, volume) {
        Ok(tree) => tree,
        Err(failure) => return reply.error(failed(&failure)),
    };
    let (in_answer, of) = (Arc::clone(shared), Arc::clone(&tree));
    tree.work(move |desk| {
        let root = desk.and_then(|desk| {
            let (root, _) = of.opened().ok_or_else(gone)?;
            guest::node_of(desk.ask(&Question::Node(root)))
        });
        match root {
            Ok(node) => guest::reply_root(&in_answer, &of, &node, reply),
            Err(failure) => reply.error(failed(&failure)),
        }
    });
}

pub(super) fn lookup(
    shared: &Arc<Shared>,
    (point, directory): (PointKey, Inside),
    name: &str,
    reply: ReplyEntry,
) {
    let (in_answer, key, name) = (Arc::clone(shared), point.clone(), name.to_owned());
    shared.guests.survey(&point, move |survey| {
        let survey = match survey {
            Ok(survey) => survey,
            Err(failure) => return reply.error(failed(&failure)),
        };
        let mut trees = trees(&survey, &directory);
        if let Some(volume) = trees.find(|volume| volume.directory() == name) {
            return reply_root(&in_answer, &Home::Point(key), volume, reply);
        }
        let found = names(&in_answer, &key, &survey, &directory);
        match found.into_iter().find(|inside| inside.name() == name) {
            Some(inside) => {
                let model = in_answer.engine.model();
                reply_entry(&in_answer, &model, NodeKey::Inside(key, inside), reply);
            }
            None => reply.error(fuser::Errno::ENOENT),
        }
    });
}

pub(super) fn opendir(
    shared: &Arc<Shared>,
    (point, directory): (PointKey, Inside),
    reply: ReplyOpen,
) {
    let (in_answer, key) = (Arc::clone(shared), point.clone());
    shared.guests.survey(&point, move |survey| {
        let survey = match survey {
            Ok(survey) => survey,
            Err(failure) => return reply.error(failed(&failure)),
        };
        let model = in_answer.engine.model();
        let own = NodeKey::Inside(key.clone(), directory.clone());
        let mut entries = in_answer.entries(&model, &own);
        let others = names(&in_answer, &key, &survey, &directory);
        let home = Home::Point(key.clone());
        let trees = trees(&survey, &directory);
        entries.extend(trees.map(|volume| root_entry(&in_answer, &home, volume)));
        entries.extend(others.into_iter().map(|inside| Entry {
            name: inside.name().into(),
            ino: in_answer.ids.number(&NodeKey::Inside(key.clone(), inside)),
            kind: FileType::RegularFile,
        }));
        let handle = in_answer.handles.insert(Handle::Directory(entries));
        reply.opened(handle, fuser::FopenFlags::empty());
    });
}

/// The root of a guest's tree in a listing. One that nobody has looked into has no number yet: a guest may have very many.
pub(super) fn root_entry(shared: &Shared, home: &Home, volume: &Volume) -> Entry {
    let tree = shared.guests.looked_into(home, volume.partition.number);
    let of = tree.map(|tree| Number {
        tree: tree.number,
        depth: 0,
        node: tree.opened().map_or(0, |(root, _)| root),
    });
    Entry {
        ino: of.and_then(Number::inode).unwrap_or(1),
        kind: FileType::Directory,
        name: volume.directory().into(),
    }
}

/// The attributes of a partition's bytes.
pub(super) fn partition(
    shared: &Arc<Shared>,
    point: &PointKey,
    number: u32,
    done: impl FnOnce(Attributes) + Send + 'static,
) {
    let key = NodeKey::Inside(point.clone(), Inside::Partition(number));
    let time = shared.time_of(&shared.engine.model(), &key);
    let (ino, owner) = (shared.ids.number(&key), shared.owner);
    shared.guests.survey(point, move |survey| {
        let survey = survey.ok();
        let volume = survey.as_deref().and_then(|survey| survey.volume(number));
        done(volume.map(|volume| {
            let sizes = Sizes {
                virtual_size: volume.partition.length,
                allocated: volume.allocated,
            };
            (owner.view(ino, sizes, time), VIEW_TTL)
        }));
    });
}

/// Opens point.json. What is in the partitions is found out for it, unless that takes long.
pub(super) fn open_description(shared: &Arc<Shared>, point: PointKey, reply: ReplyOpen) {
    let known = shared.guests.glance(&point);
    let (in_answer, key) = (Arc::clone(shared), point);
    let answer = move || {
        let key = NodeKey::PointFile(key, PointFile::PointJson);
        match in_answer.text(&in_answer.engine.model(), &key) {
            Some(text) => {
                let handle = in_answer.handles.insert(Handle::Text(text.into_bytes()));
                reply.opened(handle, TEXT_FLAGS);
            }
            None => reply.error(fuser::Errno::ESTALE),
        }
    };
    let Some(known) = known else {
        return answer();
    };
    let describe = move || {
        // Whether it came or not: what is known by now is shown.
        let _known = known.recv_timeout(GLANCE);
        answer();
    };
    // Where there is no thread, the dropped reply is an error.
    if let Err(error) = std::thread::Builder::new()
        .name("describe".into())
        .spawn(describe)
    {
        tracing::warn!(%error, "point.json needs a thread");
    }
}

/// Opens what is to be said about a partition or volume.
pub(super) fn open_note(shared: &Arc<Shared>, point: PointKey, note: Inside, reply: ReplyOpen) {
    let (in_answer, key) = (Arc::clone(shared), point.clone());
    shared.guests.survey(&point, move |survey| {
        let key = NodeKey::Inside(key, note);
        let text = in_answer.text(&in_answer.engine.model(), &key);
        match (survey, text) {
            (Ok(_), Some(text)) => {
                let handle = in_answer.handles.insert(Handle::Text(text.into_bytes()));
                reply.opened(handle, TEXT_FLAGS);
            }
            (Ok(_), None) => reply.error(fuser::Errno::ESTALE),
            (Err(failure), _) => reply.error(failed(&failure)),
        }
    });
}

/// The stretch of a disk that is the partition of a number.
pub(super) fn window(survey: &Survey, number: u32) -> Result<super::handles::Window, fuser::Errno> {
    let volume = survey.volume(number).ok_or_else(|| errno(Errno::ESTALE))?;
    Ok(super::handles::Window {
        start: volume.partition.start,
        length: volume.partition.length,
    })
}

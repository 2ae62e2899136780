//! `partitions/` and `files/` of a point: what is listed there is on the point's disk, so every
//! answer comes from the thread that looked at it.

use super::handles::{Entry, Handle};
use super::names::reply_entry;
use super::shared::{Attributes, Shared, VIEW_TTL};
use super::{TEXT_FLAGS, errno, failed};
use crate::errno::Errno;
use crate::guest::Survey;
use crate::render::Sizes;
use crate::tree::{Inside, NodeKey, PointKey};
use fuser::{FileType, ReplyEntry, ReplyOpen};
use std::sync::Arc;

/// What is listed in a directory of a point's inside.
fn names(survey: &Survey, directory: Inside) -> Vec<Inside> {
    let numbers = survey.volumes.iter().map(|volume| volume.partition.number);
    match directory {
        Inside::Partitions => numbers.map(Inside::Partition).collect(),
        Inside::Files => numbers.map(Inside::Note).collect(),
        Inside::Partition(_) | Inside::Note(_) => Vec::new(),
    }
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
        let found = names(&survey, directory);
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
        let own = NodeKey::Inside(key.clone(), directory);
        let mut entries = in_answer.entries(&model, &own);
        entries.extend(names(&survey, directory).into_iter().map(|inside| Entry {
            ino: in_answer.ids.number(&NodeKey::Inside(key.clone(), inside)),
            kind: FileType::RegularFile,
            name: inside.name(),
        }));
        let handle = in_answer.handles.insert(Handle::Directory(entries));
        reply.opened(handle, fuser::FopenFlags::empty());
    });
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

/// Opens what is to be said about a partition.
pub(super) fn open_note(shared: &Arc<Shared>, point: PointKey, number: u32, reply: ReplyOpen) {
    let (in_answer, key) = (Arc::clone(shared), point.clone());
    shared.guests.survey(&point, move |survey| {
        let key = NodeKey::Inside(key, Inside::Note(number));
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

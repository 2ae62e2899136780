//! What is new in a model: points made and gone, jobs and their states, disks, QEMU itself. So
//! whatever others do to the VM is told as well as what we do. Pure.

use super::events::Own;
use crate::model::{ConnectionState, Disk, Job, Model};
use crate::tree::{NodeKey, Section, children, path_of};
use std::collections::HashSet;

/// What to tell of a new model.
pub(super) fn changes<'a>(old: &'a Model, new: &'a Model) -> Vec<Own<'a>> {
    let mut told = Vec::new();
    if old.vm.connection != new.vm.connection {
        match &new.vm.connection {
            ConnectionState::Up => told.push(Own::ConnectionUp),
            ConnectionState::Down(reason) => told.push(Own::ConnectionDown { reason }),
            ConnectionState::Offline => {}
        }
    }
    if old.vm.run_state != new.vm.run_state {
        told.push(Own::RunState {
            state: new.vm.run_state.as_deref(),
        });
    }
    for disk in &old.disks {
        if new.disk(&disk.name).is_none() {
            told.push(Own::DiskGone { disk: &disk.name });
        }
    }
    for disk in &new.disks {
        let Some(before) = old.disk(&disk.name) else {
            told.push(Own::DiskAppeared { disk: &disk.name });
            told.extend(disk.jobs.iter().map(|job| job_state(disk, job)));
            continue;
        };
        for section in Section::ALL
            .into_iter()
            .filter(|section| lists_points(*section))
        {
            let points = |model: &Model| {
                let section = NodeKey::Section(disk.name.clone(), section);
                let points = children(model, &section).into_iter();
                points.map(|(_, key, _)| key).collect::<HashSet<_>>()
            };
            let (were, are) = (points(old), points(new));
            told.extend(were.difference(&are).map(|key| Own::PointGone {
                path: path_of(old, key),
            }));
            told.extend(are.difference(&were).map(|key| Own::PointMade {
                path: path_of(new, key),
            }));
        }
        let known = |jobs: &'a [Job], id: &str| jobs.iter().find(|job| job.id == id);
        for job in &disk.jobs {
            let was = known(&before.jobs, &job.id);
            if was.is_none_or(|was| was.state != job.state || was.error != job.error) {
                told.push(job_state(disk, job));
            }
        }
        told.extend(
            before
                .jobs
                .iter()
                .filter(|job| known(&disk.jobs, &job.id).is_none())
                .map(|job| Own::JobGone {
                    disk: &disk.name,
                    job: &job.id,
                }),
        );
    }
    told
}

/// A layer is there whenever a snapshot is, and has another number after each merge below it.
fn lists_points(section: Section) -> bool {
    match section {
        Section::Snapshots | Section::Internal | Section::Live | Section::Backup(_) => true,
        Section::Layers | Section::Jobs | Section::Bitmaps => false,
    }
}

fn job_state<'a>(disk: &'a Disk, job: &'a Job) -> Own<'a> {
    Own::JobState {
        disk: &disk.name,
        job: &job.id,
        verb: &job.verb,
        state: &job.state,
        error: job.error.as_deref(),
    }
}

#[cfg(test)]
mod tests {
    use super::changes;
    use crate::model::{ConnectionState, Model};
    use crate::report::Own;
    use crate::tree::sample;

    #[test]
    fn nothing_new_is_nothing_told() {
        let model = sample::two_disks();
        assert_eq!(changes(&model, &model), []);
    }

    #[test]
    fn the_first_look_tells_disks_and_no_points() {
        let model = sample::two_disks();
        let nothing = Model::default();
        let told = changes(&nothing, &model);
        assert!(told.contains(&Own::DiskAppeared { disk: "vdb" }));
        assert!(!told.iter().any(|own| matches!(own, Own::PointMade { .. })));
    }

    #[test]
    fn points_jobs_and_the_connection_are_told() {
        let old = sample::two_disks();
        let mut new = old.clone();
        new.disks[0].layers[1].leaving = true;
        new.disks[0].internals[0].id = "2".into();
        new.disks[0].jobs[0].state = "concluded".into();
        new.vm.connection = ConnectionState::Down("gone".into());
        let told = changes(&old, &new);
        for expected in [
            Own::PointGone {
                path: "/disks/vda/snapshots/before".into(),
            },
            Own::PointGone {
                path: "/disks/vda/internal/clean".into(),
            },
            Own::PointMade {
                path: "/disks/vda/internal/clean".into(),
            },
            Own::ConnectionDown { reason: "gone" },
        ] {
            assert!(told.contains(&expected), "{expected:?} in {told:?}");
        }
        assert!(told.iter().any(|own| matches!(
            own,
            Own::JobState {
                state: "concluded",
                ..
            }
        )));
        assert_eq!(told.len(), 5);
        new.disks.remove(0);
        assert!(changes(&old, &new).contains(&Own::DiskGone { disk: "vda" }));
    }
}

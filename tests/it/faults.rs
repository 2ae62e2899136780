//! One fault at one step of a verb (a QMP command, or an operation of qmpfs on a file), beside the writer: qmpfs is
//! killed, QEMU is, both are; the operation fails; the command is refused, or the connection ends. Afterwards the verb
//! was done, or never begun: chain, bytes of every point, names, marks, nodes and jobs, and the path that boots.

use qmpfs_tests::agent::{FakeAgent, Manner};
use qmpfs_tests::bench::Bench;
use qmpfs_tests::machine::Attachment;
use qmpfs_tests::steps::Deed;

mod backup;
mod control;
mod drive;
mod off;
mod queue;
mod release;
mod rollback;
mod rounds;
mod running;
mod verbs;

use rounds::{Which, Whom};
use running::{at_step, every_step};
use verbs::{Frozen, Internal, Place, Remove, Seal};

fn removal(name: &str, attachment: Attachment, merge: &str, place: Place) {
    let bench = Bench::with_options(name, attachment, &["-o", merge]);
    every_step(bench, Remove::new(place));
}

over_attachments!(of_the_first_snapshot => |name, attachment| every_step(Bench::new(name, attachment), Seal::new(true)));
over_attachments!(of_a_later_snapshot => |name, attachment| {
    let mut bench = Bench::new(name, attachment);
    bench.seal("first");
    every_step(bench, Seal::new(false));
});
over_attachments!(of_a_stream_at_the_bottom => |name, attachment| removal(name, attachment, "merge=stream", Place::Bottom));
over_attachments!(of_a_stream_in_the_middle => |name, attachment| removal(name, attachment, "merge=stream", Place::Middle));
over_attachments!(of_a_stream_at_the_top => |name, attachment| removal(name, attachment, "merge=stream", Place::Top));
over_attachments!(of_a_commit_at_the_bottom => |name, attachment| removal(name, attachment, "merge=commit", Place::Bottom));
over_attachments!(of_a_commit_in_the_middle => |name, attachment| removal(name, attachment, "merge=commit", Place::Middle));
over_attachments!(of_a_commit_of_the_active_layer => |name, attachment| removal(name, attachment, "merge=commit", Place::Top));
over_attachments!(of_three_removals_at_once => |name, attachment| {
    every_step(Bench::with_options(name, attachment, &["-o", "merge=stream"]), queue::Queue::new());
});
over_attachments!(of_the_words_of_ctl => |name, attachment| {
    every_step(Bench::with_bulk_and_options(name, attachment, 32 << 20, &["-o", "merge=stream"]), control::Control::new());
});
over_attachments!(of_a_release => |name, attachment| {
    every_step(Bench::with_options(name, attachment, &["-o", "merge=stream"]), release::Release::new());
});
over_attachments!(of_a_rollback => |name, attachment| {
    let options = ["-o", "live_rollback,merge=stream"];
    every_step(Bench::with_options(name, attachment, &options), rollback::Rollback::new());
});
over_attachments!(of_a_snapshot_of_a_frozen_guest => |name, attachment| {
    let agent = FakeAgent::new(name, Manner::Good);
    let options = ["-o", &format!("{},quiesce=try", agent.option())];
    let bench = Bench::with_options(name, attachment, &options);
    every_step(bench, Frozen::new(agent));
});
over_attachments!(of_an_internal_snapshot => |name, attachment| every_step(Bench::new(name, attachment), Internal::made()));
over_attachments!(of_the_end_of_an_internal_snapshot => |name, attachment| every_step(Bench::new(name, attachment), Internal::deleted()));
over_attachments!(of_a_full_backup => |name, attachment| backup::every_step_of(name, attachment, "full"));
over_attachments!(of_an_incremental_backup => |name, attachment| backup::every_step_of(name, attachment, "incremental"));
over_attachments!(of_a_backup_of_the_top_layer => |name, attachment| backup::every_step_of(name, attachment, "top"));
over_attachments!(of_a_fleeced_backup => backup::every_step_of_fleecing);
over_attachments!(of_a_mirror => |name, attachment| backup::every_step_of(name, attachment, "mirror"));
over_attachments!(qemu_dies_at_the_end_of_a_backup => backup::qemu_dies_at_its_end);
over_attachments!(a_backup_whose_name_fails_at_first => backup::a_name_that_fails_at_first);
over_attachments!(one_of_two_names_fails_at_first => backup::one_of_two_names_fails_at_first);

/// The verbs on the disk of a VM that is off.
mod of_a_vm_that_is_off {
    use super::*;

    const STREAM: [&str; 2] = ["-o", "merge=stream"];
    const COMMIT: [&str; 2] = ["-o", "merge=commit"];

    #[test]
    fn a_first_snapshot() {
        off::every_step("off-first", &STREAM, Seal::new(true));
    }

    #[test]
    fn a_later_snapshot() {
        off::every_step("off-later", &STREAM, Seal::new(false));
    }

    #[test]
    fn a_stream_in_the_middle() {
        off::every_step("off-stream", &STREAM, Remove::new(Place::Middle));
    }

    #[test]
    fn a_stream_at_the_top() {
        off::every_step("off-stream-top", &STREAM, Remove::new(Place::Top));
    }

    #[test]
    fn a_commit_at_the_bottom() {
        off::every_step("off-commit-bottom", &COMMIT, Remove::new(Place::Bottom));
    }

    #[test]
    fn a_commit_in_the_middle() {
        off::every_step("off-commit", &COMMIT, Remove::new(Place::Middle));
    }

    #[test]
    fn a_commit_of_the_active_layer() {
        off::every_step("off-commit-active", &COMMIT, Remove::new(Place::Top));
    }

    #[test]
    fn three_removals_at_once() {
        off::every_step("off-queue", &STREAM, queue::Queue::new());
    }

    #[test]
    fn a_rollback() {
        off::every_step("off-rollback", &STREAM, rollback::Rollback::new());
    }
}

/// Nobody uses the disk itself in a storage daemon of ours, so what is idle there goes by its file alone.
#[test]
fn the_last_node_of_a_streamed_layer_is_refused_to_go() {
    let verb = Remove::new(Place::Middle);
    let fault = (Whom::Nobody, Deed::Fail(0));
    off::at_step(
        "off-node-stays",
        &["-o", "merge=stream"],
        verb,
        fault,
        (Which::Last, "blockdev-del"),
    );
}

/// The same after a rollback: nodes of what was active stand beside the disk, and nobody uses these either. Both of its format
/// and of its file are known by the disk's own name.
#[test]
fn nodes_of_what_was_active_are_refused_to_go() {
    for (nth, name) in ["off-rollback-format-stays", "off-rollback-file-stays"]
        .into_iter()
        .enumerate()
    {
        off::at_step(
            name,
            &["-o", "merge=stream"],
            rollback::Rollback::new(),
            (Whom::Nobody, Deed::FailFrom(0)),
            (Which::Nth(nth), "blockdev-del"),
        );
    }
}

/// A commit with one fault; what was found by `of_a_commit_*` and mended.
fn commit_at(
    name: &str,
    attachment: Attachment,
    place: Place,
    whom: Whom,
    deed: Deed,
    words: &str,
) {
    let bench = Bench::with_options(name, attachment, &["-o", "merge=commit"]);
    at_step(bench, Remove::new(place), whom, deed, words);
}

over_attachments! {
    /// QEMU has the layer open by a hidden name already: that name must stay, or the layer's file is taken for one that
    /// nobody needs.
    a_connection_lost_while_a_layer_gets_its_hidden_name => |name, attachment| {
        commit_at(name, attachment, Place::Top, Whom::Nobody, Deed::CutBefore, "blockdev-del");
    }
}

/// The same of a QEMU that refuses to let go of the old node.
#[test]
fn a_layer_keeps_its_hidden_name_when_the_old_node_stays() {
    let name = "of_an_old_node";
    commit_at(
        name,
        Attachment::Blockdev,
        Place::Top,
        Whom::Nobody,
        Deed::Fail(0),
        "blockdev-del",
    );
}

over_attachments! {
    /// Between the two names of the file that received the layer above it has a third, hidden one.
    killed_between_the_names_of_a_commit => |name, attachment| {
        commit_at(name, attachment, Place::Bottom, Whom::Qmpfs, Deed::KillBefore, "rename web1.c");
    }
}

over_attachments! {
    /// QEMU knows a layer by a name that goes as soon as it is started again: who opens it just then gets it.
    qemu_killed_between_the_names_of_a_commit => |name, attachment| {
        commit_at(name, attachment, Place::Bottom, Whom::Qemu, Deed::KillAfter, "rename web1.c");
    }
}

/// Clients of a storage daemon write into the overlay before D names it: that is kept, under one name, and told.
#[test]
fn the_host_dies_before_a_storage_daemon_has_its_overlay_named() {
    let bench = Bench::new("of_a_first_snapshot_cut", Attachment::StorageDaemon);
    let words = "rename web1.qcow2";
    at_step(bench, Seal::new(true), Whom::Host, Deed::KillBefore, words);
}

/// The guest goes on at once, and is moved a little later.
#[test]
fn a_stop_refused_at_the_pivot_is_tried_again() {
    let name = "of_a_stop_refused";
    commit_at(
        name,
        Attachment::Blockdev,
        Place::Top,
        Whom::Nobody,
        Deed::Fail(0),
        "stop",
    );
}

#[test]
fn a_pivot_refused_is_tried_again() {
    let name = "of_a_pivot_refused";
    commit_at(
        name,
        Attachment::Drive,
        Place::Top,
        Whom::Nobody,
        Deed::Fail(0),
        "job-complete",
    );
}

/// The job runs, and nobody was told: it is followed to its end, and no point shows what it makes of the file.
#[test]
fn a_commit_that_is_never_answered_is_not_taken_for_refused() {
    let name = "of_a_commit_unanswered";
    commit_at(
        name,
        Attachment::Drive,
        Place::Top,
        Whom::Nobody,
        Deed::Mute,
        "block-commit",
    );
}

over_attachments! {
    /// The word that forgets an ended job is lost, or the connection with it: the job goes without another mount.
    a_dismissal_that_never_reaches_qemu => |name, attachment| {
        for deed in [Deed::Silence, Deed::CutBefore] {
            commit_at(name, attachment, Place::Top, Whom::Nobody, deed, "job-dismiss");
        }
    }
}

/// The same of the job that formats an overlay.
#[test]
fn a_dismissal_of_a_new_overlay_that_never_reaches_qemu() {
    let bench = Bench::new("of_a_new_overlay", Attachment::Drive);
    let silence = Deed::Silence;
    at_step(
        bench,
        Seal::new(false),
        Whom::Nobody,
        silence,
        "job-dismiss",
    );
}

/// QEMU 10.0.2 never ends when it is asked to while it formats a new overlay, and keeps the images to itself.
#[test]
fn a_storage_daemon_does_not_outlive_qmpfs() {
    let name = "of_a_daemon_at_work";
    for _ in 0..3 {
        let verb = rollback::Rollback::new();
        let fault = (Whom::Qmpfs, Deed::KillAfter);
        off::at_step(name, &[], verb, fault, (Which::Nth(0), "blockdev-create"));
    }
}

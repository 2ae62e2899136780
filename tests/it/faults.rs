//! One fault at one step of a verb (a QMP command, or an operation of qmpfs on a file), beside the writer: qmpfs is
//! killed, QEMU is, both are; the operation fails; the command is refused, or the connection ends. Afterwards the verb
//! was done, or never begun: chain, bytes of every point, names, marks, nodes and jobs, and the path that boots.

use qmpfs_tests::bench::Bench;
use qmpfs_tests::machine::Attachment;

mod drive;
mod queue;
mod verbs;

use drive::every_step;
use verbs::{Internal, Place, Remove, Seal};

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
over_attachments!(of_an_internal_snapshot => |name, attachment| every_step(Bench::new(name, attachment), Internal::made()));
over_attachments!(of_the_end_of_an_internal_snapshot => |name, attachment| every_step(Bench::new(name, attachment), Internal::deleted()));

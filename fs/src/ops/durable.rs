//! What QEMU has of a layer in its memory alone (tables of qcow2), put on stable storage. A `block-stream`
//! needs it: at its end QEMU lets the header of the layer above name what lies below the point, and
//! only later, with the guest's next flush, writes the tables that hold what was copied. A QEMU that is
//! killed in between has lost the point's bytes (docs/decisions/0012). Knows nodes; no verb.

use super::nodes::{self, Carried, Role};
use crate::errno::{Errno, Failure};
use qmpbridge::command::{BlockdevSnapshot, HumanMonitorCommand, TransactionAction};
use qmpbridge::{Bridge, NodeName};

/// VMs have it, storage daemons do not.
const HMP: &str = "human-monitor-command";

/// Flushes a node that a job is at work on, where that is possible. Where it is not: on a storage daemon
/// a sealed layer is flushed when the job ends and makes it read-only again; a root that is not ours
/// is flushed right after the job.
pub(super) async fn flush_under_a_job(
    bridge: &Bridge,
    node: &NodeName,
    role: Role,
    carried: &Carried,
) -> Result<(), Failure> {
    if bridge.supports(HMP) || (role == Role::Active && node.is_ours()) {
        flush(bridge, node, carried).await
    } else {
        Ok(())
    }
}

/// Flushes the active layer's node, or on a VM any. No command is just that; each of these does it.
pub(super) async fn flush(
    bridge: &Bridge,
    node: &NodeName,
    carried: &Carried,
) -> Result<(), Failure> {
    if bridge.supports(HMP) {
        let command_line = format!("qemu-io {node} flush");
        let said = bridge.run(HumanMonitorCommand { command_line }).await?;
        return match said.trim() {
            "" => Ok(()),
            words => Err(Failure::new(
                Errno::EIO,
                format!("cannot flush {node}: {words}"),
            )),
        };
    }
    if node.is_ours() {
        // with the options it has: that changes nothing, and QEMU flushes what it reopens
        let graph = bridge.graph().await?;
        let backing = graph.node(node).and_then(|node| node.backing.clone());
        return nodes::set_backing(bridge, &graph, node, backing, Role::Active, carried).await;
    }
    // QEMU flushes a node before it looks for the overlay, of which there is none
    let nowhere = TransactionAction::BlockdevSnapshot(BlockdevSnapshot {
        node: node.clone(),
        overlay: NodeName::fresh(),
    });
    match bridge.transaction(vec![nowhere]).await {
        Ok(()) | Err(qmpbridge::Error::Refused { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

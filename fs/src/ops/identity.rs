//! Which QEMU it is that answers: told from another one that answers at the same monitor later, or behind the
//! same proxy. Asks QEMU; remembers nothing.

use crate::errno::Failure;
use crate::layer_file::QemuIdentity;
use qmpbridge::Bridge;
use qmpbridge::command::QueryCpusFast;

/// By what the QEMU at a monitor is known.
pub(super) async fn of(bridge: &Bridge) -> Result<QemuIdentity, Failure> {
    let processors = match bridge.supports("query-cpus-fast") {
        true => bridge.run(QueryCpusFast).await?,
        false => Vec::new(),
    };
    Ok(QemuIdentity {
        pid: bridge.peer_pid(),
        processor: processors.first().map(|cpu| cpu.thread_id),
    })
}

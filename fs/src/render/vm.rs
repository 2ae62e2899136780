//! vm.json.

use crate::model::{ConnectionState, Model};
use serde::Serialize;

/// The object of vm.json.
#[derive(Serialize)]
pub(super) struct Vm<'a> {
    name: &'a str,
    run_state: Option<&'a str>,
    qemu_version: &'a str,
    source: &'a str,
    connection: &'static str,
    connection_reason: Option<&'a str>,
    capabilities: &'a [String],
    disks: Vec<&'a str>,
}

pub(super) fn vm(model: &Model) -> Vm<'_> {
    let (connection, connection_reason) = match &model.vm.connection {
        ConnectionState::Up => ("up", None),
        ConnectionState::Down(reason) => ("down", Some(reason.as_str())),
        ConnectionState::Offline => ("offline", None),
    };
    Vm {
        name: &model.vm.name,
        run_state: model.vm.run_state.as_deref(),
        qemu_version: &model.vm.qemu_version,
        source: &model.vm.source,
        connection,
        connection_reason,
        capabilities: &model.vm.capabilities,
        disks: model.disks.iter().map(|disk| disk.name.as_str()).collect(),
    }
}

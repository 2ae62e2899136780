//! vm.json.

use crate::model::{AgentState, ConnectionState, Manager, Model, Quiesce};
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
    /// Whose files are shown in points' `files/`.
    guest_filesystems: Vec<&'static str>,
    quiesce: &'static str,
    guest_agent: Option<&'a str>,
    guest_agent_state: Option<&'static str>,
    guest_agent_version: Option<&'a str>,
    guest_agent_error: Option<&'a str>,
    disks: Vec<&'a str>,
    /// Who else manages the VM: verbs are refused then, or few.
    managed_by: Option<&'static str>,
}

pub(super) fn vm(model: &Model) -> Vm<'_> {
    let (connection, connection_reason) = match &model.vm.connection {
        ConnectionState::Up => ("up", None),
        ConnectionState::Down(reason) => ("down", Some(reason.as_str())),
        ConnectionState::Offline => ("offline", None),
    };
    let agent = model.vm.agent.as_ref();
    let (state, version, error) = match agent.map(|agent| &agent.state) {
        None => (None, None, None),
        Some(AgentState::Unknown) => (Some("unknown"), None, None),
        Some(AgentState::Answers { version }) => (Some("answers"), Some(version.as_str()), None),
        Some(AgentState::Silent(why)) => (Some("unusable"), None, Some(why.as_str())),
    };
    Vm {
        name: &model.vm.name,
        run_state: model.vm.run_state.as_deref(),
        qemu_version: &model.vm.qemu_version,
        source: &model.vm.source,
        connection,
        connection_reason,
        capabilities: &model.vm.capabilities,
        guest_filesystems: crate::guest::readable(),
        quiesce: match model.vm.quiesce {
            Quiesce::Off => "off",
            Quiesce::Try => "try",
            Quiesce::Require => "require",
        },
        guest_agent: agent.map(|agent| agent.address.as_str()),
        guest_agent_state: state,
        guest_agent_version: version,
        guest_agent_error: error,
        managed_by: model.vm.manager.map(Manager::name),
        disks: model.disks.iter().map(|disk| disk.name.as_str()).collect(),
    }
}

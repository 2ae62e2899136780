//! A running disk: a VM without a guest OS, or qemu-storage-daemon, with a monitor for qmpfs, a second one for the test,
//! and a writable NBD export of each disk as the guest's hands. Ends and starts again with the same command line.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::nbd::{Endpoint, Nbd};
use crate::process::Process;
use crate::qmp::Qmp;
use crate::scratch::Scratch;
use crate::{storage_daemon, vm, wait};

/// Who takes a VM and forgets it.
const NOWHERE: &str = "exec:cat >/dev/null";

/// How a disk is attached: QEMU treats each of them differently when snapshots come and go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attachment {
    /// `-blockdev` nodes with names, as libvirt does it.
    Blockdev,
    /// The same with `auto-read-only=on`: QEMU reopens the file by name when a writer comes or goes.
    BlockdevAutoReadOnly,
    /// The same as people tune it: past the page cache, with native aio and discards, told of the file alone.
    BlockdevDirect,
    /// The same below a throttle filter.
    BlockdevThrottled,
    /// As libvirt starts it: nodes called `libvirt-N-format` and `libvirt-N-storage`.
    Libvirt,
    /// The legacy `-drive`: nodes called `#block…`, implicit children.
    Drive,
    /// qemu-storage-daemon with a writable export.
    StorageDaemon,
}

impl Attachment {
    /// True where there is a VM with a processor around the disk.
    pub fn is_vm(self) -> bool {
        self != Self::StorageDaemon
    }
}

/// One disk of a machine.
#[derive(Debug, Clone)]
pub struct Disk {
    /// Its name in the mount: the device's id, or the export's.
    pub name: String,
    /// The file on the command line, which never changes.
    pub image: PathBuf,
    /// `qcow2` or `raw`, and what else its driver is told.
    pub format: String,
}

impl Disk {
    /// A qcow2 disk.
    pub fn qcow2(name: &str, image: &Path) -> Self {
        Self {
            name: name.to_owned(),
            image: image.to_path_buf(),
            format: "qcow2".to_owned(),
        }
    }

    /// A raw disk.
    pub fn raw(name: &str, image: &Path) -> Self {
        Self {
            format: "raw".to_owned(),
            ..Self::qcow2(name, image)
        }
    }
}

/// The sockets of a machine.
#[derive(Debug, Clone)]
pub struct Sockets {
    /// The monitor for qmpfs.
    pub qmpfs: PathBuf,
    /// The monitor for the test.
    pub test: PathBuf,
    /// The NBD server.
    pub nbd: PathBuf,
}

/// A running VM or storage daemon.
#[derive(Debug)]
pub struct Machine {
    /// The test's own monitor.
    pub qmp: Qmp,
    process: Process,
    attachment: Attachment,
    disks: Vec<Disk>,
    extra: Vec<String>,
    sockets: Sockets,
    log: PathBuf,
}

impl Machine {
    /// Starts one with these disks.
    pub fn start(scratch: &Scratch, name: &str, attachment: Attachment, disks: &[Disk]) -> Self {
        Self::start_with(scratch, name, attachment, disks, &[])
    }

    /// Starts one with more arguments of its own.
    pub fn start_with(
        scratch: &Scratch,
        name: &str,
        attachment: Attachment,
        disks: &[Disk],
        extra: &[String],
    ) -> Self {
        let mut arguments = extra.to_vec();
        if attachment.is_vm() {
            arguments.extend(vm::without_guest(scratch));
        }
        Self::start_guest(scratch, name, attachment, disks, &arguments)
    }

    /// Starts one that boots what is on its disk.
    pub fn start_guest(
        scratch: &Scratch,
        name: &str,
        attachment: Attachment,
        disks: &[Disk],
        extra: &[String],
    ) -> Self {
        let sockets = Sockets {
            qmpfs: scratch.socket(&format!("{name}.qmp")),
            test: scratch.socket(&format!("{name}.test")),
            nbd: scratch.socket(&format!("{name}.nbd")),
        };
        let log = scratch.file(&format!("{name}.log"));
        let command = command(attachment, disks, &sockets, extra);
        let process = Process::spawn(command, &log, libc::SIGKILL);
        let qmp = Qmp::connect(&sockets.test);
        let mut machine = Self {
            qmp,
            process,
            attachment,
            disks: disks.to_vec(),
            extra: extra.to_vec(),
            sockets,
            log,
        };
        machine.export();
        machine
    }

    /// How its disks are attached.
    pub fn attachment(&self) -> Attachment {
        self.attachment
    }

    /// The monitor that qmpfs is to use.
    pub fn qmpfs_socket(&self) -> &Path {
        &self.sockets.qmpfs
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Where the guest's hands find a disk.
    pub fn endpoint(&self, disk: &str) -> Endpoint {
        Endpoint {
            socket: self.sockets.nbd.clone(),
            name: disk.to_owned(),
        }
    }

    /// A new connection to a disk.
    #[track_caller]
    pub fn nbd(&self, disk: &str) -> Nbd {
        Nbd::connect(&self.endpoint(disk))
    }

    /// Ends it in peace.
    pub fn quit(&mut self) {
        self.qmp.quit();
        self.process.wait("QEMU ends when told to quit");
    }

    /// Ends it without mercy.
    pub fn kill9(&mut self) {
        self.process.kill9();
    }

    /// Starts it again, after [`Self::quit`] or [`Self::kill9`], with the command line it always had.
    pub fn start_again(&mut self) {
        for socket in [&self.sockets.qmpfs, &self.sockets.test, &self.sockets.nbd] {
            let _ = std::fs::remove_file(socket);
        }
        let command = command(self.attachment, &self.disks, &self.sockets, &self.extra);
        self.process = Process::spawn(command, &self.log, libc::SIGKILL);
        self.qmp = Qmp::connect(&self.sockets.test);
        self.export();
    }

    /// Limits every running job to `bytes` a second (0: no limit), so that a test may meet it at work.
    /// Gives how many there are.
    pub fn limit_jobs(&mut self, bytes: u64) -> usize {
        let jobs = self.qmp.run("query-block-jobs", json!({}));
        let ids = jobs
            .as_array()
            .into_iter()
            .flatten()
            .map(|job| job["device"].clone());
        ids.filter(|id| {
            let speed = json!({"device": id, "speed": bytes});
            self.qmp.execute("block-job-set-speed", speed).is_ok()
        })
        .count()
    }

    /// Begins to migrate the VM to nowhere, so slowly that it stays under way until [`Self::cancel_migration`].
    pub fn begin_migration(&mut self) {
        let slowly = json!({"max-bandwidth": 1000});
        self.qmp.run("migrate-set-parameters", slowly);
        self.qmp.run("migrate", json!({"uri": NOWHERE}));
        self.until_migration("active");
    }

    /// Takes that back.
    pub fn cancel_migration(&mut self) {
        self.qmp.run("migrate_cancel", json!({}));
        self.until_migration("cancelled");
    }

    /// Migrates the VM to nowhere: its disks are another QEMU's from then on.
    pub fn migrate(&mut self) {
        // QEMU gives no disk away that it serves
        self.qmp.run("nbd-server-stop", json!({}));
        self.qmp.run("migrate", json!({"uri": NOWHERE}));
        self.until_migration("completed");
    }

    fn until_migration(&mut self, status: &str) {
        wait::until_true(&format!("the migration is {status}"), || {
            self.qmp.run("query-migrate", json!({}))["status"] == status
        });
    }

    /// Gives a disk another size, as another monitor does. Nobody may serve it.
    pub fn resize(&mut self, disk: &str, bytes: u64) {
        let node = format!("{disk}-node");
        let size = json!({"node-name": node, "size": bytes});
        self.qmp.run("block_resize", size);
    }

    /// Waits until the guest has switched the VM off.
    pub fn wait_off(&mut self) {
        self.process.wait("the VM switches itself off");
    }

    // The storage daemon has its exports on the command line; a VM gets them here.
    fn export(&mut self) {
        if !self.attachment.is_vm() {
            return;
        }
        let addr = json!({"type": "unix", "data": {"path": self.sockets.nbd}});
        self.qmp.run(
            "nbd-server-start",
            json!({"addr": addr, "max-connections": 0}),
        );
        for disk in &self.disks {
            let device = format!("/machine/peripheral/{}/virtio-backend", disk.name);
            let blocks = self.qmp.run("query-block", json!({}));
            let block = blocks
                .as_array()
                .and_then(|all| all.iter().find(|b| b["qdev"] == device.as_str()));
            let node = &block.unwrap_or_else(|| panic!("no disk {device} in {blocks}"))["inserted"]
                ["node-name"];
            self.qmp.run(
                "block-export-add",
                json!({"type": "nbd", "id": format!("nbd-{}", disk.name), "node-name": node, "name": disk.name, "writable": true}),
            );
        }
    }
}

fn command(attachment: Attachment, disks: &[Disk], sockets: &Sockets, extra: &[String]) -> Command {
    let (program, mut arguments) = match attachment {
        Attachment::StorageDaemon => (
            "qemu-storage-daemon",
            storage_daemon::arguments(disks, sockets),
        ),
        _ => (
            "qemu-system-x86_64",
            vm::arguments(attachment, disks, sockets),
        ),
    };
    // a storage daemon takes its arguments one after the other: what disks need comes first
    let at = match attachment {
        Attachment::StorageDaemon => 0,
        _ => arguments.len(),
    };
    arguments.splice(at..at, extra.iter().cloned());
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

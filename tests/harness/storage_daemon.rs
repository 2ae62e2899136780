//! The command line of qemu-storage-daemon in the role of a running VM: a writable NBD export per disk, two monitors.

use crate::machine::{Disk, Sockets};

/// All arguments.
pub(crate) fn arguments(disks: &[Disk], sockets: &Sockets) -> Vec<String> {
    let mut arguments = Vec::new();
    for (id, socket) in [("m0", &sockets.qmpfs), ("m1", &sockets.test)] {
        let chardev = format!(
            "socket,id={id},path={},server=on,wait=off",
            socket.display()
        );
        arguments.extend([
            "--chardev".to_owned(),
            chardev,
            "--monitor".to_owned(),
            format!("chardev={id}"),
        ]);
    }
    arguments.extend([
        "--nbd-server".to_owned(),
        format!("addr.type=unix,addr.path={}", sockets.nbd.display()),
    ]);
    for Disk {
        name,
        image,
        format,
    } in disks
    {
        arguments.extend([
            "--blockdev".to_owned(),
            format!(
                "driver=file,node-name={name}-file,filename={}",
                image.display()
            ),
            "--blockdev".to_owned(),
            format!("driver={format},node-name={name}-node,file={name}-file"),
            "--export".to_owned(),
            format!("nbd,id={name},node-name={name}-node,name={name},writable=on"),
        ]);
    }
    arguments
}

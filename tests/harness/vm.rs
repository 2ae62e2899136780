//! The command line of a VM: no guest OS unless more is given, TCG (so it runs anywhere), disks in three ways.

use crate::machine::{Attachment, Disk, Sockets};

/// All arguments.
pub(crate) fn arguments(attachment: Attachment, disks: &[Disk], sockets: &Sockets) -> Vec<String> {
    let fixed = "-M q35 -accel tcg -m 256M -display none -nodefaults -no-user-config";
    let mut arguments: Vec<String> = fixed.split(' ').map(str::to_owned).collect();
    for socket in [&sockets.qmpfs, &sockets.test] {
        arguments.extend([
            "-qmp".to_owned(),
            format!("unix:{},server=on,wait=off", socket.display()),
        ]);
    }
    for disk in disks {
        arguments.extend(attach(attachment, disk));
    }
    arguments
}

fn attach(attachment: Attachment, disk: &Disk) -> Vec<String> {
    let Disk {
        name,
        image,
        format,
    } = disk;
    let image = image.display();
    if attachment == Attachment::Drive {
        return vec![
            "-drive".to_owned(),
            format!("file={image},format={format},if=none,id=drive-{name}"),
            "-device".to_owned(),
            // share-rw: the test writes beside the device, as a second client
            format!("virtio-blk-pci,drive=drive-{name},id={name},share-rw=on"),
        ];
    }
    let auto = if attachment == Attachment::BlockdevAutoReadOnly {
        ",auto-read-only=on"
    } else {
        ""
    };
    vec![
        "-blockdev".to_owned(),
        format!("driver=file,node-name={name}-file,filename={image}{auto}"),
        "-blockdev".to_owned(),
        format!("driver={format},node-name={name}-node,file={name}-file"),
        "-device".to_owned(),
        format!("virtio-blk-pci,drive={name}-node,id={name},share-rw=on"),
    ]
}

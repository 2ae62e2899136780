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
    for (index, disk) in disks.iter().enumerate() {
        arguments.extend(match attachment {
            Attachment::Libvirt => as_libvirt(index + 1, disk),
            _ => attach(attachment, disk),
        });
    }
    arguments
}

fn as_libvirt(number: usize, disk: &Disk) -> Vec<String> {
    let Disk {
        name,
        image,
        format,
    } = disk;
    let image = image.display();
    [
        "-blockdev".to_owned(),
        format!(
            r#"{{"driver":"file","filename":"{image}","node-name":"libvirt-{number}-storage","auto-read-only":true,"discard":"unmap"}}"#
        ),
        "-blockdev".to_owned(),
        format!(
            r#"{{"node-name":"libvirt-{number}-format","read-only":false,"discard":"unmap","driver":"{format}","file":"libvirt-{number}-storage"}}"#
        ),
        "-device".to_owned(),
        format!("virtio-blk-pci,drive=libvirt-{number}-format,id={name},share-rw=on"),
    ]
    .to_vec()
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
    let (file, node) = match attachment {
        Attachment::BlockdevAutoReadOnly => (",auto-read-only=on", ""),
        Attachment::BlockdevDirect => (
            ",cache.direct=on,aio=native,discard=unmap",
            ",discard=unmap,detect-zeroes=unmap",
        ),
        _ => ("", ""),
    };
    let mut arguments = vec![
        "-blockdev".to_owned(),
        format!("driver=file,node-name={name}-file,filename={image}{file}"),
        "-blockdev".to_owned(),
        format!("driver={format},node-name={name}-node,file={name}-file{node}"),
    ];
    let mut top = format!("{name}-node");
    if attachment == Attachment::BlockdevThrottled {
        arguments.extend([
            "-object".to_owned(),
            format!("throttle-group,id={name}-group,x-bps-total=1000000000"),
            "-blockdev".to_owned(),
            format!("driver=throttle,node-name={name}-top,throttle-group={name}-group,file={top}"),
        ]);
        top = format!("{name}-top");
    }
    arguments.extend([
        "-device".to_owned(),
        format!("virtio-blk-pci,drive={top},id={name},share-rw=on"),
    ]);
    arguments
}

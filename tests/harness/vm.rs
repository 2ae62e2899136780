//! The command line of a VM: no guest OS unless more is given, TCG (so it runs anywhere), disks in three ways.

use crate::machine::{Attachment, Disk, Sockets};
use crate::scratch::Scratch;

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

/// What a firmware image is a multiple of.
const ROM: usize = 64 << 10;
/// Where an x86 processor begins, from the image's end.
const RESET_VECTOR: usize = 16;
/// `cli`, `hlt`, and again.
const SLEEP: [u8; 4] = [0xfa, 0xf4, 0xeb, 0xfc];

/// A processor that sleeps. Firmware resets the disks again and again, and QEMU 10.0.2 forgets clients of an NBD export
/// of the same disk when it does: the test's own hands would be lost.
pub(crate) fn without_guest(scratch: &Scratch) -> [String; 2] {
    let image = scratch.file("sleep.rom");
    let mut rom = vec![0xf4; ROM];
    rom[ROM - RESET_VECTOR..][..SLEEP.len()].copy_from_slice(&SLEEP);
    std::fs::write(&image, rom).expect("a file in the scratch directory");
    ["-bios".to_owned(), image.display().to_string()]
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

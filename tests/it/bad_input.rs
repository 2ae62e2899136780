//! What cannot be mounted or understood: an error that says why, never a wrong byte, never a mount left behind.

use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread;

use qmpfs_tests::machine::{Attachment, Disk, Machine};
use qmpfs_tests::mounted::Mounted;
use qmpfs_tests::qmp::Qmp;
use qmpfs_tests::scratch::Scratch;
use qmpfs_tests::{oracle, sh};

#[track_caller]
fn refused(scratch: &Scratch, source: &Path, options: &[&str], says: &str) {
    let (code, said) = Mounted::refused(scratch, &[source], options);
    assert!(code.is_some_and(|c| c != 0), "exit {code:?}: {said}");
    assert!(
        said.contains(says),
        "the message has {says:?} in it: {said}"
    );
    assert!(!said.contains("panicked"), "{said}");
}

#[test]
fn a_source_that_is_not_there() {
    let scratch = Scratch::new("bad-absent");
    refused(&scratch, &scratch.file("absent.qmp"), &[], "absent.qmp");
}

#[test]
fn an_unknown_option() {
    let scratch = Scratch::new("bad-option");
    let image = scratch.file("web1.qcow2");
    oracle::create(&image, 1 << 20);
    refused(
        &scratch,
        &image,
        &["-o", "no_such_option"],
        "no_such_option",
    );
}

#[test]
fn a_socket_nobody_listens_on() {
    let scratch = Scratch::new("bad-dead-socket");
    let socket = scratch.socket("dead.qmp");
    drop(UnixListener::bind(&socket).expect("a socket"));
    refused(&scratch, &socket, &[], "dead.qmp");
}

#[test]
fn a_monitor_that_someone_else_holds() {
    let scratch = Scratch::new("bad-taken");
    let image = scratch.file("web1.qcow2");
    oracle::create(&image, 1 << 20);
    let machine = Machine::start(
        &scratch,
        "vm",
        Attachment::StorageDaemon,
        &[Disk::qcow2("vda", &image)],
    );
    let _holder = Qmp::connect(machine.qmpfs_socket());
    refused(&scratch, machine.qmpfs_socket(), &[], "monitor");
}

#[test]
fn a_peer_that_speaks_something_else() {
    let scratch = Scratch::new("bad-peer");
    for (i, greeting) in [
        "220 mail.example ESMTP\r\n",
        "{\"QMP\":",
        "[]\n",
        "\u{0}\u{0}\u{0}\n",
        "",
    ]
    .iter()
    .enumerate()
    {
        let socket = scratch.socket(&format!("peer{i}"));
        let listener = UnixListener::bind(&socket).expect("a socket");
        let greeting = (*greeting).to_owned();
        thread::spawn(move || {
            if let Ok((mut peer, _)) = listener.accept() {
                let _ = peer.write_all(greeting.as_bytes());
            }
        });
        refused(&scratch, &socket, &[], "qmpfs: ");
    }
}

#[test]
fn images_that_nobody_can_read() {
    let scratch = Scratch::new("bad-images");
    let image = |name: &str| scratch.file(name);
    oracle::create(&image("short.qcow2"), 1 << 20);
    sh!("truncate -s 100 {}", image("short.qcow2").display());
    oracle::create(&image("future.qcow2"), 1 << 20);
    // An incompatible feature from the future: bit 40 of the field at offset 72.
    let future = fs::File::options()
        .write(true)
        .open(image("future.qcow2"))
        .expect("an image");
    future
        .write_all_at(&(1u64 << 40).to_be_bytes(), 72)
        .expect("a header field");
    for name in ["short.qcow2", "future.qcow2"] {
        refused(&scratch, &image(name), &["-o", "ro"], name);
    }
}

#[test]
fn a_chain_that_bites_its_tail() {
    let scratch = Scratch::new("bad-cycle");
    let (a, b) = (scratch.file("a.qcow2"), scratch.file("b.qcow2"));
    for (image, backing) in [(&a, &b), (&b, &a)] {
        sh!(
            "qemu-img create -q -u -f qcow2 -b {} -F qcow2 {} 1M",
            backing.display(),
            image.display()
        );
    }
    refused(&scratch, &a, &["-o", "ro"], "qcow2");
}

#[test]
fn a_missing_backing_file_is_named() {
    let scratch = Scratch::new("bad-backing");
    let image = scratch.file("web1.qcow2");
    sh!(
        "qemu-img create -q -u -f qcow2 -b {} -F qcow2 {} 1M",
        scratch.file("gone.qcow2").display(),
        image.display()
    );
    refused(&scratch, &image, &["-o", "ro"], "gone.qcow2");
}

#[test]
fn a_mountpoint_that_is_not_there() {
    let scratch = Scratch::new("bad-mountpoint");
    let image = scratch.file("web1.qcow2");
    oracle::create(&image, 1 << 20);
    let program = qmpfs_tests::mounted::program().display();
    let output = sh::attempt(&format!(
        "{program} mount -f {} {}/absent",
        image.display(),
        scratch.path().display()
    ));
    assert!(!output.status.success());
    assert!(
        sh::said(&output).contains("absent"),
        "{}",
        sh::said(&output)
    );
}

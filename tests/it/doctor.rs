//! `qmpfs doctor`: what it says is so, of this machine and of what it is asked to look at, and it changes nothing.

use qmpfs_tests::machine::{Attachment, Disk, Machine};
use qmpfs_tests::mounted::{Mounted, program};
use qmpfs_tests::scratch::Scratch;
use qmpfs_tests::{oracle, sh};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

fn doctor(sources: &[&Path]) -> (String, bool) {
    let output = Command::new(program()).arg("doctor").args(sources).output();
    let output = output.expect("it can be started");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.stderr.is_empty(), "{output:?}");
    (text, output.status.success())
}

/// The lines that say that something keeps it from being mounted.
fn unfit(said: &str) -> Vec<&str> {
    said.lines()
        .filter(|line| line.starts_with("NOT "))
        .collect()
}

fn of_a_source(name: &str, attachment: Attachment) {
    let scratch = Scratch::new(name);
    let image = scratch.dir("images").join("web1.qcow2");
    oracle::create(&image, 16 << 20);
    let before = sh!("sha256sum <{}", image.display());
    let (said, is_fit) = doctor(&[&image]);
    assert!(
        is_fit && said.contains("web1.qcow2 is locked by nobody"),
        "{said}"
    );
    assert_eq!(sh!("sha256sum <{}", image.display()), before);

    let machine = Machine::start(&scratch, "vm", attachment, &[Disk::qcow2("vda", &image)]);
    let (said, is_fit) = doctor(&[&image]);
    assert!(!is_fit && said.contains("is locked for writing"), "{said}");
    assert!(
        said.contains(&format!("is open in process {} ", machine.pid())),
        "{said}"
    );
    let (said, is_fit) = doctor(&[machine.qmpfs_socket()]);
    assert!(
        is_fit && said.contains("QEMU 1") || said.contains("QEMU 7"),
        "{said}"
    );
    // A storage daemon has no RAM to save.
    assert_eq!(
        said.contains("it cannot do checkpoints"),
        !attachment.is_vm(),
        "{said}"
    );
    assert!(!said.contains("it cannot do snapshots"), "{said}");

    // The monitor's one client is another, which says nothing.
    let other = UnixStream::connect(machine.qmpfs_socket()).expect("a client");
    let (said, is_fit) = doctor(&[machine.qmpfs_socket()]);
    assert!(
        !is_fit && unfit(&said).len() == 1 && said.contains("one more monitor"),
        "{said}"
    );
    drop(other);
    let (said, is_fit) = doctor(&[Path::new("/nowhere/web1.qmp")]);
    assert!(
        !is_fit && said.contains("/dev/fuse can be opened"),
        "{said}"
    );
    // It leaves a monitor as it was.
    let _mount = Mounted::new(&scratch, &[machine.qmpfs_socket()], &[]);
}

over_attachments!(doctor_of_a_source => of_a_source);

#[test]
fn of_the_machine() {
    let (said, is_fit) = doctor(&[]);
    assert!(is_fit, "tests run here: {said}");
    assert_eq!(unfit(&said), Vec::<&str>::new());
    let version = sh!("qemu-img --version | head -1");
    assert!(said.contains(&format!("ok    {version}")), "{said}");
    assert!(
        said.contains("guestmount --ro") && said.contains("shown of ext2"),
        "{said}"
    );
    // A mount whose daemon is gone.
    let scratch = Scratch::new("doctor-dead");
    let image = scratch.dir("images").join("web1.qcow2");
    oracle::create(&image, 1 << 20);
    let mut mount = Mounted::new(&scratch, &[&image], &["-o", "ro"]);
    mount.kill9();
    let (said, is_fit) = doctor(&[]);
    let line = format!("the daemon of the mount {} is gone", mount.path().display());
    assert!(is_fit && said.contains(&line), "{said}");
    // Without QEMU's programs, and as another user, who has no fusermount3.
    let empty = scratch.dir("empty");
    let line = format!("PATH={} {} doctor", empty.display(), program().display());
    let without = qmpfs_tests::sh::attempt(&line);
    let said = String::from_utf8_lossy(&without.stdout).into_owned();
    assert!(said.contains("qemu-storage-daemon is not there"), "{said}");
}

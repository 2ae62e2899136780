//! Layers that only the VM's own QEMU can read, as it has the key or the other files: its node is exported for as long
//! as a view is open, beside a writer that never stops, seals and merges.

use super::*;
use qmpfs_tests::model::Model;
use qmpfs_tests::writer::Writer;
use serde_json::json;

use libc::{EBUSY, EOPNOTSUPP};

/// Of these disks.
const ALL: u64 = 16 << 20;
const KEY: &str = "secret,id=key,data=correct-horse";

/// A LUKS template with its bytes, and a VM with the key whose disk stands on it.
struct Keyed {
    machine: Machine,
    base: PathBuf,
    raw: PathBuf,
    scratch: Scratch,
}

impl Keyed {
    fn new(name: &str, attachment: Attachment) -> Keyed {
        let scratch = Scratch::new(name);
        let raw = content(&scratch, ALL);
        let base = scratch.dir("templates").join("secret.qcow2");
        sh!(
            "qemu-img create -q -f qcow2 --object {KEY} -o encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10 {} {ALL}",
            base.display()
        );
        sh!(
            "qemu-img convert -n --object {KEY} -f raw {} --target-image-opts driver=qcow2,encrypt.key-secret=key,file.filename={}",
            raw.display(),
            base.display()
        );
        let image = scratch.dir("images").join("web1.qcow2");
        overlay(&image, &base, "qcow2");
        let mut disk = Disk::qcow2("vda", &image);
        disk.format = format!(
            "qcow2,backing.driver=qcow2,backing.encrypt.format=luks,backing.encrypt.key-secret=key,backing.file.driver=file,backing.file.filename={}",
            base.display()
        );
        let object = if attachment.is_vm() {
            "-object"
        } else {
            "--object"
        };
        let extra = [object.to_owned(), KEY.to_owned()];
        let machine = Machine::start_with(&scratch, "vm", attachment, &[disk], &extra);
        Keyed {
            machine,
            base,
            raw,
            scratch,
        }
    }

    fn mount(&self, option: &str) -> Mounted {
        let socket = self.machine.endpoint("vda").socket;
        let server = format!("{option},nbd_server={}", socket.display());
        Mounted::new(
            &self.scratch,
            &[self.machine.qmpfs_socket()],
            &["-o", &server],
        )
    }

    fn exports(&mut self) -> Vec<String> {
        let all = self.machine.qmp.run("query-block-exports", json!({}));
        let ids = all.as_array().into_iter().flatten();
        ids.filter_map(|export| export["id"].as_str())
            .filter(|id| id.starts_with("qmpfs-"))
            .map(str::to_owned)
            .collect()
    }

    fn wait_for_no_export(&mut self) {
        wait::until_true("QEMU serves nothing for a view", || {
            self.exports().is_empty()
        });
    }
}

over_attachments!(
    /// The template is encrypted, and QEMU has the key.
    a_template_with_a_key => with_a_key
);

fn with_a_key(name: &str, attachment: Attachment) {
    let mut keyed = Keyed::new(name, attachment);
    let before = crate::release::fingerprint(&keyed.base);
    let mount = keyed.mount("merge=commit");
    let disk = mount.disk("vda");
    let endpoint = keyed.machine.endpoint("vda");
    let writer = Writer::start(&endpoint, 1 << 20..8 << 20, Model::default(), 5);
    writer.progress(20);
    let bottom = disk.layer(0);
    oracle::assert_same(&bottom.disk_raw(), &keyed.raw);
    assert_eq!(bottom.json()["read_by"], "qemu");

    // beside an open view: no snapshot, as the command line would pass over it; what does not change the chain
    let reader = File::open(bottom.disk_raw()).expect("a reader");
    assert_eq!(keyed.exports().len(), 1, "all views of a layer share it");
    assert_eq!(
        mount.disk("").list(""),
        ["vda"],
        "what is served is no disk"
    );
    assert_errno(disk.snapshot("one").make(), &[EOPNOTSUPP]);
    assert!(
        mount.text("log").contains("backing="),
        "{}",
        mount.text("log")
    );
    for point in [disk.internal("one"), disk.live("one")] {
        point.make().expect("mkdir");
        writer.progress(20);
    }
    let inside = fs::read(disk.internal("one").disk_raw()).expect("above what is served");
    let expected = fs::read(&keyed.raw).expect("the template");
    assert!(
        inside[8 << 20..] == expected[8 << 20..],
        "where nobody writes"
    );
    disk.live("one").delete_when_closed();
    disk.internal("one").delete_when_closed();
    let (mut held, mut expected) = (vec![0; HELD], vec![0; HELD]);
    fill(&mut expected, 0, 77);
    let at = ALL - TEMPLATE + (1 << 20);
    reader.read_exact_at(&mut held, at).expect("it is served");
    assert_eq!(held, expected);
    drop(reader);
    keyed.wait_for_no_export();

    // QEMU dies under a view, and comes back
    let reader = File::open(bottom.disk_raw()).expect("a reader");
    writer.expect_the_end();
    keyed.machine.kill9();
    drop(writer.fallen());
    wait::until_true("the view says that it cannot be read", || {
        let read = reader.read_exact_at(&mut held, at);
        read.is_err_and(|error| error.raw_os_error() == Some(EIO))
    });
    keyed.machine.start_again();
    wait::until_true("QEMU serves it again", || {
        oracle::compare(&disk.layer(0).disk_raw(), &keyed.raw).is_ok()
    });
    assert!(
        reader.read_exact_at(&mut held, at).is_err(),
        "an old view stays broken"
    );
    drop(reader);
    keyed.wait_for_no_export();
    assert_eq!(crate::release::fingerprint(&keyed.base), before);
}

over_attachments!(
    /// Seals, merges, the nodes made for them and a restart, while the VM's QEMU serves the template.
    verbs_beside_what_the_vm_serves => beside_verbs
);

fn beside_verbs(name: &str, attachment: Attachment) {
    let scratch = Scratch::new(name);
    let raw = content(&scratch, SIZE + TEMPLATE);
    let flat = flat(&scratch, &raw);
    let dir = scratch.dir("images");
    overlay(&dir.join("web1.qcow2"), &flat, "vmdk");
    let server = format!(
        "merge=commit,nbd_server={}",
        scratch.socket("vm.nbd").display()
    );
    let mut bench = Bench::on(scratch, dir, vec![flat], attachment, &["-o", &server]);
    oracle::assert_same(&bench.disk().layer(0).disk_raw(), &raw);
    bench.seal("one");
    bench.seal("two");
    bench.restart();
    let reader = File::open(bench.disk().layer(0).disk_raw()).expect("a reader");
    bench.seal("three");
    let before = fs::read(bench.bytes_of("three")).expect("a point");
    bench.remove("one");
    bench.remove("two");
    assert!(fs::read(bench.point("three").disk_raw()).expect("a view") == before);
    bench.remove("three");
    let (mut held, mut expected) = (vec![0; HELD], vec![0; HELD]);
    fill(&mut expected, 0, 77);
    reader
        .read_exact_at(&mut held, SIZE + (1 << 20))
        .expect("it is served all the time");
    assert_eq!(held, expected);
    drop(reader);
    bench.finish();
}

#[test]
fn a_killed_mount_leaves_nothing_served() {
    let mut keyed = Keyed::new("foreign-key-killed", Attachment::Blockdev);
    let mut mount = keyed.mount("no_delete");
    let reader = File::open(mount.disk("vda").layer(0).disk_raw()).expect("a reader");
    let left = keyed.exports();
    assert_eq!(left.len(), 1);
    mount.kill9();
    drop(reader);
    mount.mount_again();
    assert!(keyed.exports().is_empty(), "the next mount takes it down");
    oracle::assert_same(&mount.disk("vda").layer(0).disk_raw(), &keyed.raw);
    mount.unmount();
    assert!(keyed.exports().is_empty(), "and the end of a mount");
}

#[test]
fn the_nbd_server_is_ours_where_there_is_none() {
    let mut keyed = Keyed::new("foreign-key-server", Attachment::Blockdev);
    let mount = Mounted::new(&keyed.scratch, &[keyed.machine.qmpfs_socket()], &[]);
    let bottom = mount.disk("vda").layer(0).disk_raw();
    // it has one, which nobody has named
    assert_errno(File::open(&bottom).map(drop), &[EBUSY]);
    keyed.machine.qmp.run("nbd-server-stop", json!({}));
    oracle::assert_same(&bottom, &keyed.raw);
    keyed.wait_for_no_export();
    wait::until_true("the server is gone", || {
        let none = keyed.machine.qmp.execute("nbd-server-stop", json!({}));
        none.is_err()
    });
}

#[test]
fn files_that_a_layer_names_are_read_by_its_vm() {
    let scratch = Scratch::new("foreign-flat");
    let raw = content(&scratch, ALL);
    let flat = flat(&scratch, &raw);
    let image = scratch.dir("images").join("web1.qcow2");
    overlay(&image, &flat, "vmdk");
    let disks = [Disk::qcow2("vda", &image)];
    let machine = Machine::start(&scratch, "vm", Attachment::Drive, &disks);
    let server = format!("nbd_server={}", machine.endpoint("vda").socket.display());
    let mount = Mounted::new(&scratch, &[machine.qmpfs_socket()], &["-o", &server]);
    oracle::assert_same(&mount.disk("vda").layer(0).disk_raw(), &raw);
}

/// A template whose bytes are in another file, which it names.
fn flat(scratch: &Scratch, raw: &Path) -> PathBuf {
    let flat = scratch.dir("templates").join("flat.vmdk");
    sh!(
        "qemu-img convert -f raw -O vmdk -o subformat=monolithicFlat {} {}",
        raw.display(),
        flat.display()
    );
    flat
}

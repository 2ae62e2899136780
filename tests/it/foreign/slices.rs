//! Slices of raw files, as libvirt's `<slices>` make them: a node shows a stretch of its file, and QEMU reads it for us.

use super::*;

/// Bytes of the file.
const WHOLE: u64 = 8 << 20;
/// Where the slice begins, and its bytes.
const START: u64 = 1 << 20;
const LENGTH: u64 = 4 << 20;

/// Where the file is, as the name of a data file, too.
fn path(scratch: &Scratch) -> PathBuf {
    scratch.dir("templates").join("whole.raw")
}

/// Makes the file, in which no two pieces are the same.
fn make(scratch: &Scratch) -> Vec<u8> {
    let mut bytes = vec![0; WHOLE as usize];
    fill(&mut bytes, 0, 7);
    fs::write(path(scratch), &bytes).expect("room");
    bytes
}

/// Options of QEMU's for a raw node on the file, each of them `below` a node: `offset=1M` is `below.offset=1M`.
fn raw(scratch: &Scratch, below: &str, told: &[String]) -> String {
    let file = [
        "driver=raw".to_owned(),
        "file.driver=file".to_owned(),
        format!("file.filename={}", path(scratch).display()),
    ];
    let options = file.iter().chain(told);
    let options: Vec<String> = options.map(|it| format!("{below}{it}")).collect();
    options.join(",")
}

fn slice() -> [String; 2] {
    [format!("offset={START}"), format!("size={LENGTH}")]
}

fn empty(scratch: &Scratch, name: &str, size: u64) -> PathBuf {
    let image = scratch.dir("images").join(name);
    oracle::create(&image, size);
    image
}

/// What QEMU reads of an image, to compare with.
fn converted(scratch: &Scratch, options: &str) -> PathBuf {
    let raw = scratch.file("expected.raw");
    sh!(
        "qemu-img convert -U --image-opts -O raw {options} {}",
        raw.display()
    );
    raw
}

/// A storage daemon that is told what its disk stands on, and a mount that may use its NBD server.
fn started(scratch: &Scratch, size: u64, below: &str) -> (Machine, Mounted) {
    let mut disk = Disk::qcow2("vda", &empty(scratch, "web1.qcow2", size));
    disk.format = format!("qcow2,{below}");
    let machine = Machine::start(scratch, "vm", Attachment::StorageDaemon, &[disk]);
    let server = format!("nbd_server={}", machine.endpoint("vda").socket.display());
    let mount = Mounted::new(scratch, &[machine.qmpfs_socket()], &["-o", &server]);
    (machine, mount)
}

#[test]
fn a_slice_of_a_raw_file_and_the_layers_above_it() {
    let scratch = Scratch::new("slices-chain");
    let bytes = make(&scratch);
    let middle = empty(&scratch, "middle.qcow2", LENGTH);
    sh!(
        "qemu-io -f qcow2 -c 'write -q -P 5 64k 64k' {}",
        middle.display()
    );
    let middle = format!(
        "driver=qcow2,file.driver=file,file.filename={}",
        middle.display()
    );
    let above = converted(
        &scratch,
        &format!("{middle},{}", raw(&scratch, "backing.", &slice())),
    );
    let (driver, file) = middle.split_once(',').expect("two options");
    let (file, name) = file.split_once(',').expect("two options");
    let below = format!(
        "backing.{driver},backing.{file},backing.{name},{}",
        raw(&scratch, "backing.backing.", &slice())
    );
    let (_machine, mount) = started(&scratch, LENGTH, &below);
    let disk = mount.disk("vda");
    oracle::assert_same(&disk.layer(1).disk_raw(), &above);
    let bottom = disk.layer(0);
    let slice = (START as usize)..(START + LENGTH) as usize;
    assert!(fs::read(bottom.disk_raw()).expect("the slice") == bytes[slice]);
    for layer in [bottom, disk.layer(1)] {
        assert_eq!(layer.json()["read_by"], "qemu");
    }
}

#[test]
fn a_slice_that_begins_with_its_file_ends_before_it() {
    let scratch = Scratch::new("slices-beginning");
    let bytes = make(&scratch);
    let size = [format!("size={LENGTH}")];
    let (_machine, mount) = started(&scratch, WHOLE, &raw(&scratch, "backing.", &size));
    let bottom = mount.disk("vda").layer(0).disk_raw();
    assert!(fs::read(bottom).expect("the slice") == bytes[..LENGTH as usize]);
}

#[test]
fn a_raw_file_of_an_odd_size_is_no_slice() {
    let scratch = Scratch::new("slices-odd");
    let mut bytes = make(&scratch);
    sh!("truncate -s -77 {}", path(&scratch).display());
    let (_machine, mount) = started(&scratch, WHOLE, &raw(&scratch, "backing.", &[]));
    let bottom = mount.disk("vda").layer(0);
    assert_eq!(bottom.json()["read_by"], "qmpfs");
    let end = bytes.len() - 77;
    bytes[end..].fill(0);
    assert!(fs::read(bottom.disk_raw()).expect("the file") == bytes);
}

#[test]
fn a_data_file_that_is_a_slice() {
    let scratch = Scratch::new("slices-data");
    let base = scratch.dir("templates").join("base.qcow2");
    sh!(
        "qemu-img create -q -f qcow2 -o data_file={},data_file_raw=on {} {LENGTH}",
        path(&scratch).display(),
        base.display()
    );
    make(&scratch);
    let image = format!(
        "backing.driver=qcow2,backing.file.driver=file,backing.file.filename={},{}",
        base.display(),
        raw(&scratch, "backing.data-file.", &slice())
    );
    let expected = converted(&scratch, &image.replace("backing.", ""));
    let (_machine, mount) = started(&scratch, LENGTH, &image);
    let bottom = mount.disk("vda").layer(0);
    assert_eq!(bottom.json()["read_by"], "qemu");
    oracle::assert_same(&bottom.disk_raw(), &expected);
}

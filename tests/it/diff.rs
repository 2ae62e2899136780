//! `qmpfs diff`: exactly what was changed between two points, beside a writer that never stops; what both have from one
//! place is not read; and the ranges of bytes it tells are all there are.

use qmpfs_tests::machine::{Attachment, Disk, Machine};
use qmpfs_tests::model::Model;
use qmpfs_tests::mounted::{Mounted, program};
use qmpfs_tests::nbd::Nbd;
use qmpfs_tests::scratch::Scratch;
use qmpfs_tests::writer::Writer;
use qmpfs_tests::{oracle, sh, wait};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What is changed in the guest's filesystem between the two points.
const CHANGES: &str = "cp -a same-size keep; printf B | dd of=same-size bs=1 seek=70000 conv=notrunc status=none; touch -r keep same-size; rm keep; \
     echo more >>grown; touch touched; setfattr -n user.a -v 2 attributed; chmod 600 mode; chown 7:8 owner; rm gone; rm -r tree; mkdir -p new/dir; echo x >new/dir/file; \
     ln -snf elsewhere link; touch -h -r touched link; rm -r kind; echo file >kind; mv named 'name
d'";
/// What `qmpfs diff` has to say of that, below `files/1`.
const EXPECTED: &str = "\
changed  files/1/attributed (attributes)
removed  files/1/gone
changed  files/1/grown (size, time, content)
changed  files/1/kind (kind)
changed  files/1/link (time, target)
changed  files/1/mode (mode)
added    files/1/name\\0012d
removed  files/1/named
added    files/1/new/
changed  files/1/owner (owner)
changed  files/1/same-size (content)
changed  files/1/touched (time)
removed  files/1/tree/";
/// The writer's, in the second partition.
const WRITTEN: std::ops::Range<u64> = 40 << 20..48 << 20;
/// Between the partitions.
const GAP: u64 = 36 << 20;

struct Bench {
    mount: Mounted,
    writer: Option<Writer>,
    machine: Machine,
    scratch: Scratch,
}

/// What a command said, and how it ended.
fn diff(arguments: &[&str], paths: [&Path; 2]) -> (String, String, i32) {
    let mut command = Command::new(program());
    let output = command.arg("diff").args(arguments).args(paths).output();
    let output = output.expect("it can be started");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    (
        text(&output.stdout),
        text(&output.stderr),
        output.status.code().expect("it ends by itself"),
    )
}

impl Bench {
    /// Two points: between them the filesystem changed, a byte in the gap, and what the writer wrote.
    fn new(name: &str, attachment: Attachment) -> Self {
        let scratch = Scratch::new(name);
        let (one, two, raw) = (
            scratch.file("1.raw"),
            scratch.file("2.raw"),
            scratch.file("disk.raw"),
        );
        let (kernel, image) = (
            scratch.dir("kernel"),
            scratch.dir("images").join("web1.qcow2"),
        );
        sh!(
            "truncate -s 32M {0}; mkfs.ext4 -q -F {0}; mount -o loop {0} {2}; trap 'cd /; umount {2}' EXIT; cd {2}; \
             head -c 6000000 /dev/urandom >untouched; head -c 200000 /dev/zero | tr '\\0' A >same-size; \
             for f in attributed grown touched mode owner gone named; do echo $f >$f; done; mkdir -p tree/a/b kind; ln -s there link; setfattr -n user.a -v 1 attributed untouched; \
             touch -h -d '2020-01-01' *; cd /; sync -f {2}; umount {2}; trap - EXIT; cp --sparse=always {0} {1}; \
             mount -o loop {1} {2}; trap 'cd /; umount {2}' EXIT; cd {2}; {CHANGES}; cd /",
            one.display(),
            two.display(),
            kernel.display()
        );
        sh!(
            "truncate -s 48M {0}; printf 'label: dos\\nstart=1MiB,size=32MiB\\nstart=40MiB\\n' | sfdisk -q {0}; \
             dd if={1} of={0} bs=1M seek=1 conv=notrunc,sparse status=none; qemu-img convert -f raw -O qcow2 {0} {2}",
            raw.display(),
            one.display(),
            image.display()
        );
        let machine = Machine::start(&scratch, "vm", attachment, &[Disk::qcow2("vda", &image)]);
        let server = format!("nbd_server={}", machine.endpoint("vda").socket.display());
        let mount = Mounted::new(&scratch, &[machine.qmpfs_socket()], &["-o", &server]);
        wait::until_true("the disk is in the mount", || mount.disk("vda").0.is_dir());
        let writer = Writer::start(&machine.endpoint("vda"), WRITTEN, Model::default(), 7);
        let bench = Self {
            mount,
            writer: Some(writer),
            machine,
            scratch,
        };
        bench
            .mount
            .disk("vda")
            .snapshot("before")
            .make()
            .expect("mkdir");
        let (before, after) = (fs::read(&one).expect("made"), fs::read(&two).expect("made"));
        let mut guest = bench.machine.nbd("vda");
        for (at, (was, is)) in before.chunks(4096).zip(after.chunks(4096)).enumerate() {
            if was != is {
                guest
                    .write((1 << 20) + at as u64 * 4096, is)
                    .expect("the disk takes it");
            }
        }
        guest
            .write(GAP + 1024, &[7; 512])
            .expect("the disk takes it");
        guest.flush().expect("it is there");
        drop::<Nbd>(guest);
        bench
            .mount
            .disk("vda")
            .snapshot("after")
            .make()
            .expect("mkdir");
        bench
    }

    fn point(&self, name: &str) -> PathBuf {
        self.mount.disk("vda").0.join("snapshots").join(name)
    }

    /// Bytes that were read of points' files so far.
    fn bytes_read(&self) -> u64 {
        let metrics = self.mount.text("metrics");
        let line = metrics
            .lines()
            .find_map(|line| line.strip_prefix("qmpfs_view_read_bytes_total{disk=\"vda\"} "));
        line.map_or(0, |value| value.parse().expect("a number"))
    }
}

/// Every changed byte is in a range, and every sector of a range has changed.
fn assert_ranges(said: &str, path: &str, before: &Path, after: &Path) -> usize {
    let (mut was, is) = (
        fs::read(before).expect("a partition"),
        fs::read(after).expect("a partition"),
    );
    let mut count = 0;
    for line in said.lines() {
        let told: serde_json::Value = serde_json::from_str(line).expect("an object a line");
        if told["path"] != path {
            continue;
        }
        assert_eq!(told["change"], "bytes", "{told}");
        let number = |field: &str| {
            usize::try_from(told[field].as_u64().expect("a number")).expect("it fits")
        };
        let (start, end) = (number("offset"), number("offset") + number("length"));
        for at in (start..end).step_by(512) {
            let end = end.min(at + 512);
            assert_ne!(was[at..end], is[at..end], "{path} at {at}");
        }
        was[start..end].copy_from_slice(&is[start..end]);
        count += 1;
    }
    assert!(was == is, "{path}: more was changed");
    count
}

fn between_two_points(name: &str, attachment: Attachment) {
    let mut bench = Bench::new(name, attachment);
    let (before, after) = (bench.point("before"), bench.point("after"));
    let read = bench.bytes_read();
    let (said, trouble, code) = diff(&[], [&before, &after]);
    assert_eq!((trouble.as_str(), code), ("", 1), "{said}");
    let (files, bytes): (Vec<&str>, Vec<&str>) =
        said.lines().partition(|line| line.contains(" files/"));
    assert_eq!(files.join("\n"), EXPECTED);
    assert!(
        bytes.contains(&format!("changed  disk.raw (bytes {}+512)", GAP + 1024).as_str()),
        "{said}"
    );
    // What was not changed is not read: the file of 6 MB.
    let read = bench.bytes_read() - read;
    assert!(
        read < 2 * (WRITTEN.end - WRITTEN.start) + (3 << 20),
        "{read} bytes were read"
    );

    let (said, _, code) = diff(&["--json"], [&before, &after]);
    assert_eq!(code, 1);
    let partition = |point: &Path| point.join("partitions/2.raw");
    let count = assert_ranges(
        &said,
        "partitions/2.raw",
        &partition(&before),
        &partition(&after),
    );
    assert!(count > 0, "the writer wrote");
    let json: Vec<serde_json::Value> = said
        .lines()
        .map(|line| serde_json::from_str(line).expect("an object"))
        .collect();
    let grown = json
        .iter()
        .find(|it| it["path"] == "files/1/grown")
        .expect("it is told");
    assert_eq!(
        (&grown["size_before"], &grown["size_after"]),
        (&6.into(), &11.into())
    );

    // A part of a point, and an instant whose bytes another program has.
    let live = bench.mount.disk("vda").live("now");
    live.make().expect("mkdir live");
    let (said, trouble, _) = diff(&[], [&before.join("files/1"), &live.0.join("files/1")]);
    assert_eq!((said.as_str(), trouble.as_str()), (EXPECTED, ""));
    assert_eq!(
        diff(&[], [&after.join("files"), &live.0.join("files")]),
        (String::new(), String::new(), 0)
    );
    live.delete().expect("rmdir live");
    let one = |point: &Path| point.join("files/1/new/dir/../../same-size");
    assert_eq!(
        diff(&[], [&one(&before), &one(&after)]).2,
        2,
        "no such directory before"
    );
    let one = |point: &Path| point.join("files/1/same-size");
    assert_eq!(
        diff(&[], [&one(&before), &one(&after)]).0,
        "changed  files/1/same-size (content)"
    );

    // Nothing is different from itself, and nothing of it is read.
    let read = bench.bytes_read();
    assert_eq!(
        diff(&[], [&after, &after]),
        (String::new(), String::new(), 0)
    );
    assert_eq!(bench.bytes_read(), read);
    for (paths, words) in [
        ([before.as_path(), Path::new("/nowhere")], "No such file"),
        ([before.as_path(), Path::new("/proc")], "is no point"),
        (
            [before.as_path(), &bench.mount.snapshots("")],
            "is no point",
        ),
    ] {
        let (_, trouble, code) = diff(&[], paths);
        assert_eq!(code, 2);
        assert!(trouble.contains(words), "{trouble}");
    }
    let (_, trouble, code) = diff(&[], [&before, &after.join("disk.raw")]);
    assert_eq!(code, 2);
    let names = format!("{}: name disk.raw", before.display());
    assert!(trouble.contains(&names), "{trouble}");
    bench.writer.take().expect("it runs").stop();
    drop((bench.machine, bench.scratch));
}

over_attachments!(
    #[doc = "Files, bytes, parts of points."]
    diff_of_points => between_two_points
);

/// Points of all disks, a point that is not removed while it is compared, and a filesystem that is damaged in one of them.
#[test]
fn points_of_all_disks_and_damaged_ones() {
    let scratch = Scratch::new("diff-all");
    let dir = scratch.dir("images");
    let images: Vec<PathBuf> = ["one", "two"]
        .map(|name| dir.join(format!("{name}.qcow2")))
        .into();
    let tree = scratch.dir("tree");
    fs::write(tree.join("file"), "1").expect("room");
    for image in &images {
        let raw = scratch.file("raw");
        sh!(
            "mke2fs -q -t ext4 -d {} {} 8M",
            tree.display(),
            raw.display()
        );
        sh!(
            "qemu-img convert -f raw -O qcow2 {0} {1}; rm {0}",
            raw.display(),
            image.display()
        );
    }
    let mount = Mounted::new(&scratch, &[&images[0], &images[1]], &[]);
    let (before, after) = (mount.snapshots("before"), mount.snapshots("after"));
    fs::create_dir(&before).expect("mkdir");
    fs::create_dir(&after).expect("mkdir");
    assert_eq!(
        diff(&[], [&before, &after]),
        (String::new(), String::new(), 0)
    );
    let alone = mount.disk("one").snapshot("before").0;
    assert_eq!(
        diff(&[], [&before, &alone]).2,
        2,
        "one disk and all of them"
    );
    fs::remove_dir(&after).expect("rmdir");
    mount.wait_idle();
    drop(mount);
    // The second disk's group descriptors are overwritten, and its superblock stays.
    sh!(
        "qemu-io -f qcow2 -c 'write -P 255 2k 64k' {}",
        images[1].display()
    );
    let mount = Mounted::new(&scratch, &[&images[0], &images[1]], &[]);
    fs::create_dir(mount.snapshots("after")).expect("mkdir");
    let (said, _, code) = diff(&[], [&mount.snapshots("before"), &mount.snapshots("after")]);
    assert!(
        said.contains("changed  two/partitions/0.raw (bytes "),
        "{said}"
    );
    assert!(!said.contains("one/"), "{said}");
    assert_eq!(
        code, 1,
        "its bytes are compared where its files cannot be read"
    );
    oracle::check(&images[0]);
}

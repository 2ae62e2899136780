//! `qmpfs cat` against `qemu-img convert`, and its exit codes.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const MIB: usize = 1 << 20;

/// A directory of images.
struct Images(tempfile::TempDir);

impl Images {
    fn new() -> Self {
        Images(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().canonicalize().unwrap().join(name)
    }

    fn run(&self, program: &str, arguments: &[&str]) {
        let done = Command::new(program)
            .current_dir(self.0.path())
            .args(arguments)
            .output()
            .unwrap();
        assert!(
            done.status.success(),
            "{program} {arguments:?}: {}",
            String::from_utf8_lossy(&done.stderr)
        );
    }

    /// base.img (raw) <- middle.qcow2 <- web1.qcow2 with the internal snapshots "first" and "2".
    fn chain() -> Self {
        let images = Images::new();
        images.run("qemu-img", &["create", "-q", "-f", "raw", "base.img", "9M"]);
        images.write("base.img", "raw", &["write -P 1 0 9M"]);
        for (name, below, format) in [
            ("middle.qcow2", "base.img", "raw"),
            ("web1.qcow2", "middle.qcow2", "qcow2"),
        ] {
            let arguments = ["create", "-q", "-f", "qcow2", "-b", below, "-F", format];
            images.run("qemu-img", &[&arguments[..], &[name, "13M"]].concat());
        }
        images.write("middle.qcow2", "qcow2", &["write -P 2 1M 3M"]);
        images.write("web1.qcow2", "qcow2", &["write -P 3 2500k 100k"]);
        images.run("qemu-img", &["snapshot", "-c", "first", "web1.qcow2"]);
        images.write("web1.qcow2", "qcow2", &["write -P 4 5M 70k"]);
        images.run("qemu-img", &["snapshot", "-c", "1", "web1.qcow2"]);
        images.write(
            "web1.qcow2",
            "qcow2",
            &["write -P 5 11M 1M", "write -z 0 64k"],
        );
        images
    }

    fn write(&self, name: &str, format: &str, commands: &[&str]) {
        let mut arguments = vec!["-f", format];
        for command in commands {
            arguments.extend(["-c", command]);
        }
        arguments.push(name);
        self.run("qemu-io", &arguments);
    }

    fn truth(&self, name: &str, snapshot: Option<&str>) -> Vec<u8> {
        let mut arguments = vec!["convert", "-O", "raw"];
        if let Some(snapshot) = snapshot {
            arguments.extend(["-l", snapshot]);
        }
        self.run("qemu-img", &[&arguments[..], &[name, "truth"]].concat());
        std::fs::read(self.path("truth")).unwrap()
    }

    fn cat(&self, name: &str, options: &[&str]) -> Output {
        command(&self.path(name), options).output().unwrap()
    }

    fn bytes(&self, name: &str, options: &[&str]) -> Vec<u8> {
        let done = self.cat(name, options);
        let words = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(0), "{name} {options:?}: {words}");
        assert!(words.is_empty(), "{words}");
        done.stdout
    }

    /// What is said when it refuses.
    fn refused(&self, name: &str, options: &[&str]) -> String {
        let done = self.cat(name, options);
        assert_eq!(done.status.code(), Some(1), "{name} {options:?}");
        assert!(done.stdout.is_empty(), "{name} {options:?}");
        String::from_utf8(done.stderr).unwrap()
    }
}

fn command(image: &Path, options: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qmpfs"));
    command.arg("cat").arg(image).args(options);
    command
}

#[track_caller]
fn same(ours: &[u8], theirs: &[u8]) {
    assert_eq!(ours.len(), theirs.len());
    let differs = ours.iter().zip(theirs).position(|(a, b)| a != b);
    assert_eq!(differs, None, "the first byte that differs");
}

#[test]
fn a_chain_its_snapshots_and_ranges_of_it() {
    let images = Images::chain();
    let truth = images.truth("web1.qcow2", None);
    same(&images.bytes("web1.qcow2", &[]), &truth);
    same(
        &images.bytes("middle.qcow2", &[]),
        &images.truth("middle.qcow2", None),
    );
    same(
        &images.bytes("base.img", &["--format", "raw"]),
        &images.truth("base.img", None),
    );
    for (offset, length) in [(0, 1), (MIB - 1, 3 * MIB), (13 * MIB - 7, 7), (5, 0)] {
        let range = [
            "--offset",
            &offset.to_string(),
            "--length",
            &length.to_string(),
        ];
        same(
            &images.bytes("web1.qcow2", &range),
            &truth[offset..offset + length],
        );
    }
    same(
        &images.bytes("web1.qcow2", &["--offset", "11M"]),
        &truth[11 * MIB..],
    );
    same(&images.bytes("web1.qcow2", &["--offset", "13M"]), &[]);
    for (wanted, name) in [("first", "first"), ("2", "snapshot.id=2")] {
        same(
            &images.bytes("web1.qcow2", &["--snapshot", wanted]),
            &images.truth("web1.qcow2", Some(name)),
        );
    }
    // An id comes before a name, as in QEMU: snapshot 1 is called "first", snapshot 2 "1".
    same(
        &images.bytes("web1.qcow2", &["--snapshot", "1"]),
        &images.truth("web1.qcow2", Some("1")),
    );
}

#[test]
fn what_is_not_right_is_not_written() {
    let images = Images::chain();
    for (name, options, words) in [
        ("absent.qcow2", &[][..], "absent.qcow2"),
        ("web1.qcow2", &["--offset", "14M"], "13631488 bytes"),
        ("web1.qcow2", &["--length", "14M"], "13631488 bytes"),
        ("web1.qcow2", &["--snapshot", "third"], "'third'"),
        ("base.img", &["--format", "qcow2"], "base.img"),
    ] {
        let said = images.refused(name, options);
        assert!(
            said.starts_with("qmpfs: ") && said.contains(words),
            "{said}"
        );
    }
    images.run("qemu-img", &["snapshot", "-c", "first", "web1.qcow2"]);
    let said = images.refused("web1.qcow2", &["--snapshot", "first"]);
    assert!(said.contains("2 internal snapshots"), "{said}");
    // A table that is torn in the middle of the file: what came before was right, the end is told.
    let mut bytes = std::fs::read(images.path("middle.qcow2")).unwrap();
    let table = u64::from_be_bytes(bytes[40..48].try_into().unwrap()) as usize;
    bytes[table..table + 8].copy_from_slice(&0x8000_0000_0000_0a00u64.to_be_bytes());
    std::fs::write(images.path("middle.qcow2"), bytes).unwrap();
    let done = images.cat("web1.qcow2", &[]);
    assert_eq!(done.status.code(), Some(1));
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(said.contains("bytes were written"), "{said}");
}

#[test]
fn a_reader_that_goes_away_is_no_news() {
    let images = Images::chain();
    let mut child = command(&images.path("web1.qcow2"), &[])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let done = child.wait_with_output().unwrap();
    assert_eq!(done.status.code(), Some(1));
    assert!(done.stderr.is_empty());
}

#[test]
fn a_full_disk_is_told() {
    let images = Images::chain();
    let full = std::fs::File::options().write(true).open("/dev/full");
    let done = command(&images.path("web1.qcow2"), &[])
        .stdout(full.unwrap())
        .output()
        .unwrap();
    assert_eq!(done.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&done.stderr).contains("standard output"));
}

#[test]
fn an_image_that_somebody_writes_is_refused() {
    let images = Images::chain();
    for written in ["web1.qcow2", "middle.qcow2"] {
        let mut writer = Command::new("qemu-io")
            .args(["-f", "qcow2", "-c", "read 0 1"])
            .arg(images.path(written))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .args(["-c", "sleep 30000"])
            .spawn()
            .unwrap();
        let mut said = String::new();
        for _ in 0..200 {
            let done = images.cat("web1.qcow2", &["--length", "1"]);
            said = String::from_utf8_lossy(&done.stderr).into_owned();
            if !done.status.success() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        writer.kill().unwrap();
        writer.wait().unwrap();
        assert!(said.contains(written) && said.contains("in use"), "{said}");
        assert!(said.contains("QMP socket"), "{said}");
        images.bytes("web1.qcow2", &["--length", "1"]);
    }
}

#[test]
fn names_of_other_forms_are_followed_only_when_asked() {
    let images = Images::chain();
    let json = format!(
        r#"json:{{"driver":"qcow2","file":{{"driver":"file","filename":"{}"}}}}"#,
        images.path("middle.qcow2").display()
    );
    let arguments = ["rebase", "-u", "-F", "qcow2", "-b", &json, "web1.qcow2"];
    images.run("qemu-img", &arguments);
    let truth = images.truth("web1.qcow2", None);
    let said = images.refused("web1.qcow2", &[]);
    assert!(said.contains("plain file name"), "{said}");
    same(&images.bytes("web1.qcow2", &["--follow"]), &truth);

    std::fs::create_dir(images.path("elsewhere")).unwrap();
    let outside = format!("data_file={}", images.path("elsewhere/data").display());
    images.run(
        "qemu-img",
        &[
            "convert",
            "-O",
            "qcow2",
            "-o",
            &outside,
            "web1.qcow2",
            "outside.qcow2",
        ],
    );
    let said = images.refused("outside.qcow2", &[]);
    assert!(said.contains("outside its own directory"), "{said}");
    same(&images.bytes("outside.qcow2", &["--follow"]), &truth);

    let arguments = ["-u", "-F", "raw", "-b", "nbd:unix:/nowhere", "web1.qcow2"];
    images.run("qemu-img", &[&["rebase"], &arguments[..]].concat());
    let said = images.refused("web1.qcow2", &["--follow"]);
    assert!(said.contains("plain file name"), "{said}");
}

/// Files that a link leads elsewhere from: what they stand on is where QEMU looks for it.
#[test]
fn through_a_symlink_it_is_what_the_tools_read() {
    let images = Images::new();
    for (directory, pattern) in [("a", 1), ("b", 2)] {
        std::fs::create_dir(images.path(directory)).unwrap();
        let base = format!("{directory}/base.qcow2");
        images.run("qemu-img", &["create", "-q", "-f", "qcow2", &base, "1M"]);
        images.write(&base, "qcow2", &[&format!("write -P {pattern} 0 1M")]);
    }
    let overlay = [
        "create",
        "-q",
        "-f",
        "qcow2",
        "-b",
        "base.qcow2",
        "-F",
        "qcow2",
    ];
    images.run("qemu-img", &[&overlay[..], &["b/web1.qcow2"]].concat());
    std::os::unix::fs::symlink("../b/web1.qcow2", images.path("a/web1.qcow2")).unwrap();
    for name in ["a/web1.qcow2", "b/web1.qcow2"] {
        let truth = images.truth(name, None);
        // By its whole name, and as somebody types it.
        same(&images.bytes(name, &[]), &truth);
        let mut typed = command(Path::new(name), &[]);
        same(
            &typed.current_dir(images.path(".")).output().unwrap().stdout,
            &truth,
        );
    }
    assert_ne!(
        images.truth("a/web1.qcow2", None),
        images.truth("b/web1.qcow2", None)
    );
}

/// The tools take the name of a data file against the directory they are started in.
#[test]
fn a_data_file_that_may_be_another_is_not_read() {
    let images = Images::new();
    for directory in ["here", "images"] {
        std::fs::create_dir(images.path(directory)).unwrap();
    }
    let create = "cd images && qemu-img create -q -f qcow2 -o data_file=d.raw web1.qcow2 1M && qemu-io -f qcow2 -c 'write -P 7 0 1M' web1.qcow2";
    images.run("sh", &["-c", create]);
    let typed = |directory: &str| {
        let mut command = command(&images.path("images/web1.qcow2"), &[]);
        command
            .current_dir(images.path(directory))
            .output()
            .unwrap()
    };
    for directory in ["images", "here"] {
        same(&typed(directory).stdout, &[7; MIB]);
    }
    std::fs::write(images.path("here/d.raw"), vec![9; MIB]).unwrap();
    same(&typed("images").stdout, &[7; MIB]);
    let refused = typed("here");
    assert!(refused.stdout.is_empty() && refused.status.code() == Some(1));
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(
        said.contains("d.raw") && said.contains("present directory"),
        "{said}"
    );
}

/// One image of each kind that the reader's own tests make hundreds of.
#[test]
fn images_of_every_kind() {
    let images = Images::new();
    images.run(
        "qemu-img",
        &["create", "-q", "-f", "raw", "base.img", "3000001"],
    );
    images.write("base.img", "raw", &["write -P 9 100k 2M"]);
    for (index, options) in [
        "compat=0.10",
        "compat=0.10,cluster_size=512",
        "cluster_size=2M",
        "compression_type=zstd",
        "extended_l2=on,cluster_size=16k",
        "extended_l2=on,compression_type=zstd,preallocation=metadata",
        "lazy_refcounts=on,refcount_bits=64",
        "data_file=d.raw",
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("{index}.qcow2");
        // A data file's name is taken against the directory the tools run in, which is ours here.
        let options = options.replace("d.raw", &format!("{index}.data"));
        let create = [
            "create", "-q", "-f", "qcow2", "-b", "base.img", "-F", "raw", "-o",
        ];
        images.run(
            "qemu-img",
            &[&create[..], &[&options, &name, "3M"]].concat(),
        );
        images.write(
            &name,
            "qcow2",
            &["write -P 1 30k 500k", "write -z 600k 100k"],
        );
        let data_file = options.contains("data_file");
        if !data_file {
            if !options.contains("preallocation") {
                images.write(&name, "qcow2", &["write -c -P 2 2M 1M"]);
            }
            images.run("qemu-img", &["snapshot", "-c", "kept", &name]);
        }
        images.write(
            &name,
            "qcow2",
            &["write -P 3 1M 77k", "write -z -u 40k 64k"],
        );
        same(&images.bytes(&name, &[]), &images.truth(&name, None));
        if !data_file {
            let kept = images.bytes(&name, &["--snapshot", "kept"]);
            same(&kept, &images.truth(&name, Some("kept")));
        }
    }
}

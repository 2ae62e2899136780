//! What a guest writes, and what an image's header says, leads to no file but those it was given.

use std::fs;
use std::path::{Path, PathBuf};

use qmpfs_tests::machine::{Attachment, Disk, Machine};
use qmpfs_tests::mounted::{Mounted, program};
use qmpfs_tests::scratch::Scratch;
use qmpfs_tests::{oracle, sh, wait};

const SIZE: u64 = 8 << 20;
const SECRET: &[u8] = b"nobody in the guest may read this";

fn secret(scratch: &Scratch) -> PathBuf {
    let secret = scratch.dir("host").join("secret");
    let mut bytes = SECRET.to_vec();
    bytes.resize(1 << 20, b'.');
    fs::write(&secret, bytes).expect("a file of the host's");
    secret
}

/// An image whose header says that it stands on the secret.
fn lie(scratch: &Scratch, secret: &Path) -> Vec<u8> {
    let image = scratch.file("lie");
    sh!(
        "qemu-img create -q -f qcow2 -b {} -F raw {} 1M",
        secret.display(),
        image.display()
    );
    fs::read(image).expect("a small image")
}

#[track_caller]
fn assert_no_secret(bytes: &[u8]) {
    let found = bytes.windows(SECRET.len()).any(|window| window == SECRET);
    assert!(!found, "the host's file is shown");
}

over_attachments! {
    /// A guest makes its raw disk look like an image that stands on a file of the host's.
    a_raw_disk_stays_raw_whatever_is_on_it => |name, attachment| {
        let scratch = Scratch::new(name);
        let lie = lie(&scratch, &secret(&scratch));
        let image = scratch.dir("images").join("web1.raw");
        fs::write(&image, vec![0; usize::try_from(SIZE).expect("small")]).expect("an image");
        let machine = Machine::start(&scratch, "vm", attachment, &[Disk::raw("vda", &image)]);
        let mut guest = machine.nbd("vda");
        guest.write(0, &lie).expect("the guest can write");
        guest.flush().expect("the guest can flush");
        let server = format!("nbd_server={}", machine.endpoint("vda").socket.display());
        let mut mount = Mounted::new(&scratch, &[machine.qmpfs_socket()], &["-o", &server]);
        let disk = mount.disk("vda");
        wait::until_true("the disk is there", || disk.0.is_dir());
        let point = disk.live("now");
        point.make().unwrap_or_else(|e| panic!("{e}\n{}", mount.text("log")));
        let shown = fs::read(point.disk_raw()).expect("it is read");
        assert_eq!(shown.len() as u64, SIZE);
        assert_eq!(&shown[..lie.len()], lie, "the guest's own bytes");
        assert_no_secret(&shown);
        point.delete_when_closed();
        assert_eq!(disk.json()["format"], "raw");
        mount.unmount();
        drop(guest);
        drop(machine);
        // nor is it followed when the VM is off
        let (code, said) = Mounted::refused(&scratch, &[&image], &["-o", "ro"]);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("web1.raw"), "{said}");
        let out = scratch.file("out.raw");
        sh!("{} cat --format raw {} >{}", program().display(), image.display(), out.display());
        assert_eq!(fs::read(out).expect("its bytes"), shown);
    }
}

/// The same inside a qcow2 disk: what is sealed says of what it stands on which format that has, so that nobody guesses.
#[test]
fn every_layer_of_ours_names_the_format_below_it() {
    let scratch = Scratch::new("outside-format");
    let lie = lie(&scratch, &secret(&scratch));
    let image = scratch.dir("images").join("web1.qcow2");
    let base = scratch.dir("images").join("base.raw");
    fs::write(&base, vec![0; usize::try_from(SIZE).expect("small")]).expect("an image");
    sh!(
        "qemu-img create -q -f qcow2 -b {} -F raw {}",
        base.display(),
        image.display()
    );
    let disks = [Disk::qcow2("vda", &image)];
    let machine = Machine::start(&scratch, "vm", Attachment::Blockdev, &disks);
    let mut guest = machine.nbd("vda");
    guest.write(0, &lie).expect("the guest can write");
    guest.flush().expect("the guest can flush");
    let mount = Mounted::new(&scratch, &[machine.qmpfs_socket()], &[]);
    let disk = mount.disk("vda");
    wait::until_true("the disk is there", || disk.0.is_dir());
    for name in ["one", "two"] {
        let point = disk.snapshot(name);
        point
            .make()
            .unwrap_or_else(|e| panic!("{e}\n{}", mount.text("log")));
        let shown = fs::read(point.disk_raw()).expect("it is read");
        assert_eq!(&shown[..lie.len()], lie, "the guest's own bytes");
        assert_no_secret(&shown);
    }
    let chain = oracle::chain(&image);
    assert_eq!(chain.len(), 4);
    for layer in &chain[..3] {
        let info = sh!("qemu-img info -U --output=json {}", layer.display());
        assert!(info.contains("backing-filename-format"), "{info}");
    }
}

/// Names in headers that are no plain file's, and data files elsewhere, are followed by nobody.
#[test]
fn headers_lead_to_no_other_file() {
    let scratch = Scratch::new("outside-headers");
    let secret = secret(&scratch);
    let json = format!(
        r#"json:{{"driver":"raw","file":{{"driver":"file","filename":"{}"}}}}"#,
        secret.display()
    );
    let names = [
        json.as_str(),
        "nbd://127.0.0.1:1/disk",
        "nbd+unix:///disk?socket=/run/nbd",
        "https://127.0.0.1/disk",
    ];
    let image = scratch.dir("images").join("web1.qcow2");
    let mut lies: Vec<String> = names
        .iter()
        .map(|name| {
            format!(
                "qemu-img create -q -u -f qcow2 -b '{name}' -F raw {} 1M",
                image.display()
            )
        })
        .collect();
    lies.push(format!(
        "qemu-img create -q -f qcow2 -o data_file={0},data_file_raw=on {1} 1M; printf '{2}' | dd of={0} conv=notrunc status=none",
        scratch.dir("host").join("data").display(),
        image.display(),
        String::from_utf8_lossy(SECRET)
    ));
    for lie in lies {
        let _ = fs::remove_file(&image);
        sh!("{lie}");
        for options in [&["-o", "ro"][..], &[]] {
            let (code, said) = Mounted::refused(&scratch, &[&image], options);
            assert_eq!(code, Some(1), "{lie}: {said}");
        }
        let output = sh::attempt(&format!("{} cat {}", program().display(), image.display()));
        assert!(!output.status.success(), "{lie}");
        assert_no_secret(&output.stdout);
    }
}

#[test]
fn nothing_in_a_mount_is_a_device_or_runs_as_another() {
    let scratch = Scratch::new("outside-flags");
    let image = scratch.dir("images").join("web1.qcow2");
    oracle::create(&image, SIZE);
    let mount = Mounted::new(&scratch, &[&image], &["-o", "ro"]);
    let mounts = fs::read_to_string("/proc/self/mounts").expect("the mounts");
    let at = mount.path().display().to_string();
    let line = mounts.lines().find(|line| line.contains(&at));
    let flags = line.and_then(|line| line.split(' ').nth(3));
    let flags: Vec<&str> = flags.expect("our mount").split(',').collect();
    for flag in ["nosuid", "nodev", "default_permissions"] {
        assert!(flags.contains(&flag), "{flags:?}");
    }
    assert!(!flags.contains(&"allow_other"), "{flags:?}");
}

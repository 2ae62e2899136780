//! A real guest: Debian's kernel, ext4 and the guest agent, working on its own disk and verifying it (see guest/init).
//! Its image is built once by guest/build and kept outside the repository; each test works on an overlay of it.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::machine::{Attachment, Disk, Machine};
use crate::scratch::Scratch;
use crate::{oracle, sh, wait};

/// A booted guest under load.
#[derive(Debug)]
pub struct Guest {
    /// The VM around it.
    pub machine: Machine,
    disk: PathBuf,
    console: PathBuf,
    serial: PathBuf,
    agent: PathBuf,
}

impl Guest {
    /// Boots one on a new overlay `vda` of the built image, in `dir`, and waits until it works.
    #[track_caller]
    pub fn boot(scratch: &Scratch, dir: &Path, attachment: Attachment) -> Self {
        let image = image();
        let disk = dir.join("web1.qcow2");
        oracle::create_overlay(&disk, &image.join("root.qcow2"), 2 << 30);
        let (console, serial, agent) = (
            scratch.file("console.log"),
            scratch.socket("serial"),
            scratch.socket("agent"),
        );
        let extra = [
            "-kernel".to_owned(),
            image.join("vmlinuz").display().to_string(),
            "-initrd".to_owned(),
            image.join("initrd.img").display().to_string(),
            "-append".to_owned(),
            "console=ttyS0 root=/dev/vda init=/qmpfs-init quiet panic=1 no_timer_check".to_owned(),
            "-no-reboot".to_owned(),
            "-chardev".to_owned(),
            format!(
                "socket,id=console,path={},server=on,wait=off,logfile={},logappend=on",
                serial.display(),
                console.display()
            ),
            "-serial".to_owned(),
            "chardev:console".to_owned(),
            "-device".to_owned(),
            "virtio-serial-pci".to_owned(),
            "-chardev".to_owned(),
            format!(
                "socket,id=agent,path={},server=on,wait=off",
                agent.display()
            ),
            "-device".to_owned(),
            "virtserialport,chardev=agent,name=org.qemu.guest_agent.0".to_owned(),
        ];
        let machine = Machine::start_guest(
            scratch,
            "guest",
            attachment,
            &[Disk::qcow2("vda", &disk)],
            &extra,
        );
        let mut guest = Self {
            machine,
            disk,
            console,
            serial,
            agent,
        };
        guest.wait_for("READY", 1);
        guest
    }

    /// The active layer's file.
    pub fn disk(&self) -> &Path {
        &self.disk
    }

    /// The guest agent's socket.
    pub fn agent(&self) -> &Path {
        &self.agent
    }

    /// What the guest writes on its console.
    pub fn console(&self) -> &Path {
        &self.console
    }

    /// Waits until the guest has done `count` more rounds of its work.
    #[track_caller]
    pub fn rounds(&mut self, count: usize) {
        let already = self.said("ROUND");
        self.wait_for("ROUND", already + count);
    }

    /// Panics if the guest found a wrong byte, or its kernel complained about the disk.
    #[track_caller]
    pub fn check(&self) {
        let console = std::fs::read_to_string(&self.console).unwrap_or_default();
        for bad in [
            "BAD ",
            "I/O error",
            "EXT4-fs error",
            "Kernel panic",
            "Aborting journal",
        ] {
            assert!(!console.contains(bad), "the guest says {bad:?}:\n{console}");
        }
    }

    /// Lets the guest verify everything once more and switch itself off, then has its filesystem checked.
    #[track_caller]
    pub fn shut_down(&mut self) {
        let mut serial = UnixStream::connect(&self.serial).expect("the guest's console");
        serial.write_all(b"stop\n").expect("a word to the guest");
        self.wait_for("STOPPED", 1);
        self.machine.wait_off();
        self.check();
    }

    /// Starts the VM again with the same command line, and waits until the guest works.
    #[track_caller]
    pub fn boot_again(&mut self) {
        let _ = std::fs::remove_file(&self.console);
        self.machine.start_again();
        self.wait_for("READY", 1);
    }

    fn said(&self, word: &str) -> usize {
        let console = std::fs::read(&self.console).unwrap_or_default();
        String::from_utf8_lossy(&console)
            .lines()
            .filter(|line| line.trim_start().starts_with(word))
            .count()
    }

    #[track_caller]
    fn wait_for(&mut self, word: &str, count: usize) {
        let limit = wait::PATIENCE * 4; // without KVM, beside other work
        let came = wait::poll(limit, || {
            self.check();
            (self.said(word) >= count).then_some(())
        });
        let console = std::fs::read_to_string(&self.console).unwrap_or_default();
        assert!(
            came.is_some(),
            "the guest did not say {word} {count} times:\n{console}"
        );
    }
}

/// Checks the ext4 filesystem in a raw image, or in a view of one, without changing it.
///
/// A crash-consistent image has a journal to replay: that is done on a copy first, as a boot would do it.
#[track_caller]
pub fn fsck_after_crash(scratch: &Scratch, raw: &Path) {
    let copy = scratch.file("fsck.raw");
    sh!(
        "cp --sparse=always {} {}; chmod u+w {1}",
        raw.display(),
        copy.display()
    );
    // Exit 1: the journal was replayed. The second run finds nothing left to say.
    sh!(
        "e2fsck -fy {0} >/dev/null || test $? = 1; e2fsck -fn {0}; rm {0}",
        copy.display()
    );
}

/// Checks a cleanly unmounted filesystem: it must have nothing to mend.
#[track_caller]
pub fn fsck_clean(scratch: &Scratch, image: &Path) {
    let raw = scratch.file("fsck.raw");
    oracle::convert(image, &raw);
    sh!("e2fsck -fn {0}; rm {0}", raw.display());
}

/// The directory with the guest's kernel, initrd and root image; built if it is not there.
pub fn image() -> &'static Path {
    static IMAGE: OnceLock<PathBuf> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(
            || {
                PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into()))
                    .join(".cache")
            },
            PathBuf::from,
        );
        let dir = cache.join("qmpfs-tests/guest");
        sh!(
            "{}/harness/guest/build {}",
            env!("CARGO_MANIFEST_DIR"),
            dir.display()
        );
        dir
    })
}

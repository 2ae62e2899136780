//! The participants: how each is started on an image, where its view of the disk is, and how it is stopped.
//! Nobody outlives its value, or the run.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use qmpfs_tests::process::Process;
use qmpfs_tests::{mounted, sh, wait};

use crate::images::Image;
use crate::sockets;

/// Who reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Who {
    /// `qmpfs mount`
    Ours,
    /// The FUSE export of qemu-storage-daemon, with its own defaults.
    Qsd,
    /// The same with the option that makes it fastest.
    Uring,
    /// qemu-nbd, mounted by nbdfuse.
    Nbd,
    /// The disk as a raw file: nobody serves it.
    RawFile,
    /// qemu-img convert.
    Convert,
    /// qmpfs on the same clusters in one layer.
    OursFlat,
    /// qmpfs with every open through the kernel's page cache.
    OursCached,
    /// qmpfs where the kernel reads a raw layer by itself.
    OursPassthrough,
    /// The same bytes of disk.raw.
    OursDisk,
    /// The kernel's own mount of the raw file.
    Kernel,
    /// A FUSE driver on the raw file: fuse2fs, ntfs-3g.
    FuseDriver,
    /// libguestfs' appliance, a VM that mounts the raw file.
    Guestmount,
    /// The same jobs by plain QMP commands, as virsh begins them.
    ByHand,
    /// Nobody: the guest alone.
    Alone,
}

impl Who {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Who::Ours => "qmpfs",
            Who::Qsd => "QSD",
            Who::Uring => "QSD, io_uring",
            Who::Nbd => "nbdfuse",
            Who::RawFile => "raw file",
            Who::Convert => "qemu-img convert",
            Who::OursFlat => "qmpfs, depth 1",
            Who::OursCached => "qmpfs, -o kernel_cache",
            Who::OursPassthrough => "qmpfs, -o passthrough",
            Who::OursDisk => "disk.raw",
            Who::ByHand => "by hand",
            Who::Alone => "nothing beside it",
            Who::Kernel => "kernel",
            Who::FuseDriver => "FUSE driver",
            Who::Guestmount => "guestmount",
        }
    }
}

/// A running participant.
#[derive(Debug)]
pub(crate) struct Server {
    /// The disk as a file.
    pub(crate) view: PathBuf,
    /// In the order in which they are ended.
    processes: Vec<Process>,
    mountpoint: Option<PathBuf>,
}

/// One process of a participant, as a user would type it.
#[derive(Debug)]
struct Line(Vec<String>);

impl Line {
    fn new(words: &[&str]) -> Self {
        Self(words.iter().map(|&word| word.to_owned()).collect())
    }

    fn spawn(&self, log: &Path) -> Process {
        let program = match self.0[0].as_str() {
            "qmpfs" => mounted::program().as_os_str(),
            other => other.as_ref(),
        };
        let mut command = Command::new(program);
        command.args(&self.0[1..]);
        Process::spawn(command, log, libc::SIGTERM)
    }
}

/// The command lines of a participant, as docs/PERFORMANCE.md shows them.
pub(crate) fn lines(who: Who) -> Vec<String> {
    let image = Image::placeholder("qcow2");
    command_lines(who, &image, Path::new("MOUNTPOINT"), Path::new("SOCKET"))
        .iter()
        .map(|line| line.0.join(" "))
        .collect()
}

fn command_lines(who: Who, image: &Image, mountpoint: &Path, socket: &Path) -> Vec<Line> {
    let text = |path: &Path| path.to_str().expect("our own paths are UTF-8").to_owned();
    let (file, expected, format, at, socket) = (
        text(&image.file),
        text(&image.expected),
        image.format,
        text(mountpoint),
        text(socket),
    );
    match who {
        Who::Ours | Who::OursFlat | Who::OursDisk => vec![ours("ro", &text(&image.top), &at)],
        Who::OursCached => vec![ours("ro,kernel_cache", &text(&image.top), &at)],
        Who::OursPassthrough => vec![ours("ro,passthrough", &text(&image.top), &at)],
        Who::Qsd => vec![storage_daemon(&file, format, "threads", &at)],
        Who::Uring => vec![storage_daemon(&file, format, "io_uring", &at)],
        Who::Nbd => {
            let uri = format!("nbd+unix:///?socket={socket}");
            vec![
                Line::new(&[
                    "qemu-nbd",
                    "--read-only",
                    "--persistent",
                    "--shared=16",
                    "--aio=io_uring",
                    "--socket",
                    &socket,
                    "--format",
                    format,
                    &file,
                ]),
                Line::new(&[
                    "nbdfuse",
                    "--readonly",
                    "--connections",
                    "4",
                    "-o",
                    "kernel_cache",
                    &at,
                    &uri,
                ]),
            ]
        }
        Who::Kernel => vec![Line::new(&["mount", "-o", "loop,ro", &expected, &at])],
        Who::FuseDriver => vec![driver(&image.name, &expected, &at)],
        Who::Guestmount => vec![guestmount(&expected, &at)],
        Who::RawFile | Who::Convert | Who::ByHand | Who::Alone => Vec::new(),
    }
}

fn ours(options: &str, top: &str, at: &str) -> Line {
    Line::new(&["qmpfs", "mount", "-f", "-o", options, top, at])
}

fn driver(filesystem: &str, raw: &str, at: &str) -> Line {
    match filesystem {
        "ntfs" => Line::new(&["ntfs-3g", "-o", "ro,no_detach", raw, at]),
        _ => Line::new(&["fuse2fs", "-f", "-o", "ro", raw, at]),
    }
}

fn guestmount(raw: &str, at: &str) -> Line {
    Line::new(&[
        "guestmount",
        "--no-fork",
        "--format=raw",
        "-a",
        raw,
        "-m",
        "/dev/sda",
        "--ro",
        at,
    ])
}

/// How guestmount is started, as docs/PERFORMANCE.md shows it.
pub(crate) fn guestmount_line() -> String {
    format!("    {}\n", guestmount("RAW", "MOUNTPOINT").0.join(" "))
}

/// How the driver of a filesystem is started, as docs/PERFORMANCE.md shows it.
pub(crate) fn fuse_driver(filesystem: &str) -> String {
    format!(
        "    {}\n",
        driver(filesystem, "RAW", "MOUNTPOINT").0.join(" ")
    )
}

fn storage_daemon(file: &str, format: &str, aio: &str, at: &str) -> Line {
    Line::new(&[
        "qemu-storage-daemon",
        "--blockdev",
        &format!("driver=file,node-name=file,filename={file},read-only=on,aio={aio}"),
        "--blockdev",
        &format!("driver={format},node-name=disk,file=file,read-only=on"),
        "--export",
        &format!("fuse,id=export,node-name=disk,mountpoint={at},writable=off,growable=off"),
    ])
}

impl Server {
    /// Starts it and waits until the view is there.
    pub(crate) fn start(who: Who, image: &Image, dir: &Path) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        if who == Who::RawFile {
            let view = image.expected.clone();
            return Self {
                view,
                processes: Vec::new(),
                mountpoint: None,
            };
        }
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let mountpoint = dir.join(format!("mnt{number}"));
        match who {
            Who::Qsd | Who::Uring => drop(File::create(&mountpoint).expect("a file to mount on")),
            _ => fs::create_dir(&mountpoint).expect("a directory to mount on"),
        }
        let socket = sockets::fresh();
        let log = dir.join(format!("{who:?}.log"));
        let mut server = Self {
            view: PathBuf::new(),
            processes: Vec::new(),
            mountpoint: Some(mountpoint.clone()),
        };
        for line in command_lines(who, image, &mountpoint, &socket) {
            if who == Who::Kernel {
                // Nobody serves it.
                sh!("{}", line.0.join(" "));
                continue;
            }
            server.processes.insert(0, line.spawn(&log));
            if line.0[0] == "qemu-nbd" {
                server.until("qemu-nbd listens", || socket.exists().then_some(()));
            }
        }
        server.view = server.until("the view is there", || view_of(who, &mountpoint));
        server
    }

    /// Where it is mounted.
    pub(crate) fn mountpoint(&self) -> &Path {
        self.mountpoint
            .as_ref()
            .expect("only the raw file is not mounted")
    }

    /// CPU time that its processes have used, in seconds.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        self.pids().map(crate::usage::cpu_seconds).sum()
    }

    /// Its processes.
    pub(crate) fn pids(&self) -> impl Iterator<Item = u32> {
        self.processes.iter().map(Process::pid)
    }

    fn until<T>(&mut self, what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
        let processes = &mut self.processes;
        wait::until(what, || {
            for process in processes.iter_mut() {
                if let Some(status) = process.ended() {
                    panic!("ended before {what}: {status}\n{}", process.log());
                }
            }
            condition()
        })
    }
}

/// The file to read below a mountpoint, once it is there.
pub(crate) fn view_of(who: Who, mountpoint: &Path) -> Option<PathBuf> {
    let (at, above) = (
        fs::metadata(mountpoint).ok()?,
        fs::metadata(mountpoint.parent()?).ok()?,
    );
    if at.dev() == above.dev() {
        return None;
    }
    match who {
        Who::Qsd | Who::Uring => Some(mountpoint.to_owned()),
        Who::Kernel | Who::FuseDriver | Who::Guestmount => Some(mountpoint.to_owned()),
        Who::Nbd => Some(mountpoint.join("nbd")).filter(|file| file.exists()),
        _ => layers(mountpoint).pop(),
    }
}

/// The views of all layers in a mount of ours, base first.
pub(crate) fn layers(mountpoint: &Path) -> Vec<PathBuf> {
    let entries = |path: PathBuf| fs::read_dir(path).into_iter().flatten().flatten();
    let mut found: Vec<(u32, PathBuf)> = entries(mountpoint.join("disks"))
        .flat_map(|disk| entries(disk.path().join("layers")))
        .filter_map(|layer| {
            let number = layer
                .file_name()
                .to_str()?
                .split('-')
                .next()?
                .parse()
                .ok()?;
            Some((number, layer.path().join("disk.raw")))
        })
        .collect();
    found.sort();
    found.into_iter().map(|(_, view)| view).collect()
}

impl Drop for Server {
    fn drop(&mut self) {
        for process in &mut self.processes {
            process.terminate(wait::PATIENCE);
        }
        if let Some(mountpoint) = &self.mountpoint {
            let at = mountpoint.display();
            sh::attempt(&format!(
                "mountpoint -q {at} && {{ umount -l {at} || fusermount3 -uz {at}; }}"
            ));
            let _ = fs::remove_dir(mountpoint).or_else(|_| fs::remove_file(mountpoint));
        }
    }
}

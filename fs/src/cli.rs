//! The command line: clap's definition, and from it plain values. It looks at the files it is
//! given (a socket or an image?) and does nothing else; `run` does.

mod options;
mod source;

pub use options::Options;

use crate::bytes;
use crate::cat;
use crate::diff;
use crate::errno::{Errno, Failure};
use crate::guest;
use crate::model::Format;
use crate::ops::Source;
use crate::verify;
use crate::view::Reach;
use crate::wait::{self, Say};
use clap::{CommandFactory, Parser, Subcommand};
use std::path::PathBuf;

/// What follows the options list in `qmpfs mount --help`.
const OPTIONS_HELP: &str = "\
Options for -o, comma-separated:
  ro                  no verbs; images are read without starting a storage daemon, but for
                      layers in formats that only QEMU reads
  no_delete           no verb that removes a point or cancels a job
  live_rollback       a disk of a running VM may be rolled back: the VM is reset for it;
                      or all of the VM to a checkpoint, which it goes on from
  coexist             beside libvirt: internal snapshots and live/, of which it will not know
  merge=auto|stream|commit
                      how rmdir of an external snapshot merges (auto: what copies less)
  format=NAME         the format of image files whose name does not say it: raw, qcow2,
                      or another that QEMU reads (vmdk, vdi, vhdx, vpc, qed, ...)
  guest_agent=SOCKET  the same as --guest-agent
  quiesce=off|try|require
                      whether the guest agent freezes the guest's filesystems for the instant of
                      a point (try, where an agent is named: if it cannot, the point is as after a
                      power cut; require: then no point is made)
  scratch_dir=DIR     the same as --scratch-dir
  scratch_limit=BYTES the most room that one instant of a running disk may need there
  nbd_server=SOCKET   QEMU has an NBD server already, on this unix socket: live/ is read over it,
                      and layers that only QEMU reads (whoever may use that one can, too)
  backup_dir=DIR      the same as --backup-dir
  compress, speed=BYTES, max-workers=N
                      how backups are made, as of QEMU's blockdev-backup
  fleecing            full and incremental backups by way of a file in the scratch directory: the
                      guest waits for that one alone, however slow the backup directory is
  name=NAME           what the VM is called
  log=FILE            append the daemon's own log to FILE (QMPFS_LOG sets the level)
  allow_other, allow_root, uid=N, gid=N, umask=OCTAL, fsname=NAME, auto_unmount
                      as for other FUSE filesystems; umask applies to 0777 and 0444 and is 077
  kernel_cache        read disk.raw through the kernel's page cache, always: for programs that
                      map it (mmap) on kernels before 6.6, or read the same places again and again
  symlinks=rewrite|guest|hide
                      how guests' symbolic links are shown in files/ (rewrite: so that they stay in there)
  passthrough         with ro: a disk.raw that is one raw file is read by the kernel itself (Linux
                      6.9, root), as the file is: cut short, it just ends there
  rw, default_permissions, nosuid, nodev, noexec, noatime
                      accepted, as they are so anyway";

/// What follows the options list in `qmpfs cat --help`.
const CAT_HELP: &str = "\
BYTES may end in k, M, G or T, for powers of 1024. The exit code is 0 only when every byte asked
for was written and right.";

/// What follows the options list in `qmpfs diff --help`.
const DIFF_HELP: &str = "\
Each difference is a line: `added PATH`, `removed PATH`, `changed PATH (what)`; a directory that is added or
removed stands for all in it. Of what no files can be read the bytes are compared: `(bytes OFFSET+LENGTH)`.
What both points have from one place is not read, so points of one chain are compared quickly.";

/// QEMU's snapshots and backups as plain files and directories.
#[derive(Parser)]
#[command(name = "qmpfs", version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Mount the disks of a running VM, or the images of one that is off
    #[command(after_help = OPTIONS_HELP)]
    Mount {
        /// Stay in front and log to standard error
        #[arg(short, long)]
        foreground: bool,
        /// Mount options, see below
        #[arg(short = 'o', value_name = "OPT,...")]
        options: Vec<String>,
        /// The guest agent's socket (PATH, unix:PATH or tcp:HOST:PORT): points are then taken
        /// with the guest's filesystems frozen
        #[arg(long, value_name = "SOCKET")]
        guest_agent: Option<String>,
        /// Where the old bytes of disks go that have an instant in live/: room for a whole disk each
        /// [default: beside the disk]
        #[arg(long, value_name = "DIR")]
        scratch_dir: Option<String>,
        /// Where backups go: DIR/VM/DISK/NAME.qcow2. Without it none are made
        #[arg(long, value_name = "DIR")]
        backup_dir: Option<String>,
        /// A QMP socket (/run/vm.qmp, unix:PATH, tcp:HOST:PORT), one or more image files, or a
        /// directory of backups
        #[arg(required = true, value_name = "SOURCE")]
        sources: Vec<String>,
        /// An empty directory
        #[arg(required = true)]
        mountpoint: PathBuf,
    },
    /// Unmount and wait until the last reader and the daemon are gone
    Umount {
        /// Where it is mounted
        mountpoint: PathBuf,
    },
    /// Follow running work with a progress bar; the exit code is 0 when it is done, 1 when it failed
    Wait {
        /// A job, a point that is made or removed (also one whose name is gone already), a disk,
        /// or the mount
        path: PathBuf,
        /// Say nothing but why it failed
        #[arg(short, long)]
        quiet: bool,
    },
    /// Read points or backups whole, check their files and compare them with their recorded digest;
    /// the exit code is 0 when all are right
    Verify {
        /// A point in a mount, a backup's .qcow2 file, or a directory with some
        path: PathBuf,
        /// Say nothing but what is wrong
        #[arg(short, long)]
        quiet: bool,
    },
    /// Show what is different between two points: guests' files, and bytes where there are none; the exit
    /// code is 0 when nothing is, 1 when something is, 2 when not all could be compared
    #[command(after_help = DIFF_HELP)]
    Diff {
        /// A point in a mount, points of all disks (MNT/snapshots/N), or a file or directory in a point
        before: PathBuf,
        /// The same of another instant
        after: PathBuf,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Say what of this machine, and of a source, is fit for a mount, and the next step where it is not; the
    /// exit code is 0 when nothing keeps it from being mounted
    Doctor {
        /// As for mount
        #[arg(value_name = "SOURCE")]
        sources: Vec<String>,
    },
    /// Write the raw bytes of an image and its chain to standard output, without a mount
    #[command(after_help = CAT_HELP)]
    Cat {
        /// An image file that no running VM writes
        image: PathBuf,
        /// An internal snapshot of the image instead of its newest state
        #[arg(long, value_name = "NAME-OR-ID")]
        snapshot: Option<String>,
        /// The first byte of the disk
        #[arg(long, value_name = "BYTES", default_value = "0", value_parser = bytes::parse)]
        offset: u64,
        /// How many bytes [default: to the end of the disk]
        #[arg(long, value_name = "BYTES", value_parser = bytes::parse)]
        length: Option<u64>,
        /// The format of the image, where its name and its first bytes do not say it
        #[arg(long, value_parser = ["raw", "qcow2"])]
        format: Option<String>,
        /// Trust the names in the images' headers: json: names of local files, and data files in
        /// other directories
        #[arg(long)]
        follow: bool,
    },
    /// Parse a guest's filesystem for a mount, which starts this by itself
    #[command(name = guest::COMMAND, hide = true)]
    GuestReader,
    /// Print the completion script of a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page of qmpfs, or of one of its commands
    Man {
        /// Which command
        command: Option<String>,
    },
}

/// What to mount, where and how.
#[derive(Debug, Clone)]
pub struct MountConfig {
    /// Where the disks come from.
    pub source: Source,
    /// The same as the user wrote it.
    pub source_text: String,
    /// Where to mount, as the user wrote it.
    pub mountpoint: PathBuf,
    /// `-f`
    pub foreground: bool,
    /// `-o`
    pub options: Options,
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Action {
    /// `qmpfs mount`
    Mount(Box<MountConfig>),
    /// `qmpfs umount`
    Umount(PathBuf),
    /// `qmpfs wait`
    Wait(wait::Request),
    /// `qmpfs verify`
    Verify(verify::Request),
    /// `qmpfs diff`
    Diff(diff::Request),
    /// `qmpfs doctor`: of a source, or why that is none.
    Doctor(Result<Option<Source>, Failure>),
    /// `qmpfs cat`
    Cat(cat::Request),
    /// The hidden command of a mount's own processes.
    GuestReader,
    /// Something to print.
    Print(Vec<u8>),
}

/// Parses the process's arguments. Prints usage and ends the process when they are none of ours.
pub fn parse() -> Result<Action, Failure> {
    action(Arguments::parse().command)
}

fn action(command: Command) -> Result<Action, Failure> {
    match command {
        Command::Mount {
            foreground,
            options,
            guest_agent,
            scratch_dir,
            backup_dir,
            sources,
            mountpoint,
        } => {
            let mut options = Options::parse(&options)?;
            if let Some(directory) = backup_dir {
                options.set_backup_dir(&directory)?;
            }
            if let Some(socket) = guest_agent {
                options.set_guest_agent(&socket)?;
            }
            if let Some(directory) = scratch_dir {
                options.set_scratch_dir(&directory)?;
            }
            options.check_quiesce()?;
            let source = source::classify(&sources, options.format.clone())?;
            if options.guest_agent.is_some() && matches!(source, Source::Images { .. }) {
                return Err(Failure::new(
                    Errno::EINVAL,
                    "a guest agent was named for image files, and no guest runs on those",
                )
                .next("mount the QMP socket of the running VM, or leave the guest agent away"));
            }
            let source_text = sources.join(" ");
            Ok(Action::Mount(Box::new(MountConfig {
                source,
                source_text,
                mountpoint,
                foreground,
                options,
            })))
        }
        Command::Umount { mountpoint } => Ok(Action::Umount(mountpoint)),
        Command::Wait { path, quiet } => Ok(Action::Wait(wait::Request {
            path,
            say: said(quiet),
        })),
        Command::Verify { path, quiet } => Ok(Action::Verify(verify::Request {
            path,
            say: said(quiet),
        })),
        Command::Diff {
            before,
            after,
            json,
        } => Ok(Action::Diff(diff::Request {
            before,
            after,
            form: match json {
                true => diff::Form::Json,
                false => diff::Form::Lines,
            },
        })),
        Command::Doctor { sources } => Ok(Action::Doctor(match sources.is_empty() {
            true => Ok(None),
            false => source::classify(&sources, None).map(Some),
        })),
        Command::Cat {
            image,
            snapshot,
            offset,
            length,
            format,
            follow,
        } => Ok(Action::Cat(cat::Request {
            image,
            format: format.map(|format| match format.as_str() {
                "raw" => Format::Raw,
                _ => Format::Qcow2,
            }),
            snapshot,
            offset,
            length,
            reach: if follow {
                Reach::Trusting
            } else {
                Reach::Guarded
            },
        })),
        Command::GuestReader => Ok(Action::GuestReader),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "qmpfs", &mut script);
            Ok(Action::Print(script))
        }
        Command::Man { command } => page(command.as_deref()).map(Action::Print),
    }
}

/// `-q`
fn said(quiet: bool) -> Say {
    match quiet {
        true => Say::Nothing,
        false => Say::Progress,
    }
}

fn page(command: Option<&str>) -> Result<Vec<u8>, Failure> {
    let mut root = Arguments::command();
    root.build();
    let wanted = match command {
        None => root,
        Some(name) => {
            let found = root.find_subcommand(name).cloned();
            found.ok_or_else(|| {
                Failure::new(Errno::EINVAL, format!("there is no command '{name}'"))
                    .next("see `qmpfs help`")
            })?
        }
    };
    let mut page = Vec::new();
    clap_mangen::Man::new(wanted)
        .render(&mut page)
        .map_err(|error| Failure::io("write the manual page", &error))?;
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::{Action, Arguments, action};
    use crate::model::Format;
    use crate::ops::Source;
    use crate::view::Reach;
    use clap::{CommandFactory, Parser};

    fn parse(line: &[&str]) -> Result<Action, String> {
        let arguments = Arguments::try_parse_from(line).map_err(|error| error.to_string())?;
        action(arguments.command).map_err(|failure| failure.to_string())
    }

    #[test]
    fn clap_agrees_with_itself() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn mount_takes_sources_and_a_mountpoint() {
        let directory = tempfile::tempdir().expect("a scratch directory");
        let image = directory.path().join("web1.qcow2");
        std::fs::write(&image, "").expect("a scratch file");
        let image = image.to_str().expect("a UTF-8 path");
        let parsed = parse(&[
            "qmpfs",
            "mount",
            "-f",
            "-o",
            "ro,no_delete",
            "-o",
            "name=x",
            image,
            "/mnt/x",
        ]);
        let Ok(Action::Mount(config)) = parsed else {
            panic!("{parsed:?}")
        };
        assert!(
            config.foreground
                && config.options.verbs().read_only
                && config.options.verbs().no_delete
        );
        assert_eq!(config.options.vm_name.as_deref(), Some("x"));
        assert_eq!(config.mountpoint, std::path::Path::new("/mnt/x"));
        assert!(matches!(&config.source, Source::Images { paths, .. } if paths.len() == 1));
        assert!(parse(&["qmpfs", "mount", "/mnt/x"]).is_err());
        let told = |line: &[&str]| parse(line).map(|_| ()).expect_err("it makes no sense");
        let agent = ["qmpfs", "mount", "--guest-agent", "/run/a", image, "/mnt/x"];
        assert!(told(&agent).contains("no guest runs"));
        let nobody = ["qmpfs", "mount", "-o", "quiesce=require", image, "/mnt/x"];
        assert!(told(&nobody).contains("needs a guest agent"));
    }

    #[test]
    fn cat_takes_a_range_a_snapshot_and_a_format() {
        let line = [
            "qmpfs",
            "cat",
            "a.img",
            "--snapshot",
            "1",
            "--offset",
            "1M",
            "--length",
            "512",
            "--format",
            "raw",
            "--follow",
        ];
        let Ok(Action::Cat(request)) = parse(&line) else {
            panic!("{line:?}")
        };
        assert_eq!((request.offset, request.length), (1 << 20, Some(512)));
        assert_eq!(request.snapshot.as_deref(), Some("1"));
        assert_eq!(request.format, Some(Format::Raw));
        assert_eq!(request.reach, Reach::Trusting);
        let Ok(Action::Cat(request)) = parse(&["qmpfs", "cat", "a.img"]) else {
            panic!("an image is enough")
        };
        assert_eq!((request.offset, request.length), (0, None));
        assert_eq!(request.reach, Reach::Guarded);
        assert!(parse(&["qmpfs", "cat", "a.img", "--format", "vmdk"]).is_err());
        assert!(parse(&["qmpfs", "cat"]).is_err());
    }

    #[test]
    fn pages_and_scripts_are_printed() {
        for line in [
            &["qmpfs", "man"][..],
            &["qmpfs", "man", "mount"],
            &["qmpfs", "man", "cat"],
            &["qmpfs", "man", "wait"],
            &["qmpfs", "man", "verify"],
            &["qmpfs", "completions", "bash"],
        ] {
            let Ok(Action::Print(text)) = parse(line) else {
                panic!("{line:?}")
            };
            assert!(String::from_utf8_lossy(&text).contains("qmpfs"), "{line:?}");
        }
        assert!(parse(&["qmpfs", "man", "nothing"]).is_err());
    }
}

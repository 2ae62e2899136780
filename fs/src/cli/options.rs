//! The list after `-o`, named as people know it from other filesystems.

use crate::bytes;
use crate::errno::{Errno, Failure};
use crate::fuse::Access;
use crate::guest::Links;
use crate::intent::Verbs;
use crate::model::{Format, Quiesce};
use crate::offline;
use crate::ops::{BackupConfig, LiveSettings, MergePolicy};
use qmpbridge::Address;
use std::path::PathBuf;

/// QEMU takes what an int holds; each one holds a buffer of a MiB.
const WORKERS_MAX: u64 = 1024;
/// Nobody but the owner, unless asked otherwise.
const DEFAULT_UMASK: u16 = 0o077;

/// The options of a mount.
#[derive(Debug, Clone)]
pub struct Options {
    /// `ro`
    pub read_only: bool,
    /// `no_delete`
    pub no_delete: bool,
    /// `live_rollback`
    pub live_rollback: bool,
    /// `coexist`
    pub coexist: bool,
    /// `merge=`
    pub merge: MergePolicy,
    /// `guest_agent=`, or `--guest-agent`
    pub guest_agent: Option<Address>,
    /// `quiesce=`; without it a guest agent is tried where one was named.
    pub quiesce: Option<Quiesce>,
    /// `scratch_dir=`, `scratch_limit=`, `nbd_server=`
    pub live: LiveSettings,
    /// `format=`
    pub format: Option<Format>,
    /// `name=`
    pub vm_name: Option<String>,
    /// `backup_dir=`, or `--backup-dir`; `compress`, `speed=`, `max-workers=`, `fleecing`
    pub backup: BackupConfig,
    /// `log=`
    pub log_file: Option<PathBuf>,
    /// `allow_other`, `allow_root`
    pub access: Access,
    /// `uid=`
    pub uid: Option<u32>,
    /// `gid=`
    pub gid: Option<u32>,
    /// `umask=`
    pub umask: u16,
    /// `fsname=`
    pub fs_name: Option<String>,
    /// `kernel_cache`
    pub kernel_cache: bool,
    /// `symlinks=`
    pub links: Links,
    /// `passthrough`
    pub passthrough: bool,
    /// `auto_unmount`
    pub auto_unmount: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            read_only: false,
            no_delete: false,
            live_rollback: false,
            coexist: false,
            merge: MergePolicy::Auto,
            guest_agent: None,
            quiesce: None,
            live: LiveSettings::default(),
            format: None,
            vm_name: None,
            backup: BackupConfig::default(),
            log_file: None,
            access: Access::Owner,
            uid: None,
            gid: None,
            umask: DEFAULT_UMASK,
            fs_name: None,
            kernel_cache: false,
            links: Links::default(),
            passthrough: false,
            auto_unmount: false,
        }
    }
}

impl Options {
    /// Parses what came after each `-o`. A later option wins over an earlier one.
    pub fn parse(lists: &[String]) -> Result<Options, Failure> {
        let mut options = Options::default();
        for option in lists
            .iter()
            .flat_map(|list| list.split(','))
            .filter(|option| !option.is_empty())
        {
            options.apply(option)?;
        }
        if options.auto_unmount && options.access == Access::Owner {
            return Err(Failure::new(Errno::EINVAL, "option 'auto_unmount' needs 'allow_other' or 'allow_root'")
                .next("add one of them, or leave auto_unmount away: a stale mount is cleared by the next one"));
        }
        if options.passthrough && !options.read_only {
            return Err(Failure::new(Errno::EINVAL, "option 'passthrough' needs 'ro'")
                .next("a file that the kernel reads by itself is not seen to be in use, and a verb may write to it"));
        }
        Ok(options)
    }

    /// Which verbs the mount has.
    pub fn verbs(&self) -> Verbs {
        Verbs {
            read_only: self.read_only,
            no_delete: self.no_delete,
            live_rollback: self.live_rollback,
            coexist: self.coexist,
            backups: self.backup.directory.is_some(),
        }
    }

    /// What a point asks of the guest agent.
    pub fn quiesce(&self) -> Quiesce {
        match (self.quiesce, &self.guest_agent) {
            (Some(quiesce), _) => quiesce,
            (None, Some(_)) => Quiesce::Try,
            (None, None) => Quiesce::Off,
        }
    }

    /// Where backups go. The daemon leaves its directory.
    pub(super) fn set_backup_dir(&mut self, text: &str) -> Result<(), Failure> {
        let path = std::path::absolute(text)
            .map_err(|error| Failure::io(format_args!("use {text}"), &error))?;
        if !path.is_dir() {
            return Err(Failure::new(
                Errno::ENOENT,
                format!("the backup directory {} is not there", path.display()),
            )
            .next("make it, or mount what it lies on"));
        }
        self.backup.directory = Some(path);
        Ok(())
    }

    /// The guest agent's socket, which need not be there yet: the VM may be off.
    pub(super) fn set_guest_agent(&mut self, text: &str) -> Result<(), Failure> {
        let address = text.parse().map_err(|_| {
            Failure::new(
                Errno::EINVAL,
                format!("'{text}' is no address of a guest agent"),
            )
            .next("name the socket of the VM's org.qemu.guest_agent.0: PATH, unix:PATH or tcp:HOST:PORT")
        })?;
        self.guest_agent = Some(match address {
            Address::Tcp(endpoint) => Address::Tcp(endpoint),
            // the daemon leaves its directory
            Address::Unix(path) => Address::Unix(
                std::path::absolute(&path)
                    .map_err(|error| Failure::io(format_args!("use {text}"), &error))?,
            ),
        });
        Ok(())
    }

    /// Where the old bytes of running disks go: a directory that is there.
    pub(super) fn set_scratch_dir(&mut self, text: &str) -> Result<(), Failure> {
        let path = absolute("scratch_dir", text)?;
        if !path.is_dir() {
            return Err(
                Failure::new(Errno::ENOENT, format!("{} is no directory", path.display()))
                    .next("make it, on a filesystem with room for the largest disk"),
            );
        }
        self.live.scratch_dir = Some(path);
        Ok(())
    }

    /// Whether what was asked of the guest agent can be meant, once all options are known.
    pub(super) fn check_quiesce(&self) -> Result<(), Failure> {
        if self.guest_agent.is_none()
            && matches!(self.quiesce, Some(Quiesce::Try | Quiesce::Require))
        {
            return Err(
                Failure::new(Errno::EINVAL, "option 'quiesce' needs a guest agent")
                    .next("name its socket: --guest-agent SOCKET, or -o guest_agent=SOCKET"),
            );
        }
        Ok(())
    }

    fn apply(&mut self, option: &str) -> Result<(), Failure> {
        let (name, value) = match option.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (option, None),
        };
        match (name, value) {
            ("symlinks", Some("rewrite")) => self.links = Links::Rewrite,
            ("symlinks", Some("guest")) => self.links = Links::Guest,
            ("symlinks", Some("hide")) => self.links = Links::Hide,
            ("ro", None) => self.read_only = true,
            ("rw", None) => self.read_only = false,
            ("no_delete", None) => self.no_delete = true,
            ("live_rollback", None) => self.live_rollback = true,
            ("coexist", None) => self.coexist = true,
            ("merge", Some("auto")) => self.merge = MergePolicy::Auto,
            ("merge", Some("stream")) => self.merge = MergePolicy::Stream,
            ("merge", Some("commit")) => self.merge = MergePolicy::Commit,
            ("merge", _) => return Err(one_of(option, "merge=auto, merge=stream or merge=commit")),
            ("guest_agent", Some(value)) if !value.is_empty() => self.set_guest_agent(value)?,
            ("quiesce", Some("off")) => self.quiesce = Some(Quiesce::Off),
            ("quiesce", Some("try")) => self.quiesce = Some(Quiesce::Try),
            ("quiesce", Some("require")) => self.quiesce = Some(Quiesce::Require),
            ("quiesce", _) => {
                return Err(one_of(
                    option,
                    "quiesce=off, quiesce=try or quiesce=require",
                ));
            }
            ("scratch_dir", Some(value)) if !value.is_empty() => {
                let set = self.set_scratch_dir(value);
                set.map_err(|failure| failure.next("make it, on a filesystem with room for the largest disk; a path with a comma in it: --scratch-dir DIR"))?;
            }
            ("scratch_limit", Some(value)) => {
                let bytes =
                    bytes::parse(value).map_err(|_| one_of(option, "scratch_limit=BYTES"))?;
                self.live.scratch_limit = Some(bytes);
            }
            ("nbd_server", Some(value)) if !value.is_empty() => {
                let path = value.strip_prefix("unix:").unwrap_or(value);
                self.live.nbd_server = Some(absolute(option, path)?);
            }
            ("format", Some("raw")) => self.format = Some(Format::Raw),
            ("format", Some("qcow2")) => self.format = Some(Format::Qcow2),
            ("format", Some(other)) if offline::is_known(other) => {
                self.format = Some(Format::Other(other.to_owned()));
            }
            ("format", _) => {
                return Err(one_of(
                    option,
                    "format=raw, qcow2, or another that QEMU reads: vmdk, vdi, vhdx, vpc, ...",
                ));
            }
            ("name", Some(value)) if !value.is_empty() => self.vm_name = Some(value.to_owned()),
            ("log", Some(value)) if !value.is_empty() => {
                self.log_file = Some(absolute(option, value)?);
            }
            ("backup_dir", Some(value)) if !value.is_empty() => {
                // of a path with a comma this is a part
                let set = self.set_backup_dir(value);
                set.map_err(|failure| failure.next("make it, or mount what it lies on; a path with a comma in it: --backup-dir DIR"))?;
            }
            ("compress", None) => self.backup.compress = true,
            ("fleecing", None) => self.backup.fleecing = true,
            ("speed", Some(value)) => {
                let speed = bytes::parse(value).ok().filter(|speed| *speed > 0);
                self.backup.speed =
                    Some(speed.ok_or_else(|| one_of(option, "speed=BYTES, like speed=50M"))?);
            }
            ("max-workers", Some(value)) => {
                let count = value
                    .parse()
                    .ok()
                    .filter(|count| (1..=WORKERS_MAX).contains(count));
                self.backup.max_workers =
                    Some(count.ok_or_else(|| one_of(option, "max-workers=NUMBER"))?);
            }
            ("allow_other", None) => self.access = Access::Everybody,
            ("allow_root", None) => self.access = Access::OwnerAndRoot,
            ("uid", Some(value)) => {
                self.uid = Some(value.parse().map_err(|_| one_of(option, "uid=NUMBER"))?)
            }
            ("gid", Some(value)) => {
                self.gid = Some(value.parse().map_err(|_| one_of(option, "gid=NUMBER"))?)
            }
            ("umask", Some(value)) => {
                let umask = u16::from_str_radix(value, 8)
                    .ok()
                    .filter(|umask| *umask <= 0o777);
                self.umask = umask.ok_or_else(|| one_of(option, "umask=OCTAL, like umask=022"))?;
            }
            ("fsname", Some(value)) if !value.is_empty() => self.fs_name = Some(value.to_owned()),
            ("passthrough", None) => self.passthrough = true,
            ("kernel_cache", None) => self.kernel_cache = true,
            ("auto_unmount", None) => self.auto_unmount = true,
            ("default_permissions" | "nosuid" | "nodev" | "noexec" | "noatime", None) => {}
            _ => {
                return Err(
                    Failure::new(Errno::EINVAL, format!("unknown option '{option}'"))
                        .next("see `qmpfs mount --help` for the options of -o"),
                );
            }
        }
        Ok(())
    }
}

/// The daemon leaves its directory.
fn absolute(option: &str, path: &str) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|error| Failure::io(format_args!("use {option}"), &error))
}

fn one_of(option: &str, expected: &str) -> Failure {
    Failure::new(
        Errno::EINVAL,
        format!("option '{option}' has no such value"),
    )
    .next(format!("use {expected}"))
}

#[cfg(test)]
mod tests {
    use super::Options;
    use crate::fuse::Access;
    use crate::model::{Format, Quiesce};
    use crate::ops::MergePolicy;
    use qmpbridge::Address;

    fn parse(list: &str) -> Result<Options, String> {
        Options::parse(&[list.to_owned()]).map_err(|failure| failure.message)
    }

    #[test]
    fn every_option_of_the_page() {
        let options = parse(
            "ro,no_delete,coexist,merge=stream,format=raw,name=web1,log=/tmp/l,allow_other,uid=5,gid=6,umask=022,fsname=x,kernel_cache,passthrough,auto_unmount",
        )
        .expect("all are known");
        assert!(
            options.verbs().read_only
                && options.verbs().no_delete
                && options.verbs().coexist
                && options.auto_unmount
        );
        assert!(options.kernel_cache && options.passthrough);
        assert_eq!(options.merge, MergePolicy::Stream);
        assert_eq!(options.format, Some(Format::Raw));
        assert_eq!(
            (options.uid, options.gid, options.umask),
            (Some(5), Some(6), 0o022)
        );
        assert_eq!(options.access, Access::Everybody);
        assert!(parse("rw,default_permissions,nosuid,nodev,noexec,noatime,,").is_ok());
        assert!(!parse("ro,rw").expect("known").read_only);
        assert_eq!(parse("").expect("nothing is fine").umask, 0o077);
    }

    #[test]
    fn an_unknown_option_is_named() {
        assert_eq!(
            parse("ro,sudi").expect_err("misspelt"),
            "unknown option 'sudi'"
        );
        for bad in [
            "ro=1",
            "uid=x",
            "uid",
            "umask=9",
            "umask=1777",
            "merge=fast",
            "format=luks",
            "name=",
            "suid",
            "scratch_limit=much",
            "nbd_server=",
        ] {
            let message = parse(bad).expect_err(bad);
            assert!(message.contains(bad), "{message}");
        }
        assert!(parse("auto_unmount").is_err());
        assert!(parse("passthrough").is_err());
    }

    #[test]
    fn where_instants_of_running_disks_are_kept() {
        let live = |list: &str| parse(list).map(|options| options.live);
        let all =
            live("scratch_dir=/tmp,scratch_limit=10G,nbd_server=unix:/run/nbd").expect("known");
        assert_eq!(
            all.scratch_dir.as_deref(),
            Some(std::path::Path::new("/tmp"))
        );
        assert_eq!(all.scratch_limit, Some(10 << 30));
        assert_eq!(
            all.nbd_server.as_deref(),
            Some(std::path::Path::new("/run/nbd"))
        );
        assert!(
            live("scratch_dir=/nowhere")
                .expect_err("not there")
                .contains("no directory")
        );
    }

    #[test]
    fn a_path_with_a_comma_has_an_option_of_its_own() {
        for (list, own) in [
            ("backup_dir=/nowhere,b", "--backup-dir"),
            ("scratch_dir=/nowhere,b", "--scratch-dir"),
        ] {
            let failure = Options::parse(&[list.to_owned()]).expect_err(list);
            assert!(failure.next.contains(own), "{}", failure.next);
        }
    }

    #[test]
    fn a_guest_agent_that_is_named_is_tried() {
        let quiesce = |list: &str| parse(list).expect(list).quiesce();
        assert_eq!(quiesce(""), Quiesce::Off);
        assert_eq!(quiesce("guest_agent=/run/a"), Quiesce::Try);
        assert_eq!(quiesce("guest_agent=/run/a,quiesce=off"), Quiesce::Off);
        assert_eq!(
            quiesce("quiesce=require,guest_agent=tcp:127.0.0.1:4"),
            Quiesce::Require
        );
        let relative = parse("guest_agent=agent").expect("a path").guest_agent;
        assert!(matches!(relative, Some(Address::Unix(path)) if path.is_absolute()));
        for bad in [
            "guest_agent",
            "guest_agent=",
            "guest_agent=tcp:nowhere",
            "quiesce",
            "quiesce=maybe",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert!(parse("quiesce=off").expect("known").check_quiesce().is_ok());
        for alone in ["quiesce=try", "quiesce=require"] {
            assert!(parse(alone).expect("known").check_quiesce().is_err());
        }
    }
}

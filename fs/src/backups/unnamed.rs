//! Whose backups lie under a name that nobody gave: a VM without one is called after its socket or its image, and so may be
//! others. A file beside the disks' directories says from where it was mounted. It knows no VM.

use super::place::write_bytes;
use crate::errno::{Errno, Failure};
use crate::tree::fit_name;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

/// What says it.
const SAYS: &str = ".mounted-from";

/// A VM that nobody has named.
#[derive(Debug, Clone)]
pub struct Unnamed {
    /// The backup directory.
    pub root: PathBuf,
    /// What it is called.
    pub vm: String,
    /// From where it is mounted.
    pub from: String,
}

impl Unnamed {
    fn says(&self) -> PathBuf {
        self.root.join(fit_name(&self.vm)).join(SAYS)
    }

    /// Refused where the name is that of another one, mounted from elsewhere.
    pub fn refuse_anothers(&self) -> Result<(), Failure> {
        let Unnamed { vm, from, .. } = self;
        let path = self.says();
        match std::fs::read_to_string(&path) {
            Ok(theirs) if theirs.trim_end() != from => Err(Failure::new(
                Errno::EBUSY,
                format!(
                    "the VM has no name, and the backups of '{vm}' are of the one that was mounted from {}",
                    theirs.trim_end()
                ),
            )
            .next(format!(
                "mount with -o name=NAME, or start the VM with -name; -o name={vm} if it is the same one"
            ))),
            Ok(_) => Ok(()),
            // nobody has put any there; who may not see it may not see the backups either
            Err(error) => {
                tracing::debug!(%error, path = %path.display(), "whose backups they are is not known");
                Ok(())
            }
        }
    }

    /// From now on the name is of this one. Its directory is there.
    pub fn take_name(&self) -> Result<(), Failure> {
        self.refuse_anothers()?;
        let path = self.says();
        match path.exists() {
            true => Ok(()),
            false => {
                write_bytes(&path, format!("{}\n", self.from).as_bytes())?;
                // no secret: QEMU's own user may mount the next time
                std::fs::set_permissions(&path, Permissions::from_mode(0o644))
                    .map_err(|error| Failure::io(format!("open up {}", path.display()), &error))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_of_the_first() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("qmp")).unwrap();
        let of = |vm: &str, from: &str| Unnamed {
            root: dir.path().to_owned(),
            vm: vm.to_owned(),
            from: from.to_owned(),
        };
        let first = of("qmp", "/v1/qmp.sock");
        first.refuse_anothers().unwrap();
        first.take_name().unwrap();
        first.take_name().unwrap();
        let second = of("qmp", "/v2/qmp.sock");
        for refused in [second.refuse_anothers(), second.take_name()] {
            let failure = refused.unwrap_err();
            assert_eq!(failure.errno, Errno::EBUSY);
            assert!(failure.message.contains("/v1/qmp.sock"), "{failure}");
        }
        of("other", "/v2/qmp.sock").refuse_anothers().unwrap();
    }
}

//! A new file that stands in for another: its owner, mode and security labels.
//! It knows what makes a file usable for the same QEMU; it does not know what is written to it.

use crate::errno::Failure;
use crate::sys;
use std::ffi::CStr;
use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;

/// What a security module or an access list hangs on a file, beside owner and mode.
const LABELS: [&CStr; 2] = [c"system.posix_acl_access", c"security.selinux"];

/// Creates `new`, which must not exist, with the owner, mode and labels of `like`. Open for
/// reading and writing, and empty. On failure nothing is left.
pub fn create_like(new: &Path, like: &Path) -> Result<File, Failure> {
    let model = sys::open_for_reading(like)
        .map_err(|error| Failure::io(format_args!("open {}", like.display()), &error))?;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(new)
        .map_err(|error| Failure::io(format_args!("create {}", new.display()), &error))?;
    dress(&file, &model).map_err(|(what, error)| {
        // What failed is what the user must know; that the empty file stays is the lesser evil.
        let _ = std::fs::remove_file(new);
        Failure::io(
            format_args!("give {} the {what} of {}", new.display(), like.display()),
            &error,
        )
        .next("mount as root, or as the user and group that own the image")
    })?;
    Ok(file)
}

/// Owner first: changing it clears what follows.
fn dress(file: &File, like: &File) -> Result<(), (&'static str, io::Error)> {
    let theirs = like.metadata().map_err(|error| ("owner", error))?;
    let ours = file.metadata().map_err(|error| ("owner", error))?;
    let owner = (ours.uid() != theirs.uid()).then_some(theirs.uid());
    let group = (ours.gid() != theirs.gid()).then_some(theirs.gid());
    if owner.is_some() || group.is_some() {
        fchown(file, owner, group).map_err(|error| ("owner", error))?;
    }
    for name in LABELS {
        copy_label(file, like, name).map_err(|error| ("security label", error))?;
    }
    file.set_permissions(Permissions::from_mode(theirs.mode() & 0o777))
        .map_err(|error| ("mode", error))
}

fn copy_label(file: &File, like: &File, name: &CStr) -> io::Result<()> {
    let value = match sys::xattr_get(like, name) {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => None,
        value => value?,
    };
    match value {
        Some(value) if sys::xattr_get(file, name).ok().flatten().as_ref() == Some(&value) => Ok(()),
        Some(value) => sys::xattr_set(file, name, &value),
        // The directory's default access list may have left one where `like` has none.
        None if name == c"system.posix_acl_access" => match sys::xattr_remove(file, name) {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
            removed => removed,
        },
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::errno::Errno;
    use crate::layer_file::fixture;
    use std::io::Write;

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().mode() & 0o7777
    }

    /// u::rw-, u:1234:rw-, g::r--, m::rw-, o::---, as the kernel lays it out.
    fn access_list() -> Vec<u8> {
        let mut value = 2u32.to_le_bytes().to_vec();
        for (tag, permissions, id) in [
            (1u16, 6u16, u32::MAX),
            (2, 6, 1234),
            (4, 4, u32::MAX),
            (16, 6, u32::MAX),
            (32, 0, u32::MAX),
        ] {
            value.extend(tag.to_le_bytes());
            value.extend(permissions.to_le_bytes());
            value.extend(id.to_le_bytes());
        }
        value
    }

    #[test]
    fn a_new_file_looks_like_the_one_it_stands_in_for() {
        let dir = fixture::with_xattrs();
        let (like, new) = (dir.path().join("like"), dir.path().join("new"));
        std::fs::write(&like, b"not copied").unwrap();
        for wanted in [0o640, 0o600, 0o666] {
            std::fs::set_permissions(&like, Permissions::from_mode(wanted)).unwrap();
            create_like(&new, &like)
                .unwrap()
                .write_all(b"writable")
                .unwrap();
            assert_eq!(mode(&new), wanted);
            assert_eq!(std::fs::read(&new).unwrap(), b"writable");
            std::fs::remove_file(&new).unwrap();
        }
        std::fs::set_permissions(&like, Permissions::from_mode(0o4755)).unwrap();
        create_like(&new, &like).unwrap();
        assert_eq!(mode(&new), 0o755, "never setuid");
    }

    #[test]
    fn the_owner_goes_along_where_we_may() {
        let dir = fixture::with_xattrs();
        let (like, new) = (dir.path().join("like"), dir.path().join("new"));
        std::fs::write(&like, b"").unwrap();
        if std::os::unix::fs::chown(&like, Some(1234), Some(2345)).is_err() {
            return; // not root: nobody else's file to stand in for
        }
        create_like(&new, &like).unwrap();
        let made = new.metadata().unwrap();
        assert_eq!((made.uid(), made.gid()), (1234, 2345));
    }

    #[test]
    fn access_lists_go_along_and_default_ones_do_not_creep_in() {
        let dir = fixture::with_xattrs();
        let (like, new) = (dir.path().join("like"), dir.path().join("new"));
        std::fs::write(&like, b"").unwrap();
        let acl = c"system.posix_acl_access";
        let file = File::open(&like).unwrap();
        if sys::xattr_set(&file, acl, &access_list()).is_err() {
            return; // this filesystem has no access lists
        }
        let made = create_like(&new, &like).unwrap();
        assert_eq!(sys::xattr_get(&made, acl).unwrap(), Some(access_list()));
        assert_eq!(mode(&new), mode(&like));

        sys::xattr_set(
            &File::open(dir.path()).unwrap(),
            c"system.posix_acl_default",
            &access_list(),
        )
        .unwrap();
        sys::xattr_remove(&file, acl).unwrap();
        std::fs::set_permissions(&like, Permissions::from_mode(0o600)).unwrap();
        std::fs::remove_file(&new).unwrap();
        let made = create_like(&new, &like).unwrap();
        assert_eq!(sys::xattr_get(&made, acl).unwrap(), None);
        assert_eq!(mode(&new), 0o600);
    }

    #[test]
    fn nothing_that_exists_is_opened() {
        let dir = fixture::with_xattrs();
        let (like, taken, link) = (
            dir.path().join("like"),
            dir.path().join("taken"),
            dir.path().join("link"),
        );
        std::fs::write(&like, b"").unwrap();
        std::fs::write(&taken, b"precious").unwrap();
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), &link).unwrap();
        assert_eq!(create_like(&taken, &like).unwrap_err().errno, Errno::EEXIST);
        assert_eq!(create_like(&link, &like).unwrap_err().errno, Errno::EEXIST);
        assert_eq!(std::fs::read(&taken).unwrap(), b"precious");
        assert!(!dir.path().join("elsewhere").exists());
        assert_eq!(
            create_like(&dir.path().join("new"), &dir.path().join("no"))
                .unwrap_err()
                .errno,
            Errno::ENOENT
        );
        assert!(!dir.path().join("new").exists());
    }
}

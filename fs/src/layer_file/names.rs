//! How the files of a disk are named: D, its sealed layers, and its hidden aliases.
//! It knows paths; only `resolve` looks at the filesystem.

use crate::errno::{Errno, Failure};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Hex digits that make an alias: 48 random bits, so that two aliases of a disk never meet.
const ALIAS_DIGITS: usize = 12;

/// Where the point `name` of the active image `active` lies: `web1.qcow2` gives `web1.NAME.qcow2`.
pub fn sealed_path(active: &Path, name: &str) -> PathBuf {
    let mut sealed: OsString = active.file_stem().unwrap_or_default().to_owned();
    sealed.push(".");
    sealed.push(name);
    if let Some(extension) = active.extension() {
        sealed.push(".");
        sealed.push(extension);
    }
    active.with_file_name(sealed)
}

/// A new hidden name beside `active`, under which nothing lies yet: `.web1.qcow2.0123456789ab`.
pub fn alias_path(active: &Path) -> PathBuf {
    let mut alias = OsString::from(".");
    alias.push(active.file_name().unwrap_or_default());
    alias.push(".");
    alias.push(random_hex());
    active.with_file_name(alias)
}

/// Twelve random hex digits: what makes an alias or the id of a point.
pub fn random_hex() -> String {
    let mut random = [0u8; ALIAS_DIGITS / 2];
    getrandom::fill(&mut random)
        .expect("getrandom(2) always fills a few bytes once Linux has booted");
    random.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The path that an alias stands for; None for a name that is no alias.
pub fn active_of_alias(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.as_bytes().strip_prefix(b".")?;
    let (active, digits) = name.split_at_checked(name.len().checked_sub(ALIAS_DIGITS + 1)?)?;
    let digits = digits.strip_prefix(b".")?;
    let hex = digits
        .iter()
        .all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
    let named = !active.is_empty() && active != b"." && active != b"..";
    (hex && named).then(|| path.with_file_name(OsStr::from_bytes(active)))
}

/// The real path of a file that another process names, its symlinks resolved. A relative name is
/// meant against that process's directory.
pub fn resolve(path: &Path, relative_to: Option<&Path>) -> Result<PathBuf, Failure> {
    let path = match (path.is_absolute(), relative_to) {
        (true, _) => path.to_owned(),
        (false, Some(directory)) => directory.join(path),
        (false, None) => {
            return Err(Failure::new(
                Errno::EINVAL,
                format!(
                    "{} is relative, and to which directory is not known",
                    path.display()
                ),
            )
            .next("start QEMU with the image's absolute path"));
        }
    };
    path.canonicalize()
        .map_err(|error| Failure::io(format_args!("find {}", path.display()), &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_layer_keeps_the_extension() {
        for (active, sealed) in [
            ("/x/web1.qcow2", "/x/web1.before.qcow2"),
            ("/x/web1", "/x/web1.before"),
            ("/x/web1.a.img", "/x/web1.a.before.img"),
            ("/x/.hidden", "/x/.hidden.before"),
            ("web1.qcow2", "web1.before.qcow2"),
        ] {
            assert_eq!(sealed_path(Path::new(active), "before"), Path::new(sealed));
        }
    }

    #[test]
    fn an_alias_stands_for_its_active_path() {
        for active in [
            "/x/web1.qcow2",
            "/x/web1",
            "/x/.hidden.qcow2",
            "/x/a b\u{e4}.qcow2",
        ] {
            let alias = alias_path(Path::new(active));
            assert_ne!(alias, alias_path(Path::new(active)));
            assert_eq!(alias.parent(), Path::new(active).parent());
            assert_eq!(active_of_alias(&alias).as_deref(), Some(Path::new(active)));
        }
    }

    #[test]
    fn only_the_exact_pattern_is_an_alias() {
        for other in [
            "/x/web1.qcow2",
            "/x/.web1.qcow2",
            "/x/.web1.qcow2.0123456789a",
            "/x/.web1.qcow2.0123456789abc",
            "/x/.web1.qcow2.0123456789aB",
            "/x/.web1.qcow2.0123456789ag",
            "/x/web1.qcow2.0123456789ab",
            "/x/..0123456789ab",
            "/x/...0123456789ab",
            "/x/....0123456789ab",
            "/x/0123456789ab",
            "/",
            "",
        ] {
            assert_eq!(active_of_alias(Path::new(other)), None, "{other}");
        }
    }

    #[test]
    fn a_symlink_leads_to_the_real_file() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap().join("real.qcow2");
        std::fs::write(&real, b"").unwrap();
        std::fs::create_dir(dir.path().join("links")).unwrap();
        std::os::unix::fs::symlink("../real.qcow2", dir.path().join("links/web1.qcow2")).unwrap();

        assert_eq!(
            resolve(&dir.path().join("links/web1.qcow2"), None).unwrap(),
            real
        );
        assert_eq!(
            resolve(Path::new("links/web1.qcow2"), Some(dir.path())).unwrap(),
            real
        );
        assert_eq!(
            resolve(Path::new("links/web1.qcow2"), None)
                .unwrap_err()
                .errno,
            Errno::EINVAL
        );
        assert_eq!(
            resolve(&dir.path().join("no"), None).unwrap_err().errno,
            Errno::ENOENT
        );
    }
}

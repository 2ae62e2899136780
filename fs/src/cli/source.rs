//! SOURCE arguments: one monitor, or the images of one VM. Decided by what the path is, never
//! by its name.

use crate::backups;
use crate::errno::{Errno, Failure, io_errno};
use crate::model::Format;
use crate::ops::Source;
use qmpbridge::Address;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

/// One argument, understood.
enum Kind {
    Monitor(Address),
    Image(PathBuf),
    Directory(PathBuf),
}

/// What the arguments mean together.
pub(super) fn classify(sources: &[String], format: Option<Format>) -> Result<Source, Failure> {
    let mut monitors = Vec::new();
    let mut paths = Vec::new();
    for source in sources {
        match kind(source)? {
            Kind::Monitor(address) => monitors.push(address),
            Kind::Image(path) => paths.push(path),
            Kind::Directory(path) if sources.len() == 1 => return backups(source, path),
            Kind::Directory(_) => {
                return Err(Failure::new(
                    Errno::EINVAL,
                    format!("{source} is a directory, and was given together with others"),
                )
                .next("mount a directory of backups by itself"));
            }
        }
    }
    match (monitors.pop(), monitors.is_empty(), paths.is_empty()) {
        (Some(monitor), true, true) => Ok(Source::Qmp(monitor)),
        (Some(_), false, _) => Err(Failure::new(
            Errno::EINVAL,
            "more than one QMP socket was given",
        )
        .next("mount each VM on a directory of its own")),
        (Some(_), true, false) => Err(Failure::new(
            Errno::EINVAL,
            "a QMP socket and image files were given together",
        )
        .next("give the socket alone while the VM runs, or the images alone when it is off")),
        (None, _, false) => Ok(Source::Images { paths, format }),
        (None, _, true) => Err(Failure::new(Errno::EINVAL, "no source was given")
            .next("name the VM's QMP socket, or its image files: qmpfs mount --help")),
    }
}

/// A directory must be one of backups.
fn backups(source: &str, path: PathBuf) -> Result<Source, Failure> {
    if backups::shelf(&path)?.is_empty() {
        return Err(Failure::new(
            Errno::EINVAL,
            format!("there are no backups of qmpfs in the directory {source}"),
        )
        .next(
            "name the directory that --backup-dir named: in it are VM/DISK/NAME.json and .qcow2",
        ));
    }
    Ok(Source::Backups(path))
}

fn kind(source: &str) -> Result<Kind, Failure> {
    if source.starts_with("tcp:") {
        return Ok(Kind::Monitor(address(source)?));
    }
    if source.starts_with("unix:") {
        let Address::Unix(path) = address(source)? else {
            return Err(
                Failure::new(Errno::EINVAL, format!("not a socket's path: {source}")).next(
                    "unix: stands before the path of a socket; an image needs no word before it",
                ),
            );
        };
        let path = absolute(&path)?;
        let metadata = std::fs::metadata(&path).map_err(|error| absent(source, &path, &error))?;
        if !metadata.file_type().is_socket() {
            return Err(
                Failure::new(Errno::EINVAL, format!("{} is not a socket", path.display()))
                    .next("leave `unix:` away if it is an image file"),
            );
        }
        return Ok(Kind::Monitor(Address::Unix(path)));
    }
    let path = absolute(Path::new(source))?;
    let file_type = std::fs::metadata(&path)
        .map_err(|error| absent(source, &path, &error))?
        .file_type();
    if file_type.is_socket() {
        return Ok(Kind::Monitor(Address::Unix(path)));
    }
    if file_type.is_dir() {
        return Ok(Kind::Directory(path));
    }
    if file_type.is_file() || file_type.is_block_device() {
        return Ok(Kind::Image(path));
    }
    Err(Failure::new(
        Errno::EINVAL,
        format!("{source} is neither a QMP socket nor an image file, nor a directory"),
    )
    .next("give the socket of a running VM, the image files of one that is off, or a directory of backups"))
}

fn address(source: &str) -> Result<Address, Failure> {
    source.parse().map_err(|error| {
        Failure::new(Errno::EINVAL, format!("{error}"))
            .next("write /run/web1.qmp, unix:/run/web1.qmp or tcp:127.0.0.1:4444")
    })
}

/// The daemon works in another directory than the one it was started in.
fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path)
        .map_err(|error| Failure::io(format_args!("use {}", path.display()), &error))
}

fn absent(source: &str, path: &Path, error: &std::io::Error) -> Failure {
    if error.kind() != std::io::ErrorKind::NotFound {
        return Failure::new(io_errno(error), format!("cannot look at {source}: {error}"))
            .next("see that the path is right and that you may use it: ls -l");
    }
    Failure::new(Errno::ENOENT, format!("{source} does not exist")).next(format!(
        "start the VM with `-qmp unix:{},server=on,wait=off`, or give its image files",
        path.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::classify;
    use crate::errno::Errno;
    use crate::ops::Source;
    use qmpbridge::Address;
    use std::os::unix::net::UnixListener;

    #[test]
    fn decided_by_what_it_is() {
        let directory = tempfile::tempdir().expect("a scratch directory");
        let at = |name: &str| {
            directory
                .path()
                .join(name)
                .to_str()
                .expect("a UTF-8 path")
                .to_owned()
        };
        let _listener = UnixListener::bind(at("vm.qcow2")).expect("a socket");
        std::fs::write(at("a.qmp"), "").expect("a file");
        std::fs::write(at("b.raw"), "").expect("a file");
        let given = |names: &[String]| classify(names, None).map_err(|failure| failure.errno);

        assert!(matches!(
            given(&[at("vm.qcow2")]),
            Ok(Source::Qmp(Address::Unix(_)))
        ));
        assert!(matches!(
            given(&[format!("unix:{}", at("vm.qcow2"))]),
            Ok(Source::Qmp(Address::Unix(_)))
        ));
        assert!(matches!(
            given(&["tcp:localhost:4444".into()]),
            Ok(Source::Qmp(Address::Tcp(_)))
        ));
        assert!(
            matches!(given(&[at("a.qmp"), at("b.raw")]), Ok(Source::Images { paths, .. }) if paths.len() == 2)
        );

        assert_eq!(
            given(&[at("vm.qcow2"), at("b.raw")]).err(),
            Some(Errno::EINVAL)
        );
        assert_eq!(
            given(&[at("vm.qcow2"), at("vm.qcow2")]).err(),
            Some(Errno::EINVAL)
        );
        assert_eq!(
            given(&[format!("unix:{}", at("b.raw"))]).err(),
            Some(Errno::EINVAL)
        );
        assert_eq!(given(&[at("")]).err(), Some(Errno::EINVAL));
        assert_eq!(given(&["tcp:nowhere".into()]).err(), Some(Errno::EINVAL));
        assert_eq!(given(&[at("missing")]).err(), Some(Errno::ENOENT));
    }
}

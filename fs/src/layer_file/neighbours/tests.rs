use super::{dependents, free_bytes, is_sealed_of, siblings, strays};
use crate::errno::Errno;
use crate::layer_file::alias_path;
use crate::layer_file::fixture::qemu_img;
use crate::layer_file::sealed_path;
use crate::sys;
use std::path::{Path, PathBuf};

fn overlay(directory: &Path, name: &str, backing: &str) -> PathBuf {
    let path = directory.join(name);
    let path_text = path.to_str().unwrap();
    qemu_img(&[
        "create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", backing, path_text, "1M",
    ]);
    path
}

#[test]
fn dependents_are_found_by_inode_whatever_the_name_says() {
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path();
    let base = here.join("base.qcow2");
    qemu_img(&["create", "-q", "-f", "qcow2", base.to_str().unwrap(), "1M"]);
    let target = sys::file_id(&base).unwrap();
    std::fs::hard_link(&base, here.join("other-name.qcow2")).unwrap();
    std::fs::create_dir(here.join("elsewhere")).unwrap();

    let mut wanted = vec![
        overlay(here, "absolute.qcow2", base.to_str().unwrap()),
        overlay(here, "by-other-name.qcow2", "other-name.qcow2"),
        overlay(here, "file.qcow2", "file:base.qcow2"),
        overlay(
            here,
            "json.qcow2",
            &format!(
                r#"json:{{"driver":"qcow2","file":{{"driver":"file","filename":"{}"}}}}"#,
                base.display()
            ),
        ),
        overlay(here, "relative.qcow2", "base.qcow2"),
    ];
    overlay(&here.join("elsewhere"), "real.qcow2", "../base.qcow2");
    std::os::unix::fs::symlink("elsewhere/real.qcow2", here.join("symlink.qcow2")).unwrap();
    wanted.push(here.join("symlink.qcow2"));

    overlay(here, "on-nothing.qcow2", "gone.qcow2");
    let own = overlay(here, "own.qcow2", "base.qcow2");
    std::fs::write(here.join("text"), b"base.qcow2").unwrap();
    std::fs::write(here.join("empty.qcow2"), b"").unwrap();
    std::os::unix::fs::symlink("nowhere", here.join("dangling")).unwrap();

    let found = dependents(here, target, &[sys::file_id(&own).unwrap()]).unwrap();
    assert_eq!(found, wanted);
    assert_eq!(
        dependents(here, sys::file_id(&own).unwrap(), &[]).unwrap(),
        Vec::<PathBuf>::new()
    );
    assert_eq!(
        dependents(&here.join("no"), target, &[]).unwrap_err().errno,
        Errno::ENOENT
    );
}

#[test]
fn an_image_that_cannot_be_understood_is_not_taken_for_innocent() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base.qcow2");
    std::fs::write(&base, b"").unwrap();
    std::fs::write(
        dir.path().join("broken.qcow2"),
        [b'Q', b'F', b'I', 0xfb, 0, 0, 0, 9].repeat(20),
    )
    .unwrap();
    let refused = dependents(dir.path(), sys::file_id(&base).unwrap(), &[]).unwrap_err();
    assert_eq!(refused.errno, Errno::EBUSY);
    assert!(refused.message.contains("broken.qcow2"), "{refused}");
}

#[test]
fn strays_are_the_aliases_of_that_path_only() {
    let dir = tempfile::tempdir().unwrap();
    let active = dir.path().join("web1.qcow2");
    let (stray, other) = (
        alias_path(&active),
        alias_path(&sealed_path(&active, "before")),
    );
    for path in [&active, &stray, &other] {
        std::fs::write(path, b"x").unwrap();
    }
    std::os::unix::fs::symlink("web1.qcow2", alias_path(&active)).unwrap();
    std::fs::create_dir(alias_path(&active)).unwrap();
    assert_eq!(
        strays(&active).unwrap(),
        [(stray.clone(), sys::file_id(&stray).unwrap())]
    );
    assert!(free_bytes(&active).unwrap() > 0);
}

#[test]
fn siblings_are_all_names_of_one_disk() {
    let dir = tempfile::tempdir().unwrap();
    let active = dir.path().join("web1.qcow2");
    let sealed = sealed_path(&active, "before");
    let mut wanted = vec![
        alias_path(&active),
        alias_path(&sealed),
        active.clone(),
        sealed,
    ];
    for path in &wanted {
        std::fs::write(path, b"x").unwrap();
    }
    for other in [
        "web1.before.raw",
        "web10.qcow2",
        "web1.qcow2.bak",
        "web2.before.qcow2",
        "web1",
    ] {
        std::fs::write(dir.path().join(other), b"x").unwrap();
    }
    std::fs::create_dir(sealed_path(&active, "directory")).unwrap();
    wanted.sort();
    assert_eq!(siblings(&active).unwrap(), wanted);
    assert!(is_sealed_of(Path::new("/x/web1.a"), Path::new("/x/web1")));
    assert!(!is_sealed_of(
        Path::new("/y/web1.a.qcow2"),
        Path::new("/x/web1.qcow2")
    ));
}

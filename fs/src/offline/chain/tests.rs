use super::{MAX_LAYERS, has_protocol, quoted, resolve_chain};
use crate::errno::Errno;
use crate::layer_file::fixture::qemu_img;
use crate::model::Format;
use std::path::{Path, PathBuf};

struct Images(tempfile::TempDir);

impl Images {
    fn new() -> Self {
        Images(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().canonicalize().unwrap().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn image(&self, name: &str, format: &str, size: &str) {
        qemu_img(&["create", "-q", "-f", format, &self.text(name), size]);
    }

    fn overlay(&self, name: &str, backing: &str, format: &str) {
        qemu_img(&[
            "create",
            "-q",
            "-u",
            "-f",
            "qcow2",
            "-F",
            format,
            "-b",
            backing,
            &self.text(name),
            "2M",
        ]);
    }

    /// Writes a backing name as no tool would.
    fn overlay_without_format(&self, name: &str, backing: &str) {
        self.image(name, "qcow2", "2M");
        let mut bytes = std::fs::read(self.path(name)).unwrap();
        bytes[8..16].copy_from_slice(&4096u64.to_be_bytes());
        bytes[16..20].copy_from_slice(&u32::try_from(backing.len()).unwrap().to_be_bytes());
        bytes[4096..4096 + backing.len()].copy_from_slice(backing.as_bytes());
        std::fs::write(self.path(name), bytes).unwrap();
    }

    fn refused(&self, name: &str) -> crate::errno::Failure {
        resolve_chain(&self.path(name), None).unwrap_err()
    }
}

#[test]
fn a_chain_is_followed_by_names_and_recorded_formats() {
    let images = Images::new();
    std::fs::create_dir(images.path("templates")).unwrap();
    images.image("templates/base.img", "raw", "1M");
    images.overlay("templates/middle.qcow2", "base.img", "raw");
    images.overlay("web1.qcow2", "templates/middle.qcow2", "qcow2");
    std::os::unix::fs::symlink("web1.qcow2", images.path("link")).unwrap();

    let chain = resolve_chain(&images.path("link"), None).unwrap();
    let paths: Vec<_> = chain.iter().map(|layer| layer.path.clone()).collect();
    let wanted = ["templates/base.img", "templates/middle.qcow2", "web1.qcow2"]
        .map(|name| images.path(name));
    assert_eq!(paths, wanted);
    assert_eq!(
        chain
            .iter()
            .map(|layer| layer.virtual_size)
            .collect::<Vec<_>>(),
        [1 << 20, 2 << 20, 2 << 20]
    );
    assert_eq!(chain[0].format, Format::Raw);
    assert_eq!(chain[1].backing_name.as_deref(), Some("base.img"));
    assert_eq!(chain[0].backing_name, None);
}

#[test]
fn the_image_itself_may_be_guessed_and_what_it_stands_on_never() {
    let images = Images::new();
    images.image("plain.img", "raw", "1M");
    assert_eq!(
        resolve_chain(&images.path("plain.img"), None).unwrap()[0].format,
        Format::Raw
    );

    images.image("odd.raw", "qcow2", "1M");
    assert_eq!(images.refused("odd.raw").errno, Errno::EINVAL);
    for (format, size) in [(Format::Qcow2, 1 << 20), (Format::Raw, 196_616)] {
        let chain = resolve_chain(&images.path("odd.raw"), Some(format)).unwrap();
        let length = images.path("odd.raw").metadata().unwrap().len();
        let wanted = if size == 1 << 20 {
            size
        } else {
            length.next_multiple_of(512)
        };
        assert_eq!(chain[0].virtual_size, wanted);
    }

    // A qcow2 image whose header was lost is not to be taken for a raw disk.
    for (name, content) in [
        ("lost.qcow2", &[0; 4096][..]),
        ("old.QCOW", b""),
        ("short.qcow2", b"QFI"),
    ] {
        std::fs::write(images.path(name), content).unwrap();
        let refused = images.refused(name);
        assert_eq!(refused.errno, Errno::EUCLEAN, "{refused}");
        assert!(
            refused.message.contains("is not a qcow2 image"),
            "{refused}"
        );
        assert!(refused.next.contains("-o format=raw"), "{refused}");
        let chain = resolve_chain(&images.path(name), Some(Format::Raw)).unwrap();
        assert_eq!(chain[0].format, Format::Raw);
    }

    // A raw base in which a guest wrote a qcow2 header that names a file of the host.
    images.overlay("guest-disk.img", "/etc/hostname", "raw");
    images.overlay("top.qcow2", "guest-disk.img", "raw");
    let chain = resolve_chain(&images.path("top.qcow2"), None).unwrap();
    assert_eq!(chain.len(), 2);
    assert_eq!(chain[0].format, Format::Raw);

    images.overlay_without_format("old.qcow2", "guest-disk.img");
    let refused = images.refused("old.qcow2");
    assert_eq!(refused.errno, Errno::EINVAL);
    assert!(
        refused
            .next
            .contains("qemu-img rebase -u -F qcow2 -b guest-disk.img "),
        "{refused}"
    );
}

#[test]
fn names_that_are_no_plain_files_are_refused() {
    let images = Images::new();
    for name in [
        "json:{\"driver\":\"null-co\"}",
        "nbd://host/x",
        "nbd:unix:/x",
        "file:relative",
        "fat:/etc",
    ] {
        images.overlay_without_format("top.qcow2", name);
        let refused = images.refused("top.qcow2");
        assert_eq!(refused.errno, Errno::EOPNOTSUPP, "{refused}");
        assert!(refused.message.contains(name), "{refused}");
    }
    images.image("base.qcow2", "qcow2", "1M");
    images.overlay(
        "top.qcow2",
        &format!("file:{}", images.text("base.qcow2")),
        "qcow2",
    );
    assert_eq!(
        resolve_chain(&images.path("top.qcow2"), None)
            .unwrap()
            .len(),
        2
    );
    images.overlay("other.qcow2", "base.vmdk", "vmdk");
    std::fs::write(images.path("base.vmdk"), b"").unwrap();
    assert_eq!(images.refused("other.qcow2").errno, Errno::EOPNOTSUPP);
    assert!(
        has_protocol(b"a:b")
            && !has_protocol(b"./a:b")
            && !has_protocol(b"/a:b")
            && !has_protocol(b"ab")
    );
}

/// As QEMU has it: relative to the name that was given, wherever that leads.
#[test]
fn through_a_symlink_a_relative_name_is_relative_to_the_link() {
    let images = Images::new();
    for directory in ["links", "real", "real/deep"] {
        std::fs::create_dir(images.path(directory)).unwrap();
    }
    let link = |to: &str, at: &str| std::os::unix::fs::symlink(to, images.path(at)).unwrap();
    images.image("links/base.qcow2", "qcow2", "1M");
    images.image("real/base.qcow2", "qcow2", "2M");
    images.image("real/other.qcow2", "qcow2", "3M");
    images.overlay("real/web1.qcow2", "base.qcow2", "qcow2");
    link("../real/web1.qcow2", "links/web1.qcow2");
    let base_of = |name: &str| {
        let chain = resolve_chain(&images.path(name), None);
        chain
            .map(|chain| chain[0].path.clone())
            .map_err(|failure| failure.errno)
    };
    assert_eq!(
        base_of("links/web1.qcow2").unwrap(),
        images.path("links/base.qcow2")
    );
    assert_eq!(
        base_of("real/web1.qcow2").unwrap(),
        images.path("real/base.qcow2")
    );
    // The link's own link, and a way up from where it leads: the kernel's matter, as for QEMU.
    std::fs::remove_file(images.path("links/base.qcow2")).unwrap();
    assert_eq!(base_of("links/web1.qcow2"), Err(Errno::ENOENT));
    images.overlay("real/deep/web2.qcow2", "../other.qcow2", "qcow2");
    assert_eq!(
        base_of("real/deep/web2.qcow2").unwrap(),
        images.path("real/other.qcow2")
    );
    link("../real/deep", "links/deep");
    assert_eq!(
        base_of("links/deep/web2.qcow2").unwrap(),
        images.path("real/other.qcow2")
    );
    // A middle that is a link takes its own base from beside the link.
    images.image("links/base.qcow2", "qcow2", "1M");
    images.overlay("links/top.qcow2", "web1.qcow2", "qcow2");
    assert_eq!(
        base_of("links/top.qcow2").unwrap(),
        images.path("links/base.qcow2")
    );
}

#[test]
fn files_that_are_no_images_are_refused_and_nobody_waits_for_them() {
    let images = Images::new();
    std::fs::create_dir(images.path("directory")).unwrap();
    let pipe = std::process::Command::new("mkfifo")
        .arg(images.path("pipe"))
        .status();
    assert!(pipe.unwrap().success());
    let _socket = std::os::unix::net::UnixListener::bind(images.path("socket")).unwrap();
    std::os::unix::fs::symlink("/dev/zero", images.path("device")).unwrap();
    std::os::unix::fs::symlink("loop", images.path("loop")).unwrap();
    for (name, errnos) in [
        ("directory", &[Errno::EINVAL][..]),
        ("pipe", &[Errno::EINVAL]),
        ("device", &[Errno::EINVAL]),
        ("/dev/null", &[Errno::EINVAL]),
        ("socket", &[Errno::EIO]),
        ("loop", &[Errno::EIO]),
        ("pipe/x", &[Errno::EIO]),
    ] {
        for format in ["raw", "qcow2"] {
            images.overlay("top.qcow2", name, format);
            let refused = images.refused("top.qcow2");
            assert!(errnos.contains(&refused.errno), "{name}: {refused:?}");
            let words = name.trim_start_matches('/');
            let shown = refused.message.contains(words) || refused.message.contains("/dev/zero");
            assert!(shown, "{refused}");
        }
    }
}

#[test]
fn a_format_that_is_lied_about() {
    let images = Images::new();
    images.image("base.qcow2", "qcow2", "1M");
    images.image("base.img", "raw", "1M");
    // A raw file that is said to be qcow2 is not one.
    images.overlay("top.qcow2", "base.img", "qcow2");
    assert_eq!(images.refused("top.qcow2").errno, Errno::EUCLEAN);
    // A qcow2 file that is said to be raw is its own bytes, as for QEMU.
    images.overlay("top.qcow2", "base.qcow2", "raw");
    let chain = resolve_chain(&images.path("top.qcow2"), None).unwrap();
    assert_eq!(chain[0].format, Format::Raw);
    for format in ["vmdk", "luks", "qcow", "bochs", "no such format"] {
        images.overlay("top.qcow2", "base.img", "raw");
        let mut bytes = std::fs::read(images.path("top.qcow2")).unwrap();
        let at = bytes
            .windows(8)
            .position(|w| w == [0xe2, 0x79, 0x2a, 0xca, 0, 0, 0, 3])
            .unwrap();
        // Its three letters are padded to eight: longer names would need another header.
        let name = &format.as_bytes()[..format.len().min(8)];
        bytes[at + 7] = name.len() as u8;
        bytes[at + 8..at + 8 + name.len()].copy_from_slice(name);
        std::fs::write(images.path("top.qcow2"), bytes).unwrap();
        // by us, or, where it is one that QEMU is asked about, by QEMU
        let refused = images.refused("top.qcow2");
        let by_qemu = ["qcow", "bochs"].contains(&format);
        let expected = if by_qemu {
            Errno::EIO
        } else {
            Errno::EOPNOTSUPP
        };
        assert_eq!(refused.errno, expected, "{format}: {refused}");
    }
}

#[test]
fn what_is_missing_is_named() {
    let images = Images::new();
    images.overlay("top.qcow2", "gone.qcow2", "qcow2");
    let refused = images.refused("top.qcow2");
    assert_eq!(refused.errno, Errno::ENOENT);
    assert!(
        refused.message.contains("gone.qcow2") && refused.message.contains("top.qcow2"),
        "{refused}"
    );
    assert_eq!(images.refused("nothing.qcow2").errno, Errno::ENOENT);
    assert_eq!(
        resolve_chain(Path::new("/dev/null"), None)
            .unwrap_err()
            .errno,
        Errno::EINVAL
    );
    assert_eq!(
        resolve_chain(Path::new("/"), None).unwrap_err().errno,
        Errno::EINVAL
    );
}

#[test]
fn cycles_and_endless_chains_end() {
    let images = Images::new();
    images.overlay("a.qcow2", "b.qcow2", "qcow2");
    images.overlay("b.qcow2", "a.qcow2", "qcow2");
    assert_eq!(images.refused("a.qcow2").errno, Errno::EUCLEAN);

    // One header that names a symlink of the next name would do; real files keep it honest.
    images.overlay("0", "00000", "qcow2");
    let mut bytes = std::fs::read(images.path("0")).unwrap();
    // Nothing beyond the header is read here, and a thousand whole images would take their time.
    bytes.truncate(4096);
    let at = bytes
        .windows(5)
        .position(|window| window == b"00000")
        .unwrap();
    for index in 0..=MAX_LAYERS {
        let mut bytes = bytes.clone();
        bytes[at..at + 5].copy_from_slice(format!("{:05}", index + 1).as_bytes());
        std::fs::write(images.path(&format!("{index:05}")), bytes).unwrap();
    }
    images.image(&format!("{:05}", MAX_LAYERS + 1), "qcow2", "2M");
    assert_eq!(images.refused("00000").errno, Errno::EOPNOTSUPP);
    assert_eq!(
        resolve_chain(&images.path("00002"), None).unwrap().len(),
        MAX_LAYERS
    );
}

#[test]
fn words_for_a_shell() {
    assert_eq!(quoted("/x/web1.qcow2"), "/x/web1.qcow2");
    assert_eq!(quoted("a b'c"), r"'a b'\''c'");
    assert_eq!(quoted(""), "''");
}

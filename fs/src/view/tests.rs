mod sharing;

use super::{Cursor, InternalRef, LayerCache, LayerSpec, View, layer_allocated};
use crate::errno::{Errno, Failure};
use crate::layer_file::fixture::qemu_img;
use crate::leases::{Lease, LeaseKey, Leases};
use crate::model::{FileId, Format};
use crate::sys::{self, Bytes, write_message};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Every byte that QEMU locks, and the ones around them.
const BYTES: std::ops::Range<u32> = 90..310;

struct Images(tempfile::TempDir);

impl Images {
    /// base <- middle <- top, of 4 MiB each; the first byte of each MiB says who wrote it.
    fn chain() -> (Self, Vec<LayerSpec>) {
        let images = Images(tempfile::tempdir().unwrap());
        images.create("base", None);
        images.fill("base", 0, 1);
        images.create("middle", Some("base"));
        images.fill("middle", 1, 2);
        images.create("top", Some("middle"));
        images.fill("top", 2, 3);
        let chain = ["base", "middle", "top"]
            .map(|name| images.spec(name))
            .to_vec();
        (images, chain)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(format!("{name}.qcow2"))
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn spec(&self, name: &str) -> LayerSpec {
        let path = self.path(name);
        LayerSpec {
            file: Some(sys::file_id(&path).unwrap()),
            path,
            format: Format::Qcow2,
        }
    }

    fn create(&self, name: &str, backing: Option<&str>) {
        let mut arguments = vec!["create".into(), "-q".into(), "-f".into(), "qcow2".into()];
        if let Some(backing) = backing {
            arguments.extend(["-F".into(), "qcow2".into(), "-b".into(), self.text(backing)]);
        }
        arguments.extend([self.text(name), "4M".into()]);
        qemu_img(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    }

    /// Fills one MiB of an image with a byte, as a guest would.
    fn fill(&self, name: &str, mebibyte: u64, byte: u8) {
        let command = format!("write -P {byte} {mebibyte}M 1M");
        let done = std::process::Command::new("qemu-io")
            .args(["-f", "qcow2", "-c", &command, &self.text(name)])
            .output()
            .expect("qemu-io is installed");
        assert!(done.status.success(), "{done:?}");
    }
}

fn lease() -> Lease {
    let key = LeaseKey {
        file: FileId { dev: 0, ino: 0 },
        internal: None,
    };
    Leases::default().hold(key, 1).unwrap()
}

fn open(cache: &LayerCache, chain: &[LayerSpec]) -> View {
    View::open(cache, chain, None, lease()).unwrap()
}

/// What a read of a view answers, as the kernel would copy it.
fn read(view: &View, buffer: &mut [u8], offset: u64) -> Result<usize, Failure> {
    let file = tempfile::tempfile().unwrap();
    let send = |parts: &[Bytes<'_>]| write_message(&file, parts);
    view.answer(
        &Cursor::default(),
        offset,
        buffer.len(),
        &mut Vec::new(),
        send,
    )?
    .map_err(|error| Failure::io("read", &error))?;
    let length = file.metadata().unwrap().len() as usize;
    file.read_exact_at(&mut buffer[..length], 0).unwrap();
    Ok(length)
}

/// The first byte of each MiB.
fn marks(view: &View) -> Vec<u8> {
    (0..view.virtual_size() >> 20)
        .map(|mebibyte| {
            let mut byte = [0xff];
            assert_eq!(read(view, &mut byte, mebibyte << 20).unwrap(), 1);
            byte[0]
        })
        .collect()
}

fn held(path: &Path) -> Vec<u32> {
    let other = File::open(path).unwrap();
    BYTES
        .filter(|byte| sys::byte_held_elsewhere(&other, u64::from(*byte)).unwrap())
        .collect()
}

#[test]
fn an_internal_snapshot_is_found_by_id_and_tag() {
    let (images, _) = Images::chain();
    qemu_img(&["snapshot", "-c", "one", &images.text("top")]);
    images.fill("top", 0, 9);
    let cache = LayerCache::default();
    let chain = ["base", "middle", "top"].map(|name| images.spec(name));
    let at = |id: &str, tag: &str| InternalRef {
        id: id.into(),
        tag: tag.into(),
    };
    let view = View::open(&cache, &chain, Some(&at("1", "one")), lease()).unwrap();
    assert_eq!(marks(&view), [1, 2, 3, 0]);
    assert_eq!(marks(&open(&cache, &chain)), [9, 2, 3, 0]);
    for (id, tag) in [("1", "two"), ("2", "one"), ("one", "one")] {
        assert_eq!(
            cache.open(&chain, Some(&at(id, tag))).err().unwrap().errno,
            Errno::ENOENT
        );
    }
    qemu_img(&["snapshot", "-d", "one", &images.text("top")]);
    assert_eq!(
        cache
            .open(&chain, Some(&at("1", "one")))
            .err()
            .unwrap()
            .errno,
        Errno::ENOENT
    );
}

#[test]
fn a_data_file_is_opened_in_the_own_directory_only() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image.qcow2");
    std::fs::create_dir(dir.path().join("elsewhere")).unwrap();
    for (data, errno) in [
        ("data.raw", None),
        ("elsewhere/data.raw", Some(Errno::EOPNOTSUPP)),
    ] {
        let option = format!("data_file={}", dir.path().join(data).display());
        qemu_img(&[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            &option,
            path.to_str().unwrap(),
            "1M",
        ]);
        let spec = LayerSpec {
            path: path.clone(),
            file: None,
            format: Format::Qcow2,
        };
        let opened = LayerCache::default().open(&[spec], None);
        assert_eq!(opened.err().map(|failure| failure.errno), errno, "{data}");
    }
    std::fs::rename(
        dir.path().join("elsewhere/data.raw"),
        dir.path().join("moved.raw"),
    )
    .unwrap();
    std::os::unix::fs::symlink("../moved.raw", dir.path().join("elsewhere/data.raw")).unwrap();
    let spec = LayerSpec {
        path,
        file: None,
        format: Format::Qcow2,
    };
    LayerCache::default().open(&[spec], None).unwrap();
}

#[test]
fn holes_of_a_raw_base_are_holes() {
    let dir = tempfile::tempdir().unwrap();
    let (raw, top) = (dir.path().join("base.raw"), dir.path().join("top.qcow2"));
    let file = File::create(&raw).unwrap();
    file.set_len(4 << 20).unwrap();
    file.write_all_at(&[7; 65_536], 1 << 20).unwrap();
    file.sync_all().unwrap();
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-F",
        "raw",
        "-b",
        &text(&raw),
        &text(&top),
        "5M",
    ]);
    let spec = |path: &Path, format| LayerSpec {
        path: path.into(),
        file: None,
        format,
    };
    let chain = [spec(&raw, Format::Raw), spec(&top, Format::Qcow2)];

    for (layers, size) in [(&chain[..1], 4 << 20), (&chain[..], 5 << 20)] {
        let view = open(&LayerCache::default(), layers);
        assert_eq!(view.virtual_size(), size);
        assert_eq!(view.seek_data(0).unwrap(), Some(1 << 20));
        assert_eq!(view.seek_data((1 << 20) + 5).unwrap(), Some((1 << 20) + 5));
        assert_eq!(view.seek_hole(1 << 20).unwrap(), (1 << 20) + 65_536);
        assert_eq!(view.seek_hole(5).unwrap(), 5);
        assert_eq!(view.seek_data(2 << 20).unwrap(), None);
        assert_eq!(view.seek_data(size).unwrap(), None);
        assert_eq!(view.seek_hole(size).unwrap(), size);
        assert_eq!(view.allocated_bytes().unwrap(), 65_536);
    }
    assert_eq!(layer_allocated(&chain[0]).unwrap(), 65_536);
    assert_eq!(layer_allocated(&chain[1]).unwrap(), 0);
}

#[test]
fn a_point_is_given_back_while_its_files_are_open() {
    let (_images, chain) = Images::chain();
    let leases = Leases::default();
    let key = LeaseKey {
        file: FileId { dev: 0, ino: 1 },
        internal: None,
    };
    let lease = leases.hold(key.clone(), 1).unwrap();
    let view = View::open(&LayerCache::default(), &chain, None, lease).unwrap();
    let again = view.again(2).unwrap();
    view.give_back();
    assert!(view.again(3).is_none());
    assert_eq!(leases.readers(key.file).len(), 1);
    again.give_back();
    assert!(leases.close(key).is_ok());
}

#[test]
fn a_plan_counts_what_the_layer_itself_holds() {
    let (images, chain) = Images::chain();
    assert_eq!(layer_allocated(&chain[1]).unwrap(), 1 << 20);
    assert_eq!(layer_allocated(&chain[1]).unwrap(), 1 << 20);
    assert_eq!(held(&chain[1].path), [0u32; 0]);
    images.fill("middle", 3, 5);
    assert_eq!(layer_allocated(&chain[1]).unwrap(), 2 << 20);
    assert_eq!(
        open(&LayerCache::default(), &chain)
            .allocated_bytes()
            .unwrap(),
        4 << 20
    );
}

#[test]
fn a_file_just_written_is_counted_each_time() {
    let (images, chain) = Images::chain();
    let now = std::time::SystemTime::now();
    for (mebibyte, held) in [(1, 1), (2, 2), (3, 3)] {
        images.fill("middle", mebibyte, 6);
        // The same time whatever was written, as where clocks tick slowly.
        File::options()
            .write(true)
            .open(images.path("middle"))
            .and_then(|file| file.set_len(8 << 20).and_then(|()| file.set_modified(now)))
            .unwrap();
        assert_eq!(layer_allocated(&chain[1]).unwrap(), held << 20);
    }
}

//! Views over real images: every byte as qemu-img sees it, also while and after the files of a
//! chain are rewritten under a pin.

use qmpfs::errno::{Errno, Failure};
use qmpfs::leases::{LeaseKey, Leases};
use qmpfs::offline::{self, ResolvedLayer};
use qmpfs::sys::{Bytes, write_message};
use qmpfs::view::{Cursor, InternalRef, LayerCache, LayerSpec, View, layer_allocated};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

const MIB: u64 = 1 << 20;

/// A directory of images; a small generator makes what is written to them repeatable.
struct Lab {
    dir: tempfile::TempDir,
    random: u64,
}

impl Lab {
    fn new(seed: u64) -> Lab {
        Lab {
            dir: tempfile::tempdir().unwrap(),
            random: seed,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(name)
    }

    fn run(&self, program: &str, arguments: &[&str]) {
        let done = Command::new(program)
            .current_dir(self.dir.path())
            .args(arguments)
            .output()
            .unwrap();
        assert!(
            done.status.success(),
            "{program} {arguments:?}: {}",
            String::from_utf8_lossy(&done.stderr)
        );
    }

    fn below(&mut self, bound: u64) -> u64 {
        // xorshift64: no more is needed to scatter writes.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % bound
    }

    /// Scatters writes, zeroes and discards over the first `size` bytes of an image.
    fn scribble(&mut self, name: &str, format: &str, size: u64, writes: u32) {
        let mut arguments = vec!["-d".to_owned(), "unmap".into(), "-f".into(), format.into()];
        for _ in 0..writes {
            let at = self.below(size / 512 - 256) * 512;
            let length = (1 + self.below(255)) * 512;
            let pattern = 1 + self.below(255);
            arguments.push("-c".into());
            arguments.push(match self.below(6) {
                0 => format!("write -z {at} {length}"),
                1 => format!("discard {at} {length}"),
                _ => format!("write -P {pattern} {at} {length}"),
            });
        }
        arguments.push(name.into());
        self.run(
            "qemu-io",
            &arguments.iter().map(String::as_str).collect::<Vec<_>>(),
        );
    }

    /// What qemu-img reads of an image, or of one of its internal snapshots.
    fn truth(&self, name: &str, format: &str, snapshot: Option<&str>) -> Vec<u8> {
        let mut arguments = vec!["convert", "-U", "-f", format, "-O", "raw"];
        let id = snapshot.map(|tag| format!("snapshot.name={tag}"));
        if let Some(id) = &id {
            arguments.extend(["-l", id]);
        }
        arguments.extend([name, "truth.raw"]);
        self.run("qemu-img", &arguments);
        let bytes = std::fs::read(self.path("truth.raw")).unwrap();
        std::fs::remove_file(self.path("truth.raw")).unwrap();
        bytes
    }

    /// base.img (raw, 3 MiB) <- one (4 MiB) <- two (6 MiB) <- three (5 MiB), each scribbled on.
    fn chain(seed: u64) -> (Lab, Vec<LayerSpec>) {
        let mut lab = Lab::new(seed);
        lab.run("qemu-img", &["create", "-q", "-f", "raw", "base.img", "3M"]);
        lab.scribble("base.img", "raw", 3 * MIB, 12);
        let mut below = ("base.img", "raw");
        for (name, size, options) in [
            ("one.qcow2", 4, "cluster_size=4k"),
            ("two.qcow2", 6, "cluster_size=64k"),
            ("three.qcow2", 5, "extended_l2=on,cluster_size=128k"),
        ] {
            let size_text = format!("{size}M");
            let arguments = [
                "-o",
                options,
                "-b",
                below.0,
                "-F",
                below.1,
                name,
                size_text.as_str(),
            ];
            lab.run(
                "qemu-img",
                &[&["create", "-q", "-f", "qcow2"], &arguments[..]].concat(),
            );
            lab.scribble(name, "qcow2", size * MIB, 24);
            below = (name, "qcow2");
        }
        let chain = specs(&offline::resolve_chain(&lab.path("three.qcow2"), None).unwrap());
        (lab, chain)
    }
}

fn specs(chain: &[ResolvedLayer]) -> Vec<LayerSpec> {
    let spec = |layer: &ResolvedLayer| LayerSpec {
        path: layer.path.clone(),
        file: Some(qmpfs::sys::file_id(&layer.path).unwrap()),
        format: layer.format.clone(),
    };
    chain.iter().map(spec).collect()
}

fn open(cache: &LayerCache, chain: &[LayerSpec], at: Option<&InternalRef>) -> Arc<View> {
    let file = chain.last().and_then(|top| top.file).unwrap();
    let key = LeaseKey {
        file,
        internal: None,
    };
    let lease = Leases::default().hold(key, 1).unwrap();
    Arc::new(View::open(cache, chain, at, lease).unwrap())
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

fn whole(view: &View) -> Vec<u8> {
    let mut bytes = vec![0xee; usize::try_from(view.virtual_size()).unwrap()];
    // Pieces of an odd size, so that every boundary is crossed somewhere.
    for (index, piece) in bytes.chunks_mut(100_003).enumerate() {
        let offset = index as u64 * 100_003;
        assert_eq!(read(view, piece, offset).unwrap(), piece.len());
    }
    bytes
}

fn same(view: &View, truth: &[u8]) {
    let bytes = whole(view);
    if bytes == truth {
        return;
    }
    assert_eq!(bytes.len(), truth.len());
    let differs = bytes
        .iter()
        .zip(truth)
        .position(|(ours, theirs)| ours != theirs);
    panic!("the first byte that differs: {differs:?}");
}

/// Holes hold zeros only, data and holes alternate, and together they are the disk.
fn holes_are_empty(view: &View, truth: &[u8]) {
    let (mut at, mut data_bytes) = (0, 0);
    let size = view.virtual_size();
    while at < size {
        let data = view.seek_data(at).unwrap().unwrap_or(size);
        let hole = &truth[usize::try_from(at).unwrap()..usize::try_from(data).unwrap()];
        assert!(hole.iter().all(|byte| *byte == 0), "data in a hole at {at}");
        if data == size {
            break;
        }
        at = view.seek_hole(data).unwrap();
        assert!(at > data);
        data_bytes += at - data;
    }
    assert_eq!(view.allocated_bytes().unwrap(), data_bytes);
}

#[test]
fn every_layer_of_a_chain_is_what_qemu_img_reads() {
    for seed in [1, 77, 4096] {
        let (lab, chain) = Lab::chain(seed);
        let cache = LayerCache::default();
        for (index, (name, format)) in [
            ("base.img", "raw"),
            ("one.qcow2", "qcow2"),
            ("two.qcow2", "qcow2"),
            ("three.qcow2", "qcow2"),
        ]
        .into_iter()
        .enumerate()
        {
            let truth = lab.truth(name, format, None);
            let view = open(&cache, &chain[..=index], None);
            same(&view, &truth);
            holes_are_empty(&view, &truth);
            let mut beyond = [0; 10];
            assert_eq!(
                read(&view, &mut beyond, view.virtual_size() - 4).unwrap(),
                4
            );
            assert_eq!(read(&view, &mut beyond, view.virtual_size()).unwrap(), 0);
            assert_eq!(read(&view, &mut beyond, u64::MAX).unwrap(), 0);
        }
    }
}

#[test]
fn internal_snapshots_in_the_middle_and_at_the_top() {
    let (mut lab, chain) = Lab::chain(5);
    let mut truths = Vec::new();
    for tag in ["first", "second"] {
        lab.run("qemu-img", &["snapshot", "-c", tag, "three.qcow2"]);
        truths.push((tag, lab.truth("three.qcow2", "qcow2", Some(tag))));
        lab.scribble("three.qcow2", "qcow2", 5 * MIB, 20);
    }
    let model = offline::model(&[lab.path("three.qcow2")], None, "three.qcow2").unwrap();
    let disk = &model.disks[0];
    let cache = LayerCache::default();
    for (tag, truth) in truths {
        let internal = disk.internal(tag).unwrap();
        let at = InternalRef {
            id: internal.id.clone(),
            tag: internal.tag.clone(),
        };
        same(&open(&cache, &chain, Some(&at)), &truth);
    }
    same(
        &open(&cache, &chain, None),
        &lab.truth("three.qcow2", "qcow2", None),
    );
}

#[test]
fn compressed_images_and_data_files() {
    let (lab, _) = Lab::chain(9);
    let truth = lab.truth("three.qcow2", "qcow2", None);
    for (name, options) in [
        ("zlib.qcow2", vec!["-c"]),
        ("zstd.qcow2", vec!["-c", "-o", "compression_type=zstd"]),
        ("outside.qcow2", vec!["-o", "data_file=outside.raw"]),
    ] {
        let arguments = [
            &["convert", "-f", "qcow2", "-O", "qcow2"],
            &options[..],
            &["three.qcow2", name],
        ]
        .concat();
        lab.run("qemu-img", &arguments);
        let view = open(
            &LayerCache::default(),
            &specs(&offline::resolve_chain(&lab.path(name), None).unwrap()),
            None,
        );
        same(&view, &truth);
        holes_are_empty(&view, &truth);
    }
}

#[test]
fn a_commit_under_a_pin_changes_no_other_view() {
    let (lab, chain) = Lab::chain(33);
    let cache = LayerCache::default();
    let (one, three) = (
        lab.truth("one.qcow2", "qcow2", None),
        lab.truth("three.qcow2", "qcow2", None),
    );
    // Opened and not read: their tables are read only while, or after, the files change.
    let (old_one, old_three) = (open(&cache, &chain[..2], None), open(&cache, &chain, None));
    assert!(layer_allocated(&chain[3]).unwrap() > 0);

    let pin = cache.pin(&chain, None).unwrap();
    cache.unlock(chain[3].file.unwrap());
    let readers: Vec<_> = (0..4)
        .map(|_| {
            let (view, truth) = (open(&cache, &chain, None), three.clone());
            std::thread::spawn(move || (0..8).for_each(|_| same(&view, &truth)))
        })
        .collect();
    lab.run("qemu-img", &["commit", "-q", "-d", "three.qcow2"]);
    same(&open(&cache, &chain, None), &three);
    readers
        .into_iter()
        .for_each(|reader| reader.join().unwrap());
    drop(pin);

    same(&old_one, &one);
    same(&old_three, &three);
    std::fs::remove_file(lab.path("three.qcow2")).unwrap();
    same(&old_three, &three);
    let merged = lab.truth("two.qcow2", "qcow2", None);
    assert_eq!(merged[..three.len()], three);
    same(&open(&cache, &chain[..3], None), &merged);
}

#[test]
fn a_stream_under_a_pin_changes_no_view() {
    let (lab, chain) = Lab::chain(34);
    let cache = LayerCache::default();
    let (two, three) = (
        lab.truth("two.qcow2", "qcow2", None),
        lab.truth("three.qcow2", "qcow2", None),
    );
    let (old_two, old_three) = (open(&cache, &chain[..3], None), open(&cache, &chain, None));

    let pin = cache.pin(&chain, None).unwrap();
    lab.run(
        "qemu-img",
        &[
            "rebase",
            "-q",
            "-f",
            "qcow2",
            "-F",
            "qcow2",
            "-b",
            "one.qcow2",
            "three.qcow2",
        ],
    );
    same(&open(&cache, &chain, None), &three);
    drop(pin);
    same(&old_two, &two);
    same(&old_three, &three);

    std::fs::remove_file(lab.path("two.qcow2")).unwrap();
    let shorter = specs(&offline::resolve_chain(&lab.path("three.qcow2"), None).unwrap());
    assert_eq!(shorter.len(), 3);
    same(&open(&cache, &shorter, None), &three);
    same(&old_three, &three);
}

#[test]
fn an_answer_of_thousands_of_stretches_is_one_message() {
    let lab = Lab::new(5);
    // Every other sector is zeros: with the smallest clusters each is a stretch of its own.
    let made: Vec<u8> = (0..2 * MIB)
        .map(|at| {
            if at / 512 % 2 == 0 {
                0
            } else {
                (at / 512 % 251) as u8 + 1
            }
        })
        .collect();
    std::fs::write(lab.path("made.raw"), &made).unwrap();
    for (name, options) in [("plain", &[][..]), ("compressed", &["-c"][..])] {
        let image = format!("{name}.qcow2");
        let mut arguments = vec![
            "convert",
            "-S",
            "512",
            "-O",
            "qcow2",
            "-o",
            "cluster_size=512",
        ];
        arguments.extend(options);
        arguments.extend(["made.raw", &image]);
        lab.run("qemu-img", &arguments);
        let chain = specs(&offline::resolve_chain(&lab.path(&image), None).unwrap());
        let view = open(&LayerCache::default(), &chain, None);
        let mut bytes = vec![0xee; made.len()];
        assert_eq!(read(&view, &mut bytes, 0).unwrap(), made.len());
        assert!(bytes == made, "{name}");
    }
}

#[test]
fn an_image_cut_short_is_zeros_or_an_error_and_never_ends_the_process() {
    let (lab, chain) = Lab::chain(3);
    let view = open(&LayerCache::default(), &chain, None);
    cut(&lab.path("three.qcow2"));
    let mut bytes = vec![0; 4096];
    for mebibyte in 0..5 {
        if let Err(failure) = read(&view, &mut bytes, mebibyte * MIB) {
            assert!(
                matches!(failure.errno, Errno::EIO | Errno::EUCLEAN),
                "{failure}"
            );
        }
    }
}

fn cut(path: &Path) {
    std::fs::OpenOptions::new()
        .write(true)
        .open(path)
        .unwrap()
        .set_len(70_000)
        .unwrap();
}

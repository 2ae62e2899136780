//! The images of the run, made by QEMU itself: created by qemu-img, filled through a storage daemon's NBD export.
//! Each has its expected bytes as a raw file beside it. Made when first asked for, kept to the end of the run.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use qmpfs_tests::{oracle, sh};

use crate::content::{CLUSTER, Content, Dice, Maker};
use crate::filler::{Both, Filler};
use crate::reader;

/// How much larger than its data the sparse disk is.
const SPARSE: u64 = 8;
/// The longest piece of data in it, in clusters: 4 MiB.
const MAX_PIECE: u64 = 64;

/// The disk whose views take the most memory.
const WIDE: u64 = 1 << 40;
/// Its layers.
pub(crate) const WIDE_LAYERS: usize = 64;
/// A layer of it has one cluster for so many bytes of the other disks: 64 in a run of full size, so that
/// nearly all of the disk's 2048 tables are in some layer.
const WIDE_SHARE: u64 = 16 << 20;

/// Bytes written at once where clusters lie one after another.
const STRIDE: usize = 1 << 20;

/// An image that is read.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    /// What it is called.
    pub(crate) name: String,
    /// The file that peers are given.
    pub(crate) file: PathBuf,
    pub(crate) format: &'static str,
    /// An empty overlay: qmpfs shows what lies below the newest layer.
    pub(crate) top: PathBuf,
    /// A raw file with the same bytes.
    pub(crate) expected: PathBuf,
    /// Every file that is read for it.
    files: Vec<PathBuf>,
}

impl Image {
    /// Names only, for showing a command line.
    pub(crate) fn placeholder(format: &'static str) -> Self {
        Self {
            name: String::new(),
            file: "IMAGE".into(),
            format,
            top: "OVERLAY".into(),
            expected: PathBuf::new(),
            files: Vec::new(),
        }
    }

    /// Bytes of the disk.
    pub(crate) fn size(&self) -> u64 {
        self.expected.metadata().expect("the expected bytes").len()
    }

    /// The files of its chain.
    pub(crate) fn base_first(&self) -> impl Iterator<Item = &PathBuf> {
        self.files.iter().rev()
    }

    /// Puts all of it into the page cache, and the expected bytes, too.
    pub(crate) fn warm(&self) {
        for file in self.files.iter().chain([&self.expected]) {
            reader::warm(file).expect("an image of ours can be read");
        }
    }
}

/// All images of a run.
#[derive(Debug)]
pub(crate) struct Images {
    dir: PathBuf,
    size: u64,
    made: HashMap<String, Image>,
}

impl Images {
    /// None yet; disks will have `size` bytes, or half of that where peers are slow.
    pub(crate) fn new(dir: &Path, size: u64) -> Self {
        Self {
            dir: dir.to_owned(),
            size,
            made: HashMap::new(),
        }
    }

    /// Bytes of a disk.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// All clusters one after another.
    pub(crate) fn contiguous(&mut self) -> Image {
        self.make("contiguous", |images, file| {
            let expected = images.disk(Content::Random, images.size);
            oracle::create(file, images.size);
            let filler = Filler::start(&images.dir, &[file.to_owned()]);
            let (mut disk, source) = (filler.disk(0), open(&expected));
            let mut bytes = vec![0; STRIDE];
            for at in (0..images.size).step_by(STRIDE) {
                read(&source, &mut bytes, at);
                disk.write(at, &bytes).expect("QEMU takes the bytes");
            }
            expected
        })
    }

    /// A disk without holes, the clusters written in random order.
    pub(crate) fn fragmented(&mut self) -> Image {
        self.chain(1)
    }

    /// A disk without holes in `depth` layers: each cluster is in a layer drawn by lot.
    /// A smaller disk, as peers take their time. Whatever the depth, the clusters are written in one and the same random order.
    pub(crate) fn chain(&mut self, depth: usize) -> Image {
        self.make(&format!("chain-of-{depth}"), |images, file| {
            let size = images.size / 2;
            let expected = images.disk(Content::Random, size);
            let layers = stack(file, depth, size);
            let clusters = size / CLUSTER as u64;
            let order = Dice::new(21).shuffled(clusters);
            let filler = Filler::start(&images.dir, &layers);
            let source = open(&expected);
            let mut bytes = vec![0; CLUSTER];
            for (layer, part) in order.chunks(order.len().div_ceil(depth)).enumerate() {
                let mut disk = filler.disk(layer);
                for cluster in part {
                    let at = cluster * CLUSTER as u64;
                    read(&source, &mut bytes, at);
                    disk.write(at, &bytes).expect("QEMU takes the bytes");
                }
            }
            expected
        })
    }

    /// A disk that is mostly holes.
    pub(crate) fn sparse(&mut self) -> Image {
        self.make("sparse", |images, file| {
            let expected = images.dir.join("sparse.raw");
            let data = images.size / 2;
            let size = data * SPARSE;
            oracle::create(file, size);
            let mut disk = Both::new(&images.dir, &[file.to_owned()], &expected, size);
            let (mut dice, mut written) = (Dice::new(31), 0);
            while written < data {
                let clusters = 1 + dice.below(MAX_PIECE);
                let first = dice.below(size / CLUSTER as u64 - clusters);
                for cluster in first..first + clusters {
                    disk.write(0, cluster);
                }
                written += clusters * CLUSTER as u64;
            }
            expected
        })
    }

    /// A disk of 1 TiB in 64 layers, each with some clusters all over it.
    pub(crate) fn wide(&mut self) -> Image {
        self.make("wide", |images, file| {
            let expected = images.dir.join("wide.raw");
            let layers = stack(file, WIDE_LAYERS, WIDE);
            let mut disk = Both::new(&images.dir, &layers, &expected, WIDE);
            let mut dice = Dice::new(41);
            for layer in 0..WIDE_LAYERS {
                for _ in 0..images.size / WIDE_SHARE {
                    disk.write(layer, dice.below(WIDE / CLUSTER as u64));
                }
            }
            expected
        })
    }

    /// Bytes that compress, compressed by qemu-img; a smaller disk, as it takes its time.
    pub(crate) fn compressed(&mut self, method: &str) -> Image {
        self.make(method, |images, file| {
            let expected = images.disk(Content::Mixed, images.size / 2);
            sh!(
                "qemu-img convert -c -f raw -O qcow2 -o compression_type={method} {} {}",
                expected.display(),
                file.display()
            );
            expected
        })
    }

    /// A raw file.
    pub(crate) fn raw(&mut self) -> Image {
        let file = self.disk(Content::Random, self.size);
        self.finish("raw", file.clone(), "raw", file)
    }

    /// A guest's filesystem, which `fill` makes in a raw file.
    pub(crate) fn filesystem(&mut self, name: &str, fill: impl FnOnce(&Path)) -> Image {
        self.make(name, |images, file| {
            let expected = images.dir.join(format!("{name}.raw"));
            fill(&expected);
            sh!(
                "qemu-img convert -f raw -O qcow2 {} {}",
                expected.display(),
                file.display()
            );
            expected
        })
    }

    fn make(&mut self, name: &str, fill: impl FnOnce(&mut Self, &Path) -> PathBuf) -> Image {
        if let Some(made) = self.made.get(name) {
            return made.clone();
        }
        eprintln!("bench: building {name}");
        let file = self.dir.join(format!("{name}.qcow2"));
        let expected = fill(self, &file);
        let image = self.finish(name, file, "qcow2", expected);
        self.made.insert(name.to_owned(), image.clone());
        image
    }

    fn finish(&self, name: &str, file: PathBuf, format: &'static str, expected: PathBuf) -> Image {
        let top = self.dir.join(format!("{name}.top.qcow2"));
        sh!(
            "qemu-img create -q -f qcow2 -b {} -F {format} {}",
            file.display(),
            top.display()
        );
        let files = match format {
            "raw" => Vec::new(),
            _ => oracle::chain(&file),
        };
        // What is still on its way to the disk would compete with what is measured.
        sh!("sync -f {}", self.dir.display());
        Image {
            name: name.to_owned(),
            file,
            format,
            top,
            expected,
            files,
        }
    }

    /// The bytes of a disk without holes.
    fn disk(&self, content: Content, size: u64) -> PathBuf {
        let path = self.dir.join(format!("{content:?}-{size}.raw"));
        if path.exists() {
            return path;
        }
        let maker = Maker::new(content);
        let mut cluster = vec![0; CLUSTER];
        let mut file = BufWriter::with_capacity(STRIDE, File::create(&path).expect("a raw file"));
        for index in 0..size / CLUSTER as u64 {
            maker.fill(&mut cluster, index);
            file.write_all(&cluster).expect("room for the raw file");
        }
        file.flush().expect("room for the raw file");
        path
    }
}

/// Empty layers over one another, base first; the last is `top`.
fn stack(top: &Path, depth: usize, size: u64) -> Vec<PathBuf> {
    let layers: Vec<PathBuf> = (1..depth)
        .map(|layer| top.with_extension(format!("{layer}.qcow2")))
        .chain([top.to_owned()])
        .collect();
    let mut below: Option<&PathBuf> = None;
    for layer in &layers {
        let backing = below.map_or(String::new(), |file| {
            format!("-u -F qcow2 -b {}", file.display())
        });
        sh!(
            "qemu-img create -q -f qcow2 {backing} {} {size}",
            layer.display()
        );
        below = Some(layer);
    }
    layers
}

fn open(path: &Path) -> File {
    File::open(path).expect("the expected bytes")
}

fn read(source: &File, bytes: &mut [u8], at: u64) {
    source.read_exact_at(bytes, at).expect("the expected bytes");
}

//! The images of the run, made by QEMU itself: created by qemu-img, filled through a storage daemon's NBD export.
//! Each has its expected bytes as a raw file beside it. Made when first asked for, kept to the end of the run.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use qmpfs_tests::{oracle, sh};

use crate::content::{CLUSTER, Content, Dice, Maker};
use crate::filler::Filler;
use crate::reader;

/// Bytes written at once where clusters lie one after another.
const STRIDE: usize = 1 << 20;

/// An image that is read.
#[derive(Debug, Clone)]
pub(crate) struct Image {
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
    /// None yet; disks will have `size` bytes.
    pub(crate) fn new(dir: &Path, size: u64) -> Self {
        Self {
            dir: dir.to_owned(),
            size,
            made: HashMap::new(),
        }
    }

    /// All clusters one after another.
    pub(crate) fn contiguous(&mut self) -> Image {
        self.make("contiguous", |images, file| {
            let expected = images.disk(Content::Random);
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

    /// The same bytes, the clusters written in random order.
    pub(crate) fn fragmented(&mut self) -> Image {
        self.chain(1)
    }

    /// The same bytes in `depth` layers: each cluster is in a layer drawn by lot.
    /// Whatever the depth, the clusters are written in one and the same random order.
    pub(crate) fn chain(&mut self, depth: usize) -> Image {
        self.make(&format!("chain-of-{depth}"), |images, file| {
            let expected = images.disk(Content::Random);
            let layers = stack(file, depth, images.size);
            let clusters = images.size / CLUSTER as u64;
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
        let files = oracle::chain(&file);
        // What is still on its way to the disk would compete with what is measured.
        sh!("sync -f {}", self.dir.display());
        Image {
            file,
            format,
            top,
            expected,
            files,
        }
    }

    /// The bytes of a disk without holes.
    fn disk(&self, content: Content) -> PathBuf {
        let path = self.dir.join(match content {
            Content::Random => "random.raw",
            Content::Mixed => "mixed.raw",
        });
        if path.exists() {
            return path;
        }
        let maker = Maker::new(content);
        let mut cluster = vec![0; CLUSTER];
        let mut file = BufWriter::with_capacity(STRIDE, File::create(&path).expect("a raw file"));
        for index in 0..self.size / CLUSTER as u64 {
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

//! Images made by the real tools, and what the real tools say is in them.
//!
//! Knows: qemu-img and qemu-io, by their command lines. Where one is missing, the tests fail.
#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::arithmetic_side_effects, reason = "tests may overflow loudly")]

mod compare;
pub(crate) mod numbers;

pub(crate) use compare::{assert_map, assert_reads};

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use qmpfs_qcow2::{
    Chain, Compression, GuestOffset, Header, Image, Layer, Mapping, OpenOptions, RawLayer, ReadAt,
};
use tempfile::TempDir;

/// A directory of images, gone with the test.
pub(crate) struct Lab {
    dir: TempDir,
}

impl Lab {
    pub(crate) fn new() -> Lab {
        Lab {
            dir: tempfile::tempdir().expect("a temporary directory"),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A program that will run in the directory.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.dir.path());
        command
    }

    /// Runs `qemu-img` in the directory; it must succeed.
    pub(crate) fn img(&self, args: &str) -> String {
        self.img_args(&args.split_whitespace().collect::<Vec<_>>())
    }

    /// The same with words that may be empty.
    pub(crate) fn img_args(&self, args: &[&str]) -> String {
        let out = self.try_tool("qemu-img", args.iter());
        assert!(
            out.status.success(),
            "qemu-img {args:?}: {}",
            String::from_utf8_lossy(&out.stderr)
        );
        String::from_utf8(out.stdout).expect("text")
    }

    /// Whether `qemu-img` succeeds.
    pub(crate) fn img_succeeds(&self, args: &str) -> bool {
        self.try_tool("qemu-img", args.split_whitespace())
            .status
            .success()
    }

    /// What `qemu-img` says when it refuses.
    pub(crate) fn img_complaint(&self, args: &str) -> String {
        let out = self.try_tool("qemu-img", args.split_whitespace());
        String::from_utf8_lossy(&out.stderr).into_owned()
    }

    /// Runs `qemu-io` commands of which some may be refused, as a compressed rewrite is.
    pub(crate) fn io_if_possible(&self, image: &str, commands: &[String]) {
        let mut args = vec!["-f", "qcow2", "-d", "unmap"];
        commands
            .iter()
            .for_each(|command| args.extend(["-c", command.as_str()]));
        args.push(image);
        self.try_tool("qemu-io", args.iter());
    }

    /// Runs `qemu-io` commands, separated by `;`, on a qcow2 image; they must succeed.
    pub(crate) fn io(&self, image: &str, commands: &str) {
        let commands = commands.split(';').map(str::trim).filter(|c| !c.is_empty());
        let mut args = vec!["-f", "qcow2", "-d", "unmap"];
        commands.for_each(|command| args.extend(["-c", command]));
        args.push(image);
        let out = self.try_tool("qemu-io", args.iter());
        let text = String::from_utf8_lossy(&out.stdout).to_lowercase();
        let failed = ["failed", "error", "invalid", "not found"]
            .iter()
            .any(|w| text.contains(w));
        assert!(out.status.success() && !failed, "qemu-io {args:?}: {out:?}");
    }

    /// Runs `qemu-io` commands on a raw image; they must succeed.
    pub(crate) fn io_raw(&self, image: &str, commands: &str) {
        let commands = commands.split(';').map(str::trim);
        let mut args = vec!["-f", "raw"];
        commands.for_each(|command| args.extend(["-c", command]));
        args.push(image);
        let out = self.try_tool("qemu-io", args.iter());
        assert!(out.status.success(), "qemu-io {args:?}: {out:?}");
    }

    fn try_tool(&self, tool: &str, args: impl Iterator<Item = impl AsRef<OsStr>>) -> Output {
        self.command(tool)
            .args(args)
            .output()
            .unwrap_or_else(|e| panic!("{tool} must be installed: {e}"))
    }

    /// What `qemu-img convert` reads, or nothing if it refuses.
    pub(crate) fn try_convert(&self, image: &str, options: &str) -> Option<Vec<u8>> {
        let out = self.path("converted.raw");
        let _ = std::fs::remove_file(&out);
        self.img_succeeds(&format!("convert {options} -O raw {image} converted.raw"))
            .then(|| std::fs::read(&out).expect("converted image"))
    }

    /// Part of what the tools read, for disks too large to be converted; nothing if they refuse.
    /// `at` is a multiple of `len`.
    pub(crate) fn try_piece(&self, image: &str, at: u64, len: u64) -> Option<Vec<u8>> {
        let _ = std::fs::remove_file(self.path("piece.raw"));
        let skip = at / len;
        self.img_succeeds(&format!(
            "dd -f qcow2 -O raw bs={len} skip={skip} count={} if={image} of=piece.raw",
            skip + 1
        ))
        .then(|| std::fs::read(self.path("piece.raw")).expect("a piece"))
    }

    pub(crate) fn convert(&self, image: &str) -> Vec<u8> {
        self.try_convert(image, "-f qcow2")
            .unwrap_or_else(|| panic!("cannot convert {image}"))
    }

    pub(crate) fn file(&self, name: &str) -> Arc<File> {
        Arc::new(File::open(self.path(name)).expect(name))
    }

    /// An image, with the data file that its header names.
    pub(crate) fn image(&self, name: &str) -> Image {
        let file = self.file(name);
        let header = Header::read(&*file).unwrap_or_else(|e| panic!("{name}: {e}"));
        let data = header.data_file.filter(|_| header.features.data_file());
        let data = data.map(|name| self.file(&String::from_utf8_lossy(&name)) as Arc<_>);
        let options = OpenOptions {
            data_file: data,
            caches: None,
        };
        Image::open_with(file, options).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// The chain under an image, as its headers name it.
    pub(crate) fn chain(&self, top: &str) -> Chain {
        let mut layers = Vec::new();
        let mut next = Some((top.to_owned(), Some("qcow2".to_owned())));
        while let Some((name, format)) = next.take() {
            if format.as_deref() == Some("raw") {
                layers.push(Arc::new(Layer::Raw(
                    RawLayer::open(self.file(&name)).expect("raw"),
                )));
                break;
            }
            let image = self.image(&name);
            if let Some(backing) = image.header().backing.clone() {
                next = Some((
                    String::from_utf8(backing.name).expect("name"),
                    backing.format,
                ));
            }
            layers.push(Arc::new(Layer::Qcow2(image)));
        }
        layers.reverse();
        Chain::new(layers)
    }

    /// Whether an image, now or at a snapshot, has a compressed cluster that the fast decompressor
    /// takes and zlib does not: see docs/decisions/0005.
    pub(crate) fn has_stream_that_zlib_refuses(&self, name: &str) -> bool {
        let file = std::fs::read(self.path(name)).expect("read");
        let image = self.image(name);
        let snapshots = image.snapshots().unwrap_or_default();
        let views = snapshots.iter().filter_map(|s| image.at_snapshot(s).ok());
        let mut runs: Vec<_> = views.flat_map(|view| runs(&view)).collect();
        runs.extend(self::runs(&image));
        image.header().compression == Compression::Zlib
            && runs.into_iter().any(|(_, _, what)| {
                let Mapping::Compressed { cluster, .. } = what else {
                    return false;
                };
                let mut stream = vec![0; cluster.len as usize];
                file.read_at(&mut stream, cluster.host.0).expect("a vector");
                let mut out = vec![0; image.header().cluster_bits.bytes()];
                let mut zlib = flate2::Decompress::new(false);
                zlib.decompress(&stream, &mut out, flate2::FlushDecompress::Finish)
                    .is_err()
            })
    }

    /// Compares bytes and extents of a whole chain with the real tools.
    pub(crate) fn check(&self, top: &str) {
        let chain = self.chain(top);
        let expected = self.convert(top);
        assert_reads(&chain, &expected);
        self.check_map(top, &chain);
    }

    /// Compares extents with `qemu-img map`.
    pub(crate) fn check_map(&self, top: &str, chain: &Chain) {
        let json = self.img(&format!("map --output=json -f qcow2 {top}"));
        assert_map(top, chain, &json);
    }
}

/// The top layer of a chain, which must be qcow2.
pub(crate) fn top(chain: &Chain) -> &Image {
    match chain.layers().last().map(|layer| &**layer) {
        Some(Layer::Qcow2(image)) => image,
        _ => panic!("the top is not qcow2"),
    }
}

/// The chain whose top is as one of its internal snapshots keeps it.
pub(crate) fn at_snapshot(chain: &Chain, name: &str) -> Chain {
    let image = top(chain);
    let snapshots = image.snapshots().expect("snapshots");
    let snapshot = snapshots
        .iter()
        .find(|s| s.name == name.as_bytes())
        .expect(name);
    let mut layers = chain.layers().to_vec();
    layers.pop();
    layers.push(Arc::new(Layer::Qcow2(
        image.at_snapshot(snapshot).expect(name),
    )));
    Chain::new(layers)
}

/// All bytes of a chain.
pub(crate) fn read_all(chain: &Chain) -> Result<Vec<u8>, qmpfs_qcow2::Error> {
    let mut bytes = vec![0xee; chain.virtual_size() as usize];
    assert_eq!(chain.read_at(&mut bytes, 0)?, bytes.len());
    Ok(bytes)
}

/// All runs of one image.
pub(crate) fn runs(image: &Image) -> Vec<(u64, u64, Mapping)> {
    let (mut at, mut runs) = (0, Vec::new());
    while at < image.virtual_size() {
        let run = image.map(GuestOffset(at), u64::MAX).expect("map");
        assert!(run.len > 0);
        runs.push((at, run.len, run.what));
        at += run.len;
    }
    runs
}

/// Overwrites bytes of a file.
pub(crate) fn poke(path: &Path, offset: u64, bytes: &[u8]) {
    use std::os::unix::fs::FileExt;
    let file = File::options()
        .write(true)
        .open(path)
        .expect("open to poke");
    file.write_all_at(bytes, offset).expect("poke");
}

/// A big-endian number out of a file.
pub(crate) fn peek64(path: &Path, offset: u64) -> u64 {
    use std::os::unix::fs::FileExt;
    let mut bytes = [0; 8];
    File::open(path)
        .expect("open to peek")
        .read_exact_at(&mut bytes, offset)
        .expect("peek");
    u64::from_be_bytes(bytes)
}

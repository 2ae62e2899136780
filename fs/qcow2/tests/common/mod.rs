//! Images made by the real tools, and what the real tools say is in them.
//!
//! Knows: qemu-img and qemu-io, by their command lines. Where one is missing, the tests fail.
#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::arithmetic_side_effects, reason = "tests may overflow loudly")]

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use qmpfs_qcow2::{Chain, ExtentKind, GuestOffset, Image, Layer, Mapping, OpenOptions, RawLayer};
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

    /// Runs `qemu-img` in the directory; it must succeed.
    pub(crate) fn img(&self, args: &str) -> String {
        let out = self.try_tool("qemu-img", args.split_whitespace());
        assert!(
            out.status.success(),
            "qemu-img {args}: {}",
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

    fn try_tool(&self, tool: &str, args: impl Iterator<Item = impl AsRef<OsStr>>) -> Output {
        let mut command = Command::new(tool);
        command.current_dir(self.dir.path()).args(args);
        command
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

    pub(crate) fn convert(&self, image: &str) -> Vec<u8> {
        self.try_convert(image, "-f qcow2")
            .unwrap_or_else(|| panic!("cannot convert {image}"))
    }

    pub(crate) fn file(&self, name: &str) -> Arc<File> {
        Arc::new(File::open(self.path(name)).expect(name))
    }

    pub(crate) fn image(&self, name: &str) -> Image {
        Image::open(self.file(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
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
            let data = data_file_of(&self.path(&name)).map(|data| self.file(&data) as Arc<_>);
            let options = OpenOptions {
                data_file: data,
                caches: None,
            };
            let image = Image::open_with(self.file(&name), options)
                .unwrap_or_else(|e| panic!("{name}: {e}"));
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

    /// Compares bytes and extents of a whole chain with the real tools.
    pub(crate) fn check(&self, top: &str) {
        let chain = self.chain(top);
        let expected = self.convert(top);
        assert_reads(&chain, &expected);
        self.check_map(top, &chain);
    }

    /// Compares extents with `qemu-img map`, which calls data what some layer holds.
    pub(crate) fn check_map(&self, top: &str, chain: &Chain) {
        let json = self.img(&format!("map --output=json -f qcow2 {top}"));
        let json: serde_json::Value = serde_json::from_str(&json).expect("json");
        for entry in json.as_array().expect("array") {
            let start = entry["start"].as_u64().expect("start");
            let end = start + entry["length"].as_u64().expect("length");
            let data = entry["data"].as_bool().expect("data");
            let zero = entry["zero"].as_bool().expect("zero");
            // `data` with `zero` is a hole in the file below; we may call that either.
            if data && zero {
                continue;
            }
            let raw_base = matches!(chain.layers().first().map(|l| &**l), Some(Layer::Raw(_)));
            let mut at = start;
            while at < end {
                let extent = chain.extent_at(at, end - at).expect("extent");
                assert!(extent.len > 0, "empty extent at {at:#x}");
                let kind = if data {
                    ExtentKind::Data
                } else {
                    ExtentKind::Hole
                };
                // Holes of a raw file count as data here.
                assert!(
                    extent.kind == kind || (raw_base && !data),
                    "{top} at {at:#x}: {entry}"
                );
                at += extent.len;
            }
        }
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
    chain.with_top(Arc::new(Layer::Qcow2(
        image.at_snapshot(snapshot).expect(name),
    )))
}

/// All bytes of a chain.
pub(crate) fn read_all(chain: &Chain) -> Result<Vec<u8>, qmpfs_qcow2::Error> {
    let mut bytes = vec![0xee; chain.virtual_size() as usize];
    assert_eq!(chain.read_at(&mut bytes, 0)?, bytes.len());
    Ok(bytes)
}

/// The data file an image names, found without opening the image (which would want the file).
fn data_file_of(path: &Path) -> Option<String> {
    let out = Command::new("qemu-img")
        .args(["info", "--output=json"])
        .arg(path)
        .output();
    let out = out.expect("qemu-img must be installed");
    let json: serde_json::Value = serde_json::from_slice(&out.stdout).ok()?;
    let name = json["format-specific"]["data"]["data-file"].as_str()?;
    Some(name.to_owned())
}

/// Reads a chain in several ways and compares each with the expected bytes.
pub(crate) fn assert_reads(chain: &Chain, expected: &[u8]) {
    assert_eq!(chain.virtual_size(), expected.len() as u64, "virtual size");
    for step in [1 << 20, 65536 + 512, 4096] {
        let mut buf = vec![0xee; step];
        let mut at = 0;
        while at < expected.len() {
            buf.fill(0xee);
            let n = chain.read_at(&mut buf, at as u64).expect("read");
            assert_eq!(n, step.min(expected.len() - at), "length at {at:#x}");
            assert_same(&buf[..n], &expected[at..at + n], at);
            at += n;
        }
    }
    let mut buf = [0xee; 10];
    assert_eq!(
        chain
            .read_at(&mut buf, expected.len() as u64)
            .expect("at the end"),
        0
    );
    assert_eq!(
        chain.read_at(&mut buf, u64::MAX).expect("beyond the end"),
        0
    );
    if expected.len() > 3 {
        assert_eq!(
            chain
                .read_at(&mut buf, expected.len() as u64 - 3)
                .expect("tail"),
            3
        );
        assert_eq!(buf[..3], expected[expected.len() - 3..]);
    }
    assert_extents(chain, expected);
}

/// Extents must cover the disk, be zeros where they are holes, and sum up.
pub(crate) fn assert_extents(chain: &Chain, expected: &[u8]) {
    let (mut at, mut data) = (0u64, 0);
    while at < chain.virtual_size() {
        let extent = chain.extent_at(at, u64::MAX).expect("extent");
        assert!(extent.len > 0, "no progress at {at:#x}");
        let part = &expected[at as usize..(at + extent.len) as usize];
        match extent.kind {
            ExtentKind::Hole => assert!(part.iter().all(|&b| b == 0), "hole at {at:#x}"),
            ExtentKind::Data => data += extent.len,
        }
        at += extent.len;
    }
    assert_eq!(at, chain.virtual_size());
    assert_eq!(chain.allocated_bytes().expect("allocated"), data);
}

fn assert_same(got: &[u8], expected: &[u8], at: usize) {
    if got != expected {
        let i = got
            .iter()
            .zip(expected)
            .position(|(a, b)| a != b)
            .unwrap_or(0);
        panic!(
            "byte {:#x} is {:#x}, not {:#x}",
            at + i,
            got[i],
            expected[i]
        );
    }
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

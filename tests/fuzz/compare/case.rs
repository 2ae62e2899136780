//! What is compared: images of the corpora, of the seeds, and seeds with damage.
//!
//! Knows: how each target makes images of its inputs, and which images QEMU must not be given.
//! Does not know: QEMU, or what we read.

use std::fs;
use std::path::{Path, PathBuf};

use checks::damage::{Numbers, damage};
use checks::input::Input;
use checks::writer::pattern;
use checks::{compressed, header, image, layers, snapshot_table, tables};

/// Larger disks take too long to convert.
const MAX_VIRTUAL_SIZE: u64 = 64 << 20;
/// Larger L1 tables than such a disk needs make QEMU read for seconds.
const MAX_L1_ENTRIES: u64 = 1 << 20;
/// Bytes below an image that is alone, so that what it does not hold is seen.
const BASE_BYTES: usize = 200_000;

/// One layer as files.
pub(crate) struct Layer {
    pub(crate) file: Vec<u8>,
    pub(crate) raw: bool,
    pub(crate) data: Option<Vec<u8>>,
}

/// A chain, base first, and where it comes from.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) layers: Vec<Layer>,
}

impl Case {
    /// An image that may be anything, over a base.
    fn of(name: String, file: Vec<u8>, data: Option<Vec<u8>>) -> Option<Case> {
        let number = |at: usize, len: usize| {
            let bytes = file.get(at..at + len).unwrap_or(&[]);
            bytes.iter().fold(0, |n, &b| n << 8 | u64::from(b))
        };
        if number(24, 8) > MAX_VIRTUAL_SIZE || number(36, 4) > MAX_L1_ENTRIES {
            return None;
        }
        // QEMU wants to be given a data file exactly where the image has one.
        let wanted = number(4, 4) >= 3 && number(72, 8) & 4 != 0;
        let data = data.unwrap_or_else(|| pattern(7, image::DATA_FILE_BYTES));
        let base = Layer {
            file: pattern(9, BASE_BYTES),
            raw: true,
            data: None,
        };
        let image = Layer {
            file,
            raw: false,
            data: wanted.then_some(data),
        };
        Some(Case {
            name,
            layers: vec![base, image],
        })
    }

    /// The image, or the images, that a target makes of an input.
    fn from_input(target: &str, name: String, bytes: &[u8]) -> Option<Case> {
        let input = &mut Input::new(bytes);
        match target {
            "image" | "large" | "header" => Case::of(name, bytes.to_vec(), None),
            "header_fields" => Case::of(name, header::make(input).bytes(), None),
            "snapshot_table" => Case::of(name, snapshot_table::make(input).bytes(), None),
            "compressed" => {
                let (file, _) = compressed::image(&compressed::make(input));
                Case::of(name, file.bytes(), None)
            }
            "tables" => {
                let made = tables::make(input);
                let data = made.data.map(|data| data.bytes());
                Case::of(name, made.file.bytes(), data)
            }
            "chain" => {
                let (built, _) = layers::make(input);
                // A snapshot cannot be below another layer.
                if built.iter().any(|layer| layer.snapshot) {
                    return None;
                }
                let layers = built.iter().map(|layer| Layer {
                    file: layer.file.bytes(),
                    raw: layer.raw,
                    data: layer.data.as_ref().map(|data| data.bytes()),
                });
                Some(Case {
                    name,
                    layers: layers.collect(),
                })
            }
            _ => panic!("no target {target}"),
        }
    }
}

/// Calls with every case of these directories of inputs, each named after its target.
pub(crate) fn each(directories: &[PathBuf], mut with: impl FnMut(Case)) {
    for directory in directories {
        let target = directory
            .file_name()
            .expect("a directory")
            .to_string_lossy();
        for path in files(directory) {
            let bytes = fs::read(&path).expect("an input");
            let name = path.display().to_string();
            if let Some(case) = Case::from_input(&target, name, &bytes) {
                with(case);
            }
        }
    }
}

/// Calls with each image of a directory, damaged so many times.
pub(crate) fn each_damaged(directory: &Path, times: u64, mut with: impl FnMut(Case)) {
    for path in files(directory) {
        let whole = fs::read(&path).expect("an image");
        for seed in 0..times {
            let mut bytes = whole.clone();
            damage(&mut bytes, &mut Numbers(seed));
            let name = format!("{} damaged with {seed}", path.display());
            if let Some(case) = Case::of(name, bytes, None) {
                with(case);
            }
        }
    }
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.expect("an entry").path())
        .collect();
    files.sort();
    files
}

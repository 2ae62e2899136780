//! Chains: short ones of mixed layers made one by one, and long ones of copied layers.

use std::os::unix::fs::FileExt;

use crate::builder::{Builder, Disk, Kinds};
use crate::common::Lab;
use crate::numbers::Numbers;
use crate::verify::Tally;

const SIZE: u64 = 2 << 20;
/// Where each overlay of a long chain writes: whole clusters, so that nothing is copied up.
const STRETCH: u64 = 64 << 10;
/// Overlays that differ; the layers of a long chain are copies of these.
const TEMPLATES: usize = 24;

#[test]
fn mixed_layers_one_by_one() {
    let (mut tally, mut numbers) = (Tally::default(), Numbers::new("mixed layers"));
    let depths: &[usize] = if crate::full() {
        &[2, 3, 5, 5, 8, 13, 21]
    } else {
        &[2, 5]
    };
    for &depth in depths {
        let lab = Lab::new();
        let mut below: Option<Disk> = None;
        for i in 0..depth {
            let name = format!("l{i}.qcow2");
            let (cluster, options, compressed) = *numbers.pick(&[
                (512u64, "", false),
                (4096, ",compat=0.10", true),
                (65536, ",compression_type=zstd", true),
                (65536, ",extended_l2=on", false),
                (131_072, ",extended_l2=on,lazy_refcounts=on", true),
                (2 << 20, "", false),
            ]);
            let file = format!("l{}.qcow2", i.saturating_sub(1));
            let mut layer = match &below {
                None => Builder::create(&lab, &name, options, cluster, SIZE),
                Some(disk) => {
                    let backing = (file.as_str(), "qcow2", disk);
                    let size = *numbers.pick(&[None, None, Some(SIZE + 512), Some(SIZE / 2)]);
                    Builder::over(&lab, &name, options, cluster, backing, size)
                }
            };
            let kinds = Kinds {
                compressed,
                discard: true,
            };
            layer.scribble(&mut numbers, kinds);
            if numbers.below(2) == 0 {
                layer.snapshot("kept");
                layer.scribble(
                    &mut numbers,
                    Kinds {
                        compressed: false,
                        ..kinds
                    },
                );
            }
            tally.built(&lab, &mut layer);
            below = Some(layer.disk);
        }
    }
}

#[test]
fn long_chains() {
    let mut tally = Tally::default();
    let lab = Lab::new();
    let mut expected = Disk::zeros(SIZE);
    let mut base = Builder::create(&lab, "l0000.qcow2", "", 4096, SIZE);
    base.write(1, 0, SIZE);
    base.flush();
    expected.bytes.fill(1);
    let templates: Vec<Template> = (0..TEMPLATES).map(|i| Template::new(&lab, i)).collect();
    let mut depth = 1;
    for wanted in [64, 256, 400] {
        while depth < wanted {
            let template = &templates[depth % TEMPLATES];
            template.copy(&lab, depth);
            expected.bytes[template.at as usize..(template.at + STRETCH) as usize]
                .fill(template.pattern);
            depth += 1;
        }
        tally.image(&lab, &format!("l{:04}.qcow2", depth - 1), Some(&expected));
    }
    // Layers in the middle are disks as well.
    for depth in [1, 17, 100, 255] {
        tally.image(&lab, &format!("l{depth:04}.qcow2"), None);
    }
}

/// An overlay whose backing name can be changed to one of the same length.
struct Template {
    file: String,
    name_at: u64,
    at: u64,
    pattern: u8,
}

impl Template {
    fn new(lab: &Lab, i: usize) -> Template {
        let (cluster, options) = [
            (512, ""),
            (4096, ",compat=0.10"),
            (16384, ",extended_l2=on"),
            (65536, ""),
        ][i % 4];
        let file = format!("t{i}.qcow2");
        let below = Disk::zeros(SIZE);
        let backing = ("l0000.qcow2", "qcow2", &below);
        let mut image = Builder::over(lab, &file, options, cluster, backing, None);
        let (at, pattern) = (i as u64 * STRETCH, i as u8 + 2);
        image.write(pattern, at, STRETCH);
        image.flush();
        let bytes = std::fs::read(lab.path(&file)).expect("read");
        let name_at = bytes.windows(11).position(|w| w == b"l0000.qcow2");
        Template {
            file,
            name_at: name_at.expect("the backing name") as u64,
            at,
            pattern,
        }
    }

    fn copy(&self, lab: &Lab, depth: usize) {
        let name = format!("l{depth:04}.qcow2");
        std::fs::copy(lab.path(&self.file), lab.path(&name)).expect("copy");
        let below = format!("l{:04}.qcow2", depth - 1);
        let file = std::fs::File::options().write(true).open(lab.path(&name));
        let written = file.and_then(|file| file.write_all_at(below.as_bytes(), self.name_at));
        written.expect("the backing name is changed");
    }
}

//! Compares an image with the tools and with what was written into it, and counts.
//!
//! Knows: every way in which the bytes of an image can be asked for. Does not know: who made it.

use crate::builder::{Builder, Disk};
use crate::common::{Lab, assert_reads, at_snapshot, read_all, top};

/// What was compared in one test, printed when it is over.
#[derive(Default)]
pub(crate) struct Tally {
    images: u64,
    snapshots: u64,
    bytes: u64,
}

impl Drop for Tally {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        println!(
            "corpus: {} images, {} internal snapshots, {} MiB compared",
            self.images,
            self.snapshots,
            self.bytes >> 20
        );
    }
}

impl Tally {
    /// The image as it was built, and its snapshots.
    pub(crate) fn built(&mut self, lab: &Lab, builder: &mut Builder<'_>) {
        builder.flush();
        self.image(lab, &builder.name, Some(&builder.disk));
        self.snapshots(lab, &builder.name, Some(&builder.snapshots));
    }

    /// An image's bytes and extents, against the tools and against what is known of them.
    pub(crate) fn image(&mut self, lab: &Lab, name: &str, written: Option<&Disk>) {
        let expected = lab.convert(name);
        if let Some(disk) = written {
            disk.assert_is(&expected, name);
        }
        let chain = lab.chain(name);
        assert_reads(&chain, &expected);
        lab.check_map(name, &chain);
        self.images += 1;
        self.bytes += expected.len() as u64;
    }

    /// Every internal snapshot of an image, by its id as the tools take it.
    pub(crate) fn snapshots(&mut self, lab: &Lab, name: &str, written: Option<&[(String, Disk)]>) {
        let chain = lab.chain(name);
        let snapshots = top(&chain).snapshots().expect("the snapshot table");
        if let Some(written) = written {
            let names: Vec<_> = snapshots.iter().map(|s| s.name.as_slice()).collect();
            let made: Vec<_> = written.iter().map(|(name, _)| name.as_bytes()).collect();
            assert_eq!(names, made, "{name}");
        }
        for (index, snapshot) in snapshots.iter().enumerate() {
            let view = at_snapshot(&chain, &snapshot.name_str());
            assert_eq!(view.virtual_size(), snapshot.virtual_size);
            let ours = read_all(&view).expect("read");
            let options = format!("-f qcow2 -l snapshot.id={}", snapshot.id_str());
            let theirs = lab.try_convert(name, &options).expect("convert");
            if theirs.len() == ours.len() {
                assert_reads(&view, &theirs);
            }
            // The tool shows a snapshot in the present size of the disk.
            let both = theirs.len().min(ours.len());
            assert!(ours[..both] == theirs[..both], "{name}: {snapshot:?}");
            if let Some(written) = written {
                written[index]
                    .1
                    .assert_is(&ours, &format!("{name}: {snapshot:?}"));
            }
            self.snapshots += 1;
            self.bytes += both as u64;
        }
    }

    /// Counts an image compared elsewhere.
    pub(crate) fn add(&mut self, bytes: u64) {
        self.images += 1;
        self.bytes += bytes;
    }
}

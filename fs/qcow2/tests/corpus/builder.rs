//! Makes one image with the real tools, and remembers what its disk must read as.
//!
//! Knows: what a write, a zero write, a snapshot and a new size mean for the bytes of a disk.
//! Does not know: this crate, nor what the tools say of the image afterwards.
//! Choice: what a discard leaves is the format's matter (zeros, old bytes, or the backing file's),
//! so its range is in doubt until it is written again: there the tools alone are the judges.

use crate::common::Lab;
use crate::numbers::Numbers;

/// The bytes of a disk as far as they are known.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    pub(crate) bytes: Vec<u8>,
    pub(crate) doubtful: Vec<bool>,
}

impl Disk {
    pub(crate) fn zeros(size: u64) -> Disk {
        Disk::of(vec![0; size as usize])
    }

    /// A disk of a raw file's bytes: QEMU counts in whole sectors.
    pub(crate) fn of(mut bytes: Vec<u8>) -> Disk {
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        let doubtful = vec![false; bytes.len()];
        Disk { bytes, doubtful }
    }

    /// The same disk in another size: cut, or with zeros behind it.
    pub(crate) fn resized(&self, size: u64) -> Disk {
        let mut disk = self.clone();
        disk.bytes.resize(size as usize, 0);
        disk.doubtful.resize(size as usize, false);
        disk
    }

    /// Panics where known bytes are not as they should be.
    pub(crate) fn assert_is(&self, got: &[u8], whose: &str) {
        assert_eq!(got.len(), self.bytes.len(), "size of {whose}");
        if got == self.bytes {
            return;
        }
        let differs = |i: &usize| got[*i] != self.bytes[*i] && !self.doubtful[*i];
        if let Some(at) = (0..got.len()).find(differs) {
            panic!(
                "{whose} has {:#x} at {at:#x} where {:#x} was written",
                got[at], self.bytes[at]
            );
        }
    }
}

/// An image in the making.
pub(crate) struct Builder<'a> {
    lab: &'a Lab,
    pub(crate) name: String,
    pub(crate) disk: Disk,
    pub(crate) cluster: u64,
    /// Snapshots that are in the image now: name, and the disk as it was.
    pub(crate) snapshots: Vec<(String, Disk)>,
    commands: Vec<String>,
}

impl<'a> Builder<'a> {
    /// `options` are those of `create -o`; the cluster size is added to them.
    pub(crate) fn create(
        lab: &'a Lab,
        name: &str,
        options: &str,
        cluster: u64,
        size: u64,
    ) -> Builder<'a> {
        let options = format!("cluster_size={cluster}{options}");
        lab.img(&format!("create -q -f qcow2 -o {options} {name} {size}"));
        Builder::existing(lab, name, cluster, Disk::zeros(size))
    }

    /// Over a backing file, of which `below` are the bytes; of its size unless another is given.
    pub(crate) fn over(
        lab: &'a Lab,
        name: &str,
        options: &str,
        cluster: u64,
        backing: (&str, &str, &Disk),
        size: Option<u64>,
    ) -> Builder<'a> {
        let (file, format, below) = backing;
        let options = format!("cluster_size={cluster}{options}");
        let shown = size.map(|size| size.to_string()).unwrap_or_default();
        lab.img(&format!(
            "create -q -f qcow2 -o {options} -b {file} -F {format} {name} {shown}"
        ));
        let size = size.unwrap_or(below.bytes.len() as u64);
        Builder::existing(lab, name, cluster, below.resized(size))
    }

    /// An image that is there already.
    pub(crate) fn existing(lab: &'a Lab, name: &str, cluster: u64, disk: Disk) -> Builder<'a> {
        Builder {
            lab,
            name: name.to_owned(),
            disk,
            cluster,
            snapshots: Vec::new(),
            commands: Vec::new(),
        }
    }

    pub(crate) fn size(&self) -> u64 {
        self.disk.bytes.len() as u64
    }

    pub(crate) fn write(&mut self, pattern: u8, at: u64, len: u64) {
        self.change("write -P", pattern, at, len);
    }

    /// Whole clusters only, and once each.
    pub(crate) fn write_compressed(&mut self, pattern: u8, at: u64, len: u64) {
        self.change("write -c -P", pattern, at, len);
    }

    pub(crate) fn write_zeros(&mut self, at: u64, len: u64, unmap: bool) {
        let verb = if unmap { "write -z -u" } else { "write -z" };
        self.fill(0, at, len);
        self.commands.push(format!("{verb} {at} {len}"));
    }

    pub(crate) fn discard(&mut self, at: u64, len: u64) {
        self.disk.doubtful[at as usize..(at + len) as usize].fill(true);
        self.commands.push(format!("discard {at} {len}"));
    }

    fn change(&mut self, verb: &str, pattern: u8, at: u64, len: u64) {
        self.fill(pattern, at, len);
        self.commands.push(format!("{verb} {pattern} {at} {len}"));
    }

    fn fill(&mut self, pattern: u8, at: u64, len: u64) {
        let range = at as usize..(at + len) as usize;
        self.disk.bytes[range.clone()].fill(pattern);
        self.disk.doubtful[range].fill(false);
    }

    /// Has the tools do what was asked for so far.
    pub(crate) fn flush(&mut self) {
        let commands = std::mem::take(&mut self.commands);
        if !commands.is_empty() {
            self.lab.io(&self.name, &commands.join("; "));
        }
    }

    pub(crate) fn snapshot(&mut self, name: &str) {
        self.flush();
        self.lab.img(&format!("snapshot -c {name} {}", self.name));
        self.snapshots.push((name.to_owned(), self.disk.clone()));
    }

    pub(crate) fn delete_snapshot(&mut self, index: usize) {
        self.flush();
        let (name, _) = self.snapshots.remove(index);
        self.lab.img(&format!("snapshot -d {name} {}", self.name));
    }

    pub(crate) fn apply_snapshot(&mut self, index: usize) {
        self.flush();
        let (name, disk) = self.snapshots[index].clone();
        self.lab.img(&format!("snapshot -a {name} {}", self.name));
        self.disk = disk;
    }

    /// What a larger disk shows behind its old end is zeros, whatever the backing file has there.
    pub(crate) fn resize(&mut self, size: u64) {
        self.flush();
        self.lab
            .img(&format!("resize -q --shrink -f qcow2 {} {size}", self.name));
        self.disk = self.disk.resized(size);
    }

    /// Random writes of every kind. Where nothing was written before, some are compressed.
    pub(crate) fn scribble(&mut self, numbers: &mut Numbers, kinds: Kinds) {
        let sectors = self.size() / 512;
        if sectors == 0 {
            return;
        }
        if kinds.compressed {
            let clusters = self.size() / self.cluster;
            let first = numbers.below(clusters / 2 + 1) * self.cluster;
            let len = (1 + numbers.below(3)) * self.cluster;
            let len = len.min(self.size() - first);
            self.write_compressed(1 + numbers.below(255) as u8, first, len);
            self.flush();
        }
        for _ in 0..6 {
            let at = numbers.below(sectors);
            let most = (sectors - at).min(if numbers.below(3) == 0 { 2048 } else { 24 });
            let (at, len) = (at * 512, (1 + numbers.below(most)) * 512);
            match numbers.below(8) {
                0 => self.write_zeros(at, len, false),
                1 => self.write_zeros(at, len, true),
                2 if kinds.discard => self.discard(at, len),
                _ => self.write(1 + numbers.below(255) as u8, at, len),
            }
        }
        self.flush();
    }
}

/// What `scribble` may do besides writing.
#[derive(Clone, Copy)]
pub(crate) struct Kinds {
    pub(crate) compressed: bool,
    pub(crate) discard: bool,
}

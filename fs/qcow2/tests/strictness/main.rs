//! Lies about every field of the format, each told to `qemu-img` and to this reader: what it
//! refuses we refuse, what it reads we read, byte for byte. What differs on purpose stands in
//! `deliberate`, with a reason, and must go on differing.
//!
//! `QMPFS_CORPUS=full` tells all lies; otherwise one in `SAMPLE`, always the same ones.
//! `QMPFS_LIES=words` tells those whose names have the words.

#[path = "../common/mod.rs"]
mod common;
mod deliberate;
mod lies;
mod specimens;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{Lab, poke};
use deliberate::Difference;
use lies::{Change, Lie};
use qmpfs_qcow2::{Chain, Error, Header, Image, Layer, OpenOptions, RawLayer, ReadAt};
use specimens::{DISK, Specimen};

/// Disks up to this size are compared whole; of larger ones the first and the last piece.
const WHOLE: u64 = 64 << 20;
const PIECE: u64 = 64 << 10;

/// What one of the two makes of an image: bytes by view, or nothing where it refuses.
type Verdict = Vec<(String, Option<Vec<u8>>)>;

/// Told in every run: one lie in so many, picked by name.
const SAMPLE: u64 = 12;

#[test]
fn what_the_tools_refuse_is_refused_and_what_they_read_is_read() {
    let full = std::env::var("QMPFS_CORPUS").is_ok_and(|v| v == "full");
    let words = std::env::var("QMPFS_LIES").ok();
    let specimens = specimens::all();
    let mut work: Vec<(&Specimen, Lie)> = Vec::new();
    for specimen in &specimens {
        let lies = lies::about(specimen).into_iter();
        let picked = lies.filter(|lie| match &words {
            Some(words) => lie.name.contains(words),
            None => full || picked(&lie.name),
        });
        work.extend(picked.map(|lie| (specimen, lie)));
    }
    let next = AtomicUsize::new(0);
    let outcome = Mutex::new(Outcome::default());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                let lab = Lab::new();
                while let Some((specimen, lie)) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let told = Told::new(&lab, specimen, lie);
                    for (view, theirs) in told.theirs() {
                        let name = format!("{}{view}", lie.name);
                        let ours = told.ours(&view);
                        let damaged = theirs.is_none() && ours.is_ok();
                        if damaged && lab.has_stream_that_zlib_refuses("m.qcow2") {
                            continue;
                        }
                        let mut outcome = outcome.lock().expect("no panic");
                        outcome.add(name, &view, theirs, ours);
                    }
                }
            });
        }
    });
    let outcome = outcome.into_inner().expect("no panic");
    println!(
        "{} lies: {} views read, {} refused, {} differ",
        work.len(),
        outcome.read,
        outcome.refused,
        outcome.differences.len()
    );
    let mut faults = outcome.faults;
    let all = full && words.is_none();
    faults.extend(deliberate::judge(&outcome.differences, &outcome.told, all));
    let shown = faults.join("\n");
    assert!(faults.is_empty(), "{} faults:\n{shown}", faults.len());
}

/// The same lies in every run, of all fields.
fn picked(name: &str) -> bool {
    let hash = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    (name.bytes().fold(0xcbf2_9ce4_8422_2325, hash) >> 32) % SAMPLE == 0
}

/// What came of all lies.
#[derive(Default)]
struct Outcome {
    told: BTreeSet<String>,
    read: usize,
    refused: usize,
    differences: BTreeMap<String, Difference>,
    faults: Vec<String>,
}

impl Outcome {
    fn add(
        &mut self,
        name: String,
        view: &str,
        theirs: Option<Vec<u8>>,
        ours: Result<Vec<u8>, Error>,
    ) {
        match theirs {
            Some(_) => self.read += 1,
            None => self.refused += 1,
        }
        match compare(view, theirs, ours) {
            Ok(None) => {}
            Ok(Some(difference)) => {
                self.differences.insert(name.clone(), difference);
            }
            Err(fault) => self.faults.push(format!("{name}: {fault}")),
        }
        self.told.insert(name);
    }
}

/// A lie on disk, with what must lie beside it.
struct Told<'a> {
    lab: &'a Lab,
    size: u64,
    snapshots: bool,
}

impl<'a> Told<'a> {
    fn new(lab: &'a Lab, specimen: &'a Specimen, lie: &Lie) -> Told<'a> {
        for (name, bytes) in &specimen.beside {
            std::fs::write(lab.path(name), bytes).expect("write");
        }
        std::fs::write(lab.path("m.qcow2"), &specimen.bytes).expect("write");
        let path = lab.path("m.qcow2");
        match &lie.change {
            Change::Write { at, bytes } => poke(&path, *at, bytes),
            Change::Cut { len } => {
                let mut bytes = specimen.bytes[..*len as usize].to_vec();
                // Without the feature bit of bitmaps the tools do not miss them.
                if let Some(features) = bytes.get_mut(95) {
                    *features &= !1;
                }
                std::fs::write(&path, bytes).expect("write");
            }
        }
        let size = std::fs::read(&path).expect("read");
        let size = size.get(24..32).map_or(0, |bytes| {
            u64::from_be_bytes(bytes.try_into().expect("8 bytes"))
        });
        Told {
            lab,
            size,
            snapshots: lie.touches_snapshots,
        }
    }

    fn theirs(&self) -> Verdict {
        let mut views = Vec::new();
        if self.size <= WHOLE {
            views.push((String::new(), self.lab.try_convert("m.qcow2", "-f qcow2")));
        } else {
            for at in self.pieces() {
                views.push((
                    format!(" @{at:#x}"),
                    self.lab.try_piece("m.qcow2", at, PIECE),
                ));
            }
        }
        if self.snapshots {
            for id in [1, 2] {
                let options = format!("-f qcow2 -l snapshot.id={id}");
                let bytes = self.lab.try_convert("m.qcow2", &options);
                views.push((format!(" #{id}"), bytes));
            }
        }
        views
    }

    fn pieces(&self) -> [u64; 2] {
        [0, (self.size & !511).saturating_sub(PIECE) / PIECE * PIECE]
    }

    fn ours(&self, view: &str) -> Result<Vec<u8>, Error> {
        let file = self.lab.file("m.qcow2");
        let header = Header::read(&*file)?;
        let mut options = OpenOptions::default();
        if header.features.data_file() {
            let name = header.data_file.ok_or_else(no_such)?;
            options.data_file = Some(self.opened(&name)?);
        }
        let image = Image::open_with(file, options)?;
        let below = self.below(&image)?;
        let over = |image| {
            Chain::new(
                below
                    .iter()
                    .cloned()
                    .chain([Arc::new(Layer::Qcow2(image))])
                    .collect(),
            )
        };
        if let Some(id) = view.strip_prefix(" #") {
            let snapshots = image.snapshots()?;
            let Some(snapshot) = snapshots.iter().find(|s| s.id_str() == id) else {
                return Err(no_such());
            };
            return read_whole(&over(image.at_snapshot(snapshot)?));
        }
        let chain = over(image);
        let Some(at) = view.strip_prefix(" @0x") else {
            return read_whole(&chain);
        };
        let at = u64::from_str_radix(at, 16).expect("our own words");
        let mut piece = vec![0xee; PIECE as usize];
        let read = chain.read_at(&mut piece, at)?;
        piece.truncate(read);
        Ok(piece)
    }

    /// What the image stands on, as its header says; who may follow such a name is decided elsewhere.
    fn below(&self, image: &Image) -> Result<Vec<Arc<Layer>>, Error> {
        let Some(backing) = &image.header().backing else {
            return Ok(Vec::new());
        };
        let file = self.opened(&backing.name)?;
        Ok(vec![Arc::new(match backing.format.as_deref() {
            Some("qcow2") | None => Layer::Qcow2(Image::open(file)?),
            Some("raw") => Layer::Raw(RawLayer::open(file)?),
            Some(_) => return Err(no_such()),
        })])
    }

    fn opened(&self, name: &[u8]) -> Result<Arc<dyn ReadAt>, Error> {
        let path = self.lab.path(&String::from_utf8_lossy(name));
        let file = std::fs::File::open(path).map_err(|_| no_such())?;
        if !file.metadata().is_ok_and(|m| m.is_file()) {
            return Err(no_such());
        }
        Ok(Arc::new(file))
    }
}

/// A lie can make a snapshot's disk larger than memory: what the tools show of it is enough.
fn read_whole(chain: &Chain) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![0xee; chain.virtual_size().min(WHOLE) as usize];
    let read = chain.read_at(&mut bytes, 0)?;
    bytes.truncate(read);
    Ok(bytes)
}

/// A name in an image that leads nowhere: not the reader's matter, and refused by the tools, too.
fn no_such() -> Error {
    Error::Io {
        what: "name",
        offset: 0,
        source: std::io::ErrorKind::NotFound.into(),
    }
}

/// Nothing where both agree; a difference that may be deliberate; or a fault that never is.
fn compare(
    view: &str,
    theirs: Option<Vec<u8>>,
    ours: Result<Vec<u8>, Error>,
) -> Result<Option<Difference>, String> {
    match (theirs, ours) {
        (None, Err(error)) => understandable(&error).map(|()| None),
        (Some(_), Err(error)) => {
            understandable(&error).map(|()| Some(Difference::OnlyTheToolsRead))
        }
        (None, Ok(_)) => Ok(Some(Difference::OnlyWeRead)),
        (Some(theirs), Ok(ours)) if theirs == ours => Ok(None),
        (Some(theirs), Ok(ours)) => {
            // The tools show a snapshot in the disk's present size, whatever size it had.
            let both = theirs.len().min(ours.len());
            match view.starts_with(" #") && theirs[..both] == ours[..both] {
                true => Ok(None),
                false => Err(format!("other bytes: {} and {}", theirs.len(), ours.len())),
            }
        }
    }
}

/// A refusal is of the right family, and its sentence names what and where.
fn understandable(error: &Error) -> Result<(), String> {
    let sentence = error.to_string();
    match error {
        Error::Corrupt(_) | Error::Unsupported(_) => {}
        Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        _ => return Err(format!("an error of the wrong family: {sentence}")),
    }
    let names = [
        "header",
        "extension",
        "L1",
        "L2",
        "snapshot",
        "refcount",
        "compressed cluster",
    ];
    let named = names.iter().any(|name| sentence.contains(name));
    let placed = sentence.contains("0x");
    match named && placed && !sentence.contains('\n') {
        true => Ok(()),
        false => Err(format!("a sentence without table or offset: {sentence}")),
    }
}

#[test]
fn the_specimens_are_valid_and_hold_every_kind_of_entry() {
    let mut kinds = String::new();
    for specimen in specimens::all() {
        let lab = Lab::new();
        for (name, bytes) in specimen
            .beside
            .iter()
            .map(|(n, b)| (*n, b))
            .chain([("m.qcow2", &specimen.bytes)])
        {
            std::fs::write(lab.path(name), bytes).expect("write");
        }
        lab.img("check -q -f qcow2 m.qcow2");
        lab.check("m.qcow2");
        assert_eq!(lab.chain("m.qcow2").virtual_size(), DISK);
        for lie in lies::about(&specimen) {
            kinds += &lie.name;
        }
    }
    for kind in [
        "L2 entry of a data cluster",
        "L2 entry of a zero cluster with a place",
        "L2 entry of a zero cluster ",
        "L2 entry of no cluster",
        "L2 entry of a compressed cluster",
        "L2 bitmap of some subclusters",
        "L2 bitmap of zero subclusters",
        "snapshot 0 L2 entry of a data cluster",
        "snapshot 1.extra.disk_size",
        "extension 0x23852875.nb_bitmaps",
        "extension 0x44415441",
        "bitmap.granularity_bits",
        "refcount table entry",
    ] {
        assert!(kinds.contains(kind), "no specimen has {kind}");
    }
}

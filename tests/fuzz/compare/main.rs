//! Compares what we read of images with what `qemu-img convert` reads: the same bytes, or neither.
//!
//!     compare DIRECTORY [TARGET...]     DIRECTORY as `tests/fuzz/run` keeps it
//!
//! Prints each class of difference and how often it was seen; fails where one is not deliberate.
//! `COMPARE_DAMAGED` says how often each seed is damaged (100).

mod case;
mod ours;
mod qemu;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use case::Case;
use qemu::{Answer, Qemu};

/// Targets whose inputs become images.
const TARGETS: [&str; 7] = [
    "chain",
    "compressed",
    "header",
    "header_fields",
    "image",
    "snapshot_table",
    "tables",
];
/// Snapshots of one image that are compared.
const MAX_SNAPSHOTS: usize = 3;

/// What was seen, how often, and where first.
#[derive(Default)]
struct Seen {
    classes: BTreeMap<String, (u64, String)>,
    findings: u64,
}

impl Seen {
    fn count(&mut self, class: &str, name: &str) {
        let seen = self.classes.entry(class.to_owned()).or_default();
        if seen.0 == 0 {
            seen.1 = name.to_owned();
        }
        seen.0 += 1;
    }

    /// A difference that nobody meant; its files are kept.
    fn finding(&mut self, class: &str, case: &Case, keep: &Path) {
        if !self.classes.contains_key(class) {
            eprintln!("{class}: {}", case.name);
            let dir = keep.join(format!("compare-{}", self.classes.len()));
            fs::create_dir_all(&dir).expect("room");
            for (i, layer) in case.layers.iter().enumerate() {
                fs::write(dir.join(format!("{i}")), &layer.file).expect("room");
                if let Some(data) = &layer.data {
                    fs::write(dir.join(format!("{i}.data")), data).expect("room");
                }
            }
        }
        self.findings += 1;
        self.count(class, &case.name);
    }
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let root = PathBuf::from(arguments.next().expect("compare DIRECTORY [TARGET...]"));
    let mut targets: Vec<String> = arguments.collect();
    let all = targets.is_empty();
    if all {
        targets = TARGETS.map(str::to_owned).into();
    }
    let times = std::env::var("COMPARE_DAMAGED").ok();
    let times = times.map_or(100, |n| n.parse().expect("a number"));
    let keep = root.join("findings");

    let qemu = Qemu::new();
    let mut seen = Seen::default();
    let mut directories: Vec<PathBuf> = targets
        .iter()
        .map(|target| root.join("corpus").join(target))
        .collect();
    if all {
        directories.extend(["image", "large"].map(|kind| root.join("seeds").join(kind)));
        let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions");
        directories.extend(TARGETS.map(|target| kept.join(target)));
    }
    case::each(&directories, |case| compare(&case, &qemu, &mut seen, &keep));
    if all || targets.iter().any(|target| target == "damaged") {
        case::each_damaged(&root.join("seeds/image"), times, |case| {
            compare(&case, &qemu, &mut seen, &keep);
        });
    }
    for (class, (times, first)) in &seen.classes {
        println!("{times:8}  {class}  (first: {first})");
    }
    println!("{} findings", seen.findings);
    match seen.findings {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

fn compare(case: &Case, qemu: &Qemu, seen: &mut Seen, keep: &Path) {
    qemu.put(case);
    let ours = ours::read(case);
    match (qemu.convert(case, None), ours) {
        (Answer::Bytes(theirs), Ok(ours)) if theirs == ours => seen.count("same bytes", &case.name),
        (Answer::Bytes(theirs), Ok(ours)) if theirs.len() != ours.len() => {
            seen.finding("OTHER SIZE", case, keep);
        }
        (Answer::Bytes(_), Ok(_)) => seen.finding("OTHER BYTES", case, keep),
        (Answer::Bytes(_), Err(_)) if ours::zstd_differs(case) => {
            seen.count(
                "QEMU alone reads: a frame that only its zstd takes",
                &case.name,
            );
        }
        (Answer::Bytes(_), Err(why)) => {
            seen.finding(&format!("WE ALONE REFUSE: {}", shape(&why)), case, keep);
        }
        (Answer::Refused(_), Err(_)) => seen.count("both refuse", &case.name),
        (Answer::Refused(why), Ok(_)) => match ours::deliberate(case, &why) {
            Some(reason) => seen.count(&format!("QEMU alone refuses: {reason}"), &case.name),
            None => seen.finding(&format!("QEMU ALONE REFUSES: {}", shape(&why)), case, keep),
        },
        (Answer::TimedOut, _) => seen.count("QEMU takes too long", &case.name),
    }
    for ours::Snapshot {
        id,
        same_size,
        bytes,
    } in ours::snapshots(case).into_iter().take(MAX_SNAPSHOTS)
    {
        match (qemu.convert(case, Some(&id)), bytes) {
            // QEMU shows a snapshot in the current size of the disk: as much as both show.
            (Answer::Bytes(theirs), Ok(ours)) => {
                let both = ours.len().min(theirs.len());
                match ours[..both] == theirs[..both] {
                    true => seen.count("snapshot: same bytes", &case.name),
                    false => seen.finding("SNAPSHOT: OTHER BYTES", case, keep),
                }
            }
            (Answer::Refused(_), Err(_)) => seen.count("snapshot: both refuse", &case.name),
            // What is refused may lie where only one of us reads.
            (Answer::Refused(_), Ok(_)) | (Answer::Bytes(_), Err(_)) if !same_size => {
                seen.count("snapshot: of another size, one refuses", &case.name);
            }
            (Answer::Bytes(_), Err(why)) => {
                seen.finding(
                    &format!("SNAPSHOT: WE ALONE REFUSE: {}", shape(&why)),
                    case,
                    keep,
                );
            }
            (Answer::Refused(why), Ok(_)) => {
                seen.finding(
                    &format!("SNAPSHOT: QEMU ALONE REFUSES: {}", shape(&why)),
                    case,
                    keep,
                );
            }
            (Answer::TimedOut, _) => seen.count("snapshot: QEMU takes too long", &case.name),
        }
    }
}

/// A message without its numbers: what is the same in all of its kind.
fn shape(message: &str) -> String {
    // Warnings come first.
    let message = message
        .rfind("qemu-img: ")
        .map_or(message, |from| &message[from..]);
    // What QEMU calls its node is the whole graph.
    let message = match (message.find("'json:"), message.rfind("}'")) {
        (Some(from), Some(to)) if from < to => message[..from].to_owned() + &message[to + 2..],
        _ => message.to_owned(),
    };
    let words = message.split_whitespace().map(|word| {
        let number = word.chars().any(|c| c.is_ascii_digit());
        if number { "#" } else { word }
    });
    words
        .collect::<Vec<_>>()
        .join(" ")
        .chars()
        .take(160)
        .collect()
}

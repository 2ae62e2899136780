//! docs/PERFORMANCE.md: each table is written when its workloads were measured, the rest of the page by every run,
//! but for one section that is kept by hand.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use crate::machine::{self, Load};
use crate::report;
use crate::results::Row;
use crate::servers::{self, Who, fuse_driver, guestmount_line};
use crate::workloads::{SECTIONS, Section, files};

const BY_HAND: &str = "kept by hand";

/// A run, as far as the page tells of it.
pub(crate) struct Page<'a> {
    pub(crate) measured: &'a [Measured],
    pub(crate) machine: String,
    pub(crate) load: Load,
    pub(crate) rounds: usize,
    pub(crate) mib: u64,
    pub(crate) random_for: Duration,
}

/// What was measured of a section.
pub(crate) struct Measured {
    pub(crate) section: &'static Section,
    pub(crate) rows: Vec<Row>,
    /// Whether that was all of it.
    pub(crate) complete: bool,
}

/// Writes the page to `path`, with what was not measured now as it is there.
pub(crate) fn write(path: &Path, page: &Page<'_>) -> io::Result<()> {
    let before = match fs::read_to_string(path) {
        Ok(before) => before,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error),
    };
    fs::write(path, text(page, &before))
}

fn marks(name: &str) -> [String; 2] {
    ["begin", "end"].map(|at| format!("<!-- {name}: {at} -->\n"))
}

/// What stands between the marks of a name.
fn kept<'a>(page: &'a str, name: &str) -> Option<&'a str> {
    let [begin, end] = marks(name);
    let (_, rest) = page.split_once(&begin)?;
    Some(rest.split_once(&end)?.0)
}

fn marked(name: &str, text: &str) -> String {
    let [begin, end] = marks(name);
    format!("{begin}{text}{end}")
}

/// A section's table, and where it comes from.
fn section(page: &Page<'_>, section: &Section, before: &str) -> String {
    let mut measured = page.measured.iter();
    let measured = measured.find(|measured| measured.section.name == section.name);
    let text = match measured {
        Some(measured) => format!(
            "Measured on {date}: {machine}\n{rounds} rounds; disks of {mib} MiB of data.\n\n{warning}{table}",
            date = machine::date(),
            machine = page.machine,
            rounds = page.rounds,
            mib = page.mib,
            warning = page
                .load
                .warning()
                .map_or(String::new(), |said| format!("**{said}**\n\n")),
            table = report::table(section, &measured.rows),
        ),
        None => kept(before, section.name)
            .unwrap_or("Not measured yet.\n")
            .to_owned(),
    };
    format!("## {}\n\n{}", section.heading, marked(section.name, &text))
}

fn text(page: &Page<'_>, before: &str) -> String {
    let lines = |who| {
        servers::lines(who)
            .iter()
            .map(|line| format!("    {line}\n"))
            .collect::<String>()
    };
    let sections = SECTIONS.iter();
    let sections: Vec<String> = sections.map(|it| section(page, it, before)).collect();
    format!(
        "# Performance

Written by `tests/bench/run`, which measures all of it anew on any machine, or one table of it (`--only disks`); the section
\"What stands in the way\" is kept by hand. Compare ratios, not numbers: the ratios were taken round by
round within one run.

{sections}
A number is the median of the rounds (least–most). *QSD* is the FUSE export of qemu-storage-daemon as it
is by itself, *io_uring* the same with the one option that makes it faster, *nbdfuse* is qemu-nbd mounted
by nbdfuse, the *kernel* is its own mount of the raw file by a loop device, which only root may, and a *FUSE driver* is fuse2fs or
ntfs-3g on the raw file. *guestmount* mounts it in a small VM of its own. A ratio is qmpfs to the one that the goal names, unless the goal says otherwise.

## What stands in the way

{by_hand}
## How it is measured

- Everybody reads the same images, made by QEMU (64 KiB clusters, bytes that do not compress unless it
  says compressed), with the same reader; all files of an image, and the raw file, are in the page cache.
- Rounds are interleaved: everybody once, then everybody again.
- Every byte that a participant gives is compared once with what is right, before it is measured.
- *Sequential* is the first read of a view by a server started for it, so that neither it nor the
  kernel holds anything of the view: one open, `pread` from end to end, one close. *Second* and
  *third* reads are new opens of a view that was read just before.
- *Fragmented* is the same bytes in clusters that were written in random order. The *chain* holds the
  same clusters, written in the same order, spread over its layers; *depth 1* is the fragmented image.
- *Random* reads take place with everybody up and warm, {random} a round each; the queue is as many threads,
  each with an open of its own. The raw file is no limit there: past the page cache it is a disk.
- *Compressed* is text and, in one page of five, random bytes.
- `cp` is that of coreutils, to a filesystem in memory where there is one; for qemu-img it is
  `qemu-img convert -O raw`.
- *CPU* is that of the serving processes, user and system, by their CPU clocks.
- *Mounted* is when the file can be seen, to 5 ms; *the first block* is read through it.
- *RSS* is taken after `stat`, a walk by SEEK_DATA and SEEK_HOLE, and a read of all data, of each view.
- A *lookup* asks the reader's map for random places, all of them seen before.
- Disks that are fragmented, sparse, compressed, or chains have half as much data as the others.
- *Guests' files* are one set of files on each filesystem: {walked} in directories of a hundred, of up to 16 KiB each, {names} empty
  ones in one directory, and one of an eighth of the disk's size. Before it is measured, all of it is compared
  (`diff -r`). Each round has a server, or a mount, of its own; *the first `ls`* is that of the filesystem's root, where
  qmpfs is mounted already; for the others it is their mount and `ls`, as they know one filesystem and not all points of a VM.
- What comes after is in this order, with all that was learned by then: the walk (names, and `lstat` of each), `ls -l` of the large directory, `grep -r`, `cp -r`, `rsync -a`
  (to a filesystem in memory where there is one), and the large file by reads of 1 MiB. *disk.raw* is the same bytes of the same point.
- *What backups cost the guest*: a storage daemon writes for eight clients, 4 KiB at random places of the first quarter of a
  disk that holds data everywhere. *By hand* are the same jobs by plain QMP commands to a new qcow2 file, as virsh begins
  them. Each is watched from its first command to its last; an instant is read once from end to end meanwhile.

## How the participants are started

With a raw image `qcow2` is `raw`. OVERLAY is an empty overlay on IMAGE: qmpfs shows what lies below the
newest layer.

{ours}
{qsd}
{uring}
{nbd}
{fuse2fs}
{ntfs_3g}
{guestmount}
An I/O thread for the storage daemon's export made it no faster, more or fewer connections made nbdfuse no
faster. Whoever is root may raise their mounts' `read_ahead_kb` by hand to 1024, which gives them about a
third more where reading is sequential; that was not done.
",
        sections = sections.join("\n"),
        by_hand = marked(BY_HAND, kept(before, BY_HAND).unwrap_or_default()),
        walked = files::WALKED,
        names = files::NAMES,
        random = format_args!("{} s", page.random_for.as_secs_f64()),
        ours = lines(Who::Ours),
        qsd = lines(Who::Qsd),
        uring = lines(Who::Uring),
        nbd = lines(Who::Nbd),
        fuse2fs = fuse_driver("ext4"),
        ntfs_3g = fuse_driver("ntfs"),
        guestmount = guestmount_line(),
    )
}

#[cfg(test)]
mod tests {
    use super::{BY_HAND, Duration, Load, Measured, Page, SECTIONS, kept, marked, text};

    fn page(measured: &[Measured]) -> Page<'_> {
        Page {
            measured,
            machine: "two cores".to_owned(),
            load: Load::now(),
            rounds: 5,
            mib: 1024,
            random_for: Duration::from_secs(1),
        }
    }

    #[test]
    fn what_is_kept_by_hand_is_kept() {
        let before = marked(BY_HAND, "because of the kernel\n");
        let first = text(&page(&[]), &before);
        assert_eq!(kept(&first, BY_HAND), Some("because of the kernel\n"));
        assert_eq!(text(&page(&[]), &first), first);
        assert_eq!(kept("an empty page", BY_HAND), None);
    }

    #[test]
    fn a_table_stays_until_it_is_measured_again() {
        let measured = |index: usize| Measured {
            section: &SECTIONS[index],
            rows: Vec::new(),
            complete: true,
        };
        let names = [SECTIONS[0].name, SECTIONS[1].name];
        let before = names.map(|name| marked(name, "before\n")).concat();
        let after = text(&page(&[measured(1)]), &before);
        assert_eq!(kept(&after, names[0]), Some("before\n"));
        let table = kept(&after, names[1]).expect("it is there");
        assert!(
            table.contains("two cores") && table.contains("workload"),
            "{table}"
        );
    }
}

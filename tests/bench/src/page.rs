//! docs/PERFORMANCE.md: all of it is written anew at each run, but for one section that is kept by hand.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use crate::machine::Load;
use crate::report;
use crate::results::Row;
use crate::servers::{self, Who};

const BEGIN: &str = "<!-- kept by hand: begin -->\n";
const END: &str = "<!-- kept by hand: end -->\n";

/// A run, as far as the page tells of it.
pub(crate) struct Page<'a> {
    pub(crate) rows: &'a [Row],
    pub(crate) machine: String,
    pub(crate) load: Load,
    pub(crate) rounds: usize,
    pub(crate) mib: u64,
    pub(crate) random_for: Duration,
}

/// Writes the page to `path`, with what was kept by hand in the page that is there.
pub(crate) fn write(path: &Path, page: &Page<'_>) -> io::Result<()> {
    let by_hand = match fs::read_to_string(path) {
        Ok(before) => kept(&before).unwrap_or_default().to_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error),
    };
    fs::write(path, text(page, &by_hand))
}

fn kept(page: &str) -> Option<&str> {
    let (_, rest) = page.split_once(BEGIN)?;
    Some(rest.split_once(END)?.0)
}

fn text(page: &Page<'_>, by_hand: &str) -> String {
    let lines = |who| {
        servers::lines(who)
            .iter()
            .map(|line| format!("    {line}\n"))
            .collect::<String>()
    };
    let warning = page
        .load
        .warning()
        .map_or(String::new(), |said| format!("**{said}**\n\n"));
    format!(
        "# Performance

Written by `tests/bench/run`, which measures all of it anew on any machine; the section
\"What stands in the way\" is kept by hand. Compare ratios, not numbers: the ratios were taken round by
round within this one run.

{machine}
{rounds} rounds; disks of {mib} MiB of data, half of that where they are fragmented, sparse, compressed, or chains.

{warning}{table}
A number is the median of the rounds (least–most). *QSD* is the FUSE export of qemu-storage-daemon as it
is by itself, *io_uring* the same with the one option that makes it faster, *nbdfuse* is qemu-nbd mounted
by nbdfuse. A ratio is qmpfs to the one that the goal names, unless the goal says otherwise.

## What stands in the way

{BEGIN}{by_hand}{END}
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

## How the participants are started

With a raw image `qcow2` is `raw`. OVERLAY is an empty overlay on IMAGE: qmpfs shows what lies below the
newest layer.

{ours}
{qsd}
{uring}
{nbd}
An I/O thread for the storage daemon's export made it no faster, more or fewer connections made nbdfuse no
faster. Whoever is root may raise their mounts' `read_ahead_kb` by hand to 1024, which gives them about a
third more where reading is sequential; that was not done.
",
        machine = page.machine,
        rounds = page.rounds,
        mib = page.mib,
        table = report::table(page.rows),
        random = format_args!("{} s", page.random_for.as_secs_f64()),
        ours = lines(Who::Ours),
        qsd = lines(Who::Qsd),
        uring = lines(Who::Uring),
        nbd = lines(Who::Nbd),
    )
}

#[cfg(test)]
mod tests {
    use super::{BEGIN, Duration, END, Load, Page, kept, text};

    #[test]
    fn what_is_kept_by_hand_is_kept() {
        let page = Page {
            rows: &[],
            machine: "two cores".to_owned(),
            load: Load::now(),
            rounds: 5,
            mib: 1024,
            random_for: Duration::from_secs(1),
        };
        let first = text(&page, "because of the kernel\n");
        assert_eq!(kept(&first), Some("because of the kernel\n"));
        assert_eq!(text(&page, kept(&first).expect("it is there")), first);
        assert_eq!(kept("an empty page"), None);
        assert_eq!(kept(&format!("{BEGIN}{END}")), Some(""));
    }
}

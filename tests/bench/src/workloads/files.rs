//! Guests' files: the first look at a point, walks, programs that read trees, and a large file, beside the kernel's own
//! mount and the FUSE drivers of the same bytes, and beside `disk.raw`.

mod disk;
mod look;

use qmpfs_tests::sh;

use super::{Run, without};
use crate::goals;
use crate::results::{Goal, Row, Series, Unit};
use crate::servers::Who;

/// What is walked: files, and the directories of a hundred that they are in.
pub(crate) const WALKED: usize = 5_000;
/// Names of the large directory.
pub(crate) const NAMES: usize = 5_000;

pub(super) fn ext4(run: &mut Run) -> Vec<Row> {
    let mut whos = vec![Who::Ours, Who::Kernel, Who::FuseDriver, Who::OursDisk];
    match sh::attempt("guestmount --version").status.success() {
        // it takes most of the time: one filesystem tells enough
        true => whos.push(Who::Guestmount),
        false => eprintln!("bench: guestmount is not installed: left out"),
    }
    of_kind(run, "ext4", disk::Filled::Mounted("mkfs.ext4 -q -F"), &whos)
}

pub(super) fn xfs(run: &mut Run) -> Vec<Row> {
    let whos = [Who::Ours, Who::Kernel, Who::OursDisk];
    of_kind(run, "xfs", disk::Filled::Mounted("mkfs.xfs -q -f"), &whos)
}

pub(super) fn btrfs(run: &mut Run) -> Vec<Row> {
    let whos = [Who::Ours, Who::Kernel, Who::OursDisk];
    of_kind(run, "btrfs", disk::Filled::Mounted("mkfs.btrfs -q"), &whos)
}

pub(super) fn ntfs(run: &mut Run) -> Vec<Row> {
    let whos = [Who::Ours, Who::FuseDriver, Who::OursDisk];
    of_kind(run, "ntfs", disk::Filled::Ntfs, &whos)
}

pub(super) fn exfat(run: &mut Run) -> Vec<Row> {
    let whos = [Who::Ours, Who::OursDisk];
    of_kind(run, "exfat", disk::Filled::ExFat, &whos)
}

fn of_kind(run: &mut Run, kind: &'static str, filled: disk::Filled, whos: &[Who]) -> Vec<Row> {
    if !sh::is_root() {
        eprintln!("bench: {kind} is filled by way of a mount, which wants root: left out");
        return Vec::new();
    }
    let tree = disk::tree(&run.dir, run.images.size());
    let image = run
        .images
        .filesystem(kind, |raw| disk::fill(raw, &tree, filled));
    image.warm();
    let stretches = disk::stretches(&image.expected, &tree.join(disk::BIG));
    for &who in whos.iter().filter(|&&who| who != Who::OursDisk) {
        let server = run.start(who, &image);
        let shown = look::root(who, &server);
        sh!(
            "diff -r -x lost+found -x 'System Volume Information' {} {}",
            tree.display(),
            shown.display()
        );
    }
    let copies = run.copies.join("files");
    let numbers = run.measure(kind, whos, |who| match who {
        Who::OursDisk => look::disk(&run.start(who, &image), &stretches),
        _ => look::tree(run, who, &image, &copies),
    });
    rows(kind, numbers)
}

fn rows(kind: &str, numbers: [Vec<Series>; look::NUMBERS]) -> Vec<Row> {
    let [first, walk, names, grep, copy, rsync, file] = numbers;
    let row = |what: &str, series, goals: &'static [Goal]| Row {
        label: format!("{kind}: {what}"),
        unit: Unit::Seconds,
        series: without(series, Who::OursDisk),
        goals,
    };
    vec![
        row("the first `ls`", first, goals::FIRST_LOOK),
        row(&format!("walk of {WALKED} files"), walk, goals::WALK),
        row(
            &format!("`ls -l` of a directory of {NAMES}"),
            names,
            goals::NONE,
        ),
        row("`grep -r`", grep, goals::NONE),
        row("`cp -r`", copy, goals::NONE),
        row("`rsync -a`", rsync, goals::NONE),
        Row {
            label: format!("{kind}: a large file, sequential"),
            unit: Unit::GigabytesPerSecond,
            series: file,
            goals: goals::FILE,
        },
    ]
}

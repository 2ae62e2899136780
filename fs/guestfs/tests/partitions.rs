//! Partition tables as sfdisk makes them, compared with what sfdisk says of them; and tables that lie.

use qmpfs_guestfs::{Error, Partition, Scheme, Table};
use serde_json::Value;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

fn image(directory: &TempDir, megabytes: u64) -> PathBuf {
    let path = directory.path().join("disk.raw");
    let file = File::create(&path).expect("room for an image");
    file.set_len(megabytes << 20).expect("a sparse file");
    path
}

fn sfdisk(image: &Path, script: &str) {
    let mut child = Command::new("/usr/sbin/sfdisk")
        .args(["-q", "--no-reread", "--no-tell-kernel"])
        .arg(image)
        .stdin(Stdio::piped())
        .spawn()
        .expect("sfdisk: mountscripts/setup --tests installs it");
    let mut input = child.stdin.take().expect("piped");
    input.write_all(script.as_bytes()).expect("sfdisk reads");
    drop(input);
    assert!(child.wait().expect("it ends").success());
}

/// What sfdisk says: number, start and length in bytes, type, name. Without extended partitions.
fn oracle(image: &Path) -> Vec<(u32, u64, u64, String, String)> {
    let output = Command::new("/usr/sbin/sfdisk")
        .arg("--json")
        .arg(image)
        .output()
        .expect("sfdisk can be started");
    let json: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let table = &json["partitiontable"];
    let sector = table["sectorsize"].as_u64().unwrap_or(512);
    let stem = image.to_str().expect("UTF-8");
    let partitions = table["partitions"].as_array().expect("a list");
    let of = |partition: &Value| {
        let text = |field: &str| partition[field].as_str().unwrap_or_default().to_owned();
        let number = text("node");
        let number = number.strip_prefix(stem).expect("named after the image");
        (
            number.trim_start_matches('p').parse().expect("a number"),
            partition["start"].as_u64().expect("a start") * sector,
            partition["size"].as_u64().expect("a size") * sector,
            text("type"),
            text("name"),
        )
    };
    let mut list: Vec<_> = partitions.iter().map(of).collect();
    list.retain(|(_, _, _, kind, _)| !["5", "f", "85"].contains(&kind.as_str()));
    list.sort();
    list
}

fn ours(table: &Table) -> Vec<(u32, u64, u64, String, String)> {
    let of = |it: &Partition| {
        let kind = match table.scheme {
            Scheme::Mbr => it.kind.trim_start_matches('0').to_owned(),
            Scheme::None | Scheme::Gpt => it.kind.clone(),
        };
        (it.number, it.start, it.length, kind, it.name.clone())
    };
    table.partitions.iter().map(of).collect()
}

fn read(path: &Path) -> Table {
    let file = File::open(path).expect("the image");
    Table::read(&file).expect("a table")
}

const GPT: &str = "label: gpt\nsize=8MiB, type=uefi, name=\"EFI system\"\nsize=16MiB, name=größe\n\
                   start=40MiB, size=4MiB, type=linux\n";

#[test]
fn a_gpt_is_what_sfdisk_says() {
    let directory = TempDir::new().expect("a scratch directory");
    let path = image(&directory, 64);
    sfdisk(&path, GPT);
    let table = read(&path);
    assert_eq!(table.scheme, Scheme::Gpt);
    assert_eq!(ours(&table), oracle(&path));
    assert_eq!(table.partitions.len(), 3);
    assert_eq!(table.notes, Vec::<String>::new());
}

#[test]
fn a_gpt_without_its_first_header_is_read_from_its_backup() {
    let directory = TempDir::new().expect("a scratch directory");
    let path = image(&directory, 64);
    sfdisk(&path, GPT);
    let before = read(&path);
    let mut bytes = std::fs::read(&path).expect("the image");
    for damage in [512 + 20, 1024 + 40] {
        let kept = bytes[damage];
        bytes[damage] ^= 0xff;
        let table = Table::read(&bytes).expect("the backup");
        assert_eq!(table.partitions, before.partitions);
        assert_eq!(table.notes.len(), 1, "{:?}", table.notes);
        bytes[damage] = kept;
    }
    bytes[512] = 0;
    let last = bytes.len() - 512;
    bytes[last] = 0;
    assert!(matches!(Table::read(&bytes), Err(Error::Corrupt(_))));
}

#[test]
fn a_gpt_in_sectors_of_4_kib() {
    let directory = TempDir::new().expect("a scratch directory");
    let path = image(&directory, 64);
    // A loop device counts in such sectors, a file does not.
    let line = format!(
        "loop=$(losetup -f --show -b 4096 {0}); trap 'losetup -d $loop' EXIT; \
         printf '{1}' | sfdisk -q --no-reread --no-tell-kernel $loop",
        path.display(),
        GPT.replace('\n', "\\n")
    );
    let made = Command::new("sh")
        .args(["-ec", &line])
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .status();
    assert!(made.expect("sh").success(), "needs root");
    let table = read(&path);
    let places: Vec<_> = table
        .partitions
        .iter()
        .map(|it| (it.start, it.length))
        .collect();
    assert_eq!(places[0].1, 8 << 20);
    assert_eq!(places[2], (40 << 20, 4 << 20));
}

#[test]
fn an_mbr_with_logical_partitions_is_what_sfdisk_says() {
    let directory = TempDir::new().expect("a scratch directory");
    let path = image(&directory, 64);
    let script = "label: dos\nsize=4MiB, type=83, bootable\nsize=4MiB, type=7\n\
                  size=40MiB, type=f\nsize=2MiB, type=c\nsize=3MiB, type=83\nsize=5MiB, type=82\n\
                  size=1MiB, type=83\nsize=6MiB, type=83\n";
    sfdisk(&path, script);
    let table = read(&path);
    assert_eq!(table.scheme, Scheme::Mbr);
    assert_eq!(ours(&table), oracle(&path));
    assert!(table.partitions.len() >= 7, "{table:?}");
}

#[test]
fn a_disk_without_a_table_is_one_stretch() {
    for bytes in [vec![0; 1 << 20], vec![0; 100], Vec::new(), vec![0x55; 4096]] {
        let table = Table::read(&bytes).expect("no table is fine");
        assert_eq!(table.scheme, Scheme::None);
        let numbers: Vec<_> = table.partitions.iter().map(|it| it.number).collect();
        let expected = if bytes.is_empty() { vec![] } else { vec![0] };
        assert_eq!(numbers, expected);
    }
}

/// As on the images of CDs that start from a stick, too.
#[test]
fn a_partition_without_a_type_is_one() {
    let directory = TempDir::new().expect("a scratch directory");
    let path = image(&directory, 64);
    sfdisk(
        &path,
        "label: dos\nsize=4MiB, type=83\nsize=8MiB, type=ef\n",
    );
    let mut bytes = std::fs::read(&path).expect("the image");
    bytes[446 + 4] = 0;
    let table = Table::read(&bytes).expect("a table");
    let found: Vec<_> = table
        .partitions
        .iter()
        .map(|it| (it.number, it.length, it.kind.as_str()))
        .collect();
    assert_eq!(found, [(1, 4 << 20, "00"), (2, 8 << 20, "ef")]);
    bytes[446 + 4 + 16..][..12].fill(0);
    let alone = Table::read(&bytes).expect("a table");
    assert_eq!(alone.partitions, table.partitions[..1]);
}

#[test]
fn a_ring_of_logical_partitions_ends() {
    let directory = TempDir::new().expect("a scratch directory");
    let path = image(&directory, 64);
    sfdisk(
        &path,
        "label: dos\nsize=1MiB\nsize=1MiB\nsize=1MiB\nsize=40MiB, type=f\nsize=2MiB\nsize=3MiB\n",
    );
    let mut bytes = std::fs::read(&path).expect("the image");
    // The second sector of the chain leads to itself.
    let first = read(&path).partitions[4].start - (1 << 20);
    let at = usize::try_from(first).expect("small") + 446 + 16;
    let fourth = 446 + 3 * 16 + 8;
    let extended = u32::from_le_bytes(bytes[fourth..fourth + 4].try_into().expect("four bytes"));
    let own = u32::try_from(first / 512).expect("small") - extended;
    bytes[at + 4] = 5;
    bytes[at + 8..at + 12].copy_from_slice(&own.to_le_bytes());
    bytes[at + 12..at + 16].copy_from_slice(&1u32.to_le_bytes());
    let table = Table::read(&bytes).expect("what can be read");
    assert!(table.partitions.len() <= 256);
    assert!(
        table.notes.iter().any(|note| note.contains("does not end")),
        "{:?}",
        table.notes
    );
}

#[test]
fn partitions_behind_the_end_are_cut_or_left_out() {
    let directory = TempDir::new().expect("a scratch directory");
    let path = image(&directory, 64);
    sfdisk(&path, "label: dos\nsize=20MiB\nsize=20MiB\nsize=10MiB\n");
    let file = File::options().write(true).open(&path).expect("the image");
    file.set_len(30 << 20).expect("cut");
    let table = read(&path);
    let last = table.partitions.last().expect("two of them");
    assert_eq!(
        (table.partitions.len(), last.start + last.length),
        (2, 30 << 20)
    );
    assert_eq!(table.notes.len(), 2, "{:?}", table.notes);
}

/// Whatever a guest writes into its tables, the answer comes, is bounded, and lies on the disk.
#[test]
fn mutated_tables_are_answered() {
    let directory = TempDir::new().expect("a scratch directory");
    let path = image(&directory, 8);
    let scripts = [
        "label: gpt\nsize=1MiB\nsize=2MiB\n",
        "label: dos\nsize=1MiB\nsize=6MiB, type=5\nsize=1MiB\nsize=1MiB\n",
    ];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for script in scripts {
        std::fs::write(&path, vec![0; 8 << 20]).expect("an empty image");
        sfdisk(&path, script);
        let clean = std::fs::read(&path).expect("the image");
        let used: Vec<usize> = (0..clean.len()).filter(|at| clean[*at] != 0).collect();
        for _ in 0..1000 {
            let mut bytes = clean.clone();
            for _ in 0..1 + next() % 4 {
                let at = used[next() as usize % used.len()];
                bytes[at] = [0, 0xff, 0x80, next() as u8][next() as usize % 4];
            }
            // With a right checksum lies get further.
            let header = bytes.get_mut(512..512 + 92).expect("a header");
            header[16..20].fill(0);
            let sum = crc32fast::hash(header);
            header[16..20].copy_from_slice(&sum.to_le_bytes());
            if let Ok(table) = Table::read(&bytes) {
                assert!(table.partitions.len() <= 256);
                for partition in table.partitions {
                    assert!(partition.start + partition.length <= bytes.len() as u64);
                }
            }
        }
    }
}

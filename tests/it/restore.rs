//! docs/RESTORE.md, by the commands that stand there.

use std::fs;
use std::path::{Path, PathBuf};

use qmpfs_tests::mounted::Mounted;
use qmpfs_tests::scratch::Scratch;
use qmpfs_tests::{oracle, sh};

/// The commands of one section of the page.
fn commands(section: &str) -> String {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/RESTORE.md");
    let page = fs::read_to_string(page).expect("the page");
    let section = format!("\n## {section}\n");
    let (_, after) = page.split_once(&section).expect("the section");
    let (own, _) = after.split_once("\n## ").unwrap_or((after, ""));
    let commands: Vec<&str> = own
        .lines()
        .filter_map(|it| it.strip_prefix("    "))
        .collect();
    assert!(!commands.is_empty(), "{section}");
    commands.join("\n")
}

fn run(commands: &str, names: &[(&str, &Path)]) {
    let filled = names
        .iter()
        .fold(commands.to_owned(), |text, (name, path)| {
            text.replace(name, &path.display().to_string())
        });
    sh!("set -e\n{filled}");
}

/// Two disks of a VM that is off, each an ext4 with a file, and a backup of both.
struct Saved {
    scratch: Scratch,
    images: [PathBuf; 2],
    backups: PathBuf,
}

impl Saved {
    fn new(name: &str) -> Self {
        let scratch = Scratch::new(name);
        let (dir, backups, tree) = (
            scratch.dir("images"),
            scratch.dir("backups"),
            scratch.dir("tree"),
        );
        fs::create_dir_all(tree.join("etc")).expect("a directory");
        fs::create_dir_all(tree.join("srv/www")).expect("a directory");
        fs::write(tree.join("etc/fstab"), "/dev/vda / ext4\n").expect("a file");
        fs::write(tree.join("srv/www/index"), "x".repeat(70_000)).expect("a file");
        let images = ["web1", "data"].map(|name| {
            let (raw, image) = (
                scratch.file(&format!("{name}.raw")),
                dir.join(format!("{name}.qcow2")),
            );
            sh!(
                "mke2fs -q -t ext4 -d {} {} 16M",
                tree.display(),
                raw.display()
            );
            sh!(
                "qemu-img convert -O qcow2 {} {}",
                raw.display(),
                image.display()
            );
            image
        });
        let options = [
            "--backup-dir",
            &backups.display().to_string(),
            "-o",
            "name=vm",
        ];
        let sources = [images[0].as_path(), images[1].as_path()];
        let mut mount = Mounted::new(&scratch, &sources, &options);
        fs::create_dir(mount.path().join("backups/full/night")).expect("a backup of both");
        mount.wait_idle();
        mount.unmount();
        Self {
            scratch,
            images,
            backups,
        }
    }

    /// What a disk holds, read by qemu-img.
    fn bytes(&self, image: &Path, name: &str) -> PathBuf {
        let raw = self.scratch.file(name);
        oracle::convert(image, &raw);
        raw
    }
}

#[test]
fn all_disks_come_back_onto_the_paths_the_vm_boots_from() {
    let saved = Saved::new("restore-disks");
    let good = [0, 1].map(|disk| saved.bytes(&saved.images[disk], &format!("good{disk}")));
    for image in &saved.images {
        sh!("qemu-io -f qcow2 -c 'write -P 9 0 4M' {}", image.display());
    }
    let scratch = Scratch::new("restore-shelf");
    let mount = Mounted::new(&scratch, &[&saved.backups], &[]);
    for ((image, good), disk) in saved.images.iter().zip(&good).zip(["web1", "data"]) {
        let point = mount
            .path()
            .join(format!("vm/disks/{disk}/backups/full/night"));
        assert!(point.join("disk.raw").exists(), "{}", point.display());
        let names = [("/vm/web1.qcow2", image.as_path()), ("B/", &point.join(""))];
        run(&commands("Onto the path the VM boots from"), &names);
        oracle::check(image);
        oracle::assert_same(&saved.bytes(image, "restored"), good);
        let kept = image.with_file_name(format!("{disk}.qcow2.broken"));
        assert!(kept.exists(), "what was there is kept");
    }
}

#[test]
fn one_file_comes_back_by_cp() {
    let saved = Saved::new("restore-file");
    let scratch = Scratch::new("restore-file-shelf");
    let mount = Mounted::new(&scratch, &[&saved.backups], &[]);
    let point = mount.path().join("vm/disks/web1/backups/full/night");
    let out = saved.scratch.dir("out");
    let script = commands("One file")
        .replace("B/files/1/", "B/files/0/")
        .replace(" /srv/", &format!(" {}/srv/", out.display()));
    let there = format!("cd {}\n{script}", out.display());
    run(&there, &[("B/", &point.join(""))]);
    let text = fs::read_to_string(out.join("fstab")).expect("it came");
    assert_eq!(text, "/dev/vda / ext4\n");
    let page = fs::read(out.join("srv/www/index")).expect("it came");
    assert_eq!(page.len(), 70_000);
}

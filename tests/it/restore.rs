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

/// Names are where a word or an option's value begins: a path that was put in may end in one.
fn run(commands: &str, names: &[(&str, &Path)]) {
    let begins = [' ', '='].iter();
    let filled = begins
        .flat_map(|before| names.iter().map(move |name| (before, name)))
        .fold(commands.to_owned(), |text, (before, (name, path))| {
            text.replace(
                &format!("{before}{name}"),
                &format!("{before}{}", path.display()),
            )
        });
    sh!("set -e\n{filled}");
}

/// A database as it is on a disk while it is at work: what was committed last is in its log alone.
fn database(scratch: &Scratch, at: &Path) {
    let own = scratch.dir("database");
    fs::create_dir_all(at).expect("a directory");
    sh!(
        "cd {}; printf '%s\\n' 'PRAGMA journal_mode=WAL;' 'PRAGMA wal_autocheckpoint=0;' \
         'CREATE TABLE entries(word TEXT);' \
         \"INSERT INTO entries VALUES ('one'), ('two'), ('three');\" '.shell cp app.db app.db-wal {}' | sqlite3 app.db",
        own.display(),
        at.display()
    );
    assert!(
        at.join("app.db-wal")
            .metadata()
            .is_ok_and(|wal| wal.len() > 4096)
    );
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
        std::os::unix::fs::symlink("/srv/www/index", tree.join("srv/link")).expect("a link");
        sh!(
            "cd {}/srv; mkdir files; echo x >files/x; mkfifo fifo; mknod null c 1 3",
            tree.display()
        );
        database(&scratch, &tree.join("var/lib/app"));
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

/// The script, and a mount of the backups of which one is `B`.
struct Shelf {
    saved: Saved,
    mount: Mounted,
    point: PathBuf,
}

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../mountscripts/restore");

impl Shelf {
    fn new(name: &str, options: &[&str]) -> Self {
        let saved = Saved::new(name);
        let scratch = Scratch::new(&format!("{name}-shelf"));
        let mount = Mounted::new(&scratch, &[&saved.backups], options);
        let point = mount.path().join("vm/disks/web1/backups/full/night");
        Self {
            saved,
            mount,
            point,
        }
    }

    /// The commands of a section, below `out`.
    fn run(&self, section: &str, out: &Path) {
        let script = commands(section)
            .replace("B/files/1/", "B/files/0/")
            .replace("mountscripts/restore", SCRIPT)
            .replace("/restored", &out.display().to_string());
        run(&script, &[("B/", &self.point.join(""))]);
    }
}

#[test]
fn a_directory_comes_back_whole_or_not_at_all() {
    let shelf = Shelf::new("restore-directory", &[]);
    let out = shelf.saved.scratch.dir("out");
    shelf.run("A directory", &out);
    let same = format!(
        "rsync -aHAXc -n -i --delete {}/ {}/",
        shelf.point.join("files/0/srv").display(),
        out.join("srv").display()
    );
    assert_eq!(sh!("{same}"), "");
    let target = fs::read_link(out.join("srv/link")).expect("a link");
    assert_eq!(target, Path::new("../srv/www/index"), "it stays inside");

    // What is there stays, and nothing half done.
    fs::write(out.join("srv/new"), "mine").expect("room");
    let again = |options: &str, what: &str| {
        let line = format!(
            "{SCRIPT} {options} {} {}",
            shelf.point.join(what).display(),
            out.display()
        );
        let output = qmpfs_tests::sh::attempt(&line);
        (output.status.success(), qmpfs_tests::sh::said(&output))
    };
    let (done, said) = again("", "files/0/srv");
    assert!(
        !done && said.contains("is there already, and stays"),
        "{said}"
    );
    assert_eq!(
        fs::read_to_string(out.join("srv/new")).expect("it stays"),
        "mine"
    );
    let (done, said) = again("--replace", "files/0/srv");
    assert!(
        done && said.contains("what was there is now") && said.contains("from night of disk web1"),
        "{said}"
    );
    assert!(!out.join("srv/new").exists() && out.join("srv/www/index").exists());
    assert_eq!(sh!("cat {}/srv.replaced-*/new", out.display()), "mine");
    // The guest's own directories may be called so, too.
    let (done, said) = again("", "files/0/srv/files/x");
    assert!(done && out.join("x").exists(), "{said}");
    fs::remove_file(out.join("x")).expect("our own");
    for (what, words) in [
        ("files/0/nothing", "is not there"),
        ("disk.raw", "is nothing below files/"),
    ] {
        let (done, said) = again("", what);
        assert!(
            !done && said.contains(words) && said.contains("next: "),
            "{said}"
        );
    }
    let left = sh!("ls -A {} | grep -v '^srv' || true", out.display());
    assert_eq!(left, "", "nothing is left behind");
    drop(shelf.mount);
}

#[test]
fn a_database_comes_back_with_what_was_in_its_log() {
    let shelf = Shelf::new("restore-database", &[]);
    let out = shelf.saved.scratch.dir("out");
    shelf.run("A database", &out);
    let count = sh!(
        "sqlite3 {}/app/app.db 'SELECT count(*) FROM entries'",
        out.display()
    );
    assert_eq!(count, "3");
}

/// As somebody who is not root, by the commands for that; and with the script, which compares what it may set.
#[test]
fn another_user_fetches_a_file() {
    let saved = Saved::new("restore-user");
    let (out, mnt) = (saved.scratch.dir("out"), saved.scratch.dir("user-mnt"));
    let above = out.parent().expect("a directory").to_owned();
    sh!(
        "chmod 755 {}; chown 65534:65534 {}",
        above.display(),
        out.display()
    );
    let point = mnt.join("vm/disks/web1/backups/full/night");
    let program = qmpfs_tests::mounted::program()
        .parent()
        .expect("a directory")
        .display();
    let script = commands("As another user")
        .replace("MNT/VM/disks/D/backups/full/NAME", &point.display().to_string())
        .replace("files/1/", "files/0/")
        .replace("DIR MNT", &format!("{} {}", saved.backups.display(), mnt.display()))
        .replace("umount MNT", &format!("umount {}", mnt.display()))
        .replace(
            "qmpfs umount",
            &format!(
                "setpriv --reuid 65534 --regid 65534 --clear-groups {SCRIPT} {}/files/0/srv {}\nqmpfs umount",
                point.display(),
                out.display()
            ),
        );
    sh!(
        "export PATH={program}:$PATH; cd {}; trap 'umount -l {} 2>/dev/null || true' EXIT\n{script}",
        out.display(),
        mnt.display()
    );
    assert_eq!(
        fs::read_to_string(out.join("fstab")).expect("it came"),
        "/dev/vda / ext4\n"
    );
    assert_eq!(
        fs::read(out.join("srv/www/index")).expect("it came").len(),
        70_000
    );
    // Devices are root's to make, and the others come without them.
    sh!("cd {}/srv; test -p fifo; ! test -e null", out.display());
    // Shown to nobody as writable, the copy is its owner's.
    sh!(
        "setpriv --reuid 65534 --regid 65534 --clear-groups rm -r {}/srv",
        out.display()
    );
}

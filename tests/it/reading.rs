//! A point is a plain file: the tools that people have read it, and every one of them reads the same bytes.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use qmpfs_tests::bench::SIZE;
use qmpfs_tests::machine::{Attachment, Disk, Machine};
use qmpfs_tests::model::Dice;
use qmpfs_tests::mounted::Mounted;
use qmpfs_tests::scratch::Scratch;
use qmpfs_tests::{oracle, sh, wait};

/// A running disk with an ext4 filesystem of known files, and one point of it.
struct Reading {
    mount: Mounted,
    _machine: Machine,
    expected: PathBuf,
    files: PathBuf,
    scratch: Scratch,
}

impl Reading {
    fn new(name: &str) -> Self {
        let scratch = Scratch::new(name);
        let files = scratch.dir("files");
        sh!(
            "cd {}; for i in 1 2 3 4 5; do seq $i 2 90000 >numbers$i; done; mkdir sub; head -c 3000000 /dev/urandom >sub/noise; echo hello >hello",
            files.display()
        );
        let (raw, image) = (
            scratch.file("made.raw"),
            scratch.dir("images").join("web1.qcow2"),
        );
        sh!(
            "truncate -s {SIZE} {0}; mkfs.ext4 -q -d {1} {0}; qemu-img convert -f raw -O qcow2 {0} {2}; rm {0}",
            raw.display(),
            files.display(),
            image.display()
        );
        let machine = Machine::start(
            &scratch,
            "vm",
            Attachment::Blockdev,
            &[Disk::qcow2("vda", &image)],
        );
        let mount = Mounted::new(&scratch, &[machine.qmpfs_socket()], &[]);
        wait::until_true("the disk is in the mount", || mount.disk("vda").0.is_dir());
        mount.disk("vda").snapshot("before").make().expect("mkdir");
        // What the guest writes afterwards must not show.
        let mut guest = machine.nbd("vda");
        for offset in (0..SIZE).step_by(1 << 20) {
            guest
                .write(offset, &[0xee; 1 << 16])
                .expect("the guest writes");
        }
        let expected = scratch.file("expected.raw");
        oracle::convert(&scratch.dir("images").join("web1.before.qcow2"), &expected);
        Self {
            mount,
            _machine: machine,
            expected,
            files,
            scratch,
        }
    }

    fn view(&self) -> PathBuf {
        self.mount.disk("vda").snapshot("before").disk_raw()
    }

    fn is_complete(&self, copy: &Path) {
        oracle::assert_same(copy, &self.expected);
        std::fs::remove_file(copy).expect("our own copy");
    }
}

#[test]
fn copying_tools_copy_every_byte_and_keep_the_holes() {
    let r = Reading::new("reading-copy");
    let (view, copy) = (r.view(), r.scratch.file("copy.raw"));
    let (v, c) = (view.display(), copy.display());
    sh!("cmp {v} {}", r.expected.display());
    sh!("cp {v} {c}");
    assert!(oracle::allocated(&copy) < SIZE, "cp keeps the holes");
    r.is_complete(&copy);
    sh!("rsync -S {v} {c}");
    assert!(oracle::allocated(&copy) < SIZE, "rsync -S keeps the holes");
    r.is_complete(&copy);
    sh!("cat {v} >{c}");
    r.is_complete(&copy);
    sh!(
        "tar -C {} -Sc disk.raw | tar -xO >{c}",
        view.parent().expect("the point").display()
    );
    r.is_complete(&copy);
    for options in [
        "bs=4k",
        "bs=1M",
        "bs=12345",
        "bs=1M iflag=direct",
        "bs=64k conv=sparse",
    ] {
        sh!("dd if={v} of={c} status=none {options}");
        r.is_complete(&copy);
    }
}

#[test]
fn odd_pieces_and_the_end_of_the_file() {
    let r = Reading::new("reading-pieces");
    let (v, e) = (r.view(), r.expected.clone());
    for (skip, count) in [
        (0, 1),
        (511, 513),
        (65_535, 2),
        (1_048_575, 70_000),
        (SIZE - 1, 1),
        (SIZE - 3, 10),
        (SIZE, 1),
    ] {
        let piece = |file: &Path| {
            sh!(
                "dd if={} iflag=skip_bytes,count_bytes skip={skip} count={count} status=none | sha256sum",
                file.display()
            )
        };
        assert_eq!(piece(&v), piece(&e), "{count} bytes at {skip}");
    }
}

#[test]
fn many_readers_at_once_read_the_same() {
    let r = Reading::new("reading-many");
    std::thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| oracle::assert_same(&r.view(), &r.expected));
        }
    });
}

#[test]
fn debugfs_finds_the_files() {
    let r = Reading::new("reading-debugfs");
    assert_eq!(
        sh!("debugfs -R 'cat /hello' {} 2>/dev/null", r.view().display()),
        "hello"
    );
    let listed = sh!("debugfs -R 'ls -p /' {} 2>/dev/null", r.view().display());
    assert!(listed.contains("numbers5"), "{listed}");
}

#[test]
fn the_kernel_mounts_it() {
    if !sh::is_root() {
        eprintln!("left out: a loop mount needs root");
        return;
    }
    let r = Reading::new("reading-loop");
    let at = r.scratch.dir("loop");
    struct Unmount<'a>(&'a Path);
    impl Drop for Unmount<'_> {
        fn drop(&mut self) {
            sh::attempt(&format!("umount -l {}", self.0.display()));
        }
    }
    sh!(
        "mount -o loop,ro,noload {} {}",
        r.view().display(),
        at.display()
    );
    let mounted = Unmount(&at);
    sh!(
        "diff -r -x lost+found {} {}",
        r.files.display(),
        at.display()
    );
    drop(mounted);
    wait::until_true("the loop device lets go", || {
        !sh!("losetup -l -n -O BACK-FILE").contains(&*r.scratch.path().to_string_lossy())
    });
}

#[test]
fn the_program_reads_images_without_a_mount() {
    let scratch = Scratch::new("reading-cat");
    let (base, image, out) = (
        scratch.file("base.qcow2"),
        scratch.file("web1.qcow2"),
        scratch.file("out.raw"),
    );
    oracle::create(&base, SIZE);
    sh!(
        "qemu-io -f qcow2 -c 'write -P 7 3M 5M' {} >/dev/null",
        base.display()
    );
    oracle::create_overlay(&image, &base, SIZE);
    sh!(
        "qemu-io -f qcow2 -c 'write -P 9 6M 100k' {} >/dev/null",
        image.display()
    );
    sh!("qemu-img snapshot -c inside {}", image.display());
    sh!(
        "qemu-io -f qcow2 -c 'write -P 11 7M 64k' {} >/dev/null",
        image.display()
    );
    let program = qmpfs_tests::mounted::program().display();
    let expected = scratch.file("expected.raw");
    oracle::convert(&image, &expected);
    sh!("{program} cat {} >{}", image.display(), out.display());
    oracle::assert_same(&out, &expected);
    oracle::convert_internal(&image, "inside", &expected);
    sh!(
        "{program} cat {} --snapshot inside >{}",
        image.display(),
        out.display()
    );
    oracle::assert_same(&out, &expected);
    let line = format!(
        "{program} cat {} >/dev/null",
        scratch.file("absent.qcow2").display()
    );
    assert!(
        !sh::attempt(&line).status.success(),
        "exit 0 only if every byte is right"
    );
}

#[test]
fn an_image_cut_short_under_an_open_view_gives_an_error_and_the_mount_lives() {
    let r = Reading::new("reading-truncated");
    let view = std::fs::File::open(r.view()).expect("an open view");
    let sealed = r.scratch.dir("images").join("web1.before.qcow2");
    let length = sealed.metadata().expect("the layer").len();
    std::fs::File::options()
        .write(true)
        .open(&sealed)
        .expect("the layer")
        .set_len(length / 4)
        .expect("a truncation");
    let expected = std::fs::read(&r.expected).expect("the bytes before");
    let (mut failed, mut piece) = (0, vec![0; 1 << 18]);
    for at in (0..SIZE).step_by(piece.len()) {
        match view.read_exact_at(&mut piece, at) {
            Ok(()) => {
                let from = at as usize;
                assert!(
                    piece == expected[from..from + piece.len()],
                    "rather an error than a wrong byte, at {at}"
                );
            }
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::EIO));
                failed += 1;
            }
        }
    }
    assert!(failed > 0, "some of it is gone");
    assert_eq!(
        r.mount.json("vm.json")["connection"],
        "up",
        "the mount lives"
    );
}

/// A mount of `image`, and its view.
fn mounted_layer(
    scratch: &Scratch,
    format: &str,
    image: &Path,
    options: &[&str],
) -> (Mounted, PathBuf) {
    let overlay = scratch.file("overlay.qcow2");
    sh!(
        "qemu-img create -q -f qcow2 -b {} -F {format} {}",
        image.display(),
        overlay.display()
    );
    let options: Vec<&str> = ["-o", "ro"].iter().chain(options).copied().collect();
    let mount = Mounted::new(scratch, &[&overlay], &options);
    let view = mount.disk("overlay").layer(0).disk_raw();
    (mount, view)
}

/// Mixed data: half of it can be compressed, and no two clusters are the same.
fn make_mixed(raw: &Path) {
    sh!(
        "for i in $(seq 1 24); do seq $i 97 $((i * 3000000)) | head -c 700000; head -c 300000 /dev/urandom; done >{}",
        raw.display()
    );
    sh!("truncate -s {SIZE} {}", raw.display());
}

#[test]
fn compressed_layers_are_read_in_any_order_by_many_at_once() {
    for compression in ["zlib", "zstd"] {
        let scratch = Scratch::new(&format!("reading-{compression}"));
        let (raw, image) = (scratch.file("made.raw"), scratch.file("base.qcow2"));
        make_mixed(&raw);
        sh!(
            "qemu-img convert -c -O qcow2 -o compression_type={compression} {} {}",
            raw.display(),
            image.display()
        );
        let (_mount, view) = mounted_layer(&scratch, "qcow2", &image, &[]);
        let truth = std::fs::read(&raw).expect("what was made");
        std::thread::scope(|scope| {
            for reader in 1..=6 {
                let (view, truth) = (&view, &truth);
                scope.spawn(move || {
                    let file = std::fs::File::open(view).expect("the view");
                    // Each goes through the disk at a pace of its own, with a jump now and then.
                    let (mut at, mut dice) = (0, Dice::new(reader));
                    for _ in 0..200 {
                        if dice.below(17) == 0 {
                            at = dice.below(SIZE);
                        }
                        let length = dice.below(reader * 60_000) + 1;
                        let length = length.min(SIZE - at) as usize;
                        let mut piece = vec![0; length];
                        file.read_exact_at(&mut piece, at).expect("a read");
                        let from = at as usize;
                        assert!(
                            piece == truth[from..from + length],
                            "{length} bytes at {at}"
                        );
                        at = (at + length as u64) % SIZE;
                    }
                });
            }
        });
        oracle::assert_same(&view, &raw);
    }
}

#[test]
fn a_view_can_be_mapped() {
    let scratch = Scratch::new("reading-mapped");
    let (raw, image) = (scratch.file("made.raw"), scratch.file("base.qcow2"));
    make_mixed(&raw);
    sh!(
        "qemu-img convert -O qcow2 {} {}",
        raw.display(),
        image.display()
    );
    // Without the option kernels before 6.6 refuse it.
    let (_mount, view) = mounted_layer(&scratch, "qcow2", &image, &["-o", "kernel_cache"]);
    let file = std::fs::File::open(&view).expect("the view");
    // SAFETY: a new read-only mapping of an open file, and nobody cuts that.
    let mapped = unsafe {
        let start = libc::mmap(
            std::ptr::null_mut(),
            SIZE as usize,
            libc::PROT_READ,
            libc::MAP_SHARED,
            std::os::fd::AsRawFd::as_raw_fd(&file),
            0,
        );
        assert_ne!(start, libc::MAP_FAILED);
        std::slice::from_raw_parts(start.cast::<u8>(), SIZE as usize)
    };
    assert!(mapped == std::fs::read(&raw).expect("what was made"));
    // SAFETY: the mapping made above, which is not used any more.
    unsafe { libc::munmap(mapped.as_ptr().cast_mut().cast(), mapped.len()) };
}

#[test]
fn a_raw_layer_is_read_whoever_reads_it() {
    let scratch = Scratch::new("reading-raw");
    let raw = scratch.file("base.raw");
    make_mixed(&raw);
    {
        let (_mount, view) = mounted_layer(&scratch, "raw", &raw, &["-o", "passthrough"]);
        oracle::assert_same(&view, &raw);
        oracle::assert_same(&view, &raw);
    }
    let (mount, view) = mounted_layer(&scratch, "raw", &raw, &[]);
    oracle::assert_same(&view, &raw);
    let first = std::fs::File::open(&view).expect("the view");
    let second = std::fs::File::open(&view).expect("the view, again");
    let mut piece = [[0; 4096]; 2];
    first.read_exact_at(&mut piece[0], 12_345).expect("a read");
    second.read_exact_at(&mut piece[1], 12_345).expect("a read");
    assert_eq!(piece[0], piece[1]);
    drop((first, second));
    // Of an odd size: the last sector is filled up, which no file of the kernel's can be.
    sh!("truncate -s -77 {}", raw.display());
    wait::until_true("the view has the new bytes", || {
        std::fs::read(&view).is_ok_and(|bytes| {
            let end = bytes.len() - 77;
            bytes[..end] == std::fs::read(&raw).expect("the base")[..] && bytes[end..] == [0; 77]
        })
    });
    drop(mount);
}

#[test]
fn a_data_file_that_was_written_to_is_read_anew() {
    let scratch = Scratch::new("reading-data-file");
    let (image, data) = (scratch.file("base.qcow2"), scratch.file("data.raw"));
    sh!(
        "qemu-img create -q -f qcow2 -o data_file={} {} {SIZE}",
        data.display(),
        image.display()
    );
    let write = |byte: u8| {
        sh!(
            "qemu-io -f qcow2 -c 'write -P {byte} 1M 1M' {} >/dev/null",
            image.display()
        )
    };
    write(1);
    for options in [&[][..], &["-o", "kernel_cache"][..]] {
        let scratch = Scratch::new("reading-data-file-mount");
        let (_mount, view) = mounted_layer(&scratch, "qcow2", &image, options);
        for byte in [3, 4, 5] {
            write(byte);
            let bytes = std::fs::read(&view).expect("the view");
            assert_eq!(bytes[1 << 20], byte);
        }
    }
}

/// A program that opens files past the page cache asks for whole units of 4096 bytes, and QEMU ends where data ends in one.
#[track_caller]
fn is_read_past_the_page_cache(scratch: &Scratch, file: &Path, expected: &Path) {
    let copy = scratch.file("copy.raw");
    let (file, copied) = (file.display(), copy.display());
    sh!("qemu-img convert -T none -f raw -O raw {file} {copied}");
    sh!("cmp {copied} {}", expected.display());
    sh!(
        "cp --sparse=always {file} {copied}.cp; cmp {copied}.cp {}",
        expected.display()
    );
    let size = expected.metadata().expect("it is there").len();
    let ranges = oracle::data_ranges(Path::new(&file.to_string()));
    assert!(!ranges.is_empty(), "there is data");
    for range in &ranges {
        let is_whole = |at: u64| at.is_multiple_of(4096) || at == size;
        assert!(is_whole(range.start) && is_whole(range.end), "{ranges:?}");
    }
    assert!(
        ranges.iter().map(|it| it.end - it.start).sum::<u64>() < size,
        "holes are holes: {ranges:?}"
    );
}

#[test]
fn a_base_that_ends_within_a_unit_is_read_past_the_page_cache() {
    let scratch = Scratch::new("reading-units-base");
    let (base, image) = (scratch.file("base.raw"), scratch.file("middle.qcow2"));
    sh!(
        "head -c $((1000 * 512 + 7 * 512)) /dev/urandom >{0}; qemu-img create -q -f qcow2 -b {0} -F raw {1} 4M; \
         qemu-io -f qcow2 -c 'write -q -P 3 2M 64k' {1}",
        base.display(),
        image.display()
    );
    let (mount, _) = mounted_layer(&scratch, "qcow2", &image, &[]);
    let expected = scratch.file("expected.raw");
    oracle::convert(&image, &expected);
    let view = mount.disk("overlay").layer(1).disk_raw();
    is_read_past_the_page_cache(&scratch, &view, &expected);
}

#[test]
fn a_partition_that_begins_within_a_unit_is_read_past_the_page_cache() {
    let scratch = Scratch::new("reading-units-partition");
    let (raw, image) = (scratch.file("made.raw"), scratch.file("base.qcow2"));
    sh!(
        "truncate -s 16M {0}; printf 'label: dos\nstart=63,size=20001,type=83\n' | sfdisk -q --force {0}; \
         for at in 1 3 8; do dd if=/dev/urandom of={0} bs=64k seek=$((16 * at)) count=2 conv=notrunc status=none; done; \
         qemu-img convert -f raw -O qcow2 {0} {1}",
        raw.display(),
        image.display()
    );
    let (mount, _) = mounted_layer(&scratch, "qcow2", &image, &[]);
    let expected = scratch.file("expected.raw");
    sh!(
        "dd if={} of={} bs=512 skip=63 count=20001 status=none",
        raw.display(),
        expected.display()
    );
    let point = mount.disk("overlay").layer(0).0;
    is_read_past_the_page_cache(&scratch, &point.join("partitions/1.raw"), &expected);
}

#[test]
fn a_guests_file_whose_data_ends_within_a_unit_is_read_past_the_page_cache() {
    let scratch = Scratch::new("reading-units-guest");
    let (files, raw) = (scratch.dir("files"), scratch.file("made.raw"));
    let disk = files.join("disk");
    sh!(
        "truncate -s 200k {0}; for at in 5 30 31 90; do dd if=/dev/urandom of={0} bs=1k seek=$at count=1 conv=notrunc status=none; done; \
         truncate -s 16M {1}; mkfs.ext4 -q -b 1024 -d {2} {1}",
        disk.display(),
        raw.display(),
        files.display()
    );
    let (mount, _) = mounted_layer(&scratch, "raw", &raw, &[]);
    let point = mount.disk("overlay").layer(0).0;
    is_read_past_the_page_cache(&scratch, &point.join("files/0/disk"), &disk);
}

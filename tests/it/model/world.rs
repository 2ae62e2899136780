//! The real thing beside the reference: a storage daemon, a mount, and the guest's hands. Every step is done to both,
//! and then everything is compared. A difference is an error with words, so that the sequence can be shrunk.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use qmpfs_tests::faults::names;
use qmpfs_tests::machine::{Attachment, Disk, Machine};
use qmpfs_tests::mounted::Mounted;
use qmpfs_tests::nbd::Nbd;
use qmpfs_tests::oracle;
use qmpfs_tests::proxy::Proxy;
use qmpfs_tests::scratch::Scratch;
use qmpfs_tests::sh;
use qmpfs_tests::steps::{COMMANDS, Deed, FILES, Steps};
use qmpfs_tests::tree::{DiskDir, Point};
use qmpfs_tests::wait;

use super::reference::{Expected, Reference, name};
use super::step::{DISK, Fault, Guest, Policy, Setting, Step, Verb};

/// Every so many steps qemu-img says what the points are, too.
const ORACLE_EVERY: usize = 8;

pub(super) struct World {
    reference: Reference,
    hands: Option<Nbd>,
    mount: Mounted,
    machine: Machine,
    steps: Steps,
    dir: PathBuf,
    done: usize,
    scratch: Scratch,
}

macro_rules! ensure {
    ($condition:expr, $($words:tt)*) => {
        if !$condition {
            return Err(format!($($words)*));
        }
    };
}

impl World {
    pub(super) fn new(setting: Setting) -> Self {
        let scratch = Scratch::new("model");
        let dir = scratch.dir("images");
        let image = dir.join("web1.qcow2");
        sh!(
            "qemu-img create -q -f qcow2 -o cluster_size={} {} {DISK}",
            setting.cluster,
            image.display()
        );
        let disks = [Disk::qcow2("vda", &image)];
        let machine = Machine::start(&scratch, "vm", Attachment::StorageDaemon, &disks);
        let steps = Steps::new(&scratch);
        let proxy = Proxy::new(&scratch, machine.qmpfs_socket(), &steps);
        let options: &[&str] = match setting.policy {
            Policy::Auto => &[],
            Policy::Stream => &["-o", "merge=stream"],
            Policy::Commit => &["-o", "merge=commit"],
        };
        let environment = steps.environment(&dir);
        let mount = Mounted::in_environment(&scratch, &[proxy.socket()], options, environment);
        Self {
            reference: Reference::new(setting.policy),
            hands: Some(machine.nbd("vda")),
            mount,
            machine,
            steps,
            dir,
            done: 0,
            scratch,
        }
    }

    fn disk(&self) -> DiskDir {
        self.mount.disk("vda")
    }

    fn point(&self, verb: Verb) -> Point {
        let name = name(verb);
        match verb {
            Verb::Seal(_) | Verb::Remove(_) => self.disk().snapshot(&name),
            Verb::TakeInternal(_) | Verb::DeleteInternal(_) => self.disk().internal(&name),
        }
    }

    /// One step, to both, and the comparison.
    pub(super) fn take(&mut self, step: &Step) -> Result<(), String> {
        match *step {
            Step::Guest { what, at, length } => self.guest(what, at, length)?,
            Step::Do(verb) => self.verb(verb)?,
            Step::Interrupted { verb, at, fault } => self.interrupted(verb, at, fault)?,
            Step::Forbidden(which) => self.forbidden(which)?,
            Step::KillQmpfs => {
                self.mount.kill9();
                self.mount.mount_again();
            }
            Step::CutMonitor => {
                let connected = self.connections();
                self.steps.arm(COMMANDS, 0, Deed::CutBefore, [0, 0]);
                let point = self.disk().snapshot("never");
                let _ = point.make();
                let (fired, _) = self.steps.disarm();
                ensure!(fired, "no command was seen");
                self.connected_since(connected)?;
                self.settle()?;
                if point.exists() {
                    return Err("a verb that was cut before its first command was done".to_owned());
                }
            }
            Step::RestartDaemon => self.restart(false)?,
            Step::KillDaemon => self.restart(true)?,
            Step::Unmount => {
                self.mount.unmount();
                self.mount.mount_again();
            }
        }
        self.done += 1;
        self.settle()?;
        self.compare()
    }

    fn guest(&mut self, what: Guest, at: u32, length: u32) -> Result<(), String> {
        let hands = self.hands.as_mut().expect("the disk runs");
        let (offset, count) = (u64::from(at), length as usize);
        let range = at as usize..at as usize + count;
        let told = |e: io::Error| format!("the guest's {what:?} at {at}: {e}");
        match what {
            Guest::Write(byte) => {
                let bytes: Vec<u8> = (0..count)
                    .map(|i| byte.wrapping_add((i / 512) as u8))
                    .collect();
                hands.write(offset, &bytes).map_err(told)?;
                self.reference.disk[range].copy_from_slice(&bytes);
            }
            Guest::ZeroesAsHole => {
                hands.write_zeroes(offset, count).map_err(told)?;
                self.reference.disk[range].fill(0);
            }
            Guest::ZeroesAsData => {
                hands.write_zeroes_as_data(offset, count).map_err(told)?;
                self.reference.disk[range].fill(0);
            }
            Guest::Trim => {
                hands.trim(offset, count).map_err(told)?;
                // each byte is what it was, or zero: the disk's choice
                let mut now = vec![0; count];
                hands.read(offset, &mut now).map_err(told)?;
                let before = &mut self.reference.disk[range];
                let kept = before.iter().zip(&now).all(|(b, n)| n == b || *n == 0);
                ensure!(kept, "a trim at {at} left bytes that were never there");
                before.copy_from_slice(&now);
            }
        }
        Ok(())
    }

    /// Does the verb, and waits for the work that it began.
    fn call(&self, verb: Verb) -> io::Result<()> {
        let point = self.point(verb);
        match verb {
            Verb::Seal(_) | Verb::TakeInternal(_) => point.make(),
            Verb::DeleteInternal(_) => point.delete(),
            Verb::Remove(_) => {
                point.delete()?;
                let _ = self.disk().wait();
                Ok(())
            }
        }
    }

    fn verb(&mut self, verb: Verb) -> Result<(), String> {
        let expected = self.reference.expects(verb);
        let answer = self.call(verb);
        match (&expected, &answer) {
            (Expected::Done, Ok(())) => {
                self.reference.done(verb);
                Ok(())
            }
            (Expected::Refused(errnos), Err(error))
                if error.raw_os_error().is_some_and(|e| errnos.contains(&e)) =>
            {
                Ok(())
            }
            _ => Err(format!(
                "{verb:?} answered {answer:?}, expected {expected:?}"
            )),
        }
    }

    /// The verb, with something going wrong at one of its steps: it is done, or was never begun.
    fn interrupted(&mut self, verb: Verb, at: u8, fault: Fault) -> Result<(), String> {
        if self.reference.expects(verb) != Expected::Done {
            return self.verb(verb);
        }
        let (kinds, deed) = match fault {
            Fault::KillBefore => (FILES | COMMANDS, Deed::KillBefore),
            Fault::KillAfter => (FILES | COMMANDS, Deed::KillAfter),
            Fault::Cut => (COMMANDS, Deed::CutAfter),
            Fault::Fail => (FILES | COMMANDS, Deed::Fail(libc::EIO.unsigned_abs())),
        };
        let connected = self.connections();
        let victims = [self.mount.pid(), 0];
        self.steps.arm(kinds, usize::from(at), deed, victims);
        let answer = self.call(verb);
        let (fired, seen) = self.steps.disarm();
        let killed = fired && matches!(fault, Fault::KillBefore | Fault::KillAfter);
        if killed {
            self.mount.kill9();
            self.mount.mount_again();
        } else if fired && fault == Fault::Cut {
            self.connected_since(connected)?;
        }
        self.settle()?;
        let there = self.point(verb).exists();
        let done = match verb {
            Verb::Seal(_) | Verb::TakeInternal(_) => there,
            Verb::Remove(_) | Verb::DeleteInternal(_) => !there,
        };
        let last = seen.last().cloned().unwrap_or_default();
        ensure!(
            fired || (answer.is_ok() && done),
            "{verb:?} was not disturbed, and answered {answer:?}"
        );
        if done {
            self.reference.done(verb);
        } else {
            let merged = matches!(verb, Verb::Remove(_));
            ensure!(
                answer.is_err() || merged,
                "{verb:?} with {fault:?} at {last} answered and was not done"
            );
        }
        Ok(())
    }

    fn forbidden(&self, which: u8) -> Result<(), String> {
        let disk = self.disk();
        let long = "x".repeat(129);
        let (result, allowed): (io::Result<()>, &[i32]) = match which {
            0 => (disk.snapshot("-x").make(), &[libc::EINVAL]),
            1 => (disk.snapshot("a b").make(), &[libc::EINVAL]),
            2 => (disk.snapshot(&long).make(), &[libc::EINVAL]),
            3 => (disk.internal(".x").make(), &[libc::EINVAL]),
            4 => (fs::create_dir(disk.0.join("x")), &[libc::EPERM]),
            5 => (
                fs::write(disk.0.join("disk.json"), "{}"),
                &[libc::EPERM, libc::EROFS, libc::EACCES],
            ),
            6 => (fs::create_dir(disk.0.join("jobs/x")), &[libc::EPERM]),
            _ => (
                fs::rename(disk.0.join("chain.txt"), disk.0.join("x")),
                &[libc::EPERM, libc::EROFS, libc::ENOSYS, libc::EINVAL],
            ),
        };
        let errno = result.as_ref().err().and_then(io::Error::raw_os_error);
        ensure!(
            errno.is_some_and(|e| allowed.contains(&e)),
            "forbidden {which} answered {result:?}"
        );
        Ok(())
    }

    /// The VM is started again: told to quit, or killed when all was flushed.
    fn restart(&mut self, killed: bool) -> Result<(), String> {
        let connected = self.connections();
        if killed {
            let hands = self.hands.as_mut().expect("the disk runs");
            hands.flush().expect("the guest can flush");
            self.machine.kill9();
            self.hands = None;
        } else {
            self.hands = None;
            self.machine.quit();
        }
        self.machine.start_again();
        self.hands = Some(self.machine.nbd("vda"));
        self.reference.root_is_ours = false;
        self.connected_since(connected)
    }

    /// How often the program has found QEMU again.
    fn connections(&self) -> usize {
        self.log().matches("QEMU is connected").count()
    }

    fn connected_since(&self, before: usize) -> Result<(), String> {
        let again = || (self.connections() > before).then_some(());
        wait::poll(wait::PATIENCE, again).ok_or_else(|| "it does not connect again".to_owned())
    }

    /// Waits until the program has put everything right by itself.
    fn settle(&self) -> Result<(), String> {
        let mut last = String::new();
        let settled = wait::poll(wait::PATIENCE, || {
            last = self.unsettled();
            last.is_empty().then_some(())
        });
        settled.ok_or_else(|| format!("not settled: {last}\n{}", self.log()))
    }

    fn unsettled(&self) -> String {
        let vm = fs::read_to_string(self.mount.path().join("vm.json")).unwrap_or_default();
        if !vm.contains("\"up\"") {
            return "not connected".to_owned();
        }
        let Ok(jobs) = fs::read_dir(self.disk().0.join("jobs")) else {
            return "the disk is not there".to_owned();
        };
        if let Some(job) = jobs.flatten().next() {
            let error = fs::read_to_string(job.path().join("error"));
            if error.is_ok_and(|error| !error.trim().is_empty()) {
                let _ = fs::remove_dir(job.path()); // as a person does who has read it
            }
            return format!("a job: {}", job.path().display());
        }
        for name in names(&self.dir) {
            let marks = oracle::marks(&self.dir.join(&name));
            if marks.iter().any(|mark| mark != "point") {
                return format!("{name} is marked {marks:?}");
            }
        }
        // until then the disk is held, and shown as it was
        let log = self.log();
        let count = |words: &str| log.matches(words).count();
        if count("the outcome is not known yet") > count("disk 'vda': settled") {
            return "an outcome is not known yet".to_owned();
        }
        let listed = self.disk().list("snapshots");
        let files = names(&self.dir)
            .into_iter()
            .filter(|name| name.starts_with("web1.s"));
        let files: Vec<String> = files
            .map(|name| name[5..name.len() - 6].to_owned())
            .collect();
        if listed != files {
            return format!("points {listed:?}, and files {files:?}");
        }
        String::new()
    }

    fn compare(&mut self) -> Result<(), String> {
        let disk = self.disk();
        let (snapshots, internals) = (disk.list("snapshots"), disk.list("internal"));
        ensure!(
            snapshots == self.reference.snapshots(),
            "snapshots are {snapshots:?}, expected {:?}",
            self.reference.snapshots()
        );
        ensure!(
            internals == self.reference.internals(),
            "internal are {internals:?}, expected {:?}",
            self.reference.internals()
        );
        let mut now = vec![0; self.reference.disk.len()];
        let hands = self.hands.as_mut().expect("the disk runs");
        hands
            .read(0, &mut now)
            .map_err(|e| format!("the guest reads: {e}"))?;
        same("the running disk", &now, &self.reference.disk)?;
        let asks_the_oracle = self.done.is_multiple_of(ORACLE_EVERY);
        for point in &self.reference.sealed {
            let view = disk.snapshot(&point.name).disk_raw();
            same(&point.name, &read(&view)?, &point.bytes)?;
            if asks_the_oracle {
                let raw = self.scratch.file("oracle.raw");
                oracle::convert(&self.sealed(&point.name), &raw);
                same(
                    &format!("{} by qemu-img", point.name),
                    &read(&raw)?,
                    &point.bytes,
                )?;
            }
        }
        for inside in &self.reference.inside {
            let view = disk.internal(&inside.kept.name).disk_raw();
            same(&inside.kept.name, &read(&view)?, &inside.kept.bytes)?;
        }
        self.files()
    }

    fn sealed(&self, name: &str) -> PathBuf {
        self.dir.join(format!("web1.{name}.qcow2"))
    }

    /// The chain in the headers, and no file too many.
    fn files(&self) -> Result<(), String> {
        let active = self.dir.join("web1.qcow2");
        let sealed = self.reference.sealed.iter().rev();
        let sealed = sealed.map(|point| self.sealed(&point.name));
        let expected: Vec<PathBuf> = std::iter::once(active.clone()).chain(sealed).collect();
        let chain = oracle::chain(&active);
        ensure!(
            chain == expected,
            "the chain is {chain:?}, expected {expected:?}"
        );
        let is_alias = |name: &String| name.starts_with(".web1.qcow2.") && name.len() == 24;
        let stray: Vec<String> = names(&self.dir)
            .into_iter()
            .filter(|name| !expected.contains(&self.dir.join(name)))
            .collect();
        ensure!(
            stray.len() <= 1 && stray.iter().all(is_alias),
            "stray files: {stray:?}\n{}",
            self.log()
        );
        Ok(())
    }

    fn log(&self) -> String {
        fs::read_to_string(self.mount.path().join("log")).unwrap_or_default()
    }

    /// The last questions: all off, the images sound, the boot path holds the disk.
    pub(super) fn end(mut self) -> Result<(), String> {
        self.hands = None;
        self.machine.quit();
        let active = self.dir.join("web1.qcow2");
        for image in oracle::chain(&active) {
            oracle::check_after_a_fall(&image);
        }
        let raw = self.scratch.file("end.raw");
        oracle::convert(&active, &raw);
        same("the disk, switched off", &read(&raw)?, &self.reference.disk)?;
        self.mount.unmount();
        Ok(())
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|e| format!("{}: {e}", path.display()))
}

fn same(what: &str, found: &[u8], expected: &[u8]) -> Result<(), String> {
    ensure!(
        found.len() == expected.len(),
        "{what} has {} bytes",
        found.len()
    );
    match found.iter().zip(expected).position(|(a, b)| a != b) {
        None => Ok(()),
        Some(at) => Err(format!(
            "{what}: byte {at} is {:#04x}, expected {:#04x}",
            found[at], expected[at]
        )),
    }
}

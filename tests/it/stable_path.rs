//! The design itself, step by step and without qmpfs: random seals, streams, commits and restarts by the test's own
//! monitor, beside a writer, with every byte read after every single step. It is what qmpfs does, written down once more,
//! so that a new QEMU is asked whether it still holds.

use std::fs;
use std::path::{Path, PathBuf};

use qmpfs_tests::machine::{Attachment, Disk, Machine};
use qmpfs_tests::model::{BLOCK, Dice, Model, STEP, fill, first_wrong};
use qmpfs_tests::nbd::Nbd;
use qmpfs_tests::oracle;
use qmpfs_tests::qmp::Graph;
use qmpfs_tests::scratch::Scratch;
use qmpfs_tests::sh;
use qmpfs_tests::writer::Writer;
use serde_json::{Value, json};

const WRITERS: u64 = 4 << 20;
const SIZE: u64 = 6 << 20;

over_attachments!(holds_through_a_random_walk => |name, attachment| walk(name, attachment, 16));

#[test]
fn holds_with_auto_read_only() {
    walk("path-aro", Attachment::BlockdevAutoReadOnly, 16);
}

fn walk(name: &str, attachment: Attachment, steps: u64) {
    let mut path = StablePath::new(name, attachment);
    let mut dice = Dice::new(name.len() as u64 * 31);
    for step in 0..steps {
        if path.points.is_empty() || dice.below(100) < 45 {
            path.seal(&format!("n{step}"));
        } else {
            let victim = usize::try_from(dice.below(path.points.len() as u64)).expect("small");
            path.remove(victim, dice.below(2) == 0);
        }
        path.verify_points();
        if dice.below(100) < 15 {
            path.restart();
        }
    }
    path.restart();
}

struct StablePath {
    writer: Option<Writer>,
    hands: Option<Nbd>,
    machine: Machine,
    model: Model,
    writes: u64,
    dice: Dice,
    /// Name, and what the disk held, oldest first.
    points: Vec<(String, Model)>,
    /// The hidden name under which QEMU has the active layer open; None while that is the path itself.
    alias: Option<PathBuf>,
    names: u64,
    active: PathBuf,
    scratch: Scratch,
}

impl StablePath {
    fn new(name: &str, attachment: Attachment) -> Self {
        let scratch = Scratch::new(name);
        let active = scratch.file("disk.qcow2");
        oracle::create(&active, SIZE);
        let machine = Machine::start(&scratch, "vm", attachment, &[Disk::qcow2("vda", &active)]);
        let hands = Some(machine.nbd("vda"));
        let writer = Some(Writer::start(
            &machine.endpoint("vda"),
            WRITERS..SIZE,
            Model::default(),
            1,
        ));
        let (model, points) = (Model::default(), Vec::new());
        let dice = Dice::new(9);
        Self {
            writer,
            hands,
            machine,
            model,
            writes: 0,
            dice,
            points,
            alias: None,
            names: 0,
            active,
            scratch,
        }
    }

    fn run(&mut self, command: &str, arguments: Value) {
        self.machine.qmp.run(command, arguments);
        self.check(command);
    }

    /// Everything that was written is read again.
    fn check(&mut self, after: &str) {
        let writer = self.writer.as_ref().expect("the writer runs");
        writer.step(after);
        writer.check();
        let mut block = vec![0; BLOCK];
        for offset in (0..WRITERS).step_by(BLOCK) {
            self.hands
                .as_mut()
                .expect("the disk runs")
                .read(offset, &mut block)
                .expect("a read");
            let wrong = first_wrong(&block, offset, self.model.at(offset));
            assert!(
                wrong.is_none(),
                "wrong byte {wrong:?} of the block at {offset} after {after}"
            );
        }
    }

    fn write(&mut self) {
        let mut block = vec![0; BLOCK];
        for _ in 0..3 {
            let offset = self.dice.below(WRITERS / STEP) * STEP;
            self.writes += 1;
            fill(&mut block, offset, self.writes);
            self.hands
                .as_mut()
                .expect("the disk runs")
                .write(offset, &block)
                .expect("a write");
            self.model.0.insert(offset, self.writes);
        }
    }

    fn new_name(&mut self, what: &str) -> String {
        self.names += 1;
        format!("q{what}{}", self.names)
    }

    fn sealed(&self, point: &str) -> PathBuf {
        self.scratch.file(&format!("disk.{point}.qcow2"))
    }

    fn new_alias(&mut self) -> PathBuf {
        self.names += 1;
        self.scratch
            .file(&format!(".disk.qcow2.{:012x}", self.names))
    }

    fn graph(&mut self) -> Graph {
        Graph::of(&mut self.machine.qmp)
    }

    fn vm(&mut self, command: &str) {
        if self.machine.attachment().is_vm() {
            self.machine.qmp.run(command, json!({}));
        }
    }

    fn add(&mut self, image: &Path, backing: Value, read_only: bool) -> String {
        let (file, node) = (self.new_name("f"), self.new_name("n"));
        self.run(
            "blockdev-add",
            json!({"driver": "file", "node-name": file, "filename": image, "auto-read-only": true}),
        );
        let mut options =
            json!({"driver": "qcow2", "node-name": node, "file": file, "backing": backing});
        if read_only {
            options["read-only"] = true.into();
        }
        self.run("blockdev-add", options);
        node
    }

    fn set_backing(&mut self, node: &str, backing: &str, read_only: bool) {
        let file = self.graph().child(node, "file");
        let mut options =
            json!({"driver": "qcow2", "node-name": node, "file": file, "backing": backing});
        if read_only {
            options["read-only"] = true.into();
        }
        self.run("blockdev-reopen", json!({"options": [options]}));
    }

    fn drop_node(&mut self, node: &str) {
        let file = self.graph().child(node, "file");
        for name in [Some(node.to_owned()), file]
            .into_iter()
            .flatten()
            .filter(|n| !n.starts_with('#'))
        {
            self.run("blockdev-del", json!({"node-name": name}));
        }
    }

    fn seal(&mut self, point: &str) {
        let (sealed, alias) = (self.sealed(point), self.new_alias());
        let root = self.graph().chain().remove(0);
        sh!(
            "qemu-img create -q -u -f qcow2 -b {} -F qcow2 {} {SIZE}",
            sealed.display(),
            alias.display()
        );
        fs::hard_link(&self.active, &sealed).expect("the sealed layer's name");
        let first = self.alias.is_none();
        if first {
            self.vm("stop");
        } else {
            replace(&alias, &self.active);
        }
        let overlay = self.add(&alias, Value::Null, false);
        self.run(
            "blockdev-snapshot",
            json!({"node": root, "overlay": overlay}),
        );
        let below = self.graph().child(&root, "backing");
        let fresh = self.add(&sealed, below.map_or(Value::Null, Value::String), true);
        self.set_backing(&overlay, &fresh, false);
        if self.graph().has(&root) {
            self.drop_node(&root);
        }
        if first {
            replace(&alias, &self.active);
            self.vm("cont");
        }
        if let Some(old) = self.alias.replace(alias) {
            fs::remove_file(old).expect("the old alias");
        }
        self.points.push((point.to_owned(), self.model.clone()));
        self.write();
        self.check("seal");
    }

    /// Below a named root, nodes with names of ours for the whole chain: needed after each start of the machine.
    fn adopt(&mut self) {
        let chain = self.graph().chain();
        if chain[0].starts_with('#') || chain.iter().all(|n| !n.starts_with('#')) {
            return;
        }
        let mut below = Value::Null;
        for point in self
            .points
            .iter()
            .map(|(name, _)| name.clone())
            .collect::<Vec<_>>()
        {
            below = self.add(&self.sealed(&point), below, true).into();
        }
        self.set_backing(&chain[0], below.as_str().expect("a point"), false);
        // Two nodes on one file lock each other out; those that QEMU named itself go by themselves.
        for old in chain[1..].iter().filter(|n| !n.starts_with('#')) {
            self.drop_node(old);
        }
    }

    fn job(&mut self, command: &str, mut arguments: Value) {
        let id = self.new_name("job");
        arguments["job-id"] = id.clone().into();
        arguments["auto-dismiss"] = false.into();
        self.machine.qmp.run(command, arguments.clone());
        if command == "block-commit" && arguments.get("top-node").is_none() {
            self.machine.qmp.until_job(&id, "ready");
            self.write();
            self.vm("stop");
            self.machine.qmp.run("job-complete", json!({"id": id}));
        }
        self.machine.qmp.until_job(&id, "concluded");
        self.run("job-dismiss", json!({"id": id}));
    }

    fn remove(&mut self, victim: usize, stream: bool) {
        self.adopt();
        let chain: Vec<String> = self.graph().chain().into_iter().rev().collect();
        let (node, upper) = (chain[victim].clone(), chain[victim + 1].clone());
        let (point, _) = self.points[victim].clone();
        let sealed = self.sealed(&point);
        let top = victim + 1 == self.points.len();
        let below = self
            .graph()
            .child(&node, "backing")
            .map_or(Value::Null, Value::String);
        let root = chain[chain.len() - 1].clone();
        if stream || root.starts_with('#') {
            let mut arguments = json!({"device": upper});
            if victim > 0 {
                arguments["base-node"] = below;
                arguments["backing-file"] = json!(self.sealed(&self.points[victim - 1].0.clone()));
            }
            self.job("block-stream", arguments);
            if self.graph().has(&node) {
                self.drop_node(&node);
            }
        } else if top {
            self.commit_active(&node, &upper, &sealed, below);
        } else {
            let arguments = json!({"device": root, "top-node": upper, "base-node": node, "backing-file": sealed});
            self.job("block-commit", arguments);
            self.drop_node(&upper);
            let (above, upper_file) = (
                chain[victim + 2].clone(),
                self.sealed(&self.points[victim + 1].0.clone()),
            );
            replace(&sealed, &upper_file);
            let change =
                json!({"device": root, "image-node-name": above, "backing-file": upper_file});
            self.run("change-backing-file", change);
            let fresh = self.add(&upper_file, below, true);
            self.set_backing(&above, &fresh, above != root);
            self.drop_node(&node);
        }
        fs::remove_file(&sealed).expect("the removed point's file");
        self.points.remove(victim);
        self.write();
        self.check("remove");
    }

    fn commit_active(&mut self, node: &str, upper: &str, sealed: &Path, below: Value) {
        let alias = self.new_alias();
        fs::hard_link(sealed, &alias).expect("a hidden name");
        let fresh = self.add(&alias, below, true);
        self.set_backing(upper, &fresh, false);
        self.drop_node(node);
        self.job("block-commit", json!({"device": upper, "base-node": fresh}));
        replace(&alias, &self.active);
        self.vm("cont");
        self.drop_node(upper);
        if let Some(old) = self.alias.replace(alias) {
            fs::remove_file(old).expect("the old alias");
        }
    }

    fn verify_points(&mut self) {
        let raw = self.scratch.file("point.raw");
        for (point, model) in &self.points {
            oracle::convert(&self.sealed(point), &raw);
            model.assert_holds(&raw, 0..WRITERS);
        }
        assert_eq!(oracle::chain(&self.active).len(), self.points.len() + 1);
    }

    fn restart(&mut self) {
        let written = self.writer.take().expect("the writer runs").stop();
        self.hands = None;
        self.machine.quit();
        for image in oracle::chain(&self.active) {
            oracle::check(&image);
        }
        let raw = self.scratch.file("all.raw");
        oracle::convert(&self.active, &raw);
        self.model.assert_holds(&raw, 0..WRITERS);
        written.assert_holds(&raw, WRITERS..SIZE);
        if let Some(alias) = self.alias.take() {
            fs::remove_file(alias).expect("the alias nobody has open");
        }
        self.machine.start_again();
        self.hands = Some(self.machine.nbd("vda"));
        self.writer = Some(Writer::start(
            &self.machine.endpoint("vda"),
            WRITERS..SIZE,
            written,
            2,
        ));
        self.check("restart");
    }
}

/// `to` becomes another name of `from`'s inode, atomically; `from` stays.
fn replace(from: &Path, to: &Path) {
    let between = from.with_extension("new");
    fs::hard_link(from, &between).expect("a name between");
    fs::rename(between, to).expect("the new name");
}

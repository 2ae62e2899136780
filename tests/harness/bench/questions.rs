//! The questions that the bench asks after each verb.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{Bench, SIZE, WRITERS};
use crate::faults::names;
use crate::model::{BLOCK, Model, describe, first_wrong};
use crate::oracle;

impl Bench {
    /// All questions.
    #[track_caller]
    pub fn verify(&mut self) {
        self.writer().progress(5);
        self.verify_points();
        self.verify_disk();
        self.verify_files();
    }

    /// Whether the points in the mount are those that were made.
    pub fn lists_every_point(&self) -> bool {
        self.disk().list("snapshots") == self.made()
    }

    fn made(&self) -> Vec<String> {
        let mut made: Vec<_> = self.points.iter().map(|p| p.name.clone()).collect();
        made.sort();
        made
    }

    /// Every point shows the bytes of its instant, and there is no other.
    #[track_caller]
    pub fn verify_points(&self) {
        assert_eq!(
            self.disk().list("snapshots"),
            self.made(),
            "the points in the mount"
        );
        for point in &self.points {
            oracle::assert_same(&self.point(&point.name).disk_raw(), &point.bytes);
        }
        if let Some(writer) = &self.writer {
            writer.check();
        }
    }

    /// The running disk holds every byte that was written.
    #[track_caller]
    pub fn verify_disk(&mut self) {
        let hands = self.hands.as_mut().expect("the disk runs");
        let mut block = vec![0; BLOCK];
        for offset in (0..WRITERS).step_by(BLOCK) {
            hands.read(offset, &mut block).expect("the guest can read");
            let wanted = self.model.at(offset);
            if let Some(at) = first_wrong(&block, offset, wanted) {
                panic!(
                    "byte {}: wanted write {wanted}, got {}",
                    offset + at as u64,
                    describe(&block, offset)
                );
            }
        }
        self.writer().check();
    }

    /// The chain in the headers is the points' files under the active path, and nothing else lies about.
    #[track_caller]
    pub fn verify_files(&self) {
        let sealed = self.chain_of(self.top.as_deref()).into_iter();
        let expected: Vec<PathBuf> = std::iter::once(self.active())
            .chain(sealed.map(|name| self.sealed(name)))
            .chain(self.below.iter().cloned())
            .collect();
        assert_eq!(
            oracle::chain(&self.active()),
            expected,
            "the chain on the disk"
        );

        let mut stray: Vec<String> = names(&self.dir);
        let is_point = |path: &PathBuf| self.points.iter().any(|p| self.sealed(&p.name) == *path);
        stray.retain(|name| {
            let path = self.dir.join(name);
            !expected.contains(&path) && !is_point(&path)
        });
        let aliases = stray.iter().filter(|n| is_alias(n)).count();
        assert!(
            stray.len() == aliases && aliases <= 1,
            "stray files: {stray:?}"
        );
    }

    /// How many hidden names there are beside the active path.
    pub fn hidden_names(&self) -> usize {
        names(&self.dir)
            .iter()
            .filter(|name| is_alias(name))
            .count()
    }

    /// Whether nothing of a verb is left over: no job, no node without a use, no name that is not its node's own
    /// file, no mark on a file but the points' own, no guest that stands still. Says what there is.
    pub fn left_over(&mut self) -> Result<(), String> {
        let qmp = &mut self.machine.qmp;
        let jobs = qmp.run("query-jobs", json!({}));
        if jobs != json!([]) {
            return Err(format!("jobs: {jobs}"));
        }
        if self.machine.attachment().is_vm() {
            let status = self.machine.qmp.run("query-status", json!({}));
            if status["running"] != true {
                return Err(format!("the VM stands still: {status}"));
            }
        }
        self.idle_nodes()?;
        self.wrong_names()?;
        for name in names(&self.dir) {
            let path = self.dir.join(&name);
            let is_point = self.points.iter().any(|p| self.sealed(&p.name) == path);
            let allowed: &[&str] = if is_point { &["point"] } else { &[] };
            let marks = oracle::marks(&path);
            if marks.iter().any(|mark| !allowed.contains(&mark.as_str())) {
                return Err(format!("{name} is marked {marks:?}"));
            }
        }
        Ok(())
    }

    /// Files that carry a mark of work that is not finished.
    pub fn work_written_down(&self) -> Vec<String> {
        let mut marked = names(&self.dir);
        marked.retain(|name| {
            let marks = oracle::marks(&self.dir.join(name));
            marks.iter().any(|mark| mark != "point")
        });
        marked
    }

    /// All that is left is the note of a freeze that is over and could not be taken back: the next mount does it.
    pub fn waits_for_a_mount(&self) -> bool {
        let marked = self.work_written_down();
        let noted = |name: &String| {
            let marks = oracle::marks(&self.dir.join(name));
            marks.iter().all(|mark| mark == "freeze" || mark == "point")
        };
        !marked.is_empty() && marked.iter().all(noted)
    }

    /// A commit has ended, but QEMU was started in between and knows the file by its old name until it is started again.
    pub fn waits_for_a_start(&self) -> bool {
        let marked = self.work_written_down();
        let waits = |name: &String| {
            let mark = oracle::mark(&self.dir.join(name), "merge").unwrap_or_default();
            String::from_utf8_lossy(&mark).contains("\"verb\":\"rename\"")
        };
        !marked.is_empty() && marked.iter().all(waits)
    }

    /// Nodes that qmpfs added and that nobody uses.
    fn idle_nodes(&mut self) -> Result<(), String> {
        let graph = self.machine.qmp.run("x-debug-query-block-graph", json!({}));
        let all = |kind: &str| graph[kind].as_array().cloned().unwrap_or_default();
        let edges = all("edges");
        let used = |id: &Value| edges.iter().any(|edge| edge["child"] == *id);
        for node in all("nodes") {
            let name = node["name"].as_str().unwrap_or_default();
            if name.starts_with("qmpfs-") && !used(&node["id"]) {
                return Err(format!("an idle node: {node}"));
            }
        }
        Ok(())
    }

    /// I1: the file name of every node names a file that QEMU has open.
    fn wrong_names(&mut self) -> Result<(), String> {
        let id = |path: &Path| path.metadata().map(|m| (m.dev(), m.ino())).ok();
        let held = std::fs::read_dir(format!("/proc/{}/fd", self.machine.pid()));
        let held: Vec<_> = held
            .map_err(|e| e.to_string())?
            .filter_map(|fd| id(&fd.ok()?.path()))
            .collect();
        let flat = json!({"flat": true});
        let nodes = self.machine.qmp.run("query-named-block-nodes", flat);
        for node in nodes.as_array().into_iter().flatten() {
            let name = node["image"]["filename"].as_str().unwrap_or_default();
            if node["drv"] == "file" && id(Path::new(name)).is_none_or(|id| !held.contains(&id)) {
                return Err(format!("{name} is not what QEMU has open for {node}"));
            }
        }
        Ok(())
    }

    #[track_caller]
    pub(super) fn inspect_while_off(&self, written: &Model) {
        // a template may be of any format, and is nobody's to check
        let qcow2 = |image: &PathBuf| {
            !self.below.contains(image) || image.extension().is_some_and(|it| it == "qcow2")
        };
        for image in oracle::chain(&self.active()).into_iter().filter(qcow2) {
            if self.has_fallen {
                oracle::check_after_a_fall(&image);
            } else {
                oracle::check(&image);
            }
        }
        let all = self.scratch.file("all.raw");
        oracle::convert(&self.active(), &all);
        self.model.assert_holds(&all, 0..WRITERS);
        written.assert_holds(&all, WRITERS..SIZE);
    }
}

/// `.web1.qcow2.<12 hex>`: the second name under which QEMU has the active layer open.
fn is_alias(name: &str) -> bool {
    let hex = name.strip_prefix(".web1.qcow2.");
    hex.is_some_and(|h| h.len() == 12 && h.bytes().all(|b| b.is_ascii_hexdigit()))
}

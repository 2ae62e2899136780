//! The plan of a fault: at which step of a verb, and what. Steps are the file operations of qmpfs in the directory of the
//! images (seen by the library that [`Steps::environment`] loads into it) and the QMP commands that change something
//! (seen by [`crate::proxy`]), in one count.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::mounted::program;
use crate::scratch::{Scratch, profile_dir};

#[path = "../shim/src/plan.rs"]
mod plan;

pub use plan::{COMMANDS, Deed, FILES};

/// A plan; its copies are the same plan.
#[derive(Clone)]
pub struct Steps {
    plan: &'static plan::Plan,
    file: PathBuf,
}

impl std::fmt::Debug for Steps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Steps").field(&self.file).finish()
    }
}

impl Steps {
    /// A plan in which nothing happens yet.
    pub fn new(scratch: &Scratch) -> Self {
        let file = scratch.file("plan");
        std::fs::write(&file, vec![0; size_of::<plan::Plan>()]).expect("a file for the plan");
        let path = CString::new(file.as_os_str().as_bytes()).expect("a path without NUL");
        let plan = plan::Plan::map(&path).expect("the plan can be mapped");
        Self { plan, file }
    }

    /// What qmpfs is started with, so that its operations in `images` are steps.
    pub fn environment(&self, images: &Path) -> Vec<(&'static str, PathBuf)> {
        program(); // building it builds the library
        let library = profile_dir().join("libqmpfs_tests_shim.so");
        assert!(library.exists(), "{} is missing", library.display());
        vec![
            ("LD_PRELOAD", library),
            ("QMPFS_TEST_PLAN", self.file.clone()),
            (
                "QMPFS_TEST_IMAGES",
                images.canonicalize().expect("the images' directory"),
            ),
        ]
    }

    /// From now on: `deed` at step `number`, counted from 0, of these kinds. Victims are process ids; 0 is nobody.
    pub fn arm(&self, kinds: u32, number: usize, deed: Deed, victims: [u32; 2]) {
        let number = u32::try_from(number).expect("few steps");
        self.plan.arm(kinds, number, deed, victims);
    }

    /// Lets everything pass again. Gives whether it came to the deed, and the steps seen.
    pub fn disarm(&self) -> (bool, Vec<String>) {
        let seen = (self.plan.fired(), self.plan.steps());
        self.plan.disarm();
        seen
    }

    /// The steps so far.
    pub fn seen(&self) -> Vec<String> {
        self.plan.steps()
    }

    /// Whether it came to the deed.
    pub fn fired(&self) -> bool {
        self.plan.fired()
    }

    pub(crate) fn step(&self, kind: u32, what: &str) -> Deed {
        self.plan.step(kind, &[what.as_bytes()])
    }

    pub(crate) fn kill(&self) {
        self.plan.kill();
    }
}

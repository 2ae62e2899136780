//! `rmdir layers/N` of a layer that qmpfs did not make: its bytes go up, and whatever happens the file stays as it is.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use qmpfs_tests::bench::Bench;
use qmpfs_tests::oracle;

use super::drive::{Round, Verb};
use crate::release::{Fingerprint, fingerprint, layer};

/// In turn below a point and below the active layer.
pub(super) struct Release {
    round: u32,
    template: PathBuf,
    untouched: Option<Fingerprint>,
}

impl Release {
    pub(super) fn new() -> Self {
        Self {
            round: 0,
            template: PathBuf::new(),
            untouched: None,
        }
    }

    fn above(&self) -> String {
        format!("above{}", self.round)
    }

    fn below_a_point(&self) -> bool {
        self.round % 2 == 1
    }

    fn is_below(&self, active: &Path) -> bool {
        oracle::chain(active).contains(&self.template)
    }
}

impl Verb<Bench> for Release {
    fn prepare(&mut self, bench: &mut Bench) {
        self.round += 1;
        let template = format!("template{}", self.round);
        bench.seal(&template);
        self.template = bench.disown(&template);
        self.untouched = Some(fingerprint(&self.template));
        // QEMU has it open as it opens a template, by the header above it
        bench.restart();
        bench.write(5);
        bench.seal(&self.above());
        bench.write(5);
        if !self.below_a_point() {
            bench.remove(&self.above());
        }
    }

    fn act(&mut self, bench: &mut Bench) -> io::Result<()> {
        fs::remove_dir(layer(bench, "0-"))?;
        let _ = bench.disk().wait();
        Ok(())
    }

    fn judge(&mut self, bench: &mut Bench, round: &Round) {
        let there = self.is_below(&bench.active());
        assert!(
            round.answer.is_ok() || there || round.killed,
            "refused, and the layer is gone: {}",
            round.at
        );
        if there {
            bench.verify();
            fs::remove_dir(layer(bench, "0-")).expect("rmdir, again");
            bench.disk().wait().expect("the merge");
            assert!(!self.is_below(&bench.active()), "it has left the chain");
        }
        bench.released(&self.template);
        assert_eq!(
            Some(fingerprint(&self.template)),
            self.untouched,
            "untouched: {}",
            round.at
        );
        fs::remove_file(&self.template).expect("somebody else's file, by somebody else");
        bench.verify();
        if self.below_a_point() {
            bench.remove(&self.above());
        }
    }
}

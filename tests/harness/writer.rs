//! The guest's load: a thread that writes, sometimes flushes and re-reads random blocks of its region, without a pause,
//! while the test does its verbs. The first wrong byte is kept together with the steps that the test announced around it.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Instant;

use crate::model::{BLOCK, Dice, Model, STEP, describe, fill, first_wrong};
use crate::nbd::{Endpoint, Nbd};
use crate::wait;

/// A running writer. Dropping it ends it.
#[derive(Debug)]
pub struct Writer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    region: Range<u64>,
}

/// While it is shut the writer stands still, as a stopped guest does; a client beside the guest would write on.
#[derive(Debug, Default)]
pub struct Gate {
    shut: AtomicBool,
    // Held by the writer from a write to its flush and its reads.
    turn: Mutex<()>,
}

impl Gate {
    /// Nothing is on its way any more when this returns.
    pub fn shut(&self) {
        self.shut.store(true, Ordering::SeqCst);
        drop(self.turn.lock().expect("no holder of this lock panics"));
    }

    /// The writer goes on.
    pub fn open(&self) {
        self.shut.store(false, Ordering::SeqCst);
    }

    /// The right to do one thing; waited for while it is shut. None once `stopped`, or to look again.
    pub(crate) fn enter(&self, stopped: impl Fn() -> bool) -> Option<MutexGuard<'_, ()>> {
        let is_shut = || self.shut.load(Ordering::SeqCst);
        wait::poll(wait::PATIENCE, || (stopped() || !is_shut()).then_some(()))?;
        let turn = self.turn.lock().expect("no panic here");
        (!is_shut()).then_some(turn)
    }
}

#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    gate: Arc<Gate>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    acknowledged: Model,
    // What a flush has made durable.
    flushed: Model,
    // The disk may go at any moment: that is no loss.
    mortal: bool,
    // One write may be on its way: an instant beside the writer may hold it or not.
    in_flight: Option<(u64, u64)>,
    writes: u64,
    lost: Option<String>,
    steps: Vec<(Instant, String)>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }
}

impl Writer {
    /// Begins to write into `region`, which holds what `model` says.
    pub fn start(endpoint: &Endpoint, region: Range<u64>, model: Model, seed: u64) -> Self {
        let nbd = Nbd::connect(endpoint);
        let writes = model.0.values().copied().max().unwrap_or(0);
        let state = State {
            flushed: model.clone(),
            acknowledged: model,
            writes,
            ..State::default()
        };
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            gate: Arc::default(),
            state: Mutex::new(state),
        });
        let theirs = Arc::clone(&shared);
        let span = region.clone();
        let thread = std::thread::Builder::new()
            .name("writer".to_owned())
            .spawn(move || {
                let ended = work(nbd, &theirs, &span, seed);
                let mut state = theirs.state();
                state.lost = match ended {
                    Ok(()) => None,
                    Err(Trouble::Gone(_)) if state.mortal => None,
                    Err(Trouble::Gone(how) | Trouble::Lost(how)) => Some(how),
                };
            })
            .expect("a thread");
        Self {
            shared,
            thread: Some(thread),
            region,
        }
    }

    /// What makes it stand still for a while.
    pub fn gate(&self) -> Arc<Gate> {
        Arc::clone(&self.shared.gate)
    }

    /// Where it writes.
    pub fn region(&self) -> Range<u64> {
        self.region.clone()
    }

    /// Announces what the test does next.
    pub fn step(&self, what: &str) {
        self.shared
            .state()
            .steps
            .push((Instant::now(), what.to_owned()));
    }

    /// Everything acknowledged so far: an instant from now on holds at least this.
    pub fn acknowledged(&self) -> Model {
        self.shared.state().acknowledged.clone()
    }

    /// Everything sent so far: an instant up to now holds at most this.
    pub fn sent(&self) -> Model {
        let state = self.shared.state();
        let mut model = state.acknowledged.clone();
        model.0.extend(state.in_flight);
        model
    }

    /// From now on the disk may go without a word; [`Self::fallen`] tells what it must hold then.
    pub fn expect_the_end(&self) {
        self.shared.state().mortal = true;
    }

    /// What was flushed, and what was sent, when the disk had gone: a block holds a write between the two.
    #[track_caller]
    pub fn fallen(mut self) -> (Model, Model) {
        self.end();
        self.check();
        let flushed = self.shared.state().flushed.clone();
        (flushed, self.sent())
    }

    /// Waits until `count` more writes have been done: the load is really there.
    #[track_caller]
    pub fn progress(&self, count: u64) {
        let until = self.shared.state().writes + count;
        wait::until_true("the writer goes on", || {
            self.check();
            let gone = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
            gone || self.shared.state().writes >= until
        });
    }

    /// Panics if a byte was lost.
    #[track_caller]
    pub fn check(&self) {
        let state = self.shared.state();
        if let Some(lost) = state.lost.clone() {
            let steps: String = state
                .steps
                .iter()
                .rev()
                .take(12)
                .map(|(t, s)| format!("\n  {t:?} {s}"))
                .collect();
            drop(state);
            panic!("LOST WRITE: {lost}\nsteps, last first:{steps}");
        }
    }

    /// What was lost, if anything: for tests that expect it.
    pub fn lost(&self) -> Option<String> {
        self.shared.state().lost.clone()
    }

    /// Ends the load, checks it, and gives what the region now holds.
    #[track_caller]
    pub fn stop(mut self) -> Model {
        self.end();
        self.check();
        self.acknowledged()
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.end();
    }
}

/// Why the writer ended before it was told to.
enum Trouble {
    /// The disk does not answer any more.
    Gone(String),
    /// It answers with other bytes.
    Lost(String),
}

fn gone(what: String) -> impl FnOnce(std::io::Error) -> Trouble {
    move |error| Trouble::Gone(format!("{what} failed: {error}"))
}

fn work(mut nbd: Nbd, shared: &Shared, region: &Range<u64>, seed: u64) -> Result<(), Trouble> {
    let mut dice = Dice::new(seed);
    let mut block = vec![0; BLOCK];
    let blocks = (region.end - region.start) / STEP;
    let stopped = || shared.stop.load(Ordering::Relaxed);
    while !stopped() {
        let Some(_turn) = shared.gate.enter(stopped) else {
            continue;
        };
        let offset = region.start + dice.below(blocks) * STEP;
        let number = shared.state().writes + 1;
        shared.state().in_flight = Some((offset, number));
        fill(&mut block, offset, number);
        nbd.write(offset, &block)
            .map_err(gone(format!("write {number} at {offset}")))?;
        {
            let mut state = shared.state();
            state.acknowledged.0.insert(offset, number);
            state.in_flight = None;
            state.writes = number;
        }
        if dice.below(10) < 3 {
            nbd.flush()
                .map_err(gone(format!("flush after write {number}")))?;
            let mut state = shared.state();
            state.flushed = state.acknowledged.clone();
        }
        read_back(&mut nbd, &mut block, offset, number)?;
        if number.is_multiple_of(4) {
            let other = region.start + dice.below(blocks) * STEP;
            let number = shared.state().acknowledged.at(other);
            read_back(&mut nbd, &mut block, other, number)?;
        }
    }
    nbd.flush().map_err(gone("the last flush".to_owned()))
}

fn read_back(nbd: &mut Nbd, block: &mut [u8], offset: u64, number: u64) -> Result<(), Trouble> {
    let asked = Instant::now();
    nbd.read(offset, block)
        .map_err(gone(format!("read at {offset}")))?;
    match first_wrong(block, offset, number) {
        None => Ok(()),
        Some(at) => Err(Trouble::Lost(format!(
            "byte {}: wanted write {number}, got {} (read from {asked:?} to {:?})",
            offset + at as u64,
            describe(block, offset),
            Instant::now()
        ))),
    }
}

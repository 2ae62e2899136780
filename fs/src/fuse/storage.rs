//! Who waits for the host's storage, which may be a server that hangs: the workers themselves, but never the last of
//! them, which answers everything else; and behind them threads of each disk, so that whoever reads a disk that hangs
//! holds up nobody who reads another. It does not know what is read.

use crate::errno::{Errno, Failure};
use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Workers that may wait at a time: a reader each on the machines this runs on.
pub(super) const IN_WORKERS: usize = 4;
/// Threads that wait for one disk. Storage that is only slow is kept busy by fewer.
const THREADS_MAX: usize = 8;
/// Requests to one disk that may wait for a thread; the kernel asks for far fewer.
const QUEUE_MAX: usize = 4096;
/// How long a thread outlives its last request.
const IDLE: Duration = Duration::from_secs(5);

/// Done by a thread that may wait; or told why not.
type Task = Box<dyn FnOnce(Result<(), Failure>) + Send>;

/// See the module.
#[derive(Default)]
pub(super) struct Storage {
    in_workers: AtomicUsize,
    disks: Arc<Mutex<HashMap<String, Waiting>>>,
}

/// The right of a worker to wait, until this is dropped.
pub(super) struct Turn<'a>(&'a AtomicUsize);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What waits for one disk.
#[derive(Default)]
struct Waiting {
    tasks: VecDeque<Task>,
    threads: usize,
    idle: usize,
    wake: Arc<Condvar>,
}

impl Storage {
    /// Whether the worker that asks may wait; None for the one that is to be left for others.
    pub(super) fn turn(&self) -> Option<Turn<'_>> {
        let before = self.in_workers.fetch_add(1, Ordering::Relaxed);
        // where it is not given, dropping it takes back that it was counted
        let turn = Turn(&self.in_workers);
        (before < IN_WORKERS).then_some(turn)
    }

    /// Has a request to a disk done by one of its threads.
    pub(super) fn hand_over(
        &self,
        disk: &str,
        task: impl FnOnce(Result<(), Failure>) + Send + 'static,
    ) {
        let mut disks = locked(&self.disks);
        let waiting = disks.entry(disk.to_owned()).or_default();
        if waiting.tasks.len() >= QUEUE_MAX {
            drop(disks);
            let failure = Failure::new(Errno::EBUSY, "too many requests at once");
            return task(Err(failure.next("read again")));
        }
        waiting.tasks.push_back(Box::new(task));
        if waiting.tasks.len() <= waiting.idle {
            return waiting.wake.notify_one();
        }
        if waiting.threads >= THREADS_MAX {
            return;
        }
        let (all, name) = (Arc::clone(&self.disks), disk.to_owned());
        let thread = std::thread::Builder::new().name("storage".into());
        match thread.spawn(move || wait_for(&all, &name)) {
            Ok(_) => waiting.threads += 1,
            Err(error) if waiting.threads == 0 => {
                let tasks = disks.remove(disk).map(|waiting| waiting.tasks);
                drop(disks);
                let failure = Failure::io("start a thread", &error);
                for task in tasks.into_iter().flatten() {
                    task(Err(failure.clone()));
                }
            }
            Err(_) => {}
        }
    }
}

fn locked(disks: &Mutex<HashMap<String, Waiting>>) -> MutexGuard<'_, HashMap<String, Waiting>> {
    // no change of it can panic halfway
    disks.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The life of a thread of a disk.
fn wait_for(disks: &Mutex<HashMap<String, Waiting>>, disk: &str) {
    let mut all = locked(disks);
    let mut has_waited = false;
    while let Some(waiting) = all.get_mut(disk) {
        if let Some(task) = waiting.tasks.pop_front() {
            drop(all);
            // a panic is our bug: it costs this request an EIO, which the dropped reply sends
            if catch_unwind(AssertUnwindSafe(|| task(Ok(())))).is_err() {
                tracing::error!(disk, "a request panicked; it was answered EIO");
            }
            has_waited = false;
            all = locked(disks);
            continue;
        }
        if has_waited {
            waiting.threads -= 1;
            if waiting.threads == 0 {
                all.remove(disk);
            }
            return;
        }
        waiting.idle += 1;
        let wake = Arc::clone(&waiting.wake);
        let (back, timeout) = wake
            .wait_timeout(all, IDLE)
            .unwrap_or_else(PoisonError::into_inner);
        all = back;
        has_waited = timeout.timed_out();
        if let Some(waiting) = all.get_mut(disk) {
            waiting.idle -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{IN_WORKERS, QUEUE_MAX, Storage, THREADS_MAX, locked};
    use crate::errno::Errno;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    const PATIENCE: Duration = Duration::from_secs(20);

    #[test]
    fn the_last_worker_is_left() {
        let storage = Storage::default();
        let turns: Vec<_> = (0..IN_WORKERS).map(|_| storage.turn()).collect();
        assert!(turns.iter().all(Option::is_some));
        assert!(storage.turn().is_none());
        assert!(storage.turn().is_none(), "and a refusal costs no turn");
        drop(turns);
        assert!(storage.turn().is_some());
    }

    /// A request that waits until the sender is gone.
    fn stuck(storage: &Storage, disk: &str, done: &Sender<bool>) -> Sender<()> {
        let (go_on, waits): (_, Receiver<()>) = channel();
        let done = done.clone();
        storage.hand_over(disk, move |turn| {
            let _gone = waits.recv();
            // the test has ended
            let _late = done.send(turn.is_ok());
        });
        go_on
    }

    #[test]
    fn a_disk_that_hangs_holds_up_no_other() {
        let storage = Storage::default();
        let (done, outcomes) = channel();
        let stuck: Vec<_> = (0..THREADS_MAX * 3)
            .map(|_| stuck(&storage, "hangs", &done))
            .collect();
        let (other, answered) = channel();
        for _ in 0..100 {
            let other = other.clone();
            storage.hand_over("healthy", move |turn| other.send(turn.is_ok()).unwrap());
        }
        for _ in 0..100 {
            assert_eq!(answered.recv_timeout(PATIENCE), Ok(true));
        }
        assert_eq!(locked(&storage.disks)["hangs"].threads, THREADS_MAX);
        assert!(outcomes.try_recv().is_err(), "none of them has ended");
        let waiting = stuck.len();
        drop(stuck);
        for _ in 0..waiting {
            assert_eq!(outcomes.recv_timeout(PATIENCE), Ok(true));
        }
    }

    #[test]
    fn a_request_too_many_is_refused() {
        let storage = Storage::default();
        let (done, outcomes) = channel();
        let stuck: Vec<_> = (0..THREADS_MAX)
            .map(|_| stuck(&storage, "vda", &done))
            .collect();
        let refused = Arc::new(Mutex::new(None));
        for _ in 0..=QUEUE_MAX + THREADS_MAX {
            let refused = Arc::clone(&refused);
            storage.hand_over("vda", move |turn| {
                if let Err(failure) = turn {
                    refused.lock().unwrap().get_or_insert(failure.errno);
                }
            });
        }
        assert_eq!(*refused.lock().unwrap(), Some(Errno::EBUSY));
        drop(stuck);
        for _ in 0..THREADS_MAX {
            assert_eq!(outcomes.recv_timeout(PATIENCE), Ok(true));
        }
    }
}

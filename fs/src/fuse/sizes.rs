//! The sizes of views. QEMU does not tell how much of a point is really there, so the first
//! stat opens the view and adds up its map; the sum is kept, as a point never changes.
//! One thread keeps the books and never opens or measures itself: a stat is answered by the
//! deadline with an estimate, whatever the disk and the engine are doing.

use crate::errno::Failure;
use crate::leases::MEASURING;
use crate::ops::Request;
use crate::render::Sizes;
use crate::tree::PointKey;
use crate::view::View;
use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a stat waits for the true size before it shows the estimate.
const DEADLINE: Duration = Duration::from_secs(2);
/// Views measured at the same time: reading tables is disk-bound.
const AT_ONCE: usize = 2;
/// Stats that may wait; one more gets the estimate at once.
const WAITING_MAX: usize = 1024;
/// Points whose sizes are kept; beyond it they are measured anew.
const KNOWN_MAX: usize = 8192;
/// A view that could not be opened is not tried again before.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Gets the sizes, from the asking thread or another.
pub(super) type Waiter = Box<dyn FnOnce(Sizes) + Send>;

/// What is known of a point.
#[derive(Clone, Copy)]
enum Known {
    Measured(Sizes),
    /// It is open, and being measured: how large it is an open view says at once.
    Opened(u64),
    /// It could not be opened, or measured; how large it is may be known from before.
    Failed(Instant, Option<u64>),
}

impl Known {
    /// How large the disk is.
    fn virtual_size(self) -> Option<u64> {
        match self {
            Known::Measured(sizes) => Some(sizes.virtual_size),
            Known::Opened(size) => Some(size),
            Known::Failed(_, size) => size,
        }
    }

    /// The sizes as far as they are known, and what is estimated for the rest.
    fn over(self, estimate: Sizes) -> Sizes {
        match self {
            Known::Measured(sizes) => sizes,
            Known::Opened(_) | Known::Failed(..) => Sizes {
                virtual_size: self.virtual_size().unwrap_or(estimate.virtual_size),
                ..estimate
            },
        }
    }
}

/// What is known, by point.
#[derive(Clone, Default)]
struct Book(Arc<Mutex<HashMap<PointKey, Known>>>);

impl Book {
    fn get(&self, point: &PointKey) -> Option<Known> {
        self.points().get(point).copied()
    }

    /// The sizes of a point as well as they are known.
    fn best(&self, point: &PointKey, estimate: Sizes) -> Sizes {
        let known = self.get(point);
        known.map_or(estimate, |known| known.over(estimate))
    }

    fn enter(&self, point: PointKey, known: Known) {
        let mut points = self.points();
        if points.len() >= KNOWN_MAX {
            points.clear();
        }
        points.insert(point, known);
    }

    fn points(&self) -> MutexGuard<'_, HashMap<PointKey, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The cache, and the way to the thread that fills it.
pub(super) struct SizeCache {
    known: Book,
    waiting: Arc<AtomicUsize>,
    /// Not bounded by itself: WAITING_MAX asks, and one answer for each point being measured.
    messages: Mutex<Sender<Message>>,
}

enum Message {
    Ask {
        point: PointKey,
        estimate: Sizes,
        waiter: Waiter,
    },
    Opened {
        point: PointKey,
        view: Result<Arc<View>, Failure>,
    },
    Measured {
        point: PointKey,
        sizes: Option<Sizes>,
    },
    Stop,
}

impl SizeCache {
    /// Starts the thread, which asks the engine through `send`. It ends when the cache is dropped.
    pub(super) fn start(send: impl Fn(Request) + Send + 'static) -> std::io::Result<SizeCache> {
        let (sender, receiver) = channel();
        let known = Book::default();
        let waiting = Arc::new(AtomicUsize::new(0));
        let mut keeper = Keeper {
            send: Box::new(send),
            known: known.clone(),
            waiting: Arc::clone(&waiting),
            messages: sender.clone(),
            pending: HashMap::new(),
            queue: VecDeque::new(),
            at_work: 0,
        };
        std::thread::Builder::new()
            .name("sizes".into())
            .spawn(move || keeper.run(&receiver))?;
        Ok(SizeCache {
            known,
            waiting,
            messages: Mutex::new(sender),
        })
    }

    /// The sizes of a point, where more is known than the estimate.
    pub(super) fn known(&self, point: &PointKey, estimate: Sizes) -> Option<Sizes> {
        let known = self.known.get(point)?;
        known.virtual_size()?;
        Some(known.over(estimate))
    }

    /// Hands the sizes of `point` to `waiter`, measured if that can be done in time.
    pub(super) fn ask(&self, point: &PointKey, estimate: Sizes, waiter: Waiter) {
        match self.known.get(point) {
            Some(Known::Measured(sizes)) => return waiter(sizes),
            Some(known @ Known::Failed(at, _)) if at.elapsed() < RETRY_AFTER => {
                return waiter(known.over(estimate));
            }
            Some(Known::Opened(_) | Known::Failed(..)) | None => {}
        }
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= WAITING_MAX {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return waiter(self.known.best(point, estimate));
        }
        let ask = Message::Ask {
            point: point.clone(),
            estimate,
            waiter,
        };
        let sent = self
            .messages
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .send(ask);
        if let Err(error) = sent
            && let Message::Ask { waiter, .. } = error.0
        {
            waiter(estimate);
        }
    }
}

impl Drop for SizeCache {
    fn drop(&mut self) {
        // An error says the thread has ended already.
        let _ended = self
            .messages
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .send(Message::Stop);
    }
}

/// A point being measured, and the stats that wait for it.
struct Pending {
    waiters: Vec<(Instant, Sizes, Waiter)>,
}

/// The thread's books.
struct Keeper {
    send: Box<dyn Fn(Request) + Send>,
    known: Book,
    waiting: Arc<AtomicUsize>,
    messages: Sender<Message>,
    pending: HashMap<PointKey, Pending>,
    queue: VecDeque<PointKey>,
    at_work: usize,
}

impl Keeper {
    fn run(&mut self, messages: &Receiver<Message>) {
        loop {
            let message = match self.next_deadline() {
                None => messages.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(deadline) => {
                    messages.recv_timeout(deadline.saturating_duration_since(Instant::now()))
                }
            };
            match message {
                Ok(Message::Ask {
                    point,
                    estimate,
                    waiter,
                }) => self.asked(point, estimate, waiter),
                Ok(Message::Opened { point, view }) => match view {
                    Ok(view) => self.measure(point, view),
                    Err(failure) => {
                        tracing::debug!(point = ?point, "not measured: {failure}");
                        self.ended(point, None);
                    }
                },
                Ok(Message::Measured { point, sizes }) => self.ended(point, sizes),
                Err(RecvTimeoutError::Timeout) => {}
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            }
            self.answer_the_late(Instant::now());
            self.start_some();
        }
    }

    fn asked(&mut self, point: PointKey, estimate: Sizes, waiter: Waiter) {
        if let Some(Known::Measured(sizes)) = self.known.get(&point) {
            return self.answer(waiter, sizes);
        }
        if !self.pending.contains_key(&point) {
            self.queue.push_back(point.clone());
        }
        let pending = self.pending.entry(point).or_insert(Pending {
            waiters: Vec::new(),
        });
        pending
            .waiters
            .push((Instant::now() + DEADLINE, estimate, waiter));
    }

    fn start_some(&mut self) {
        while self.at_work < AT_ONCE {
            let Some(point) = self.queue.pop_front() else {
                return;
            };
            self.at_work += 1;
            let (messages, key) = (self.messages.clone(), point.clone());
            let answer = Box::new(move |view| {
                // An error says that the mount has ended and nobody waits.
                let _ended = messages.send(Message::Opened { point: key, view });
            });
            (self.send)(Request::Open {
                point,
                pid: MEASURING,
                answer,
            });
        }
    }

    fn measure(&mut self, point: PointKey, view: Arc<View>) {
        self.known
            .enter(point.clone(), Known::Opened(view.virtual_size()));
        let (messages, key) = (self.messages.clone(), point.clone());
        let measure = move || {
            let sizes = catch_unwind(AssertUnwindSafe(|| measured(&view))).unwrap_or(None);
            // The lease ends before anybody hears of the size: an rmdir right after `ls` must not be refused.
            drop(view);
            let _ended = messages.send(Message::Measured { point: key, sizes });
        };
        if std::thread::Builder::new()
            .name("measure".into())
            .spawn(measure)
            .is_err()
        {
            self.ended(point, None);
        }
    }

    fn ended(&mut self, point: PointKey, sizes: Option<Sizes>) {
        self.at_work = self.at_work.saturating_sub(1);
        let waiters = self
            .pending
            .remove(&point)
            .map(|pending| pending.waiters)
            .unwrap_or_default();
        let size = self.known.get(&point).and_then(Known::virtual_size);
        let failed = || Known::Failed(Instant::now(), size);
        let known = sizes.map_or_else(failed, Known::Measured);
        self.known.enter(point, known);
        for (_, estimate, waiter) in waiters {
            self.answer(waiter, known.over(estimate));
        }
    }

    fn answer_the_late(&mut self, now: Instant) {
        let mut late = Vec::new();
        for (point, pending) in &mut self.pending {
            let waiters = &mut pending.waiters;
            for (_, estimate, waiter) in waiters.extract_if(.., |(deadline, ..)| *deadline <= now) {
                late.push((self.known.best(point, estimate), waiter));
            }
        }
        for (sizes, waiter) in late {
            self.answer(waiter, sizes);
        }
    }

    fn answer(&self, waiter: Waiter, sizes: Sizes) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        waiter(sizes);
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.pending
            .values()
            .flat_map(|pending| &pending.waiters)
            .map(|(deadline, _, _)| *deadline)
            .min()
    }
}

fn measured(view: &View) -> Option<Sizes> {
    match view.allocated_bytes() {
        Ok(allocated) => Some(Sizes {
            virtual_size: view.virtual_size(),
            allocated,
        }),
        Err(failure) => {
            tracing::warn!("a view could not be measured: {failure}");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Book, DEADLINE, Keeper, Known, Pending, SizeCache, Waiter};
    use crate::errno::{Errno, Failure};
    use crate::layer_file::fixture::qemu_img;
    use crate::leases::{LeaseKey, Leases, MEASURING};
    use crate::model::{FileId, Format};
    use crate::ops::Request;
    use crate::render::Sizes;
    use crate::sys;
    use crate::tree::{PointKey, PointKind};
    use crate::view::{LayerCache, LayerSpec, View};
    use std::collections::{HashMap, VecDeque};
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::sync::mpsc::{channel, sync_channel};
    use std::time::{Duration, Instant};

    /// Where the header of a qcow2 image says where its first table is.
    const L1_TABLE_OFFSET: u64 = 40;

    const ESTIMATE: Sizes = Sizes {
        virtual_size: 100,
        allocated: 50,
    };

    fn point(identity: &str) -> PointKey {
        PointKey {
            disk: "vda".into(),
            kind: PointKind::External,
            identity: identity.into(),
        }
    }

    fn asked(cache: &SizeCache, identity: &str) -> Sizes {
        let (sender, answer) = sync_channel(1);
        let waiter = Box::new(move |sizes| sender.send(sizes).expect("the test waits"));
        cache.ask(&point(identity), ESTIMATE, waiter);
        let patience = DEADLINE + Duration::from_secs(20);
        answer.recv_timeout(patience).expect("it is answered")
    }

    #[test]
    fn an_engine_that_never_answers_holds_nobody_up() {
        let (sender, asks) = channel();
        let cache =
            SizeCache::start(move |request| sender.send(request).expect("kept")).expect("a thread");
        let start = Instant::now();
        assert_eq!(asked(&cache, "a"), ESTIMATE);
        assert!(start.elapsed() >= DEADLINE);
        assert_eq!(cache.known(&point("a"), ESTIMATE), None);
        assert_eq!(asks.try_iter().count(), 1);
    }

    /// A disk of 7 MiB whose table leads nowhere: it can be opened, and not be measured.
    fn damaged() -> (tempfile::TempDir, Arc<View>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("damaged.qcow2");
        qemu_img(&["create", "-q", "-f", "qcow2", path.to_str().unwrap(), "7M"]);
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let mut table = [0; 8];
        file.read_exact_at(&mut table, L1_TABLE_OFFSET).unwrap();
        let nowhere = 0x8000_0000_0000_1200_u64.to_be_bytes();
        file.write_all_at(&nowhere, u64::from_be_bytes(table))
            .unwrap();
        let spec = LayerSpec {
            file: Some(sys::file_id(&path).unwrap()),
            path,
            format: Format::Qcow2,
        };
        let key = LeaseKey {
            file: FileId { dev: 0, ino: 0 },
            internal: None,
        };
        let lease = Leases::default().hold(key, MEASURING).unwrap();
        let view = View::open(&LayerCache::default(), &[spec], None, lease).unwrap();
        assert!(view.allocated_bytes().is_err());
        (dir, Arc::new(view))
    }

    #[test]
    fn a_view_that_cannot_be_measured_is_as_large_as_it_says() {
        let (_dir, view) = damaged();
        let open = move |request| {
            let Request::Open { answer, .. } = request else {
                panic!("only views are opened");
            };
            answer(Ok(Arc::clone(&view)));
        };
        let cache = SizeCache::start(open).expect("a thread");
        let known = Sizes {
            virtual_size: 7 << 20,
            ..ESTIMATE
        };
        // when it fails, and from then on
        assert_eq!(asked(&cache, "a"), known);
        assert_eq!(asked(&cache, "a"), known);
        assert_eq!(cache.known(&point("a"), ESTIMATE), Some(known));
    }

    #[test]
    fn an_answer_that_is_late_has_the_size_of_an_open_view() {
        let book = Book::default();
        assert_eq!(book.best(&point("a"), ESTIMATE), ESTIMATE);
        book.enter(point("a"), Known::Opened(7));
        let known = Sizes {
            virtual_size: 7,
            ..ESTIMATE
        };
        let (waiting, late) = channel();
        let mut keeper = Keeper {
            send: Box::new(|_| ()),
            known: book,
            waiting: Arc::new(AtomicUsize::new(1)),
            messages: channel().0,
            pending: HashMap::new(),
            queue: VecDeque::new(),
            at_work: 1,
        };
        let waiter: Waiter = Box::new(move |sizes| waiting.send(sizes).expect("the test waits"));
        let waiters = vec![(Instant::now(), ESTIMATE, waiter)];
        keeper.pending.insert(point("a"), Pending { waiters });
        keeper.answer_the_late(Instant::now());
        assert_eq!(late.try_recv(), Ok(known));
    }

    #[test]
    fn a_view_that_cannot_be_opened_is_not_tried_at_each_stat() {
        let (sender, asks) = channel();
        let refuse = move |request| {
            let Request::Open { answer, .. } = request else {
                panic!("only views are opened");
            };
            sender.send(()).expect("counted");
            answer(Err(Failure::new(Errno::EBUSY, "a job is at work")));
        };
        let cache = SizeCache::start(refuse).expect("a thread");
        for _ in 0..3 {
            assert_eq!(asked(&cache, "a"), ESTIMATE);
        }
        assert_eq!(asks.try_iter().count(), 1);
    }
}

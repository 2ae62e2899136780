//! How fast a job is, of what was seen of its progress.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The rate of a job is that of the last seconds, as people expect of "time left".
const PACE_WINDOW: Duration = Duration::from_secs(5);

/// How fast a job was in the last seconds.
#[derive(Default)]
pub(super) struct Pace {
    seen: VecDeque<(Instant, u64)>,
    pub(super) looked: Option<Instant>,
}

impl Pace {
    /// Bytes a second, now that so many are done. None before there is anything to compare.
    pub(super) fn rate(&mut self, now: Instant, done: u64) -> Option<u64> {
        while self
            .seen
            .front()
            .is_some_and(|(when, _)| now.duration_since(*when) > PACE_WINDOW)
        {
            self.seen.pop_front();
        }
        self.seen.push_back((now, done));
        let (since, before) = *self.seen.front()?;
        let millis = u64::try_from(now.duration_since(since).as_millis()).ok()?;
        (millis > 0).then(|| done.saturating_sub(before).saturating_mul(1000) / millis)
    }
}

#[cfg(test)]
mod tests {
    use super::{PACE_WINDOW, Pace};
    use std::time::{Duration, Instant};

    #[test]
    fn the_rate_is_that_of_the_last_seconds() {
        let mut pace = Pace::default();
        let start = Instant::now();
        assert_eq!(pace.rate(start, 0), None);
        assert_eq!(pace.rate(start + Duration::from_secs(1), 1000), Some(1000));
        assert_eq!(pace.rate(start + Duration::from_secs(2), 1000), Some(500));
        let later = start + PACE_WINDOW * 4;
        assert_eq!(pace.rate(later, 1000), None);
        assert_eq!(pace.rate(later + Duration::from_secs(2), 5000), Some(2000));
        // a commit that is begun again starts from nothing
        assert_eq!(pace.rate(later + Duration::from_secs(3), 0), Some(0));
    }
}

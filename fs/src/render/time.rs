//! Instants as text: RFC 3339 in UTC, and back.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// "2026-01-02T03:04:05.070Z": always as long, so that lines of a log stand in columns.
pub fn rfc3339(instant: SystemTime) -> String {
    // Milliseconds are what QEMU and filesystems agree on; more would be noise.
    let millis = match instant.duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_millis()).ok(),
        Err(before) => i64::try_from(before.duration().as_millis())
            .ok()
            .map(|millis| -millis),
    };
    let timestamp = match millis.and_then(|millis| jiff::Timestamp::from_millisecond(millis).ok()) {
        Some(timestamp) => timestamp,
        // Past the year 9999: a broken clock is no reason to fail.
        None => jiff::Timestamp::MAX,
    };
    format!("{timestamp:.3}")
}

/// This moment, as [`rfc3339`] writes it.
pub fn now() -> String {
    rfc3339(SystemTime::now())
}

/// The instant of an RFC 3339 text.
pub fn parse_rfc3339(text: &str) -> Option<SystemTime> {
    let timestamp: jiff::Timestamp = text.parse().ok()?;
    let millis = timestamp.as_millisecond();
    let distance = Duration::from_millis(millis.unsigned_abs());
    if millis < 0 {
        UNIX_EPOCH.checked_sub(distance)
    } else {
        UNIX_EPOCH.checked_add(distance)
    }
}

#[cfg(test)]
mod tests {
    use super::{parse_rfc3339, rfc3339};
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn there_and_back() {
        let instant = UNIX_EPOCH + Duration::from_secs(1_767_323_045);
        assert_eq!(rfc3339(instant), "2026-01-02T03:04:05.000Z");
        assert_eq!(parse_rfc3339("2026-01-02T03:04:05Z"), Some(instant));
        assert_eq!(parse_rfc3339("2026-01-02T04:04:05+01:00"), Some(instant));
        let millis = instant + Duration::from_millis(70);
        assert_eq!(rfc3339(millis), "2026-01-02T03:04:05.070Z");
        assert_eq!(parse_rfc3339(&rfc3339(millis)), Some(millis));
        assert_eq!(
            rfc3339(UNIX_EPOCH - Duration::from_secs(1)),
            "1969-12-31T23:59:59.000Z"
        );
        assert_eq!(parse_rfc3339("yesterday"), None);
    }
}

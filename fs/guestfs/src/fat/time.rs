//! Dates as DOS writes them: local time, shown as it is written. Pure.

use crate::filesystem::Time;

const DAY: i64 = 86_400;
/// From 1970 to 1980, in days.
const FIRST_DAY: i64 = 3652;

/// From the two words for day and time. What is no day of a month is the next one that is.
pub(crate) fn time(date: u16, time: u16) -> Time {
    let (date, time) = (i64::from(date), i64::from(time));
    let (years, month, day) = (
        date >> 9,
        (date >> 5 & 0xf).clamp(1, 12),
        (date & 0x1f).max(1),
    );
    let year = 1980 + years;
    let is_leap = year % 4 == 0 && year != 2100;
    // Leap days of the years before; 2100, the last but seven, has none.
    let leaps = (years + 3) / 4 - i64::from(year > 2100);
    const BEFORE: [i64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
    let months = BEFORE[(month - 1) as usize] + i64::from(is_leap && month > 2);
    let days = FIRST_DAY + years * 365 + leaps + months + day - 1;
    let seconds = (time >> 11) * 3600 + (time >> 5 & 0x3f) * 60 + (time & 0x1f) * 2;
    Time {
        seconds: days * DAY + seconds,
        nanoseconds: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::time;

    #[test]
    fn days_are_counted() {
        let of = |year: u16, month: u16, day: u16| {
            time((year - 1980) << 9 | month << 5 | day, 0).seconds / 86_400
        };
        assert_eq!(of(1980, 1, 1), 3652);
        assert_eq!(of(2000, 3, 1), 11_017);
        assert_eq!(of(2024, 2, 29), 19_782);
        assert_eq!(of(2026, 1, 1), 20_454);
        assert_eq!(of(2100, 3, 1), 47_541);
        assert_eq!(of(2107, 12, 31), 50_402);
        // 23:59:58
        assert_eq!(time(33, 0xbf7d).seconds, 3652 * 86_400 + 86_398);
        assert_eq!(time(0, 0).seconds, 3652 * 86_400);
    }
}

//! What was measured, and what it is held against. Knows numbers; does not know how they came about.

use std::fmt::Write as _;

use crate::servers::Who;

/// What a number counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// 10^9 bytes per second.
    GigabytesPerSecond,
    Micros,
    ThousandPerSecond,
    Seconds,
    SecondsPerGib,
    Nanos,
    Mib,
}

impl Unit {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Unit::GigabytesPerSecond => "GB/s",
            Unit::Micros => "µs",
            Unit::ThousandPerSecond => "thousand/s",
            Unit::Seconds => "s",
            Unit::SecondsPerGib => "s per GiB",
            Unit::Nanos => "ns",
            Unit::Mib => "MiB",
        }
    }

    /// Three digits that mean something.
    fn show(value: f64) -> String {
        let decimals = match value {
            v if v >= 99.95 => 0,
            v if v >= 9.995 => 1,
            v if v >= 0.9995 => 2,
            _ => 3,
        };
        format!("{value:.decimals$}")
    }
}

/// The numbers of one participant, one a round.
#[derive(Debug, Clone)]
pub(crate) struct Series {
    pub(crate) who: Who,
    pub(crate) values: Vec<f64>,
}

/// What is compared with the bound of a goal.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Held {
    /// The first one's number divided by the second one's, in each round.
    Ratio(Who, Who),
    /// Our number itself.
    Ours,
}

/// Where a goal begins to be met.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

/// One goal.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Goal {
    /// As the design says it.
    pub(crate) words: &'static str,
    pub(crate) held: Held,
    pub(crate) bound: Bound,
}

/// How a goal came out.
#[derive(Debug)]
pub(crate) struct Verdict {
    pub(crate) words: &'static str,
    pub(crate) found: String,
    pub(crate) met: bool,
}

/// One workload, measured for everybody in the same rounds.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) label: String,
    pub(crate) unit: Unit,
    pub(crate) series: Vec<Series>,
    pub(crate) goals: &'static [Goal],
}

impl Row {
    fn values(&self, who: Who) -> Option<&[f64]> {
        let found = self.series.iter().find(|series| series.who == who)?;
        Some(&found.values)
    }

    /// Median, least and most of a participant.
    pub(crate) fn cell(&self, who: Who) -> Option<String> {
        let values = self.values(who)?;
        let mut cell = Unit::show(median(values));
        let (least, most) = (Unit::show(least(values)), Unit::show(most(values)));
        if least != most {
            write!(cell, " ({least}–{most})").expect("a string takes everything");
        }
        Some(cell)
    }

    /// How the goals came out.
    pub(crate) fn verdicts(&self) -> Vec<Verdict> {
        self.goals.iter().map(|goal| self.verdict(goal)).collect()
    }

    fn verdict(&self, goal: &Goal) -> Verdict {
        let of = |who| self.values(who).expect("a goal names who was measured");
        let value = match goal.held {
            Held::Ours => median(of(Who::Ours)),
            Held::Ratio(over, under) => ratio(of(over), of(under)),
        };
        let mut found = Unit::show(value);
        if let Held::Ratio(over, under) = goal.held {
            found.push('×');
            let other = |who| if who == Who::Qsd { Who::Uring } else { who };
            if [over, under].contains(&Who::Qsd)
                && let (Some(over), Some(under)) =
                    (self.values(other(over)), self.values(other(under)))
            {
                write!(found, " (io_uring {}×)", Unit::show(ratio(over, under)))
                    .expect("a string takes everything");
            }
        }
        Verdict {
            words: goal.words,
            found,
            met: match goal.bound {
                Bound::AtLeast(bound) => value >= bound,
                Bound::AtMost(bound) => value <= bound,
            },
        }
    }
}

/// One over the other in each round, and the median of that.
fn ratio(over: &[f64], under: &[f64]) -> f64 {
    let ratios: Vec<f64> = over
        .iter()
        .zip(under)
        .map(|(over, under)| over / under)
        .collect();
    median(&ratios)
}

/// The middle one of some numbers.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        even if even % 2 == 0 => f64::midpoint(sorted[middle - 1], sorted[middle]),
        _ => sorted[middle],
    }
}

fn least(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::INFINITY, f64::min)
}

fn most(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::NEG_INFINITY, f64::max)
}

#[cfg(test)]
mod tests {
    use super::{Bound, Goal, Held, Row, Series, Unit, median};
    use crate::servers::Who;

    #[test]
    fn the_middle_of_odd_and_even_counts() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn a_ratio_is_taken_round_by_round() {
        const GOALS: &[Goal] = &[
            Goal {
                words: "≥ 2×",
                held: Held::Ratio(Who::Ours, Who::Qsd),
                bound: Bound::AtLeast(2.0),
            },
            Goal {
                words: "≤ 5",
                held: Held::Ours,
                bound: Bound::AtMost(5.0),
            },
        ];
        let series = |who, values: &[f64]| Series {
            who,
            values: values.to_vec(),
        };
        let row = Row {
            label: "x".to_owned(),
            unit: Unit::Seconds,
            series: vec![
                series(Who::Ours, &[2.0, 40.0, 6.0]),
                series(Who::Qsd, &[1.0, 10.0, 6.0]),
            ],
            goals: GOALS,
        };
        let verdicts = row.verdicts();
        assert_eq!(
            (verdicts[0].found.as_str(), verdicts[0].met),
            ("2.00×", true)
        );
        assert_eq!(
            (verdicts[1].found.as_str(), verdicts[1].met),
            ("6.00", false)
        );
        assert_eq!(row.cell(Who::Ours).as_deref(), Some("6.00 (2.00–40.0)"));
        assert_eq!(row.cell(Who::Nbd), None);
    }
}

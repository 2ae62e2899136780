//! The results as a table: for the terminal, and as docs/PERFORMANCE.md.

use crate::results::Row;
use crate::servers::Who;

/// Who has a column; the rest are limits.
const COLUMNS: [Who; 4] = [Who::Ours, Who::Qsd, Who::Uring, Who::Nbd];
const LIMITS: [Who; 5] = [
    Who::RawFile,
    Who::Convert,
    Who::OursFlat,
    Who::OursCached,
    Who::OursPassthrough,
];
const WIDTH: usize = 9;
const HEADS: [&str; WIDTH] = [
    "workload",
    "qmpfs",
    "QSD",
    "QSD, io_uring",
    "nbdfuse",
    "limit",
    "ratio",
    "goal",
    "met",
];

/// One line a goal, at least one a workload.
fn lines(rows: &[Row]) -> Vec<[String; WIDTH]> {
    let mut lines = Vec::new();
    for row in rows {
        let numbers = COLUMNS.map(|who| row.cell(who).unwrap_or_else(|| "–".to_owned()));
        let limits: Vec<String> = LIMITS
            .iter()
            .filter_map(|&who| Some(format!("{} {}", who.name(), row.cell(who)?)))
            .collect();
        let mut line: [String; WIDTH] = Default::default();
        line[0] = format!("{}, {}", row.label, row.unit.name());
        line[1..=COLUMNS.len()].clone_from_slice(&numbers);
        line[5] = limits.join("; ");
        let verdicts = row.verdicts();
        for verdict in &verdicts {
            line[6] = verdict.found.clone();
            line[7] = verdict.words.to_owned();
            line[8] = if verdict.met { "yes" } else { "**no**" }.to_owned();
            lines.push(std::mem::take(&mut line));
        }
        if verdicts.is_empty() {
            lines.push(line);
        }
    }
    lines
}

/// A table with aligned columns; it is Markdown, too.
pub(crate) fn table(rows: &[Row]) -> String {
    let lines = lines(rows);
    let width = |column: usize| {
        let cells = lines.iter().map(|line| line[column].chars().count());
        cells
            .chain([HEADS[column].chars().count()])
            .max()
            .unwrap_or(0)
    };
    let widths: [usize; WIDTH] = std::array::from_fn(width);
    let show = |cells: [&str; WIDTH]| {
        let padded: Vec<String> = (0..WIDTH)
            .map(|i| format!("{:<1$}", cells[i], widths[i]))
            .collect();
        format!("| {} |\n", padded.join(" | "))
    };
    let mut table = show(HEADS);
    let rules: [String; WIDTH] = widths.map(|width| "-".repeat(width));
    table += &show(std::array::from_fn(|i| rules[i].as_str()));
    for line in &lines {
        table += &show(std::array::from_fn(|i| line[i].as_str()));
    }
    table
}

//! The results as a table: for the terminal, and as docs/PERFORMANCE.md.

use crate::results::Row;
use crate::servers::Who;

/// Who has a column; the rest are limits.
const COLUMNS: [Who; 3] = [Who::Ours, Who::Qsd, Who::Nbd];
const LIMITS: [Who; 3] = [Who::RawFile, Who::Convert, Who::OursFlat];
const HEADS: [&str; 8] = [
    "workload", "qmpfs", "QSD", "nbdfuse", "limit", "ratio", "goal", "met",
];

/// One line a goal, at least one a workload.
fn lines(rows: &[Row]) -> Vec<[String; 8]> {
    let mut lines = Vec::new();
    for row in rows {
        let numbers = COLUMNS.map(|who| row.cell(who).unwrap_or_else(|| "–".to_owned()));
        let limits: Vec<String> = LIMITS
            .iter()
            .filter_map(|&who| Some(format!("{} {}", who.name(), row.cell(who)?)))
            .collect();
        let [ours, qsd, nbd] = numbers;
        let label = format!("{}, {}", row.label, row.unit.name());
        let mut line = [
            label,
            ours,
            qsd,
            nbd,
            limits.join("; "),
            String::new(),
            String::new(),
            String::new(),
        ];
        let verdicts = row.verdicts();
        for verdict in &verdicts {
            line[5] = verdict.found.clone();
            line[6] = verdict.words.to_owned();
            line[7] = if verdict.met { "yes" } else { "**no**" }.to_owned();
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
    let widths: [usize; 8] = std::array::from_fn(width);
    let show = |cells: [&str; 8]| {
        let padded: Vec<String> = (0..8)
            .map(|i| format!("{:<1$}", cells[i], widths[i]))
            .collect();
        format!("| {} |\n", padded.join(" | "))
    };
    let mut table = show(HEADS);
    let rules: [String; 8] = widths.map(|width| "-".repeat(width));
    table += &show(std::array::from_fn(|i| rules[i].as_str()));
    for line in &lines {
        table += &show(std::array::from_fn(|i| line[i].as_str()));
    }
    table
}

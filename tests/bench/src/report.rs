//! The results as a table: for the terminal, and as docs/PERFORMANCE.md.

use crate::results::Row;
use crate::workloads::Section;

/// What stands right of the participants.
const VERDICT: [&str; 4] = ["limit", "ratio", "goal", "met"];

/// One line a goal, at least one a workload.
fn lines(section: &Section, rows: &[Row]) -> Vec<Vec<String>> {
    let mut lines = Vec::new();
    for row in rows {
        let columns = section.columns.iter();
        let numbers = columns.map(|&who| row.cell(who).unwrap_or_else(|| "–".to_owned()));
        let limits = section.limits.iter();
        let limits: Vec<String> = limits
            .filter_map(|&who| Some(format!("{} {}", who.name(), row.cell(who)?)))
            .collect();
        let mut left = vec![format!("{}, {}", row.label, row.unit.name())];
        left.extend(numbers);
        left.push(limits.join("; "));
        let empty = vec![String::new(); left.len()];
        let verdicts = row.verdicts();
        for verdict in &verdicts {
            let met = if verdict.met { "yes" } else { "**no**" };
            let mut line = std::mem::replace(&mut left, empty.clone());
            line.extend([&verdict.found, verdict.words, met].map(str::to_owned));
            lines.push(line);
        }
        if verdicts.is_empty() {
            left.extend([const { String::new() }; VERDICT.len() - 1]);
            lines.push(left);
        }
    }
    lines
}

/// A table with aligned columns; it is Markdown, too.
pub(crate) fn table(section: &Section, rows: &[Row]) -> String {
    let names = section.columns.iter().map(|who| who.name());
    let heads = ["workload"].into_iter().chain(names).chain(VERDICT);
    let heads: Vec<String> = heads.map(str::to_owned).collect();
    let lines = lines(section, rows);
    let width = |column: usize| {
        let cells = lines.iter().chain([&heads]);
        let widths = cells.map(|line| line[column].chars().count());
        widths.max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    let show = |cells: &[String]| {
        let padded: Vec<String> = cells
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        format!("| {} |\n", padded.join(" | "))
    };
    let rules: Vec<String> = widths.iter().map(|&width| "-".repeat(width)).collect();
    let mut table = show(&heads) + &show(&rules);
    for line in &lines {
        table += &show(line);
    }
    table
}

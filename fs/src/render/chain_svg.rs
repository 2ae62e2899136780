//! chain.svg: what chain.txt says, for a browser. One file that loads nothing, in the colours of
//! the reader's choice (light or dark), as tall as the chain is deep.

use super::chain::{Row, internal, job, rows, title};
use super::human;
use crate::model::{Disk, Job, Model};

const WIDTH: usize = 960;
const MARGIN: usize = 24;
/// Of a layer, with its second line.
const ROW: usize = 46;
/// Of an internal snapshot below it.
const INNER: usize = 20;
/// The line that joins the layers.
const RAIL: usize = MARGIN + 8;
const TEXT: usize = RAIL + 24;
/// Sizes stand in a column of their own, above a bar as long as their share of the largest.
const BARS: usize = 740;
const BAR_WIDTH: usize = WIDTH - MARGIN - BARS;
/// What fits into a line: a monospaced letter is 0.6 times as wide as it is high.
const NAME_MAX: usize = (BARS - TEXT) * 10 / (6 * 14);
const MARKS_MAX: usize = (BARS - TEXT) * 10 / (6 * 11);
const LINE_MAX: usize = (WIDTH - TEXT - MARGIN) * 10 / (6 * 12);

const STYLE: &str = "\
svg{background:#fff;color:#1b1f24;font-family:ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace}\
text{fill:currentColor}.dim{fill:#57606a}.bar{fill:#4c8dd6}.room{fill:#e6e9ed}.rail{stroke:#8b949e}\
.ours{fill:#2da44e}.foreign{fill:#8b949e}.active{fill:#d4721c}.leaving{fill:#cf222e}.failed{fill:#cf222e}\
@media(prefers-color-scheme:dark){svg{background:#0d1117;color:#e6edf3}.dim{fill:#9198a1}.room{fill:#2a313a}}";

pub(super) fn text(model: &Model, disk: &Disk) -> String {
    let rows = rows(model, disk);
    let largest = rows.iter().map(|row| row.layer.allocated_size).max();
    let largest = largest.unwrap_or(0).max(1);
    let mut body = String::new();
    let mut y = MARGIN + 16;
    line(&mut body, MARGIN, y, 18, "", &title(disk), LINE_MAX);
    y += 22;
    let hint =
        "base at the top; each layer stands on the one above it; the guest writes the last one";
    line(&mut body, MARGIN, y, 11, "dim", hint, LINE_MAX);
    y += 30;
    for one in &disk.jobs {
        y = draw_job(&mut body, y, one);
    }
    let first = y;
    let mut layers = String::new();
    let mut last = y;
    for row in &rows {
        last = y;
        y = draw_row(&mut layers, y, row, largest);
    }
    if rows.len() > 1 {
        body.push_str(&format!(
            "<line class=\"rail\" x1=\"{RAIL}\" y1=\"{first}\" x2=\"{RAIL}\" y2=\"{last}\" stroke-width=\"2\"/>\n"
        ));
    }
    body.push_str(&layers);
    let height = y + MARGIN - ROW / 2;
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\">\n\
         <title>{}</title>\n<style>{STYLE}</style>\n{body}</svg>\n",
        escaped(&title(disk))
    )
}

/// Draws a layer around the height `y` and gives the height of the next.
fn draw_row(body: &mut String, y: usize, row: &Row<'_>, largest: u64) -> usize {
    let class = match (row.active, row.layer.leaving, &row.layer.record) {
        (true, _, _) => "active",
        (false, true, _) => "leaving",
        (false, false, Some(_)) => "ours",
        (false, false, None) => "foreign",
    };
    let path = escaped(&row.layer.path.to_string_lossy());
    body.push_str(&format!(
        "<g><title>{path}\n{}</title><circle class=\"{class}\" cx=\"{RAIL}\" cy=\"{y}\" r=\"7\"/>\n",
        escaped(&row.marks)
    ));
    line(body, TEXT, y + 4, 14, "", &row.name, NAME_MAX);
    line(body, TEXT, y + 20, 11, "dim", &row.marks, MARKS_MAX);
    let size = format!(
        "{}  {}",
        human(row.layer.allocated_size),
        row.layer.format.name()
    );
    line(body, BARS, y, 12, "", &size, BAR_WIDTH / 7);
    bar(body, y + 6, row.layer.allocated_size, largest, "bar");
    body.push_str("</g>\n");
    let mut inner = y + 38;
    for one in &row.internals {
        body.push_str(&format!(
            "<circle class=\"dim\" cx=\"{}\" cy=\"{}\" r=\"3\"/>\n",
            TEXT + 5,
            inner - 4
        ));
        line(body, TEXT + 16, inner, 12, "", &internal(one), MARKS_MAX);
        inner += INNER;
    }
    y + ROW + row.internals.len() * INNER
}

fn draw_job(body: &mut String, y: usize, one: &Job) -> usize {
    let class = if one.error.is_some() { "failed" } else { "" };
    line(body, MARGIN, y, 12, class, &job(one), LINE_MAX);
    let (done, total) = one.progress;
    bar(body, y + 8, done, total, "bar");
    y + 36
}

fn bar(body: &mut String, y: usize, part: u64, whole: u64, class: &str) {
    let share = part.min(whole) as f64 / whole.max(1) as f64;
    body.push_str(&format!(
        "<rect class=\"room\" x=\"{BARS}\" y=\"{y}\" width=\"{BAR_WIDTH}\" height=\"6\" rx=\"3\"/>\
         <rect class=\"{class}\" x=\"{BARS}\" y=\"{y}\" width=\"{:.1}\" height=\"6\" rx=\"3\"/>\n",
        share * BAR_WIDTH as f64
    ));
}

fn line(body: &mut String, x: usize, y: usize, size: usize, class: &str, text: &str, most: usize) {
    body.push_str(&format!(
        "<text class=\"{class}\" x=\"{x}\" y=\"{y}\" font-size=\"{size}\">{}</text>\n",
        escaped(&shortened(text, most))
    ));
}

/// The beginning, with a mark where something is left out.
fn shortened(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    let beginning: String = text.chars().take(most.saturating_sub(1)).collect();
    format!("{beginning}…")
}

/// As XML wants it: no markup, and none of the characters that it has no place for.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '"' => escaped.push_str("&quot;"),
            '\n' => escaped.push('\n'),
            '\u{fffe}' | '\u{ffff}' => escaped.push('\u{fffd}'),
            letter if letter.is_control() => escaped.push('\u{fffd}'),
            letter => escaped.push(letter),
        }
    }
    escaped
}

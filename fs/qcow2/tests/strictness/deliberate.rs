//! What differs from the tools on purpose, named case by case in `deliberate.txt`; docs/decisions/0006
//! says why.
//!
//! Invariant: exact. A difference that is not listed is a fault, and so is a case on the list that
//! does not differ any more.

use std::collections::{BTreeMap, BTreeSet};

const LIST: &str = include_str!("deliberate.txt");

/// How an image is read differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Difference {
    /// The tools refuse the image, we read it. All that is ever deliberate.
    OnlyWeRead,
    /// The tools read the image, we refuse it.
    OnlyTheToolsRead,
}

/// Faults: differences nobody meant, and those that were meant and are no more. `told` are the
/// views that were compared; `all` says that these are all there are.
pub(crate) fn judge(
    found: &BTreeMap<String, Difference>,
    told: &BTreeSet<String>,
    all: bool,
) -> Vec<String> {
    let listed = listed();
    let mut faults: Vec<String> = found
        .iter()
        .filter(|(name, difference)| {
            **difference != Difference::OnlyWeRead || !listed.contains(*name)
        })
        .map(|(name, difference)| format!("{name}: {difference:?}"))
        .collect();
    for name in listed.iter().filter(|name| !found.contains_key(*name)) {
        if told.contains(name) {
            faults.push(format!("{name}: listed, and does not differ any more"));
        } else if all {
            faults.push(format!("{name}: listed, and there is no such case"));
        }
    }
    if all && !faults.is_empty() {
        faults.push(format!("what was found, as a list:\n{}", as_list(found)));
    }
    faults
}

/// The cases by name. A line has specimens, a field, and its values.
fn listed() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for line in LIST
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        let (specimens, rest) = line.split_once(": ").expect("SPECIMENS: FIELD = VALUES");
        let (field, values) = rest.split_once(" = ").expect("FIELD = VALUES");
        for specimen in specimens.split(' ') {
            for value in values.split(" | ") {
                let name = format!("{specimen}: {field} = {value}");
                assert!(names.insert(name), "named twice: {line}");
            }
        }
    }
    names
}

fn as_list(found: &BTreeMap<String, Difference>) -> String {
    let mut fields: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    for name in found.keys() {
        let (case, value) = name.split_once(" = ").expect("FIELD = VALUE");
        let (specimen, field) = case.split_once(": ").expect("SPECIMEN: FIELD");
        fields.entry((field, specimen)).or_default().push(value);
    }
    let mut lines: BTreeMap<(&str, Vec<&str>), Vec<&str>> = BTreeMap::new();
    for ((field, specimen), values) in fields {
        lines.entry((field, values)).or_default().push(specimen);
    }
    let line = |((field, values), specimens): (&(&str, Vec<&str>), &Vec<&str>)| {
        format!(
            "{}: {field} = {}\n",
            specimens.join(" "),
            values.join(" | ")
        )
    };
    lines.iter().map(line).collect()
}

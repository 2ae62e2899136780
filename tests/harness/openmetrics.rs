//! A strict reader of OpenMetrics text, written from the specification (1.0): what it takes, every scraper takes.
//! Knows the grammar, the order of lines and the rules of each type; nothing of what is measured.

use std::collections::{BTreeMap, BTreeSet};

/// One line with a value.
#[derive(Debug, Clone)]
pub struct Sample {
    /// With its suffix.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

/// A page that obeys the rules.
#[derive(Debug)]
pub struct Page(Vec<Sample>);

impl Page {
    /// Reads a page; panics with the line that breaks a rule.
    #[track_caller]
    pub fn read(text: &str) -> Self {
        match read(text) {
            Ok(samples) => Self(samples),
            Err(why) => panic!("{why}\n{text}"),
        }
    }

    /// The value of the one sample with this name and these labels, whatever others it has.
    #[track_caller]
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let found: Vec<&Sample> = self.samples(name, labels).collect();
        assert_eq!(found.len(), 1, "{name} {labels:?}: {found:?}");
        found[0].value
    }

    /// The samples with this name and these labels.
    pub fn samples<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [(&'a str, &'a str)],
    ) -> impl Iterator<Item = &'a Sample> {
        self.0.iter().filter(move |sample| {
            let has = |(label, value): &(&str, &str)| {
                sample.labels.get(*label).is_some_and(|v| v == value)
            };
            sample.name == name && labels.iter().all(has)
        })
    }
}

#[derive(Default)]
struct Family {
    name: String,
    kind: Option<String>,
    unit: Option<String>,
    help: Option<String>,
    samples: Vec<Sample>,
}

fn read(text: &str) -> Result<Vec<Sample>, String> {
    let body = text
        .strip_suffix("# EOF\n")
        .ok_or("it must end with # EOF and a line feed")?;
    let mut families: Vec<Family> = Vec::new();
    for line in body.split_terminator('\n') {
        take(line, &mut families).map_err(|why| format!("{why}: {line}"))?;
    }
    let mut names = BTreeSet::new();
    for family in &families {
        let name = &family.name;
        if !names.insert(name) {
            return Err(format!("the family {name} stands in two places"));
        }
        check(family).map_err(|why| format!("{name}: {why}"))?;
    }
    Ok(families.into_iter().flat_map(|f| f.samples).collect())
}

fn take(line: &str, families: &mut Vec<Family>) -> Result<(), String> {
    let Some(comment) = line.strip_prefix("# ") else {
        let sample = sample(line)?;
        let family = families.last_mut().ok_or("a sample before any family")?;
        if !belongs(family, &sample.name) {
            return Err("a sample of no family, or of an earlier one".to_owned());
        }
        family.samples.push(sample);
        return Ok(());
    };
    let mut words = comment.splitn(3, ' ');
    let (keyword, name, rest) = (words.next(), words.next(), words.next());
    let (Some(keyword), Some(name), Some(rest)) = (keyword, name, rest) else {
        return Err("a comment is TYPE, UNIT or HELP of a family".to_owned());
    };
    is_name(name)?;
    if families.last().is_none_or(|family| family.name != name) {
        families.push(Family {
            name: name.to_owned(),
            ..Family::default()
        });
    }
    let family = families.last_mut().expect("there is one now");
    if !family.samples.is_empty() {
        return Err("metadata after samples".to_owned());
    }
    let field = match keyword {
        "TYPE" => &mut family.kind,
        "UNIT" => &mut family.unit,
        "HELP" => {
            unescaped(rest)?;
            &mut family.help
        }
        _ => return Err("no such keyword".to_owned()),
    };
    match field.replace(rest.to_owned()) {
        None => Ok(()),
        Some(_) => Err("said twice".to_owned()),
    }
}

/// The suffixes that samples of a type have.
fn suffixes(kind: &str) -> &'static [&'static str] {
    match kind {
        "gauge" => &[""],
        "counter" => &["_total", "_created"],
        "histogram" => &["_bucket", "_count", "_sum", "_created"],
        "summary" => &["", "_count", "_sum", "_created"],
        "info" => &["_info"],
        _ => &[],
    }
}

fn belongs(family: &Family, sample: &str) -> bool {
    let kind = family.kind.as_deref().unwrap_or("unknown");
    let rest = sample.strip_prefix(family.name.as_str());
    rest.is_some_and(|rest| suffixes(kind).contains(&rest))
}

fn check(family: &Family) -> Result<(), String> {
    let kind = family.kind.as_deref().ok_or("no TYPE")?;
    if suffixes(kind).is_empty() {
        return Err(format!("unknown type {kind}"));
    }
    if family.help.is_none() {
        return Err("no HELP".to_owned());
    }
    match &family.unit {
        Some(unit) if !family.name.ends_with(&format!("_{unit}")) => {
            return Err(format!("the name does not end in its unit {unit}"));
        }
        Some(_) => {}
        None if ["_seconds", "_bytes"]
            .iter()
            .any(|u| family.name.ends_with(u)) =>
        {
            return Err("a unit that is not told".to_owned());
        }
        None => {}
    }
    if kind == "counter" && family.name.ends_with("_total") {
        return Err("a counter's family is called without _total".to_owned());
    }
    let mut seen = BTreeSet::new();
    for sample in &family.samples {
        if !seen.insert((sample.name.clone(), sample.labels.clone())) {
            return Err(format!("said twice: {sample:?}"));
        }
        let counts = kind != "gauge" && !sample.name.ends_with("_created");
        if counts && (sample.value < 0.0 || sample.value.is_nan()) {
            return Err(format!("it cannot count down: {sample:?}"));
        }
    }
    if kind == "histogram" {
        buckets(family)?;
    }
    Ok(())
}

/// Buckets come in order, add up, and the last is all there are.
fn buckets(family: &Family) -> Result<(), String> {
    let mut groups: BTreeMap<BTreeMap<String, String>, Vec<(f64, f64)>> = BTreeMap::new();
    for sample in family
        .samples
        .iter()
        .filter(|s| s.name.ends_with("_bucket"))
    {
        let mut labels = sample.labels.clone();
        let le = labels.remove("le").ok_or("a bucket without le")?;
        groups
            .entry(labels)
            .or_default()
            .push((number(&le)?, sample.value));
    }
    for (labels, buckets) in groups {
        let rises = buckets
            .windows(2)
            .all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1);
        let last = buckets.last().filter(|(le, _)| *le == f64::INFINITY);
        let count = family
            .samples
            .iter()
            .find(|s| s.name.ends_with("_count") && s.labels == labels);
        let sum = family
            .samples
            .iter()
            .find(|s| s.name.ends_with("_sum") && s.labels == labels);
        match (last, count, sum) {
            (Some((_, all)), Some(count), Some(_)) if rises && *all == count.value => {}
            _ => return Err(format!("the buckets of {labels:?} do not fit: {buckets:?}")),
        }
    }
    Ok(())
}

fn sample(line: &str) -> Result<Sample, String> {
    let (name, rest) = match line.find(['{', ' ']) {
        Some(at) => line.split_at(at),
        None => return Err("no value".to_owned()),
    };
    is_name(name)?;
    let mut labels = BTreeMap::new();
    let mut rest = rest;
    if let Some(list) = rest.strip_prefix('{') {
        let mut list = list;
        loop {
            let (label, after) = list.split_once("=\"").ok_or("a label without value")?;
            is_name(label)?;
            let end = closing_quote(after).ok_or("a value that does not end")?;
            let value = unescaped(&after[..end])?;
            if labels.insert(label.to_owned(), value).is_some() {
                return Err(format!("the label {label} is there twice"));
            }
            let after = &after[end + 1..];
            if let Some(after) = after.strip_prefix(',') {
                list = after;
                continue;
            }
            rest = after.strip_prefix('}').ok_or("labels that do not end")?;
            break;
        }
    }
    let value = rest.strip_prefix(' ').ok_or("no space before the value")?;
    Ok(Sample {
        name: name.to_owned(),
        labels,
        value: number(value)?,
    })
}

fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.bytes().position(|byte| {
        let closes = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        closes
    })
}

fn unescaped(text: &str) -> Result<String, String> {
    let mut letters = text.chars();
    let mut plain = String::new();
    while let Some(letter) = letters.next() {
        plain.push(match letter {
            '\\' => match letters.next() {
                Some('n') => '\n',
                Some(letter @ ('\\' | '"')) => letter,
                other => return Err(format!("a backslash before {other:?}")),
            },
            letter => letter,
        });
    }
    Ok(plain)
}

fn number(text: &str) -> Result<f64, String> {
    match text {
        "+Inf" => Ok(f64::INFINITY),
        text if text
            .bytes()
            .all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b)) =>
        {
            text.parse().map_err(|_| format!("no number: {text}"))
        }
        text => Err(format!("no number: {text}")),
    }
}

fn is_name(name: &str) -> Result<(), String> {
    let mut bytes = name.bytes();
    let first = bytes
        .next()
        .is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    match first && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        true => Ok(()),
        false => Err(format!("no name: {name:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::read;

    #[test]
    fn it_takes_what_is_right_and_nothing_else() {
        let good = "# TYPE a gauge\n# HELP a x\na{l=\"q\\\"\\\\\\n\"} 1\na{l=\"b\"} 2.5\n# EOF\n";
        assert!(read(good).is_ok(), "{:?}", read(good));
        for bad in [
            "# TYPE a gauge\n# HELP a x\na 1\n",
            "# TYPE a gauge\n# HELP a x\na 1\n# EOF\nx",
            "# TYPE a gauge\n# HELP a x\na 1\na 1\n# EOF\n",
            "# TYPE a gauge\n# HELP a x\na{l=\"1\"1} 1\n# EOF\n",
            "# TYPE a gauge\n# HELP a x\na{l=\"\\x\"} 1\n# EOF\n",
            "# TYPE a gauge\n# HELP a x\na nan\n# EOF\n",
            "# TYPE a gauge\n# HELP a x\nb 1\n# EOF\n",
            "# TYPE a counter\n# HELP a x\na 1\n# EOF\n",
            "# TYPE a counter\n# HELP a x\na_total -1\n# EOF\n",
            "# TYPE a_bytes gauge\n# HELP a_bytes x\na_bytes 1\n# EOF\n",
            "# TYPE a gauge\na 1\n# EOF\n",
            "# HELP a x\na 1\n# EOF\n",
            "# TYPE a histogram\n# HELP a x\na_bucket{le=\"1.0\"} 2\na_bucket{le=\"+Inf\"} 1\na_count 1\na_sum 1\n# EOF\n",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}

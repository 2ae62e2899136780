//! Measures qmpfs beside the other ways to read the same images, in one run, and writes docs/PERFORMANCE.md.
//! Started by tests/bench/run, which makes the scratch directories and removes them, whatever happens.
//! It starts every participant itself, as a user would, and nothing it starts outlives it.

mod compare;
mod content;
mod filler;
mod goals;
mod images;
mod machine;
mod options;
mod page;
mod reader;
mod report;
mod results;
mod servers;
mod sockets;
mod usage;
mod workloads;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use images::Images;
use machine::Load;
use options::{Options, USAGE};
use page::{Measured, Page};
use workloads::{Run, SECTIONS, Section, Workload};

/// Bytes of a disk: a second or two of reading for the slowest.
const SIZE: u64 = 1 << 30;
const QUICK_SIZE: u64 = 128 << 20;
/// An odd number: the median is then a run that took place.
const ROUNDS: usize = 5;
const QUICK_ROUNDS: usize = 3;

fn main() -> ExitCode {
    // SAFETY: touches nothing but this process's own attribute.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) };
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(wrong) => {
            eprintln!("bench: {wrong}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let selected = match select(&options.only) {
        Ok(selected) => selected,
        Err(unknown) => {
            eprintln!(
                "bench: there is no workload {unknown}; there are {}",
                known().collect::<Vec<_>>().join(", ")
            );
            return ExitCode::from(2);
        }
    };
    let dir = PathBuf::from(
        std::env::var_os("QMPFS_BENCH_DIR").expect("tests/bench/run says where images are"),
    );
    let size = if options.quick { QUICK_SIZE } else { SIZE };
    let mut run = Run {
        images: Images::new(&dir, size),
        dir,
        copies: directory("QMPFS_BENCH_COPIES"),
        rounds: options
            .rounds
            .unwrap_or(if options.quick { QUICK_ROUNDS } else { ROUNDS }),
        random_for: Duration::from_millis(if options.quick { 200 } else { 1000 }),
    };
    let load = Load::now();
    if let Some(warning) = load.warning() {
        eprintln!("bench: {warning}");
    }
    let began = Instant::now();
    let mut measured = Vec::new();
    for (section, workloads) in selected {
        let mut rows = Vec::new();
        for (name, measure) in &workloads {
            let since = Instant::now();
            rows.extend(measure(&mut run));
            eprintln!("bench: {name} took {:.0} s", since.elapsed().as_secs_f64());
        }
        print!("{}", report::table(section, &rows));
        let complete = workloads.len() == section.workloads.len();
        measured.push(Measured {
            section,
            rows,
            complete,
        });
    }
    eprintln!(
        "bench: all of it took {:.0} s",
        began.elapsed().as_secs_f64()
    );
    let path = options.out.or_else(|| {
        // A table of the page is of one run.
        measured.retain(|measured| measured.complete && !options.quick);
        (!measured.is_empty()).then(|| directory("QMPFS_BENCH_PAGE"))
    });
    let Some(path) = path else {
        return ExitCode::SUCCESS;
    };
    let page = Page {
        measured: &measured,
        machine: machine::description(&run.dir),
        load,
        rounds: run.rounds,
        mib: size >> 20,
        random_for: run.random_for,
    };
    if let Err(error) = page::write(&path, &page) {
        eprintln!("bench: {}: {error}", path.display());
        return ExitCode::FAILURE;
    }
    eprintln!("bench: written to {}", path.display());
    ExitCode::SUCCESS
}

fn directory(variable: &str) -> PathBuf {
    let set = std::env::var_os(variable);
    set.unwrap_or_else(|| panic!("tests/bench/run sets {variable}"))
        .into()
}

/// What `--only` takes: sections, and their workloads.
fn known() -> impl Iterator<Item = &'static str> {
    let names = |section: &'static Section| {
        let workloads = section.workloads.iter().map(|(name, _)| *name);
        [section.name].into_iter().chain(workloads)
    };
    SECTIONS.iter().flat_map(names)
}

fn select(only: &[String]) -> Result<Vec<(&'static Section, Vec<Workload>)>, &String> {
    if let Some(unknown) = only.iter().find(|only| known().all(|name| name != *only)) {
        return Err(unknown);
    }
    let wanted = |name: &str| only.is_empty() || only.iter().any(|only| only == name);
    let of = |section: &'static Section| {
        let all = wanted(section.name);
        let workloads = section.workloads.iter();
        let chosen: Vec<Workload> = workloads
            .filter(|(name, _)| all || wanted(name))
            .copied()
            .collect();
        (section, chosen)
    };
    let chosen = SECTIONS.iter().map(of);
    Ok(chosen.filter(|(_, chosen)| !chosen.is_empty()).collect())
}

#[cfg(test)]
mod tests {
    use super::select;

    #[test]
    fn sections_and_workloads_are_chosen_by_name() {
        let chosen = |only: &str| -> Option<Vec<(&str, usize)>> {
            let only: Vec<String> = only.split_whitespace().map(str::to_owned).collect();
            let chosen = select(&only).ok()?;
            let counts = chosen
                .into_iter()
                .map(|(section, chosen)| (section.name, chosen.len()));
            Some(counts.collect())
        };
        let all = chosen("").expect("all");
        assert_eq!(all.len(), super::SECTIONS.len());
        assert_eq!(chosen("files"), Some(vec![("files", 5)]));
        assert_eq!(chosen("copy xfs"), Some(vec![("disks", 1), ("files", 1)]));
        assert_eq!(chosen("copy nonsense"), None);
    }
}

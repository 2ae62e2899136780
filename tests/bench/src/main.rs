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
use page::Page;
use workloads::{ALL, Run, Workload};

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
            let known: Vec<&str> = ALL.iter().map(|(name, _)| *name).collect();
            eprintln!(
                "bench: there is no workload {unknown}; there are {}",
                known.join(", ")
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
    let mut rows = Vec::new();
    for (name, measure) in selected {
        let since = Instant::now();
        rows.extend(measure(&mut run));
        eprintln!("bench: {name} took {:.0} s", since.elapsed().as_secs_f64());
    }
    eprintln!(
        "bench: all of it took {:.0} s",
        began.elapsed().as_secs_f64()
    );
    print!("{}", report::table(&rows));
    let complete = !options.quick && options.only.is_empty();
    let Some(path) = options
        .out
        .or_else(|| complete.then(|| directory("QMPFS_BENCH_PAGE")))
    else {
        return ExitCode::SUCCESS;
    };
    let page = Page {
        rows: &rows,
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

fn select(only: &[String]) -> Result<Vec<Workload>, &String> {
    let known = |name: &&String| ALL.iter().all(|(known, _)| known != name);
    if let Some(unknown) = only.iter().find(known) {
        return Err(unknown);
    }
    let wanted = |(name, _): &&Workload| only.is_empty() || only.iter().any(|only| only == name);
    Ok(ALL.iter().filter(wanted).copied().collect())
}

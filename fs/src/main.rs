//! The program: from the command line to an exit code, errors in words on the terminal.

use qmpfs::cat::{self, Ended};
use qmpfs::cli::{self, Action};
use qmpfs::diff;
use qmpfs::doctor;
use qmpfs::errno::Failure;
use qmpfs::guest;
use qmpfs::run;
use qmpfs::verify;
use std::io::Write;
use std::process::ExitCode;

/// The exit code of a `qmpfs diff` that could not compare everything, as diff(1) has it.
const TROUBLE: u8 = 2;

fn main() -> ExitCode {
    let done = cli::parse().and_then(|action| match action {
        Action::Mount(config) => run::mount(*config).map(|()| ExitCode::SUCCESS),
        Action::Umount(mountpoint) => run::umount(&mountpoint).map(|()| ExitCode::SUCCESS),
        Action::Wait(request) => run::wait(&request).map(|()| ExitCode::SUCCESS),
        Action::Verify(request) => verify::verify(&request).map(|()| ExitCode::SUCCESS),
        Action::Cat(request) => cat::to_standard_output(&request).map(|ended| match ended {
            Ended::Whole => ExitCode::SUCCESS,
            // `qmpfs cat IMAGE | head`: nothing to say, and not all was written
            Ended::NobodyReads => ExitCode::FAILURE,
        }),
        Action::Doctor(source) => Ok(match doctor::examine_all(source) {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        }),
        Action::Diff(request) => Ok(match diff::diff(&request) {
            Ok(diff::Ended::Same) => ExitCode::SUCCESS,
            Ok(diff::Ended::Different) => ExitCode::FAILURE,
            Ok(diff::Ended::Trouble) => ExitCode::from(TROUBLE),
            Err(failure) => {
                say(&failure);
                ExitCode::from(TROUBLE)
            }
        }),
        Action::GuestReader => guest::serve().map(|()| ExitCode::SUCCESS),
        Action::Print(text) => std::io::stdout()
            .write_all(&text)
            .map(|()| ExitCode::SUCCESS)
            .map_err(|error| Failure::io("write to standard output", &error)),
    });
    match done {
        Ok(code) => code,
        Err(failure) => {
            say(&failure);
            ExitCode::FAILURE
        }
    }
}

fn say(failure: &Failure) {
    eprintln!("qmpfs: {}", failure.message);
    if !failure.next.is_empty() {
        eprintln!("  next: {}", failure.next);
    }
}

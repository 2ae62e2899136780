//! The program: from the command line to an exit code, errors in words on the terminal.

use qmpfs::cat::{self, Ended};
use qmpfs::cli::{self, Action};
use qmpfs::errno::Failure;
use qmpfs::guest;
use qmpfs::run;
use qmpfs::verify;
use std::io::Write;
use std::process::ExitCode;

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
        Action::GuestReader => guest::serve().map(|()| ExitCode::SUCCESS),
        Action::Print(text) => std::io::stdout()
            .write_all(&text)
            .map(|()| ExitCode::SUCCESS)
            .map_err(|error| Failure::io("write to standard output", &error)),
    });
    match done {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("qmpfs: {}", failure.message);
            if !failure.next.is_empty() {
                eprintln!("  next: {}", failure.next);
            }
            ExitCode::FAILURE
        }
    }
}

//! The program: from the command line to an exit code, errors in words on the terminal.

use qmpfs::cli::{self, Action};
use qmpfs::errno::Failure;
use qmpfs::run;
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    let done = cli::parse().and_then(|action| match action {
        Action::Mount(config) => run::mount(*config),
        Action::Umount(mountpoint) => run::umount(&mountpoint),
        Action::Print(text) => std::io::stdout()
            .write_all(&text)
            .map_err(|error| Failure::io("write to standard output", &error)),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("qmpfs: {}", failure.message);
            if !failure.next.is_empty() {
                eprintln!("  next: {}", failure.next);
            }
            ExitCode::FAILURE
        }
    }
}

//! Shell lines, as a person would type them: `sh!("cp {a} {b}")` panics with everything that was said when it fails.

use std::process::{Command, Output, Stdio};

/// Runs a formatted line; gives its standard output, panics if it fails.
#[macro_export]
macro_rules! sh {
    ($($line:tt)*) => { $crate::sh::run(&format!($($line)*)) };
}

/// Runs `line` with `sh -euc`; gives its standard output without the last newline.
#[track_caller]
pub fn run(line: &str) -> String {
    let output = attempt(line);
    assert!(
        output.status.success(),
        "$ {line}\n{}\n{}",
        output.status,
        said(&output)
    );
    String::from_utf8_lossy(&output.stdout)
        .trim_end()
        .to_owned()
}

/// Runs `line`, whatever comes of it.
pub fn attempt(line: &str) -> Output {
    let path = format!(
        "{}:/usr/sbin:/sbin",
        std::env::var("PATH").unwrap_or_default()
    );
    let mut command = Command::new("sh");
    command
        .args(["-euc", line])
        .env("PATH", path)
        .env("LC_ALL", "C")
        .stdin(Stdio::null());
    command.output().expect("sh can be started")
}

/// Both outputs as text.
pub fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// True for root, who may mount.
pub fn is_root() -> bool {
    // SAFETY: geteuid cannot fail and has no memory effects.
    unsafe { libc::geteuid() == 0 }
}

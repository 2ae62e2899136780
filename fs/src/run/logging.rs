//! Where `tracing` writes: standard error in front, a file when asked for, else nowhere.

use crate::errno::Failure;
use crate::report::Log;
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use tracing_subscriber::EnvFilter;

/// The environment variable that sets the level.
const LEVEL: &str = "QMPFS_LOG";

/// Starts the log of this process.
pub(super) fn start(file: Option<&Path>, in_background: bool) -> Result<(), Failure> {
    let filter = EnvFilter::try_from_env(LEVEL).unwrap_or_else(|_| EnvFilter::new("info"));
    let format = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false);
    match file {
        Some(path) => {
            // Paths and snapshot names are the mounting user's own business.
            let file = File::options()
                .append(true)
                .create(true)
                .mode(0o600)
                .open(path);
            let file =
                file.map_err(|error| Failure::io(format_args!("open {}", path.display()), &error))?;
            format.with_writer(Mutex::new(file)).init();
        }
        None if in_background => {}
        None => format.with_writer(std::io::stderr).init(),
    }
    Ok(())
}

/// Has each panic written to the mount's log, with its place, before anything else happens.
pub(super) fn keep_panics(log: &Arc<Log>) {
    let log = Arc::clone(log);
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        log.note(&format!(
            "bug: thread {}: {panic}",
            std::thread::current().name().unwrap_or("?")
        ));
        before(panic);
    }));
}

//! What the run took place on, in words that name no machine.

use std::fs;
use std::path::Path;

use qmpfs_tests::sh;

/// Above this load others were at work, too.
const QUIET: f64 = 1.0;

/// The load before the run began.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load(f64);

impl Load {
    /// The average of the last minute.
    pub(crate) fn now() -> Self {
        let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let first = text.split(' ').next().and_then(|word| word.parse().ok());
        Self(first.unwrap_or(0.0))
    }

    /// What a reader of the numbers must know, if anything.
    pub(crate) fn warning(self) -> Option<String> {
        (self.0 > QUIET).then(|| {
            format!(
                "The machine was not quiet: its load was {:.1} before the run began. The numbers say less than they should.",
                self.0
            )
        })
    }
}

/// The day, as UTC has it.
pub(crate) fn date() -> String {
    sh!("date -u +%F")
}

/// One line: processor, kernel, programs, filesystem.
pub(crate) fn description(dir: &Path) -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cores = cpuinfo
        .lines()
        .filter(|line| line.starts_with("processor"))
        .count();
    let model = after(&cpuinfo, "model name").unwrap_or("processor unknown");
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib =
        after(&meminfo, "MemTotal").and_then(|size| size.strip_suffix(" kB")?.parse::<f64>().ok());
    let virtual_machine = if cpuinfo.contains(" hypervisor") {
        ", a virtual machine"
    } else {
        ""
    };
    // The release without what a builder has appended.
    let kernel = sh!("uname -r | cut -d- -f1");
    let qemu = sh!("qemu-img --version | sed -n 's/^qemu-img version \\([0-9.]*\\).*/\\1/p'");
    let nbdfuse = sh!("nbdfuse --version | sed -n 's/^nbdfuse //p'");
    let filesystem = sh!("df --output=fstype {} | tail -1", dir.display());
    format!(
        "{cores} cores ({model}{virtual_machine}), {:.0} GiB of memory, Linux {kernel}, QEMU {qemu}, nbdfuse {nbdfuse}; images on {filesystem}.",
        kib.unwrap_or(0.0) / f64::from(1 << 20)
    )
}

fn after<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim())
}

#[cfg(test)]
mod tests {
    use super::after;

    #[test]
    fn values_after_names() {
        assert_eq!(after("a\t: 1\nb c : 2 x\n", "b c"), Some("2 x"));
        assert_eq!(after("a : 1", "b"), None);
    }
}

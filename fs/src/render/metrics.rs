//! `metrics`: the state of the VM and the counters of the report as OpenMetrics text, of which
//! the older Prometheus text format is a reader too: no type is used that it has not.
//! Every sample has the label `vm`; names of points and job ids are never labels.

use super::Extra;
use crate::model::{ConnectionState, Disk, Job, Model};
use crate::report::BUCKETS;
use crate::tree::{NodeKey, Section, children};
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

/// QEMU's run states. One that is newer is shown beside them while it lasts.
const RUN_STATES: [&str; 16] = [
    "colo",
    "debug",
    "finish-migrate",
    "guest-panicked",
    "inmigrate",
    "internal-error",
    "io-error",
    "paused",
    "postmigrate",
    "prelaunch",
    "restore-vm",
    "running",
    "save-vm",
    "shutdown",
    "suspended",
    "watchdog",
];

/// The families of the page, one after the other.
struct Page<'a> {
    vm: &'a str,
    text: String,
}

/// What the specification calls a family's type, and what its samples end in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Type {
    Gauge,
    Counter,
    Histogram,
    Summary,
}

impl Type {
    fn word(self) -> &'static str {
        match self {
            Type::Gauge => "gauge",
            Type::Counter => "counter",
            Type::Histogram => "histogram",
            Type::Summary => "summary",
        }
    }
}

type Labels<'a> = [(&'a str, &'a str)];

impl Page<'_> {
    /// Begins a family; a name that ends in a base unit says so.
    fn family(&mut self, name: &str, kind: Type, help: &str) {
        self.text
            .push_str(&format!("# TYPE {name} {}\n", kind.word()));
        for unit in ["seconds", "bytes"] {
            if name.ends_with(&format!("_{unit}")) {
                self.text.push_str(&format!("# UNIT {name} {unit}\n"));
            }
        }
        self.text
            .push_str(&format!("# HELP {name} {}\n", escaped(help)));
    }

    fn sample(&mut self, name: &str, labels: &Labels<'_>, value: impl std::fmt::Display) {
        self.text
            .push_str(&format!("{name}{{vm=\"{}\"", escaped(self.vm)));
        for (label, text) in labels {
            self.text
                .push_str(&format!(",{label}=\"{}\"", escaped(text)));
        }
        self.text.push_str(&format!("}} {value}\n"));
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl std::fmt::Display) {
        self.family(name, Type::Gauge, help);
        self.sample(name, &[], value);
    }

    fn counter(&mut self, name: &str, help: &str, value: impl std::fmt::Display) {
        self.family(name, Type::Counter, help);
        self.sample(&format!("{name}_total"), &[], value);
    }

    fn per_disk(&mut self, name: &str, help: &str, model: &Model, value: impl Fn(&Disk) -> u64) {
        self.family(name, Type::Gauge, help);
        for disk in &model.disks {
            self.sample(name, &[("disk", &disk.name)], value(disk));
        }
    }
}

/// The whole page.
pub(super) fn text(model: &Model, extra: &Extra<'_>) -> String {
    let mut page = Page {
        vm: &model.vm.name,
        text: String::new(),
    };
    vm(&mut page, model);
    disks(&mut page, model);
    jobs(&mut page, model, extra);
    counted(&mut page, extra);
    page.text.push_str("# EOF\n");
    page.text
}

fn vm(page: &mut Page<'_>, model: &Model) {
    let name = "qmpfs_build_info";
    page.family(
        name,
        Type::Gauge,
        "Versions of qmpfs and of the QEMU behind it; always 1.",
    );
    let labels = [
        ("version", env!("CARGO_PKG_VERSION")),
        ("qemu", model.vm.qemu_version.as_str()),
    ];
    page.sample(name, &labels, 1);
    page.gauge(
        "qmpfs_connection_up",
        "Whether QEMU answers; 0 also for images that are read without one.",
        u8::from(model.vm.connection == ConnectionState::Up),
    );
    let name = "qmpfs_vm_run_state";
    page.family(
        name,
        Type::Gauge,
        "1 for the state QEMU is in, 0 for the others; all 0 when it has none to tell.",
    );
    let now = model.vm.run_state.as_deref();
    let newer = now.filter(|state| !RUN_STATES.contains(state));
    for state in RUN_STATES.into_iter().chain(newer) {
        page.sample(name, &[("state", state)], u8::from(now == Some(state)));
    }
}

fn disks(page: &mut Page<'_>, model: &Model) {
    page.gauge("qmpfs_disks", "Disks in the mount.", model.disks.len());
    page.per_disk(
        "qmpfs_disk_layers",
        "Files of the chain, the active layer included.",
        model,
        |disk| disk.layers.len() as u64 + 1,
    );
    let name = "qmpfs_disk_points";
    page.family(
        name,
        Type::Gauge,
        "Points, by the directory that lists them.",
    );
    for disk in &model.disks {
        for section in Section::ALL {
            let key = NodeKey::Section(disk.name.clone(), section);
            let listed = children(model, &key);
            // these list no points
            if !matches!(section, Section::Jobs | Section::Bitmaps) {
                let labels = [("disk", disk.name.as_str()), ("kind", section.name())];
                page.sample(name, &labels, listed.len());
            }
        }
    }
    page.per_disk(
        "qmpfs_disk_virtual_size_bytes",
        "What the guest sees.",
        model,
        |disk| disk.active.virtual_size,
    );
    page.per_disk(
        "qmpfs_disk_allocated_bytes",
        "What the files of the chain take on the host, those shared with other disks included.",
        model,
        |disk| {
            let sizes = disk.chain().map(|layer| layer.allocated_size);
            sizes.fold(0, u64::saturating_add)
        },
    );
    page.per_disk(
        "qmpfs_disk_active_allocated_bytes",
        "What the active layer takes on the host: written since the newest point.",
        model,
        |disk| disk.active.allocated_size,
    );
    page.per_disk(
        "qmpfs_disk_snapshots_possible",
        "Whether points can be made; disk.json says why not.",
        model,
        |disk| u64::from(disk.no_seal().is_none()),
    );
}

/// Jobs that look the same from outside.
#[derive(Default)]
struct Together {
    count: u64,
    done: u64,
    total: u64,
    oldest: Duration,
}

fn jobs(page: &mut Page<'_>, model: &Model, extra: &Extra<'_>) {
    let now = SystemTime::now();
    let mut together: BTreeMap<[&str; 3], Together> = BTreeMap::new();
    for (disk, job) in model
        .disks
        .iter()
        .flat_map(|disk| disk.jobs.iter().map(move |job| (disk, job)))
    {
        let those = together
            .entry([&disk.name, &job.verb, state(job)])
            .or_default();
        let since = extra.log.counters().job_since(&disk.name, &job.id);
        let age = since.and_then(|since| now.duration_since(since).ok());
        those.count += 1;
        those.done = those.done.saturating_add(job.progress.0);
        those.total = those.total.saturating_add(job.progress.1);
        those.oldest = those.oldest.max(age.unwrap_or_default());
    }
    type Value = fn(&Together) -> f64;
    let families: [(&str, &str, Value); 4] = [
        (
            "qmpfs_jobs",
            "Jobs at work, and failed ones that nobody has dismissed.",
            |those| those.count as f64,
        ),
        ("qmpfs_job_done_bytes", "Copied so far.", |those| {
            those.done as f64
        }),
        (
            "qmpfs_job_total_bytes",
            "To be copied in all; may grow while the guest writes.",
            |those| those.total as f64,
        ),
        (
            "qmpfs_job_age_seconds",
            "Since the oldest of them was first seen.",
            |those| those.oldest.as_secs_f64(),
        ),
    ];
    for (name, help, value) in families {
        page.family(name, Type::Gauge, help);
        for ([disk, verb, state], those) in &together {
            let labels = [("disk", *disk), ("verb", *verb), ("state", *state)];
            page.sample(name, &labels, value(those));
        }
    }
}

fn state(job: &Job) -> &str {
    match &job.error {
        Some(_) => "failed",
        None => &job.state,
    }
}

fn counted(page: &mut Page<'_>, extra: &Extra<'_>) {
    let counters = extra.log.counters();
    let name = "qmpfs_verbs";
    page.family(
        name,
        Type::Counter,
        "Verbs that were answered, by where and with which errno (OK when done).",
    );
    for (kind, count) in counters.verbs() {
        let labels = [
            ("verb", kind.verb.as_str()),
            ("section", kind.section),
            ("errno", kind.errno.as_str()),
        ];
        page.sample("qmpfs_verbs_total", &labels, count);
    }
    let name = "qmpfs_verb_duration_seconds";
    page.family(name, Type::Histogram, "From the call to its answer.");
    for (verb, histogram) in counters.durations() {
        let mut sum = 0;
        let bounds = BUCKETS.iter().map(|bound| format!("{bound:?}"));
        for (bound, count) in bounds.chain(["+Inf".to_owned()]).zip(histogram.counts) {
            sum += count;
            let labels = [("verb", verb.as_str()), ("le", bound.as_str())];
            page.sample("qmpfs_verb_duration_seconds_bucket", &labels, sum);
        }
        let labels = [("verb", verb.as_str())];
        page.sample("qmpfs_verb_duration_seconds_count", &labels, sum);
        let seconds = histogram.sum.as_secs_f64();
        page.sample("qmpfs_verb_duration_seconds_sum", &labels, seconds);
    }
    let stops = counters.stops();
    let name = "qmpfs_guest_stopped_seconds";
    page.family(
        name,
        Type::Summary,
        "How often and how long the guest stood still for a verb.",
    );
    page.sample("qmpfs_guest_stopped_seconds_count", &[], stops.count);
    page.sample(
        "qmpfs_guest_stopped_seconds_sum",
        &[],
        stops.sum.as_secs_f64(),
    );
    let name = "qmpfs_view_read_bytes";
    page.family(
        name,
        Type::Counter,
        "Bytes read from files disk.raw; without -o passthrough, which the kernel reads by itself.",
    );
    for (disk, bytes) in counters.bytes_read() {
        page.sample("qmpfs_view_read_bytes_total", &[("disk", &disk)], bytes);
    }
    let name = "qmpfs_cache_bytes";
    page.family(
        name,
        Type::Gauge,
        "Memory of the caches behind the views; each has a limit of 32 MiB.",
    );
    for (cache, bytes) in [
        ("tables", extra.caches.tables),
        ("clusters", extra.caches.clusters),
        ("maps", extra.caches.maps),
    ] {
        page.sample(name, &[("cache", cache)], bytes);
    }
    let events = extra.log.events();
    page.counter(
        "qmpfs_events",
        "Events of QEMU that were taken.",
        events.seen(),
    );
    page.counter(
        "qmpfs_events_lost",
        "Events that QEMU sent faster than they could be taken; the tree follows its graph all the same.",
        events.lost(),
    );
    page.counter(
        "qmpfs_reconnects",
        "Connections to QEMU after the first.",
        counters.reconnects(),
    );
}

/// Backslash, quote and line feed stand behind a backslash, in labels as in help texts.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '\\' => escaped.push_str("\\\\"),
            '"' => escaped.push_str("\\\""),
            '\n' => escaped.push_str("\\n"),
            letter => escaped.push(letter),
        }
    }
    escaped
}

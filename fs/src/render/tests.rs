//! What every text says, on a hand-made model.

use super::{Extra, Sizes, human, text};
use crate::intent::Verbs;
use crate::model::{Agent, AgentState, Model, Quiesce};
use crate::report::Log;
use crate::tree::{
    DiskFile, GroupKind, JobFile, NodeKey, PointFile, PointKey, RootFile, Section, lookup, sample,
};
use serde_json::Value;
use std::path::Path;

const VERBS: Verbs = Verbs {
    read_only: false,
    no_delete: false,
    live_rollback: false,
    coexist: false,
    backups: false,
};

/// The text with verbs `verbs` and measured sizes `sizes`.
fn shown_with(model: &Model, key: &NodeKey, verbs: Verbs, sizes: Option<Sizes>) -> String {
    let log = Log::new();
    let plan = |point: &PointKey| format!("plan for {}\n", point.identity);
    let extra = Extra {
        log: &log,
        mountpoint: Path::new("/mnt/vm"),
        verbs,
        plan: &plan,
        filesystems: None,
        sizes,
        caches: qmpfs_qcow2::CacheBytes::default(),
    };
    text(model, key, &extra).expect("it is a text file that exists")
}

fn shown(model: &Model, key: &NodeKey) -> String {
    shown_with(model, key, VERBS, None)
}

fn object(model: &Model, key: &NodeKey) -> Value {
    let text = shown(model, key);
    assert!(text.starts_with("{\n") && text.ends_with("}\n"), "{text}");
    serde_json::from_str(&text).expect("valid JSON")
}

fn point_file(model: &Model, section: Section, name: &str, file: PointFile) -> NodeKey {
    let key =
        lookup(model, &NodeKey::Section("vda".into(), section), name).expect("the point exists");
    NodeKey::PointFile(key.point().expect("a point").clone(), file)
}

#[test]
fn vm_json() {
    let vm = object(&sample::two_disks(), &NodeKey::RootFile(RootFile::VmJson));
    assert_eq!(vm["name"], "web1");
    assert_eq!(vm["run_state"], "running");
    assert_eq!(vm["connection"], "up");
    assert_eq!(vm["disks"], serde_json::json!(["vda", "vdb"]));
    assert_eq!(vm["quiesce"], "off");
    assert_eq!(vm["guest_agent"], Value::Null);
}

#[test]
fn vm_json_tells_how_the_guest_agent_is() {
    let mut model = sample::two_disks();
    model.vm.quiesce = Quiesce::Try;
    let mut agent = Agent {
        address: "unix:/run/a".into(),
        state: AgentState::Unknown,
    };
    model.vm.agent = Some(agent.clone());
    let vm = object(&model, &NodeKey::RootFile(RootFile::VmJson));
    assert_eq!(vm["quiesce"], "try");
    assert_eq!(vm["guest_agent"], "unix:/run/a");
    assert_eq!(vm["guest_agent_state"], "unknown");
    agent.state = AgentState::Silent("it sleeps".into());
    model.vm.agent = Some(agent.clone());
    let vm = object(&model, &NodeKey::RootFile(RootFile::VmJson));
    assert_eq!(vm["guest_agent_state"], "unusable");
    assert_eq!(vm["guest_agent_error"], "it sleeps");
    agent.state = AgentState::Answers {
        version: "7.2".into(),
    };
    model.vm.agent = Some(agent);
    let vm = object(&model, &NodeKey::RootFile(RootFile::VmJson));
    assert_eq!(vm["guest_agent_state"], "answers");
    assert_eq!(vm["guest_agent_version"], "7.2");
    assert_eq!(vm["guest_agent_error"], Value::Null);
}

#[test]
fn disk_json_lists_base_first_and_the_active_layer_last() {
    let model = sample::two_disks();
    let disk = object(&model, &NodeKey::DiskFile("vda".into(), DiskFile::Json));
    assert_eq!(disk["disk"], "vda");
    assert_eq!(disk["snapshots_possible"], true);
    let layers = disk["layers"].as_array().expect("a list");
    let names: Vec<_> = layers
        .iter()
        .map(|layer| layer["name"].as_str().unwrap_or_default())
        .collect();
    assert_eq!(names, ["0-base", "1-web1.before", "web1.qcow2"]);
    assert_eq!(layers[1]["point"], "before");
    assert_eq!(layers[1]["sealed_by_qmpfs"], true);
    assert_eq!(layers[0]["point"], Value::Null);
    assert_eq!(layers[2]["active"], true);

    let raw = object(&model, &NodeKey::DiskFile("vdb".into(), DiskFile::Json));
    assert_eq!(raw["snapshots_possible"], false);
    assert_eq!(raw["why_not"], "the active layer is raw");
}

#[test]
fn point_json_says_what_is_missing() {
    let model = sample::two_disks();
    let point = object(
        &model,
        &point_file(&model, Section::Snapshots, "before", PointFile::PointJson),
    );
    assert_eq!(point["kind"], "external");
    assert_eq!(point["time"], "2026-01-02T03:04:05.000Z");
    assert_eq!(
        point["files"],
        serde_json::json!(["/vm/base.qcow2", "/vm/web1.before.qcow2"])
    );
    assert_eq!(point["allocated_size"], 200u64 << 20);
    assert_eq!(point["consistency"], "crash");
    assert_eq!(point["frozen_ms"], Value::Null);
    assert_eq!(point["quiesce_error"], Value::Null);
    assert_eq!(
        point["missing"],
        serde_json::json!(["ram", "firmware variables", "tpm", "other disks: vdb"])
    );

    let internal = object(
        &model,
        &point_file(&model, Section::Internal, "clean", PointFile::PointJson),
    );
    assert_eq!(internal["kind"], "internal");
    assert_eq!(internal["time"], "2023-11-14T22:13:20.000Z");
    let layer = object(
        &model,
        &point_file(&model, Section::Layers, "0-base", PointFile::PointJson),
    );
    assert_eq!(layer["consistency"], "unknown");
}

#[test]
fn measured_sizes_win_over_estimates() {
    let model = sample::two_disks();
    let key = point_file(&model, Section::Snapshots, "before", PointFile::PointJson);
    let text = shown_with(
        &model,
        &key,
        VERBS,
        Some(Sizes {
            virtual_size: 7,
            allocated: 5,
        }),
    );
    assert!(
        text.contains("\"virtual_size\": 7") && text.contains("\"allocated_size\": 5"),
        "{text}"
    );
}

#[test]
fn the_plan_is_asked_for() {
    let model = sample::two_disks();
    let key = point_file(&model, Section::Snapshots, "before", PointFile::Plan);
    assert_eq!(shown(&model, &key), "plan for id-before\n");
}

#[test]
fn the_chain_is_drawn() {
    let mut model = sample::two_disks();
    model.disks[1].active.file = model.disks[0].layers[0].file;
    let chain = shown(&model, &NodeKey::DiskFile("vda".into(), DiskFile::ChainTxt));
    assert!(
        chain.starts_with("vda: 10.0 GiB of qcow2, 3 layers\n"),
        "{chain}"
    );
    let lines: Vec<&str> = chain.lines().collect();
    assert!(
        lines[2].contains("0-base")
            && lines[2].contains("foreign")
            && lines[2].contains("shared with vdb")
    );
    assert!(lines[4].contains("point before"), "{chain}");
    assert!(
        lines[6].contains("● web1.qcow2") && lines[6].contains("active"),
        "{chain}"
    );
    assert!(
        lines[7].ends_with("◦ clean  2023-11-14T22:13:20.000Z"),
        "{chain}"
    );
    assert!(
        chain.contains("job qmpfs-stream-1: stream to remove old, running, 25 B of 100 B (25 %)"),
        "{chain}"
    );
}

#[test]
fn the_chain_is_drawn_for_a_browser_and_no_name_becomes_markup() {
    let mut model = sample::two_disks();
    let key = NodeKey::DiskFile("vda".into(), DiskFile::ChainSvg);
    model.disks[0].internals[0].name = "<script>&\"\u{1}".into();
    model.disks[0].active_path = "/vm/a<b>&\"c.qcow2".into();
    let svg = shown(&model, &key);
    assert!(svg.contains("&lt;script&gt;&amp;&quot;\u{fffd}"), "{svg}");
    assert!(svg.contains("a&lt;b&gt;&amp;&quot;c.qcow2"), "{svg}");
    for needed in ["point before", "stream to remove old", "0-base"] {
        assert!(svg.contains(needed), "{needed} in {svg}");
    }
    let opened = svg.matches('<').count() - svg.matches("</").count();
    let closed = svg.matches("</").count() + svg.matches("/>").count();
    // but for the line that says it is XML
    assert_eq!(opened - 1, closed, "{svg}");
    assert!(
        !svg.contains("href") && !svg.contains("url("),
        "it loads nothing"
    );

    let height = |svg: &str| -> usize {
        let (_, rest) = svg.split_once("height=\"").expect("a height");
        let (number, _) = rest.split_once('"').expect("a number");
        number.parse().expect("a number")
    };
    let low = height(&svg);
    let one = model.disks[0].layers[1].clone();
    model.disks[0].layers = vec![one; 100];
    let high = height(&shown(&model, &key));
    assert_eq!(high - low, 98 * 46, "each layer has its own line");
}

#[test]
fn the_metrics_have_each_disk_and_no_point() {
    let model = sample::two_disks();
    let page = shown(&model, &NodeKey::RootFile(RootFile::Metrics));
    assert!(page.ends_with("# EOF\n"), "{page}");
    for line in [
        "qmpfs_connection_up{vm=\"web1\"} 1",
        "qmpfs_vm_run_state{vm=\"web1\",state=\"running\"} 1",
        "qmpfs_vm_run_state{vm=\"web1\",state=\"paused\"} 0",
        "qmpfs_disk_layers{vm=\"web1\",disk=\"vda\"} 3",
        "qmpfs_disk_points{vm=\"web1\",disk=\"vda\",kind=\"snapshots\"} 1",
        "qmpfs_disk_snapshots_possible{vm=\"web1\",disk=\"vdb\"} 0",
        "qmpfs_job_total_bytes{vm=\"web1\",disk=\"vda\",verb=\"stream\",state=\"running\"} 100",
    ] {
        assert!(page.lines().any(|shown| shown == line), "{line} in {page}");
    }
    assert!(
        !page.contains("before") && !page.contains("clean"),
        "{page}"
    );
}

#[test]
fn a_jobs_files() {
    let mut model = sample::two_disks();
    let file = |file| NodeKey::JobFile("vda".into(), "qmpfs-stream-1".into(), file);
    assert_eq!(shown(&model, &file(JobFile::State)), "running\n");
    assert_eq!(shown(&model, &file(JobFile::Error)), "");
    let progress = object(&model, &file(JobFile::Progress));
    assert_eq!(
        progress,
        serde_json::json!({
            "verb": "stream", "point": "old", "state": "running",
            "current": 25, "total": 100, "percent": 25.0,
            "bytes_per_second": null, "seconds_left": null, "limit": null,
        })
    );
    model.disks[0].jobs[0].error = Some("No space left on device".into());
    model.disks[0].jobs[0].progress = (0, 0);
    assert_eq!(
        shown(&model, &file(JobFile::Error)),
        "No space left on device\n"
    );
    assert_eq!(object(&model, &file(JobFile::Progress))["percent"], 0.0);
}

#[test]
fn the_readme_uses_the_mounts_own_names() {
    let model = sample::two_disks();
    let readme = shown(&model, &NodeKey::RootFile(RootFile::Readme));
    assert!(
        readme.contains("rmdir /mnt/vm/disks/vda/snapshots/before"),
        "{readme}"
    );
    assert!(
        readme.contains("vdb") && readme.contains("no snapshots: the active layer is raw"),
        "{readme}"
    );
    let readme = shown_with(
        &model,
        &NodeKey::RootFile(RootFile::Readme),
        Verbs {
            read_only: true,
            no_delete: false,
            live_rollback: false,
            coexist: false,
            backups: false,
        },
        None,
    );
    assert!(!readme.contains("mkdir"), "{readme}");
}

#[test]
fn sizes_for_people() {
    assert_eq!(human(0), "0 B");
    assert_eq!(human(1023), "1023 B");
    assert_eq!(human(1024), "1.0 KiB");
    assert_eq!(human((1 << 30) - 1), "1.0 GiB");
    assert_eq!(human(u64::MAX), "16.0 EiB");
}

#[test]
fn points_of_one_instant_say_which_disks_and_which_not() {
    let mut model = sample::two_disks_at_one_instant();
    let key = lookup(&model, &NodeKey::Groups(GroupKind::Snapshots), "all").expect("it is listed");
    let json = lookup(&model, &key, "point.json").expect("it has one");
    let group = object(&model, &json);
    assert_eq!(group["kind"], "all-disks");
    assert_eq!(group["name"], "all");
    assert_eq!(group["time"], "2026-01-02T03:04:05Z");
    assert_eq!(group["disks"], serde_json::json!(["vda", "vdc"]));
    assert_eq!(group["complete"], true);
    let missing = serde_json::json!([
        "ram",
        "firmware variables",
        "tpm",
        "disk vdb: the active layer is raw"
    ]);
    assert_eq!(group["missing"], missing);
    let member = point_file(&model, Section::Snapshots, "all", PointFile::PointJson);
    let member = object(&model, &member);
    assert_eq!(member["missing"], missing);
    assert_eq!(member["same_instant"], serde_json::json!(["vda", "vdc"]));
    let alone = point_file(&model, Section::Snapshots, "before", PointFile::PointJson);
    assert_eq!(
        object(&model, &alone)["same_instant"],
        serde_json::json!(["vda"])
    );

    model.disks[2].layers.clear();
    let group = object(&model, &json);
    assert_eq!(group["complete"], false);
    assert_eq!(group["gone"], serde_json::json!(["vdc"]));
    let told = group["missing"].as_array().expect("a list");
    let told = told.iter().any(|it| {
        it.as_str()
            .is_some_and(|it| it.starts_with("disk vdc: its point was removed"))
    });
    assert!(told, "{group:#}");
}

//! Jobs of the real programs, from start to end.

use std::time::Duration;

use crate::common::*;
use qmpbridge::command::{
    BlockCommit, BlockStream, BlockdevAdd, BlockdevBackup, BlockdevOptions, BlockdevSnapshot,
    QueryNamedBlockNodes, Sync,
};
use qmpbridge::{Bridge, Cancel, Error, JobStage, JobStatus, TransactionAction};

async fn started() -> (Scratch, Qemu, Bridge) {
    let scratch = Scratch::new();
    let top = scratch.chain("d", 3);
    let mut daemon = exporting(&scratch, &top);
    let bridge = daemon.bridge().await;
    (scratch, daemon, bridge)
}

async fn chain_length(bridge: &Bridge) -> usize {
    bridge.graph().await.unwrap().chain(&name("d")).len()
}

#[tokio::test]
async fn a_stream_shows_its_progress_and_ends() {
    let (scratch, _daemon, bridge) = started().await;
    let graph = bridge.graph().await.unwrap();
    let base = graph.chain(&name("d"))[2].name.clone();
    let id = job("stream");
    let command = BlockStream {
        base_node: Some(base),
        backing_file: Some(scratch.path("d0.qcow2")),
        ..slow_stream(&id, "d")
    };
    let mut stream = bridge.start_job(id.clone(), command).await.unwrap();
    let info = stream.info().await.unwrap();
    assert_eq!(
        (info.kind.as_str(), info.speed, info.paused),
        ("stream", Some(1), false)
    );
    assert!(info.total_progress > 0 && info.error.is_none());
    bridge.pause_job(&id).await.unwrap();
    assert!(stream.info().await.unwrap().paused);
    bridge.resume_job(&id).await.unwrap();
    bridge.set_job_speed(&id, 0).await.unwrap();
    assert_eq!(
        within("the stream ends", stream.wait_ready_or_concluded())
            .await
            .unwrap(),
        JobStage::Concluded
    );
    bridge.dismiss_job(&id).await.unwrap();
    assert_eq!(chain_length(&bridge).await, 2);
    assert!(bridge.jobs().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_stream_waits_before_its_last_step() {
    let (_scratch, _daemon, bridge) = started().await;
    let id = job("stream");
    let command = BlockStream::new(id.clone(), name("d"));
    let mut stream = bridge.start_job(id.clone(), command).await.unwrap();
    let last = within("all is copied", stream.wait_pending_or_concluded())
        .await
        .unwrap();
    assert_eq!(last, JobStatus::Pending);
    assert_eq!(chain_length(&bridge).await, 3);
    // As a restarted program finds it.
    drop(stream);
    let mut found = bridge.attach_job(id.clone()).await.unwrap();
    within("the stream ends", found.wait_concluded())
        .await
        .unwrap();
    assert_eq!(chain_length(&bridge).await, 1);
}

/// Once, QEMU died here of SIGSEGV: its nodes were listed beside a concluded stream.
#[tokio::test]
async fn nodes_may_be_listed_whenever_a_stream_ends() {
    let (_scratch, mut daemon, bridge) = started().await;
    let id = job("stream");
    let mut stream = bridge
        .start_job(id.clone(), BlockStream::new(id.clone(), name("d")))
        .await
        .unwrap();
    let ends = tokio::spawn(async move { stream.wait_concluded().await });
    while !ends.is_finished() {
        bridge
            .run(QueryNamedBlockNodes { flat: true })
            .await
            .unwrap();
    }
    ends.await.unwrap().unwrap();
    for _ in 0..20 {
        bridge.graph().await.unwrap();
    }
    // And the same for one that is cancelled.
    let (_other, _alive, bridge) = started().await;
    let id = job("stream");
    let mut stream = bridge
        .start_job(id.clone(), slow_stream(&id, "d"))
        .await
        .unwrap();
    bridge.cancel_job(&id, Cancel::Force).await.unwrap();
    let ends = tokio::spawn(async move { stream.wait_concluded().await });
    while !ends.is_finished() {
        bridge
            .run(QueryNamedBlockNodes { flat: true })
            .await
            .unwrap();
    }
    let cancelled = ends.await.unwrap().unwrap_err();
    assert!(
        matches!(&cancelled, Error::JobFailed { error, .. } if error == "Operation canceled"),
        "{cancelled:?}"
    );
    daemon.kill();
}

#[tokio::test]
async fn an_active_commit_is_ready_and_completed() {
    let (_scratch, _daemon, bridge) = started().await;
    let below = bridge.graph().await.unwrap().chain(&name("d"))[1]
        .name
        .clone();
    let id = job("commit");
    let command = BlockCommit {
        base_node: Some(below.clone()),
        ..BlockCommit::new(id.clone(), name("d"))
    };
    let mut commit = bridge.start_job(id.clone(), command).await.unwrap();
    assert_eq!(
        within("ready", commit.wait_ready_or_concluded())
            .await
            .unwrap(),
        JobStage::Ready
    );
    assert!(commit.info().await.unwrap().ready);
    let roots = bridge.graph().await.unwrap().roots();
    let root = roots.iter().find(|r| r.export_ids == ["ex"]).unwrap();
    assert_eq!(root.node, name("d"), "the job's filter is above it");
    bridge.complete_job(&id).await.unwrap();
    within("the pivot", commit.wait_concluded()).await.unwrap();
    bridge.dismiss_job(&id).await.unwrap();
    bridge
        .dismiss_job(&id)
        .await
        .expect("dismissing twice is no error");
    let roots = bridge.graph().await.unwrap().roots();
    let root = roots.iter().find(|r| r.export_ids == ["ex"]).unwrap();
    assert_eq!(root.node, below);
}

#[tokio::test]
async fn an_active_commit_is_ended_without_its_pivot() {
    let (_scratch, _daemon, bridge) = started().await;
    let id = job("commit");
    let mut commit = bridge
        .start_job(id.clone(), BlockCommit::new(id.clone(), name("d")))
        .await
        .unwrap();
    within("ready", commit.wait_ready_or_concluded())
        .await
        .unwrap();
    bridge.cancel_job(&id, Cancel::Soft).await.unwrap();
    within("over", commit.wait_concluded())
        .await
        .expect("a soft cancel ends well");
    bridge.dismiss_job(&id).await.unwrap();
    assert_eq!(chain_length(&bridge).await, 3);
}

#[tokio::test]
async fn a_job_fails_in_the_words_of_qemu() {
    let (scratch, _daemon, bridge) = started().await;
    std::fs::File::create(scratch.path("full.img"))
        .unwrap()
        .set_len(16 << 20)
        .unwrap();
    bridge
        .run(BlockdevAdd(BlockdevOptions::file(
            name("full-file"),
            scratch.path("full.img"),
        )))
        .await
        .unwrap();
    let mut full = BlockdevOptions {
        driver: "blkdebug".into(),
        node_name: Some(name("full")),
        ..Default::default()
    };
    full.extra.insert("image".into(), "full-file".into());
    full.extra.insert(
        "inject-error".into(),
        serde_json::json!([{"event": "none", "iotype": "write", "errno": 28}]),
    );
    bridge.run(BlockdevAdd(full)).await.unwrap();
    let id = job("backup");
    let command = BlockdevBackup::new(id.clone(), name("d"), name("full"), Sync::Full);
    let mut backup = bridge.start_job(id.clone(), command).await.unwrap();
    let failed = within("it fails", backup.wait_concluded())
        .await
        .unwrap_err();
    assert!(
        matches!(&failed, Error::JobFailed { error, .. } if error == "No space left on device"),
        "{failed:?}"
    );
    assert_eq!(
        bridge.job(&id).await.unwrap().error.as_deref(),
        Some("No space left on device")
    );
    bridge.dismiss_job(&id).await.unwrap();
    let gone = backup.wait_concluded().await.unwrap_err();
    assert!(
        matches!(gone, Error::JobFailed { .. }),
        "the end is remembered: {gone:?}"
    );
}

#[tokio::test]
async fn a_job_that_cannot_start() {
    let (_scratch, _daemon, bridge) = started().await;
    let id = job("stream");
    let refused = bridge
        .start_job(id.clone(), BlockStream::new(id, name("nowhere")))
        .await
        .unwrap_err();
    assert!(
        matches!(
            &refused,
            Error::Refused {
                command: "block-stream",
                ..
            }
        ),
        "{refused:?}"
    );
    let id = job("commit");
    let gone = bridge.attach_job(id).await.unwrap_err();
    assert!(matches!(gone, Error::JobVanished { .. }), "{gone:?}");
    let refused = bridge.complete_job(&job("none")).await.unwrap_err();
    assert!(refused.to_string().contains("Job not found"), "{refused}");
}

#[tokio::test]
async fn a_job_goes_on_while_nobody_is_connected() {
    let (_scratch, mut daemon, bridge) = started().await;
    let id = job("stream");
    drop(
        bridge
            .start_job(id.clone(), slow_stream(&id, "d"))
            .await
            .unwrap(),
    );
    drop(bridge);
    let bridge = daemon.bridge().await;
    let jobs = bridge.jobs().await.unwrap();
    assert_eq!(
        jobs.iter()
            .map(|j| (j.id.op(), j.status))
            .collect::<Vec<_>>(),
        [(Some("stream"), JobStatus::Running)]
    );
    let mut found = bridge.attach_job(id.clone()).await.unwrap();
    bridge.set_job_speed(&id, 0).await.unwrap();
    within("it ends", found.wait_concluded()).await.unwrap();
}

#[tokio::test]
async fn another_monitors_concluded_stream_is_not_stepped_on() {
    let (_scratch, mut daemon, bridge) = started().await;
    #[derive(serde::Serialize)]
    #[serde(rename_all = "kebab-case")]
    struct CarelessStream {
        job_id: &'static str,
        device: &'static str,
        auto_dismiss: bool,
    }
    impl qmpbridge::Command for CarelessStream {
        const NAME: &str = "block-stream";
        type Reply = qmpbridge::command::Empty;
    }
    let id = qmpbridge::JobId::new("careless").unwrap();
    let command = CarelessStream {
        job_id: "careless",
        device: "d",
        auto_dismiss: false,
    };
    let mut stream = bridge.start_job(id.clone(), command).await.unwrap();
    within("it ends", stream.wait_concluded()).await.unwrap();
    let refused = bridge.graph().await.unwrap_err();
    assert!(refused.to_string().contains("careless"), "{refused}");
    bridge.dismiss_job(&id).await.unwrap();
    assert_eq!(chain_length(&bridge).await, 1);
    daemon.kill();
}

#[tokio::test]
async fn a_transaction_is_all_or_nothing() {
    let (scratch, _daemon, bridge) = started().await;
    let overlay = scratch.path("over.qcow2");
    run(std::process::Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2"])
        .arg(&overlay)
        .arg("16M"));
    for add in add_qcow2("over", &overlay) {
        bridge.run(add).await.unwrap();
    }
    let snapshot = || {
        TransactionAction::BlockdevSnapshot(BlockdevSnapshot {
            node: name("d"),
            overlay: name("over"),
        })
    };
    let refused = bridge
        .transaction(vec![snapshot(), TransactionAction::Abort {}])
        .await
        .unwrap_err();
    assert!(matches!(refused, Error::Refused { .. }), "{refused:?}");
    assert_eq!(bridge.graph().await.unwrap().chain(&name("over")).len(), 1);
    bridge.transaction(vec![snapshot()]).await.unwrap();
    let graph = bridge.graph().await.unwrap();
    assert_eq!(graph.chain(&name("over")).len(), 4);
    assert!(
        graph
            .roots()
            .iter()
            .any(|r| r.export_ids == ["ex"] && r.node == name("over"))
    );
}

#[tokio::test]
async fn handles_are_forgotten_and_bridges_end() {
    let (_scratch, daemon, bridge) = started().await;
    let handle = bridge.expect_job(job("never"));
    drop(handle);
    drop(bridge);
    // The socket is free for the next at once: nobody holds it in the background.
    let next = tokio::time::timeout(Duration::from_secs(2), Bridge::connect(daemon.address()));
    next.await.expect("the monitor is free").unwrap();
}

use super::{
    INTERNALS_MAX, MERGE, MergeJournal, POINT, SCRATCH, SealMarker, clear_merge, clear_point,
    clear_seal, is_scratch, mark_scratch, read_freeze, read_internals, read_merge, read_point,
    read_seal, write_freeze, write_internals, write_merge, write_point, write_seal,
};
use crate::errno::Errno;
use crate::layer_file::fixture;
use crate::model::{InternalRecord, PointRecord};
use crate::sys;
use std::path::Path;

fn record(path: &Path) -> PointRecord {
    PointRecord {
        id: "7d1f".into(),
        name: "before".into(),
        time: "2024-01-02T03:04:05Z".into(),
        consistency: "crash".into(),
        frozen_ms: None,
        quiesce_error: None,
        inode: sys::file_id(path).unwrap().ino,
        group: None,
    }
}

fn journal(path: &Path) -> MergeJournal {
    MergeJournal {
        version: 1,
        verb: "commit-active".into(),
        job: "qmpfs-merge-1".into(),
        point: record(path),
        upper: "/x/web1.qcow2".into(),
        upper_record: None,
        below: Some("/x/base.qcow2".into()),
        resume: true,
        moving: false,
        inode: sys::file_id(path).unwrap().ino,
    }
}

#[test]
fn a_scratch_file_says_so_itself() {
    let dir = fixture::with_xattrs();
    let (ours, theirs) = (dir.path().join("ours"), dir.path().join("theirs"));
    std::fs::write(&ours, b"").unwrap();
    assert!(is_scratch(&ours).unwrap(), "nothing is lost with it");
    mark_scratch(&ours).unwrap();
    std::fs::write(&ours, b"old bytes").unwrap();
    assert!(is_scratch(&ours).unwrap());
    std::fs::write(&theirs, b"a list").unwrap();
    assert!(!is_scratch(&theirs).unwrap());
    // a copy with all attributes is another file
    let copied = sys::xattr_get(&std::fs::File::open(&ours).unwrap(), SCRATCH);
    let copied = copied.unwrap().expect("the mark");
    sys::xattr_set(&std::fs::File::open(&theirs).unwrap(), SCRATCH, &copied).unwrap();
    assert!(!is_scratch(&theirs).unwrap());
}

#[test]
fn what_was_written_is_read_until_it_is_cleared() {
    let dir = fixture::with_xattrs();
    let path = dir.path().join("a.qcow2");
    std::fs::write(&path, b"x").unwrap();
    assert_eq!(read_point(&path).unwrap(), None);
    clear_point(&path).unwrap();

    let marker = SealMarker {
        version: 1,
        overlay: "/x/.web1.qcow2.0123456789ab".into(),
        sealed: "/x/web1.before.qcow2".into(),
        resume: false,

        inode: record(&path).inode,
    };
    write_point(&path, &record(&path)).unwrap();
    write_merge(&path, &journal(&path)).unwrap();
    write_seal(&path, &marker).unwrap();
    assert_eq!(read_point(&path).unwrap(), Some(record(&path)));
    assert_eq!(read_merge(&path).unwrap(), Some(journal(&path)));
    assert_eq!(read_seal(&path).unwrap(), Some(marker));

    clear_point(&path).unwrap();
    clear_merge(&path).unwrap();
    clear_seal(&path).unwrap();
    clear_seal(&path).unwrap();
    assert_eq!(read_point(&path).unwrap(), None);
    assert_eq!(read_merge(&path).unwrap(), None);
    assert_eq!(read_seal(&path).unwrap(), None);
    assert_eq!(
        read_point(&dir.path().join("no")).unwrap_err().errno,
        Errno::ENOENT
    );
}

#[test]
fn the_attribute_says_its_version_and_names_the_verb() {
    let dir = fixture::with_xattrs();
    let path = dir.path().join("a.qcow2");
    std::fs::write(&path, b"x").unwrap();
    write_merge(&path, &journal(&path)).unwrap();
    let value = sys::xattr_get(&sys::open_for_reading(&path).unwrap(), MERGE)
        .unwrap()
        .unwrap();
    let value: serde_json::Value = serde_json::from_slice(&value).unwrap();
    assert_eq!(value["version"], 1);
    assert_eq!(value["verb"], "commit-active");
    assert_eq!(value["point"]["name"], "before");
}

#[test]
fn a_copy_is_not_ours() {
    let dir = fixture::with_xattrs();
    let (path, copy) = (dir.path().join("a.qcow2"), dir.path().join("copy.qcow2"));
    std::fs::write(&path, b"x").unwrap();
    std::fs::write(&copy, b"x").unwrap();
    write_point(&path, &record(&path)).unwrap();
    let value = sys::xattr_get(&sys::open_for_reading(&path).unwrap(), POINT)
        .unwrap()
        .unwrap();
    sys::xattr_set(&sys::open_for_reading(&copy).unwrap(), POINT, &value).unwrap();

    assert_eq!(read_point(&copy).unwrap(), None);
    assert!(read_point(&path).unwrap().is_some());
    assert_eq!(
        write_point(&copy, &record(&path)).unwrap_err().errno,
        Errno::ESTALE
    );
    std::fs::hard_link(&path, dir.path().join("name.qcow2")).unwrap();
    assert!(
        read_point(&dir.path().join("name.qcow2"))
            .unwrap()
            .is_some(),
        "another name is the same file"
    );
}

#[test]
fn garbage_and_the_future_are_refused() {
    let dir = fixture::with_xattrs();
    let path = dir.path().join("a.qcow2");
    std::fs::write(&path, b"x").unwrap();
    let inode = record(&path).inode;
    let file = sys::open_for_reading(&path).unwrap();
    for value in [
        String::new(),
        "{".into(),
        format!(r#"{{"version":2,"inode":{inode}}}"#),
        format!(r#"{{"version":1,"inode":{inode},"id":"x"}}"#),
    ] {
        sys::xattr_set(&file, POINT, value.as_bytes()).unwrap();
        assert_eq!(read_point(&path).unwrap_err().errno, Errno::EIO, "{value}");
    }
}

#[test]
fn a_path_that_json_cannot_hold_is_refused() {
    use std::os::unix::ffi::OsStrExt;
    let dir = fixture::with_xattrs();
    let path = dir.path().join("a.qcow2");
    std::fs::write(&path, b"x").unwrap();
    let journal = MergeJournal {
        upper: std::ffi::OsStr::from_bytes(b"/x/\xff").into(),
        ..journal(&path)
    };
    assert_eq!(
        write_merge(&path, &journal).unwrap_err().errno,
        Errno::EOPNOTSUPP
    );
}

#[test]
fn a_filesystem_without_attributes_says_so() {
    // procfs has no user attributes anywhere.
    let path = Path::new("/proc/version");
    assert_eq!(read_point(path).unwrap(), None);
    let refused = write_point(path, &record(path)).unwrap_err();
    assert_eq!(refused.errno, Errno::EOPNOTSUPP, "{refused}");
}

#[test]
fn a_note_of_a_freeze_stays_with_the_file_and_not_with_its_name() {
    let dir = fixture::with_xattrs();
    let (path, later) = (dir.path().join("a.qcow2"), dir.path().join("b.qcow2"));
    std::fs::write(&path, b"x").unwrap();
    assert!(read_freeze(&path).unwrap().is_none());
    let note = write_freeze(&path, "unix:/run/agent", "2024-01-02T03:04:05Z").unwrap();
    std::fs::rename(&path, &later).unwrap();
    std::fs::write(&path, b"another").unwrap();
    assert!(read_freeze(&path).unwrap().is_none());
    let (_, mark) = read_freeze(&later).unwrap().expect("it is there");
    assert_eq!(mark.agent, "unix:/run/agent");
    note.clear().unwrap();
    assert!(read_freeze(&later).unwrap().is_none());
}

#[test]
fn of_the_records_of_internal_snapshots_the_newest_are_kept() {
    let dir = fixture::with_xattrs();
    let path = dir.path().join("a.qcow2");
    std::fs::write(&path, b"x").unwrap();
    assert!(read_internals(&path).is_empty());
    let all: Vec<InternalRecord> = (0..50)
        .map(|number| InternalRecord {
            id: number.to_string(),
            time: 1_700_000_000_000_000_000 + number,
            consistency: "filesystem".into(),
            frozen_ms: Some(20),
            quiesce_error: None,
        })
        .collect();
    write_internals(&path, all.clone()).unwrap();
    let kept = read_internals(&path);
    assert!(kept.len() > 5 && all.ends_with(&kept), "{}", kept.len());
    assert!(serde_json::to_vec(&kept).unwrap().len() <= INTERNALS_MAX);
}

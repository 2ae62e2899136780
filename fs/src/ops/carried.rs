//! Which options of the VM's own disk the nodes in its place must have too.
//! QEMU tells its cache mode and detect-zeroes; `discard` and `aio` are in no answer of QMP, so
//! they are looked for in QEMU's command line, by the file that an argument names as QEMU sees it, or by its node.
//! It knows how arguments are written; of processes it only reads.

use super::nodes::Carried;
use super::sight::Sight;
use crate::model::{Disk, Tuning};
use crate::sys;
use qmpbridge::command::CacheOptions;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// The options to carry over for a disk of the QEMU with this process id, and what had to be assumed.
pub(super) fn for_disk(disk: &Disk, pid: Option<i32>) -> (Carried, Vec<String>) {
    let line = pid.and_then(CommandLine::of);
    let mut assumed = Vec::new();
    let mut from_line =
        |option: &str, default: &str| match line.as_ref().map(|line| line.option(disk, option)) {
            Some(Some(value)) => Some(value),
            Some(None) => {
                assumed.push(format!("{option}={default} (not on QEMU's command line)"));
                None
            }
            None => {
                assumed.push(format!(
                    "{option}={default} (QEMU's command line cannot be read)"
                ));
                None
            }
        };
    let mut discard = from_line("discard", "ignore").map(|value| {
        if value == "on" {
            "unmap".to_owned()
        } else {
            value
        }
    });
    let aio = from_line("aio", "threads");
    let detect_zeroes = disk.tuning.detect_zeroes.clone();
    if detect_zeroes.as_deref() == Some("unmap") {
        // QEMU accepts the one only with the other
        discard = Some("unmap".into());
    }
    let Tuning {
        direct,
        no_flush,
        file_direct,
        file_no_flush,
        ..
    } = disk.tuning;
    (
        Carried {
            cache: cache(direct, no_flush),
            file_cache: cache(file_direct, file_no_flush),
            detect_zeroes,
            discard,
            aio,
        },
        assumed,
    )
}

fn cache(direct: bool, no_flush: bool) -> Option<CacheOptions> {
    (direct || no_flush).then_some(CacheOptions { direct, no_flush })
}

/// Whether a `-drive` copies on read: QEMU then cannot seal its node (it stays writable).
pub(super) fn copies_on_read(disk: &Disk, pid: Option<i32>) -> bool {
    let line = pid.and_then(CommandLine::of);
    line.and_then(|line| line.option(disk, "copy-on-read"))
        .is_some_and(|value| matches!(value.as_str(), "on" | "yes" | "true" | "y"))
}

/// Whether QEMU's command line says what the disk stands on. Started again, it would open the disk's path over
/// that, whatever its header says: past every layer that was sealed in between.
pub(super) fn names_its_backing(disk: &Disk, pid: Option<i32>) -> bool {
    let Some(line) = pid.and_then(CommandLine::of) else {
        return false;
    };
    line.speaking_of(disk)
        .into_iter()
        .any(|argument| has_backing(argument))
}

/// The arguments of a running process.
pub(super) fn command_line(pid: i32) -> Option<Vec<String>> {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    Some(
        bytes
            .split(|byte| *byte == 0)
            .map(|part| String::from_utf8_lossy(part).into_owned())
            .collect(),
    )
}

/// A QEMU's arguments, and from where its file names are seen.
struct CommandLine {
    arguments: Vec<String>,
    sight: Sight,
}

impl CommandLine {
    fn of(pid: i32) -> Option<CommandLine> {
        Some(CommandLine {
            arguments: command_line(pid)?,
            sight: Sight::of_process(Some(pid)),
        })
    }

    /// `option` of an argument that speaks of the disk: `key=value,...` or JSON.
    fn option(&self, disk: &Disk, option: &str) -> Option<String> {
        self.speaking_of(disk)
            .into_iter()
            .find_map(|argument| value_of(argument, option))
    }

    /// The arguments that speak of the disk's active path, of the node on it or of the node above that.
    fn speaking_of(&self, disk: &Disk) -> Vec<&String> {
        let root = disk.root.as_ref().map_or("", |root| root.as_str());
        let is_active = |name: &Path| is_same(&self.sight, name, &disk.active_path);
        speaking_of(&self.arguments, &is_active, root)
    }
}

/// Whether a name on QEMU's command line leads to the active path. Another disk's file may be called the same in another
/// directory.
fn is_same(sight: &Sight, name: &Path, active: &Path) -> bool {
    if name == active {
        return true;
    }
    match sight.resolve(name) {
        Some(found) if found == active => true,
        Some(found) => {
            let (found, active) = (sys::file_id(&found), sys::file_id(active));
            matches!((found, active), (Ok(found), Ok(active)) if found == active)
        }
        None => false,
    }
}

/// The arguments that speak of a file, of the node on it or of the node above that.
fn speaking_of<'a>(
    arguments: &'a [String],
    is_file: &dyn Fn(&Path) -> bool,
    node: &str,
) -> Vec<&'a String> {
    let names_file = |argument: &&String| names(argument).iter().any(|name| is_file(name));
    let of_the_file: Vec<&String> = arguments.iter().filter(names_file).collect();
    let nodes = of_the_file
        .iter()
        .filter_map(|argument| value_of(argument, "node-name"));
    let nodes: Vec<String> = nodes.chain([node.to_owned()]).collect();
    let names_node = |argument: &&String| {
        ["node-name", "file"]
            .iter()
            .filter_map(|key| value_of(argument, key))
            .any(|node| nodes.contains(&node))
    };
    arguments
        .iter()
        .filter(|argument| of_the_file.contains(argument) || names_node(argument))
        .collect()
}

/// The files that an argument names for an image itself, not for what lies below it.
fn names(argument: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    match json(argument) {
        Some(json) => names_in(&json, &mut found),
        None => {
            let of_a_file = |key: &str| {
                let last = key.rsplit('.').next();
                matches!(last, Some("file" | "filename")) && !is_of_backing(key)
            };
            let pairs = pairs(argument).into_iter();
            for (_, name) in pairs.filter(|(key, _)| of_a_file(key)) {
                match name.strip_prefix("json:").and_then(json) {
                    Some(json) => names_in(&json, &mut found),
                    None => found.push(PathBuf::from(name.strip_prefix("file:").unwrap_or(&name))),
                }
            }
        }
    }
    found
}

fn names_in(json: &Value, found: &mut Vec<PathBuf>) {
    let Some(object) = json.as_object() else {
        return;
    };
    if let Some(name) = object.get("filename").and_then(Value::as_str) {
        found.push(PathBuf::from(name));
    }
    let below = object.iter().filter(|(key, _)| *key != "backing");
    below.for_each(|(_, value)| names_in(value, found));
}

fn json(argument: &str) -> Option<Value> {
    let text = argument.trim_start();
    text.starts_with('{')
        .then(|| serde_json::from_str(text).ok())?
}

/// The pairs of `key=value,...`, also behind `--option=`. A comma within a value is written twice.
fn pairs(argument: &str) -> Vec<(String, String)> {
    let pairs = match argument.starts_with('-') {
        true => argument.split_once('=').map_or("", |(_, pairs)| pairs),
        false => argument,
    };
    // no argument has a NUL
    let whole = pairs.replace(",,", "\0");
    let pairs = whole.split(',').map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key.to_owned(), value.replace('\0', ","))
    });
    pairs.collect()
}

/// Whether a key is one of what lies below an image.
fn is_of_backing(key: &str) -> bool {
    key.split('.').any(|part| part == "backing")
}

/// Whether an argument has options of what lies below an image.
fn has_backing(argument: &str) -> bool {
    if let Some(json) = json(argument) {
        return json.get("backing").is_some();
    }
    pairs(argument).iter().any(|(key, _)| is_of_backing(key))
}

fn value_of(argument: &str, option: &str) -> Option<String> {
    if let Some(json) = json(argument) {
        let value = json
            .get(option)
            .or_else(|| json.get("file").and_then(|file| file.get(option)))?;
        return value.as_str().map(str::to_owned);
    }
    let is_it = |key: &str| key.rsplit('.').next() == Some(option) && !is_of_backing(key);
    let found = pairs(argument).into_iter().find(|(key, _)| is_it(key));
    found.map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_web1(name: &Path) -> bool {
        // as QEMU in /vm sees them
        Path::new("/vm").join(name) == Path::new("/vm/web1.qcow2")
    }

    fn find(argument: &str, option: &str) -> Option<String> {
        let arguments = vec!["qemu-system-x86_64".to_owned(), argument.to_owned()];
        let found = speaking_of(&arguments, &is_web1, "disk0").into_iter();
        found
            .filter_map(|argument| value_of(argument, option))
            .next()
    }

    #[test]
    fn options_are_found_in_every_spelling() {
        assert_eq!(
            find(
                "file=/vm/web1.qcow2,if=virtio,discard=unmap,aio=native",
                "discard"
            )
            .as_deref(),
            Some("unmap")
        );
        assert_eq!(
            find("file=web1.qcow2,aio=native", "aio").as_deref(),
            Some("native")
        );
        assert_eq!(
            find(
                "driver=qcow2,node-name=disk0,file=f,discard=unmap",
                "discard"
            )
            .as_deref(),
            Some("unmap")
        );
        assert_eq!(
            find(
                r#"{"driver":"file","filename":"/vm/web1.qcow2","aio":"io_uring"}"#,
                "aio"
            )
            .as_deref(),
            Some("io_uring")
        );
        assert_eq!(
            find(
                "driver=qcow2,file.filename=/vm/web1.qcow2,file.aio=native",
                "aio"
            )
            .as_deref(),
            Some("native")
        );
    }

    #[test]
    fn a_backing_that_is_named_is_seen_in_every_spelling() {
        let named = |argument: &str| {
            let arguments = [
                "driver=file,node-name=f,filename=/vm/web1.qcow2".to_owned(),
                argument.to_owned(),
            ];
            let found = speaking_of(&arguments, &is_web1, "qmpfs-1");
            found.into_iter().any(|argument| has_backing(argument))
        };
        assert!(named("driver=qcow2,node-name=disk0,file=f,backing=base"));
        assert!(named("file=/vm/web1.qcow2,backing.driver=qcow2,if=virtio"));
        assert!(named(
            r#"{"driver":"qcow2","node-name":"d","file":"f","backing":null}"#
        ));
        assert!(!named("driver=qcow2,node-name=disk0,file=f,discard=unmap"));
        assert!(!named("driver=qcow2,node-name=other,file=g,backing=base"));
    }

    #[test]
    fn other_disks_do_not_count() {
        assert_eq!(find("file=/vm/web2.qcow2,discard=unmap", "discard"), None);
        assert_eq!(find("file=/vm/web1.qcow2", "discard"), None);
        // what is called the same elsewhere
        for other in [
            "file=/vm/old/web1.qcow2,discard=unmap",
            "file=old/web1.qcow2,discard=unmap",
            "driver=qcow2,file.filename=/web1.qcow2,discard=unmap",
            r#"{"driver":"file","filename":"/srv/web1.qcow2","discard":"unmap"}"#,
            "file=/vm/web1.qcow2,,old,discard=unmap",
            // what lies below is none of the disk's
            "file=/vm/top.qcow2,backing.file.filename=/vm/web1.qcow2,discard=unmap",
        ] {
            assert_eq!(find(other, "discard"), None, "{other}");
        }
    }

    #[test]
    fn every_way_to_write_a_file_name_is_understood() {
        let named = |argument: &str| names(argument).iter().any(|name| is_web1(name));
        for argument in [
            "file=file:web1.qcow2,if=virtio",
            "--blockdev=driver=file,node-name=f,filename=/vm/web1.qcow2",
            r#"file=json:{"driver":"qcow2",,"file":{"driver":"file",,"filename":"/vm/web1.qcow2"}},if=none"#,
            r#"{"driver":"qcow2","file":{"driver":"file","filename":"web1.qcow2"}}"#,
        ] {
            assert!(named(argument), "{argument}");
        }
        assert_eq!(names("file=/vm/a,,b,if=none"), [PathBuf::from("/vm/a,b")]);
        assert!(names("virtio-blk-pci,drive=web1.qcow2").is_empty());
    }

    #[test]
    fn a_name_is_seen_from_where_qemu_runs() {
        let dir = tempfile::tempdir().unwrap();
        let here = sys::process_directory(std::process::id().cast_signed()).unwrap();
        let sight = Sight::of_process(Some(std::process::id().cast_signed()));
        let (active, link) = (dir.path().join("web1.qcow2"), dir.path().join("link"));
        let other = dir.path().join("other/web1.qcow2");
        std::fs::write(&active, b"").unwrap();
        std::os::unix::fs::symlink(&active, &link).unwrap();
        std::fs::create_dir(other.parent().unwrap()).unwrap();
        std::fs::write(&other, b"").unwrap();
        let up: PathBuf = here.components().skip(1).map(|_| "..").collect();
        let relative = up.join(active.strip_prefix("/").unwrap());
        for name in [&active, &link, &relative] {
            assert!(is_same(&sight, name, &active), "{}", name.display());
        }
        assert!(!is_same(&sight, &other, &active));
        assert!(!is_same(&sight, Path::new("web1.qcow2"), &active));
    }
}

//! Which options of the VM's own disk the nodes in its place must have too.
//! QEMU tells its cache mode and detect-zeroes; `discard` and `aio` are in no answer of QMP, so
//! they are looked for in QEMU's command line. Pure but for reading /proc/PID/cmdline.

use super::nodes::Carried;
use crate::model::{Disk, Tuning};
use qmpbridge::command::CacheOptions;
use std::path::Path;

/// The options to carry over for a disk of the QEMU with this process id, and what had to be assumed.
pub(super) fn for_disk(disk: &Disk, pid: Option<i32>) -> (Carried, Vec<String>) {
    let node = disk.root.as_ref().map_or("", |root| root.as_str());
    let line = pid.and_then(command_line);
    let mut assumed = Vec::new();
    let mut from_line = |option: &str, default: &str| match line
        .as_deref()
        .map(|line| find_option(line, &disk.active_path, node, option))
    {
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
    let node = disk.root.as_ref().map_or("", |root| root.as_str());
    pid.and_then(command_line)
        .and_then(|line| find_option(&line, &disk.active_path, node, "copy-on-read"))
        .is_some_and(|value| matches!(value.as_str(), "on" | "yes" | "true" | "y"))
}

/// Whether QEMU's command line says what the disk stands on. Started again, it would open the disk's path over
/// that, whatever its header says: past every layer that was sealed in between.
pub(super) fn names_its_backing(disk: &Disk, pid: Option<i32>) -> bool {
    let node = disk.root.as_ref().map_or("", |root| root.as_str());
    let line = pid.and_then(command_line).unwrap_or_default();
    speaking_of(&line, &disk.active_path, node)
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

/// `option` of an argument that speaks of this file, of the node on it or of the node above that:
/// `key=value,...` or JSON.
fn find_option(arguments: &[String], active: &Path, node: &str, option: &str) -> Option<String> {
    speaking_of(arguments, active, node)
        .into_iter()
        .find_map(|argument| value_of(argument, option))
}

/// The arguments that speak of a file, of the node on it or of the node above that.
fn speaking_of<'a>(arguments: &'a [String], active: &Path, node: &str) -> Vec<&'a String> {
    let Some(name) = active.file_name().and_then(|name| name.to_str()) else {
        return Vec::new();
    };
    let names_file = |argument: &&String| {
        argument
            .split([',', '"', '=', '/'])
            .any(|word| word == name)
    };
    let mut nodes: Vec<String> = arguments
        .iter()
        .filter(names_file)
        .filter_map(|argument| value_of(argument, "node-name"))
        .collect();
    nodes.push(node.to_owned());
    let names_node = |argument: &&String| {
        ["node-name", "file"]
            .iter()
            .filter_map(|key| value_of(argument, key))
            .any(|node| nodes.contains(&node))
    };
    arguments
        .iter()
        .filter(|argument| names_file(argument) || names_node(argument))
        .collect()
}

/// Whether an argument has options of what lies below an image.
fn has_backing(argument: &str) -> bool {
    if argument.trim_start().starts_with('{') {
        let json = serde_json::from_str::<serde_json::Value>(argument);
        return json.is_ok_and(|json| json.get("backing").is_some());
    }
    argument.split(',').any(|pair| {
        let key = pair.split_once('=').map_or(pair, |(key, _)| key);
        key == "backing" || key.starts_with("backing.")
    })
}

fn value_of(argument: &str, option: &str) -> Option<String> {
    if argument.trim_start().starts_with('{') {
        let json: serde_json::Value = serde_json::from_str(argument).ok()?;
        let value = json
            .get(option)
            .or_else(|| json.get("file").and_then(|file| file.get(option)))?;
        return value.as_str().map(str::to_owned);
    }
    argument.split(',').find_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        (key == option || key.ends_with(&format!(".{option}"))).then(|| value.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(argument: &str, option: &str) -> Option<String> {
        let arguments = vec!["qemu-system-x86_64".to_owned(), argument.to_owned()];
        find_option(&arguments, Path::new("/vm/web1.qcow2"), "disk0", option)
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
            let found = speaking_of(&arguments, Path::new("/vm/web1.qcow2"), "qmpfs-1");
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
    }
}

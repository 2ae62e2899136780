//! QEMU's command line: which of its arguments speak of a disk, by the file that one names as QEMU sees it, or by its
//! node, and the options that they give. It knows how arguments are written; of processes it only reads.

use super::sight::Sight;
use crate::model::{Disk, FileId};
use crate::sys;
use serde_json::Value;
use std::cell::OnceCell;
use std::path::{Path, PathBuf};

/// The arguments of a running process.
pub(super) fn arguments(pid: i32) -> Option<Vec<String>> {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    Some(
        bytes
            .split(|byte| *byte == 0)
            .map(|part| String::from_utf8_lossy(part).into_owned())
            .collect(),
    )
}

/// A QEMU's arguments, and from where its file names are seen.
pub(super) struct CommandLine {
    arguments: Vec<Argument>,
    sight: Sight,
}

impl CommandLine {
    /// None where it cannot be read.
    pub(super) fn of(pid: Option<i32>) -> Option<CommandLine> {
        let arguments = arguments(pid?)?;
        Some(CommandLine {
            arguments: arguments.iter().map(|text| Argument::new(text)).collect(),
            sight: Sight::of_process(pid),
        })
    }

    /// `option` of an argument that speaks of the disk.
    pub(super) fn option(&self, disk: &Disk, option: &str) -> Option<String> {
        let speaking = self.speaking_of(disk).into_iter();
        let mut values = speaking.filter_map(|argument| argument.value_of(option));
        values.next().map(str::to_owned)
    }

    /// The arguments that speak of the disk's active path, of the node on it or of the node above that.
    pub(super) fn speaking_of(&self, disk: &Disk) -> Vec<&Argument> {
        let root = disk.root.as_ref().map_or("", |root| root.as_str());
        let active = OnceCell::new();
        let is_active = |name: &Name| {
            let active_file = || *active.get_or_init(|| sys::file_id(&disk.active_path).ok());
            name.is(&self.sight, &disk.active_path, &active_file)
        };
        speaking_of(&self.arguments, &is_active, root)
    }
}

/// The arguments that speak of a file, of the node on it or of the node above that.
fn speaking_of<'a>(
    arguments: &'a [Argument],
    is_file: &dyn Fn(&Name) -> bool,
    node: &str,
) -> Vec<&'a Argument> {
    let names_file: Vec<bool> = arguments
        .iter()
        .map(|argument| argument.files.iter().any(is_file))
        .collect();
    let of_the_file = arguments
        .iter()
        .zip(&names_file)
        .filter(|(_, names)| **names);
    let nodes = of_the_file.flat_map(|(argument, _)| argument.values_of("node-name"));
    let nodes: Vec<&str> = nodes.chain([node]).collect();
    let names_node = |argument: &Argument| {
        ["node-name", "file"]
            .iter()
            .flat_map(|key| argument.values_of(key))
            .any(|node| nodes.contains(&node))
    };
    arguments
        .iter()
        .zip(&names_file)
        .filter(|(argument, names_file)| **names_file || names_node(argument))
        .map(|(argument, _)| argument)
        .collect()
}

/// One argument, in whichever of its spellings: `key=value,...`, JSON, or a name that is JSON.
pub(super) struct Argument {
    /// With keys as in `file.filename`, the outer ones first.
    options: Vec<(String, String)>,
    /// The files that it names for an image itself, not for what lies below it.
    files: Vec<Name>,
}

impl Argument {
    fn new(text: &str) -> Argument {
        let mut options = Vec::new();
        // behind `--option=`, too
        let text = match text.starts_with('-') {
            true => text.split_once('=').map_or("", |(_, value)| value),
            false => text,
        };
        match json(text).or_else(|| text.strip_prefix("json:").and_then(json)) {
            Some(value) => flatten("", &value, &mut options),
            None => pairs(text, &mut options),
        }
        options.sort_by_key(|(key, _)| key.matches('.').count());
        let mut argument = Argument {
            options,
            files: Vec::new(),
        };
        let names = ["file", "filename"].map(|key| argument.values_of(key).collect::<Vec<_>>());
        let names = names.concat().into_iter();
        argument.files = names
            .map(|name| Name::new(name.strip_prefix("file:").unwrap_or(name)))
            .collect();
        argument
    }

    /// The option's values, but for those of what lies below the image.
    fn values_of(&self, option: &str) -> impl Iterator<Item = &str> {
        let is_it = move |key: &str| last_part(key) == option && !is_of_backing(key);
        let found = self.options.iter().filter(move |(key, _)| is_it(key));
        found.map(|(_, value)| value.as_str())
    }

    /// The outermost of them.
    fn value_of(&self, option: &str) -> Option<&str> {
        self.values_of(option).next()
    }

    /// Whether it has options of what lies below an image.
    pub(super) fn has_backing(&self) -> bool {
        self.options.iter().any(|(key, _)| is_of_backing(key))
    }
}

fn last_part(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or(key)
}

/// Whether a key is one of what lies below an image.
fn is_of_backing(key: &str) -> bool {
    key.split('.').any(|part| part == "backing")
}

fn json(text: &str) -> Option<Value> {
    let text = text.trim_start();
    text.starts_with('{')
        .then(|| serde_json::from_str(text).ok())?
}

/// The values within a JSON object, with dotted keys.
fn flatten(prefix: &str, value: &Value, options: &mut Vec<(String, String)>) {
    let value = match value {
        Value::Object(members) => {
            for (key, value) in members {
                let key = match prefix {
                    "" => key.clone(),
                    prefix => format!("{prefix}.{key}"),
                };
                flatten(&key, value, options);
            }
            return;
        }
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    options.push((prefix.to_owned(), value));
}

/// The pairs of `key=value,...`. A comma within a value is written twice. A name may itself be JSON: the options of what
/// it stands for.
fn pairs(text: &str, options: &mut Vec<(String, String)>) {
    // no argument has a NUL
    let whole = text.replace(",,", "\0");
    for pair in whole.split(',') {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = value.replace('\0', ",");
        match value.strip_prefix("json:").and_then(json) {
            Some(value) => {
                let outer = key.rsplit_once('.').map_or("", |(outer, _)| outer);
                flatten(outer, &value, options);
            }
            None => options.push((key.to_owned(), value)),
        }
    }
}

/// A file's name on the command line, and where it leads: looked at once, and only if that is asked for.
struct Name {
    path: PathBuf,
    found: OnceCell<Option<(PathBuf, Option<FileId>)>>,
}

impl Name {
    fn new(path: &str) -> Name {
        Name {
            path: PathBuf::from(path),
            found: OnceCell::new(),
        }
    }

    /// Whether it leads to this file. Another disk's may be called the same in another directory.
    fn is(&self, sight: &Sight, active: &Path, active_file: &dyn Fn() -> Option<FileId>) -> bool {
        if self.path == active {
            return true;
        }
        let found = self.found.get_or_init(|| {
            let path = sight.resolve(&self.path)?;
            let file = sys::file_id(&path).ok();
            Some((path, file))
        });
        match found {
            Some((path, _)) if path == active => true,
            Some((_, Some(file))) => active_file() == Some(*file),
            Some((_, None)) | None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_web1(name: &Name) -> bool {
        // as QEMU in /vm sees them
        Path::new("/vm").join(&name.path) == Path::new("/vm/web1.qcow2")
    }

    fn find(text: &str, option: &str) -> Option<String> {
        let arguments = ["qemu-system-x86_64", text].map(Argument::new);
        let found = speaking_of(&arguments, &is_web1, "disk0").into_iter();
        let mut values = found.filter_map(|argument| argument.value_of(option));
        values.next().map(str::to_owned)
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
        let nested = r#"--drive=file=json:{"driver":"throttle",,"file":{"driver":"qcow2",,"file":{"filename":"web1.qcow2",,"aio":"native"}}},copy-on-read=on"#;
        assert_eq!(find(nested, "aio").as_deref(), Some("native"));
        assert_eq!(find(nested, "copy-on-read").as_deref(), Some("on"));
        // what stands outermost is the disk's own
        let both = r#"{"driver":"qcow2","discard":"unmap","read-only":true,"file":{"filename":"/vm/web1.qcow2","discard":"ignore"}}"#;
        assert_eq!(find(both, "discard").as_deref(), Some("unmap"));
        assert_eq!(find(both, "read-only").as_deref(), Some("true"));
    }

    #[test]
    fn a_backing_that_is_named_is_seen_in_every_spelling() {
        let named = |text: &str| {
            let file = "driver=file,node-name=f,filename=/vm/web1.qcow2";
            let arguments = [file, text].map(Argument::new);
            let found = speaking_of(&arguments, &is_web1, "qmpfs-1");
            found.into_iter().any(Argument::has_backing)
        };
        assert!(named("driver=qcow2,node-name=disk0,file=f,backing=base"));
        assert!(named("file=/vm/web1.qcow2,backing.driver=qcow2,if=virtio"));
        assert!(named(
            r#"{"driver":"qcow2","node-name":"d","file":"f","backing":null}"#
        ));
        for text in [
            r#"--blockdev={"driver":"qcow2","node-name":"d","file":"f","backing":"base"}"#,
            r#"file=json:{"file":{"driver":"file",,"filename":"/vm/web1.qcow2"},,"backing":{"driver":"null-co"}},if=virtio"#,
            r#"json:{"driver":"qcow2","file.filename":"/vm/web1.qcow2","backing.driver":"null-co"}"#,
        ] {
            assert!(named(text), "{text}");
        }
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
        let named = |text: &str| Argument::new(text).files.iter().any(is_web1);
        for argument in [
            "file=file:web1.qcow2,if=virtio",
            "--blockdev=driver=file,node-name=f,filename=/vm/web1.qcow2",
            r#"file=json:{"driver":"qcow2",,"file":{"driver":"file",,"filename":"/vm/web1.qcow2"}},if=none"#,
            r#"{"driver":"qcow2","file":{"driver":"file","filename":"web1.qcow2"}}"#,
        ] {
            assert!(named(argument), "{argument}");
        }
        let names = |text: &str| Argument::new(text).files.into_iter().map(|name| name.path);
        assert!(names("file=/vm/a,,b,if=none").eq([PathBuf::from("/vm/a,b")]));
        assert_eq!(names("virtio-blk-pci,drive=web1.qcow2").count(), 0);
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
        let is_active = |path: &Path| {
            let name = Name::new(path.to_str().unwrap());
            name.is(&sight, &active, &|| sys::file_id(&active).ok())
        };
        for name in [&active, &link, &relative] {
            assert!(is_active(name), "{}", name.display());
        }
        assert!(!is_active(&other));
        assert!(!is_active(Path::new("web1.qcow2")));
    }
}

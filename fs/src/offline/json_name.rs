//! Backing names of the form `json:{...}` that are a local file after all.
//! It knows QEMU's options that say which bytes are read; a name with any other is not understood.

use crate::model::Format;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Options that say how QEMU reads and not what.
const TUNING: [&str; 11] = [
    "aio",
    "auto-read-only",
    "cache.direct",
    "cache.no-flush",
    "detect-zeroes",
    "discard",
    "force-share",
    "locking",
    "node-name",
    "pr-manager",
    "read-only",
];

/// The file and format that a name says; None when it says anything else, or more than that.
pub(super) fn plain_file(name: &[u8]) -> Option<(PathBuf, Format)> {
    let object: Map<String, Value> = serde_json::from_slice(name.strip_prefix(b"json:")?).ok()?;
    let mut options = BTreeMap::new();
    flatten("", &object, &mut options)?;
    let mut take = |key: &str| options.remove(key).and_then(Value::as_str);
    let format = match take("driver")? {
        "qcow2" => Format::Qcow2,
        "raw" => Format::Raw,
        _ => return None,
    };
    let path = PathBuf::from(take("file.filename")?);
    // QEMU would take a relative name here against its own directory.
    let local = matches!(take("file.driver")?, "file" | "host_device") && path.is_absolute();
    let understood = options
        .keys()
        .all(|key| TUNING.contains(&key.strip_prefix("file.").unwrap_or(key)));
    (local && understood).then_some((path, format))
}

/// `{"file":{"driver":"file"}}` and `{"file.driver":"file"}` are the same to QEMU.
fn flatten<'a>(
    prefix: &str,
    object: &'a Map<String, Value>,
    into: &mut BTreeMap<String, &'a Value>,
) -> Option<()> {
    for (key, value) in object {
        let key = format!("{prefix}{key}");
        match value {
            Value::Object(inner) => flatten(&format!("{key}."), inner, into)?,
            // said twice is not understood
            _ if into.insert(key, value).is_some() => return None,
            _ => {}
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::plain_file;
    use crate::model::Format;
    use std::path::PathBuf;

    #[test]
    fn a_plain_file_in_both_spellings() {
        for (name, format) in [
            (
                r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"/a b"}}"#,
                Format::Qcow2,
            ),
            (
                r#"json:{"driver":"raw","file.driver":"file","file.filename":"/a b"}"#,
                Format::Raw,
            ),
            (
                r#"json:{"driver":"qcow2","node-name":"x","read-only":true,"cache":{"direct":true},"file":{"driver":"file","filename":"/a b","aio":"native","locking":"off"}}"#,
                Format::Qcow2,
            ),
        ] {
            let found = plain_file(name.as_bytes());
            assert_eq!(found, Some((PathBuf::from("/a b"), format)), "{name}");
        }
    }

    #[test]
    fn anything_else_is_not_understood() {
        for name in [
            "/a",
            "json:",
            "json:[]",
            r#"json:{"driver":"null-co"}"#,
            r#"json:{"file":{"driver":"file","filename":"/a"}}"#,
            r#"json:{"driver":"qcow2","file":"node"}"#,
            r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"a"}}"#,
            r#"json:{"driver":"qcow2","file":{"driver":"nbd","filename":"/a"}}"#,
            r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"/a"},"file.driver":"file"}"#,
            // these change the bytes
            r#"json:{"driver":"raw","offset":512,"file":{"driver":"file","filename":"/a"}}"#,
            r#"json:{"driver":"qcow2","backing":null,"file":{"driver":"file","filename":"/a"}}"#,
            r#"json:{"driver":"qcow2","data-file":{"driver":"file","filename":"/b"},"file":{"driver":"file","filename":"/a"}}"#,
        ] {
            assert_eq!(plain_file(name.as_bytes()), None, "{name}");
        }
    }
}

//! What others called the states they sealed. QEMU and libvirt give a snapshot's name to the new
//! overlay (`virsh snapshot-create-as web1 before --disk-only` makes `web1.before`), while the
//! state of that instant is the layer below it. So a layer is called what its overlay's file name
//! adds to its own. Pure: it knows names only.

use super::names::active_of_alias;
use crate::model::Layer;
use crate::tree::fit_name;
use std::path::{Path, PathBuf};

/// Extensions that say what is in a file, and not which of many it is.
const IMAGE_EXTENSIONS: [&str; 9] = [
    "qcow2", "qcow", "qed", "img", "raw", "vmdk", "vdi", "vhd", "vhdx",
];
/// What stands between a disk's name and a snapshot's.
const SEPARATORS: [char; 3] = ['.', '-', '_'];
/// What tells a name of others from the same one of ours.
const OTHER: &str = "other";

/// Names the layers that others sealed, base first, below an active layer that boots from
/// `active_path`. No two layers get one name, and those of ours keep theirs.
pub fn name_foreign(active_path: &Path, layers: &mut [Layer]) {
    // What a file was called when its layer was made: we give it another name when we seal it.
    let mut files: Vec<PathBuf> = layers
        .iter()
        .map(|layer| match &layer.record {
            Some(_) => active_path.to_owned(),
            None => active_of_alias(&layer.path).unwrap_or_else(|| layer.path.clone()),
        })
        .collect();
    files.push(active_path.to_owned());
    let mut taken: Vec<String> = layers
        .iter()
        .filter_map(|layer| Some(layer.record.as_ref()?.name.clone()))
        .collect();
    let mut lineage: Option<String> = None;
    for (layer, pair) in layers.iter_mut().zip(files.windows(2)) {
        layer.foreign_name = None;
        if layer.record.is_some() {
            continue;
        }
        let Some((name, stem)) = added(&pair[0], &pair[1], lineage.as_deref()) else {
            lineage = None;
            continue;
        };
        lineage = Some(stem);
        let wanted = fit_name(&name);
        let numbered = (2u64..).map(|number| format!("{wanted}.{OTHER}{number}"));
        let names = [wanted.clone(), format!("{wanted}.{OTHER}")];
        let free = names
            .into_iter()
            .chain(numbered)
            .map(|name| fit_name(&name))
            // a name at the limit of its length is cut there, and then there may be no other
            .take(taken.len() + 2)
            .find(|name| !taken.contains(name));
        if let Some(free) = free {
            taken.push(free.clone());
            layer.foreign_name = Some(free);
        }
    }
}

/// What the overlay's name adds to the sealed file's, and to which part of it.
fn added(sealed: &Path, overlay: &Path, lineage: Option<&str>) -> Option<(String, String)> {
    if sealed.parent() != overlay.parent() {
        return None;
    }
    let (sealed, overlay) = (stem(sealed)?, stem(overlay)?);
    // libvirt puts the new name in the place of the last one
    let before_last = sealed.rsplit_once('.').map(|(stem, _)| stem);
    [Some(sealed.as_str()), before_last, lineage]
        .into_iter()
        .flatten()
        .find_map(|stem| {
            let rest = overlay.strip_prefix(stem)?;
            let name = rest.strip_prefix(SEPARATORS)?;
            (!name.is_empty()).then(|| (name.to_owned(), stem.to_owned()))
        })
}

/// The file's name without an extension that says its format.
fn stem(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_string_lossy().into_owned();
    match name.rsplit_once('.') {
        Some((stem, extension)) if IMAGE_EXTENSIONS.contains(&extension) && !stem.is_empty() => {
            Some(stem.to_owned())
        }
        _ => Some(name),
    }
}

#[cfg(test)]
mod tests {
    use super::name_foreign;
    use crate::model::Layer;
    use crate::tree::sample::layer;
    use std::path::Path;

    /// The chain of these files, base first, and what its sealed layers are called.
    fn names(files: &[&str]) -> Vec<Option<String>> {
        let (active, sealed) = files.split_last().expect("a chain has a layer");
        let mut layers: Vec<Layer> = sealed
            .iter()
            .enumerate()
            .map(|(index, file)| {
                let (file, point) = match file.split_once('=') {
                    Some((file, point)) => (file, Some(point)),
                    None => (*file, None),
                };
                layer(&format!("/vm/{file}"), index as u64, point)
            })
            .collect();
        name_foreign(&Path::new("/vm").join(active), &mut layers);
        layers
            .iter()
            .map(|layer| layer.point_name().map(str::to_owned))
            .collect()
    }

    fn some(names: &[&str]) -> Vec<Option<String>> {
        names
            .iter()
            .map(|name| (!name.is_empty()).then(|| (*name).to_owned()))
            .collect()
    }

    #[test]
    fn the_state_below_the_overlay_has_the_overlays_name() {
        for (files, expected) in [
            // libvirt: the last extension gives way to the snapshot's name
            (&["web1.qcow2", "web1.before"][..], &["before"][..]),
            (
                &["web1.qcow2", "web1.before", "web1.after"],
                &["before", "after"],
            ),
            (
                &["tmpl.qcow2", "web1.qcow2", "web1.a", "web1.b"],
                &["", "a", "b"],
            ),
            // by hand
            (
                &["web1.qcow2", "web1.s1.qcow2", "web1.s2.qcow2"],
                &["s1", "s2"],
            ),
            (&["web1.s1.qcow2", "web1.s2.qcow2"], &["s2"]),
            (
                &["web1.img", "web1-s1.qcow2", "web1-s1-s2.qcow2"],
                &["s1", "s2"],
            ),
            (&["web1.img", "web1_1.qcow2", "web1_2.qcow2"], &["1", "2"]),
            // nothing is added: a template and what stands on it
            (&["debian.qcow2", "web1.qcow2"], &[""]),
            (&["web.qcow2", "web1.qcow2"], &[""]),
            (&["a/web1.qcow2", "web1.before"], &[""]),
        ] {
            assert_eq!(names(files), some(expected), "{files:?}");
        }
    }

    #[test]
    fn a_seal_of_ours_changes_no_name_of_others() {
        // the VM runs on web1.before, which libvirt made; then we seal it twice
        let chain = [
            "web1.qcow2",
            "web1.p.before=p",
            "web1.q.before=q",
            "web1.before",
        ];
        assert_eq!(names(&chain), some(&["before", "p", "q"]));
        // and the other way round: ours first, then somebody's, on the alias
        let chain = ["web1.p.qcow2=p", ".web1.qcow2.0123456789ab", "web1.before"];
        assert_eq!(names(&chain), some(&["p", "before"]));
    }

    #[test]
    fn no_two_have_one_name_and_ours_keep_theirs() {
        let chain = ["web1.qcow2", "web1.x", "web1.x.before=x", "web1.x.qcow2"];
        assert_eq!(names(&chain)[2].as_deref(), Some("x"));
        let all = names(&chain);
        assert_eq!(
            all.iter()
                .flatten()
                .collect::<std::collections::BTreeSet<_>>()
                .len(),
            3,
            "{all:?}"
        );
        assert_eq!(all[0].as_deref(), Some("x.other"));
        let strange = names(&["web1.qcow2", "web1.a b/../c"]);
        assert_eq!(strange, some(&[""]), "another directory");
        assert_eq!(names(&["web1.qcow2", "web1.a b"]), some(&["a_b"]));
    }
}

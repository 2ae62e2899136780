//! Digests of backups in their manifests, and the tree of the newest beside it: of what stands on
//! that one only the changes have to be read then.

use super::journal::read_json;
use super::place::{Place, json, remove, write_bytes, write_through};
use crate::digest::Tree;
use crate::errno::Failure;
use crate::model::Manifest;
use crate::sys;
use crate::tree::valid_name;
use std::io::Read;

/// Longest tree that is read: of a disk of 64 TiB.
const TREE_MAX: u64 = 2 << 30;

/// The tree of the backup that one stands on, if it is kept and has the digest that is recorded.
pub fn known_tree(place: &Place, manifest: &Manifest) -> Option<Tree> {
    let previous = manifest.previous.as_ref()?;
    let below: Manifest = read_json(&place.manifest(&previous.name)).ok()?;
    if below.id != previous.id {
        return None;
    }
    let file = sys::open_for_reading(&place.tree(&below.name)).ok()?;
    let mut bytes = Vec::new();
    file.take(TREE_MAX).read_to_end(&mut bytes).ok()?;
    Tree::from_bytes(&bytes, below.digest.as_deref()?)
}

/// Writes a backup's digest into its manifest, if the backup is still there. The trees of the others have done
/// their duty.
pub fn record(
    place: &Place,
    read: &Manifest,
    digest: &str,
    tree: Option<&Tree>,
) -> Result<(), Failure> {
    let path = place.manifest(&read.name);
    let Ok(mut manifest) = read_json::<Manifest>(&path) else {
        return Ok(());
    };
    if manifest.id != read.id || place.journal(&read.name).exists() {
        return Ok(());
    }
    if let Some(tree) = tree {
        write_bytes(&place.tree(&read.name), &tree.to_bytes())?;
    }
    manifest.digest = Some(digest.to_owned());
    let text = json(&path, &manifest)?;
    write_through(&place.new_digest(&read.name), &path, &text)?;
    for name in names_of_manifests(place)? {
        if name != read.name {
            remove(&place.tree(&name))?;
        }
    }
    Ok(())
}

fn names_of_manifests(place: &Place) -> Result<Vec<String>, Failure> {
    let directory = place.directory();
    let entries = std::fs::read_dir(directory)
        .map_err(|error| Failure::io(format!("list {}", directory.display()), &error))?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let names = names.filter_map(|name| name.strip_suffix(".json").map(str::to_owned));
    Ok(names.filter(|name| valid_name(name)).collect())
}

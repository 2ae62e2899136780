//! Points by identity: from a [`PointKey`] to the layer or internal snapshot it means in this
//! model, and back. Pure.

use super::{
    NodeKey, PointKey, PointKind, Section, internal_identity, layer_dir_name, layer_identity,
};
use crate::model::{Backup, Branch, Disk, Internal, Layer, Live, Model};

/// What a point's key means in a model.
#[derive(Debug, Clone, Copy)]
pub enum Found<'a> {
    /// A sealed layer and all below it.
    Layer {
        /// The disk it belongs to.
        disk: &'a Disk,
        /// Its index in `disk.layers`.
        index: usize,
        /// The layer.
        layer: &'a Layer,
    },
    /// A sealed layer beside the chain and all below it.
    Branch {
        /// The disk it belongs to.
        disk: &'a Disk,
        /// The layer and what it stands on.
        branch: &'a Branch,
    },
    /// A backup, complete or not.
    Backup {
        /// The disk it is of.
        disk: &'a Disk,
        /// The backup.
        backup: &'a Backup,
    },
    /// An internal snapshot.
    Internal {
        /// The disk it belongs to.
        disk: &'a Disk,
        /// The layer whose file holds it.
        holder: &'a Layer,
        /// The snapshot.
        internal: &'a Internal,
    },
    /// An instant of the running disk.
    Live {
        /// The disk it belongs to.
        disk: &'a Disk,
        /// The instant.
        live: &'a Live,
    },
}

impl<'a> Found<'a> {
    /// The disk it belongs to.
    pub fn disk(&self) -> &'a Disk {
        match self {
            Found::Layer { disk, .. }
            | Found::Branch { disk, .. }
            | Found::Backup { disk, .. }
            | Found::Internal { disk, .. }
            | Found::Live { disk, .. } => disk,
        }
    }

    /// The layers whose files it is made of, base first. Those of an instant of the running disk are
    /// read by QEMU alone.
    pub fn layers(&self) -> Vec<&'a Layer> {
        match self {
            Found::Layer { disk, index, .. } => disk.layers.iter().take(index + 1).collect(),
            Found::Backup { backup, .. } => backup.layers.iter().collect(),
            Found::Branch { branch, .. } => branch.chain().collect(),
            Found::Internal {
                disk,
                holder,
                internal,
            } => {
                let below = internal.layer.unwrap_or(disk.layers.len());
                disk.layers.iter().take(below).chain([*holder]).collect()
            }
            Found::Live { disk, .. } => disk.chain().collect(),
        }
    }
}

/// What `point` is in this model. None when it is gone or being removed.
pub fn find_point<'a>(model: &'a Model, point: &PointKey) -> Option<Found<'a>> {
    find_in(model.disk(&point.disk)?, point)
}

/// The same, in its disk.
pub fn find_in<'a>(disk: &'a Disk, point: &PointKey) -> Option<Found<'a>> {
    let sealed_as =
        |layer: &Layer| layer.point_name().is_some() && layer_identity(layer) == point.identity;
    match point.kind {
        PointKind::Layer => found_layer(disk, |layer| layer_identity(layer) == point.identity),
        PointKind::External => found_layer(disk, sealed_as).or_else(|| {
            let mut branches = disk.branches.iter();
            branches
                .find(|branch| sealed_as(&branch.layer))
                .map(|branch| Found::Branch { disk, branch })
        }),
        PointKind::Backup(kind) => {
            let mut backups = disk.backups.iter();
            backups
                .find(|backup| backup.manifest.kind == kind && backup.manifest.id == point.identity)
                .map(|backup| Found::Backup { disk, backup })
        }
        PointKind::Internal => disk.internals.iter().find_map(|internal| {
            let holder = holder(disk, internal)?;
            (internal_identity(holder, internal) == point.identity).then_some(Found::Internal {
                disk,
                holder,
                internal,
            })
        }),
        PointKind::Live => {
            let mut lives = disk.lives.iter();
            lives
                .find(|live| live.record.id == point.identity)
                .map(|live| Found::Live { disk, live })
        }
    }
}

/// Where a point is listed: its disk, section and name. None when it is gone.
pub fn point_place(model: &Model, point: &PointKey) -> Option<(String, Section, String)> {
    let name = match find_point(model, point)? {
        Found::Layer { index, layer, .. } => match point.kind {
            PointKind::External => layer.point_name()?.to_owned(),
            PointKind::Layer | PointKind::Internal | PointKind::Live | PointKind::Backup(_) => {
                layer_dir_name(index, layer)
            }
        },
        Found::Branch { branch, .. } => branch.name().to_owned(),
        Found::Backup { backup, .. } => backup.manifest.name.clone(),
        Found::Internal { internal, .. } => internal.name.clone(),
        Found::Live { live, .. } => live.record.name.clone(),
    };
    Some((point.disk.clone(), point.kind.section(), name))
}

/// The key of a layer as layers/ lists it.
pub fn layer_key(disk: &Disk, layer: &Layer) -> NodeKey {
    key(disk, PointKind::Layer, layer_identity(layer))
}

/// The key of an external snapshot; None for a layer that is not one.
pub fn external_key(disk: &Disk, layer: &Layer) -> Option<NodeKey> {
    layer.point_name()?;
    Some(key(disk, PointKind::External, layer_identity(layer)))
}

/// The key of an internal snapshot; None when the layer that holds it is being removed.
pub fn internal_key(disk: &Disk, internal: &Internal) -> Option<NodeKey> {
    Some(key(
        disk,
        PointKind::Internal,
        internal_identity(holder(disk, internal)?, internal),
    ))
}

/// The key of an instant of the running disk.
pub fn live_key(disk: &Disk, live: &Live) -> NodeKey {
    key(disk, PointKind::Live, live.record.id.clone())
}

/// The key of a backup.
pub fn backup_key(disk: &Disk, backup: &Backup) -> NodeKey {
    let kind = PointKind::Backup(backup.manifest.kind);
    key(disk, kind, backup.manifest.id.clone())
}

/// The job, and its disk, that makes the point a file belongs to.
pub fn job_of(model: &Model, key: &NodeKey) -> Option<(String, String)> {
    match find_point(model, key.point()?)? {
        Found::Backup { disk, backup } => Some((disk.name.clone(), backup.job()?.to_owned())),
        Found::Layer { .. }
        | Found::Branch { .. }
        | Found::Internal { .. }
        | Found::Live { .. } => None,
    }
}

fn key(disk: &Disk, kind: PointKind, identity: String) -> NodeKey {
    NodeKey::Point(PointKey {
        disk: disk.name.clone(),
        kind,
        identity,
    })
}

fn found_layer(disk: &Disk, wanted: impl Fn(&Layer) -> bool) -> Option<Found<'_>> {
    let (index, layer) = disk
        .layers
        .iter()
        .enumerate()
        .find(|(_, layer)| layer.shown() && wanted(layer))?;
    Some(Found::Layer { disk, index, layer })
}

fn holder<'a>(disk: &'a Disk, internal: &Internal) -> Option<&'a Layer> {
    let holder = match internal.layer {
        None => &disk.active,
        Some(index) => disk.layers.get(index)?,
    };
    holder.shown().then_some(holder)
}

#[cfg(test)]
mod tests {
    use super::{Found, external_key, find_point, internal_key, layer_key, point_place};
    use crate::tree::{PointKey, PointKind, Section, sample};

    #[test]
    fn keys_lead_back_to_what_they_name() {
        let model = sample::two_disks();
        let disk = model.disk("vda").expect("the sample has vda");
        let before = external_key(disk, &disk.layers[1]).expect("it has a record");
        let point = before.point().expect("a point");
        assert_eq!(
            point_place(&model, point),
            Some(("vda".into(), Section::Snapshots, "before".into()))
        );
        assert_eq!(
            find_point(&model, point).map(|found| found.layers().len()),
            Some(2)
        );

        let layer = layer_key(disk, &disk.layers[1]);
        let layer = layer.point().expect("a point");
        assert_eq!(
            point_place(&model, layer),
            Some(("vda".into(), Section::Layers, "1-web1.before".into()))
        );
        assert_eq!(layer.identity, point.identity);

        assert!(external_key(disk, &disk.layers[0]).is_none());
        let base = layer_key(disk, &disk.layers[0]);
        assert_eq!(
            base.point().map(|point| point.identity.as_str()),
            Some("fe01-b-1600000000000000000")
        );
    }

    #[test]
    fn an_internal_snapshot_is_made_of_its_holder_and_all_below() {
        let model = sample::two_disks();
        let disk = model.disk("vda").expect("the sample has vda");
        let key = internal_key(disk, &disk.internals[0]).expect("held by the active layer");
        let point = key.point().expect("a point");
        assert_eq!(point.identity, "fe01-d-1-1700000000000000000");
        let found = find_point(&model, point).expect("it exists");
        assert!(matches!(found, Found::Internal { .. }));
        assert_eq!(found.layers().len(), 3);
    }

    #[test]
    fn what_is_leaving_is_not_found() {
        let mut model = sample::two_disks();
        let key =
            external_key(&model.disks[0], &model.disks[0].layers[1]).expect("it has a record");
        model.disks[0].layers[1].leaving = true;
        assert!(find_point(&model, key.point().expect("a point")).is_none());
        let unknown = PointKey {
            disk: "vdz".into(),
            kind: PointKind::Layer,
            identity: "x".into(),
        };
        assert!(point_place(&model, &unknown).is_none());
    }
}

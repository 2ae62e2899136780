//! A volume group: what its metadata says of its volumes. Pure.
#![deny(clippy::arithmetic_side_effects)]

use super::layout::{Area, Layout, Segment};
use super::text::{self, Value};
use crate::Error;
use std::collections::HashMap;
use std::sync::Arc;

const SECTOR: u64 = 512;
/// Logical volumes of one group that are listed.
const VOLUMES_MAX: usize = 1024;
/// Physical volumes of one group; LVM itself advises against a tenth of them.
const PHYSICAL_MAX: usize = 1024;
/// Stretches of physical volumes that all logical ones of a group are made of.
const AREAS_MAX: usize = 1 << 15;
/// What tells physical volumes, and groups, apart has 32 letters.
const UUID_MAX: usize = 64;
/// The longest name of a group or a volume; LVM itself takes half of it.
const NAME_MAX: usize = 251;
/// Bytes that are kept of what a guest calls a device; Linux has no longer names of them.
const DEVICE_MAX: usize = 255;
/// Bytes that are kept of the kind of a segment: each has one short word.
const KIND_MAX: usize = 64;
/// Stripes of one segment, as many as LVM makes.
const STRIPES_MAX: usize = 128;

/// The kind of a volume that lies on other volumes.
const OF_OTHERS: &str = "on other volumes";

const DAMAGE: Error = Error::Corrupt("the metadata of a volume group");

/// A volume group.
#[derive(Debug, Clone)]
pub struct Group {
    /// What tells it from others.
    pub uuid: String,
    /// What its owner calls it.
    pub name: String,
    /// The larger, the later it was written.
    pub sequence: u64,
    /// The physical volumes that it has.
    pub physical: Vec<Member>,
    /// Its volumes that somebody can use.
    pub logical: Vec<Logical>,
}

/// A physical volume, as its group knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// What tells it from others.
    pub uuid: Arc<str>,
    /// The device that the guest found it on last; nothing where it is not told.
    pub device: String,
}

/// A logical volume.
#[derive(Debug, Clone)]
pub struct Logical {
    /// What its owner calls it.
    pub name: String,
    /// Where its bytes are on the physical volumes; or of which kind it is, that is not read here.
    pub layout: Result<Layout, String>,
}

/// By the names that a group has for its physical volumes: where the extents of each begin, and their bytes.
type Physical<'a> = HashMap<&'a str, (Area, u64)>;

impl Group {
    /// Reads the text of the metadata.
    pub fn parse(text: &[u8]) -> Result<Group, Error> {
        let whole = text::parse(text)?;
        let sections = whole.section().iter();
        let mut groups = sections.filter(|(_, it)| matches!(it, Value::Section(_)));
        let (name, group) = groups.next().ok_or(DAMAGE)?;
        let extent = bytes(group.number("extent_size")?)?;
        if extent == 0 {
            return Err(DAMAGE);
        }
        let physical = group.get("physical_volumes").ok_or(DAMAGE)?.section();
        if physical.len() > PHYSICAL_MAX {
            return Err(DAMAGE);
        }
        let mut members = Vec::new();
        let physical: Result<Physical<'_>, Error> = physical
            .iter()
            .map(|(name, volume)| {
                let start = bytes(volume.number("pe_start")?)?;
                let extents = volume.number("pe_count")?;
                let length = extents.checked_mul(extent).ok_or(DAMAGE)?;
                let uuid: Arc<str> = uuid(volume)?.into();
                let device = volume.text("device").unwrap_or_default();
                members.push(Member {
                    uuid: Arc::clone(&uuid),
                    device: cut(device, DEVICE_MAX).to_owned(),
                });
                Ok((name.as_str(), (Area { uuid, start }, length)))
            })
            .collect();
        let physical = physical?;
        let logical = group.get("logical_volumes");
        let logical = logical.map(Value::section).unwrap_or_default().iter();
        let is_visible = |volume: &Value| {
            let words = volume.list("status").iter();
            words
                .into_iter()
                .any(|it| *it == Value::Text("VISIBLE".into()))
        };
        let visible = logical.filter(|(_, volume)| is_visible(volume));
        let mut areas = 0;
        let logical: Result<Vec<Logical>, Error> = visible
            .take(VOLUMES_MAX)
            .map(|(name, volume)| {
                Ok(Logical {
                    name: own(name)?,
                    layout: layout(volume, extent, &physical, &mut areas)?,
                })
            })
            .collect();
        Ok(Group {
            uuid: uuid(group)?,
            name: own(name)?,
            sequence: group.number("seqno")?,
            physical: members,
            logical: logical?,
        })
    }
}

/// What tells a group or a physical volume from others.
fn uuid(of: &Value) -> Result<String, Error> {
    let uuid = of.text("id")?.replace('-', "");
    match uuid.len() {
        ..=UUID_MAX => Ok(uuid),
        _ => Err(DAMAGE),
    }
}

/// What its owner calls a group or a volume.
fn own(name: &str) -> Result<String, Error> {
    match name.len() {
        ..=NAME_MAX => Ok(name.to_owned()),
        _ => Err(DAMAGE),
    }
}

/// The beginning of a text, in whole letters: what a guest writes is kept for every volume that names it.
fn cut(text: &str, length: usize) -> &str {
    let mut ends = (0..=length).rev();
    ends.find_map(|end| text.get(..end)).unwrap_or_default()
}

/// Sectors as bytes.
fn bytes(sectors: u64) -> Result<u64, Error> {
    sectors.checked_mul(SECTOR).ok_or(DAMAGE)
}

/// Where a volume is; or, within, the kind of it that is not known here. Its areas are added to those of the group.
fn layout(
    volume: &Value,
    extent: u64,
    physical: &Physical<'_>,
    areas: &mut usize,
) -> Result<Result<Layout, String>, Error> {
    let entries = volume.section().iter();
    let named = entries.filter(|(name, _)| name.starts_with("segment") && name != "segment_count");
    let mut segments = Vec::new();
    for (_, segment) in named {
        let kind = segment.text("type")?;
        if kind != "striped" {
            return Ok(Err(cut(kind, KIND_MAX).to_owned()));
        }
        let Some(segment) = striped(segment, extent, physical)? else {
            return Ok(Err(OF_OTHERS.to_owned()));
        };
        *areas = areas.saturating_add(segment.areas.len());
        if *areas > AREAS_MAX {
            return Err(Error::Unsupported(
                "its logical volumes are in very many pieces",
            ));
        }
        segments.push(segment);
    }
    Layout::new(segments).map(Ok)
}

/// A segment on physical volumes; None where it is on others: one that `pvmove` is moving is on a volume of its own.
fn striped(
    segment: &Value,
    extent: u64,
    physical: &Physical<'_>,
) -> Result<Option<Segment>, Error> {
    let stripes = segment.list("stripes");
    let (pairs, rest) = stripes.as_chunks::<2>();
    let count = pairs.len() as u64;
    let length = segment.number("extent_count")?.checked_mul(extent);
    let length = length.ok_or(DAMAGE)?;
    if !rest.is_empty() || !(1..=STRIPES_MAX).contains(&pairs.len()) {
        return Err(DAMAGE);
    }
    let stripe = match count {
        1 => length,
        _ => bytes(segment.number("stripe_size")?)?,
    };
    let on_each = length.checked_div(count).ok_or(DAMAGE)?;
    // Each physical volume has as much of it, in whole stripes.
    if stripe == 0 || on_each.checked_mul(count) != Some(length) || !on_each.is_multiple_of(stripe)
    {
        return Err(DAMAGE);
    }
    let areas: Result<Option<Vec<Area>>, Error> = pairs
        .iter()
        .map(|pair| {
            let [Value::Text(name), Value::Number(first)] = pair else {
                return Err(DAMAGE);
            };
            let Some((of, size)) = physical.get(name.as_str()) else {
                return Ok(None);
            };
            let within = first.checked_mul(extent).ok_or(DAMAGE)?;
            let end = within.checked_add(on_each).ok_or(DAMAGE)?;
            let start = of.start.checked_add(within).ok_or(DAMAGE)?;
            if end > *size || start.checked_add(on_each).is_none() {
                return Err(DAMAGE);
            }
            Ok(Some(Area {
                uuid: Arc::clone(&of.uuid),
                start,
            }))
        })
        .collect();
    let Some(areas) = areas? else {
        return Ok(None);
    };
    Ok(Some(Segment {
        start: segment
            .number("start_extent")?
            .checked_mul(extent)
            .ok_or(DAMAGE)?,
        length,
        stripe,
        areas,
    }))
}

#[cfg(test)]
mod tests {
    use super::Group;

    /// A group with one volume, whose segment is as given.
    fn group(segment: &str) -> Result<Group, crate::Error> {
        let text = format!(
            "vg {{ id = \"aa-bb\" seqno = 3 extent_size = 8\n\
             physical_volumes {{ pv0 {{ id = \"cc-dd\" device = \"/dev/vdb\" pe_start = 2048 pe_count = 10 }} }}\n\
             logical_volumes {{ lv {{ status = [\"READ\", \"VISIBLE\"] segment_count = 1 segment1 {{ {segment} }} }}\n\
             hidden {{ status = [] }} }} }}"
        );
        Group::parse(text.as_bytes())
    }

    #[test]
    fn a_linear_volume_and_one_that_is_not_read() {
        let linear = "type = \"striped\" start_extent = 0 extent_count = 4 stripes = [\"pv0\", 6]";
        let found = group(linear).expect("it is right");
        assert_eq!((found.uuid.as_str(), found.sequence), ("aabb", 3));
        let [member] = &found.physical[..] else {
            panic!("one");
        };
        assert_eq!((&*member.uuid, &*member.device), ("ccdd", "/dev/vdb"));
        let [volume] = &found.logical[..] else {
            panic!("one that can be seen");
        };
        let layout = volume.layout.as_ref().expect("it is linear");
        assert_eq!(layout.length(), 4 * 4096);
        let piece = layout.piece(4096, 1).expect("within");
        assert_eq!(piece.start, (1 << 20) + 7 * 4096);
        let thin = group("type = \"thin\" start_extent = 0 extent_count = 4").expect("it is right");
        assert_eq!(
            thin.logical[0].layout.as_ref().err().map(String::as_str),
            Some("thin")
        );
    }

    /// As while `pvmove` is at work: the other volumes of the group are where they were.
    #[test]
    fn a_volume_on_another_one_is_not_read() {
        let volume = |name: &str, on: &str| {
            format!(
                "{name} {{ status = [\"VISIBLE\"] segment1 {{ type = \"striped\" start_extent = 0 extent_count = 4 \
                 stripes = [\"{on}\", 0] }} }}"
            )
        };
        let text = format!(
            "vg {{ id = \"a\" seqno = 3 extent_size = 8 physical_volumes {{ pv0 {{ id = \"c\" pe_start = 0 \
             pe_count = 10 }} }} logical_volumes {{ {} {} }} }}",
            volume("moved", "pvmove0"),
            volume("other", "pv0")
        );
        let found = Group::parse(text.as_bytes()).expect("it is right");
        let [moved, other] = &found.logical[..] else {
            panic!("two");
        };
        assert_eq!(
            moved.layout.as_ref().err().map(String::as_str),
            Some(super::OF_OTHERS)
        );
        assert_eq!(
            other.layout.as_ref().expect("it is linear").length(),
            4 * 4096
        );
    }

    /// What is kept of a group is kept for each of its volumes, and for as long as its disk is remembered.
    #[test]
    fn what_a_guest_writes_is_kept_in_part() {
        let long = "\u{e9}".repeat(1 << 20);
        let text = |volume: &str, kind: &str| {
            format!(
                "vg {{ id = \"a\" seqno = 3 extent_size = 8\n\
                 physical_volumes {{ pv0 {{ id = \"c\" device = \"{long}\" pe_start = 0 pe_count = 10 }} }}\n\
                 logical_volumes {{ {volume} {{ status = [\"VISIBLE\"] segment1 {{ type = \"{kind}\" }} }} }} }}"
            )
        };
        let found = Group::parse(text("lv", &long).as_bytes()).expect("it is right");
        assert_eq!(found.physical[0].device.len(), super::DEVICE_MAX - 1);
        let kind = found.logical[0].layout.as_ref().err();
        assert_eq!(kind.map(String::len), Some(super::KIND_MAX));
        let name = |length| Group::parse(text(&"v".repeat(length), "thin").as_bytes());
        name(super::NAME_MAX).expect("as long as one can be");
        name(super::NAME_MAX + 1).expect_err("longer");
    }

    /// A text of some hundred kilobytes is not to become a gigabyte.
    #[test]
    fn what_is_in_very_many_pieces_is_not_read() {
        let areas = "\"pv0\", 0, ".repeat(super::STRIPES_MAX);
        let segment = |number: usize| {
            format!(
                "segment{number} {{ type = \"striped\" start_extent = {} extent_count = 128 stripe_size = 8 \
                 stripes = [{}] }}",
                128 * (number - 1),
                areas.trim_end_matches(", ")
            )
        };
        let of = |segments: usize| {
            let all: Vec<String> = (1..=segments).map(segment).collect();
            let text = format!(
                "vg {{ id = \"a\" seqno = 3 extent_size = 8 physical_volumes {{ pv0 {{ id = \"c\" pe_start = 0 \
                 pe_count = 10 }} }} logical_volumes {{ lv {{ status = [\"VISIBLE\"] {} }} }} }}",
                all.join("\n")
            );
            Group::parse(text.as_bytes())
        };
        let most = super::AREAS_MAX / super::STRIPES_MAX;
        of(most).expect("as many as are read");
        of(most + 1).expect_err("one more");
    }

    #[test]
    fn what_cannot_be_is_damage() {
        let striped = |rest: &str| format!("type = \"striped\" start_extent = 0 {rest}");
        for rest in [
            "extent_count = 4 stripes = [\"pv0\", 7]",
            "extent_count = 4 stripes = []",
            "extent_count = 4 stripes = [\"pv0\"]",
            "extent_count = 3 stripe_size = 8 stripes = [\"pv0\", 0, \"pv0\", 5]",
            "extent_count = 4 stripe_size = 0 stripes = [\"pv0\", 0, \"pv0\", 5]",
            "extent_count = 18446744073709551615 stripes = [\"pv0\", 0]",
            "extent_count = 1 stripes = [\"pv0\", 18446744073709551615]",
        ] {
            assert!(group(&striped(rest)).is_err(), "{rest}");
        }
        let late = "type = \"striped\" start_extent = 1 extent_count = 4 stripes = [\"pv0\", 0]";
        assert!(group(late).is_err(), "it has no beginning");
    }
}

//! Runs of clusters: how NTFS says where bytes are.

use super::Ntfs;
use crate::Error;

/// Runs of one attribute's piece: more do not fit into a record.
const RUNS_MAX: usize = 64 << 10;

/// A run of clusters of an attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// Its first cluster in the attribute.
    pub(super) at: u64,
    pub(super) count: u64,
    /// Its first cluster on the disk; None for a hole.
    pub(super) place: Option<u64>,
}

/// Decodes the runs of an attribute that begin with its cluster `at`.
pub(super) fn decode(mut bytes: &[u8], mut at: u64) -> Result<Vec<Run>, Error> {
    const DAMAGE: Error = Error::Corrupt("the runs of a file");
    let (mut found, mut place) = (Vec::new(), 0i64);
    while let [header, rest @ ..] = bytes {
        if *header == 0 {
            break;
        }
        let (lengths, offsets) = (usize::from(header & 0xf), usize::from(header >> 4));
        if lengths == 0 || lengths > 8 || offsets > 8 {
            return Err(DAMAGE);
        }
        let (count, rest) = rest.split_at_checked(lengths).ok_or(DAMAGE)?;
        let (offset, rest) = rest.split_at_checked(offsets).ok_or(DAMAGE)?;
        let count = u64::try_from(signed(count)).map_err(|_| DAMAGE)?;
        let its = match offsets {
            0 => None,
            _ => {
                place = place.checked_add(signed(offset)).ok_or(DAMAGE)?;
                Some(u64::try_from(place).map_err(|_| DAMAGE)?)
            }
        };
        let end = at.checked_add(count).filter(|end| *end < 1 << 62);
        if count == 0 || end.is_none() || found.len() > RUNS_MAX {
            return Err(DAMAGE);
        }
        found.push(Run {
            at,
            count,
            place: its,
        });
        at = end.ok_or(DAMAGE)?;
        bytes = rest;
    }
    Ok(found)
}

/// A number of some bytes, the last of which has the sign.
fn signed(bytes: &[u8]) -> i64 {
    let is_negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
    let mut whole = if is_negative { [0xff; 8] } else { [0; 8] };
    for (to, from) in whole.iter_mut().zip(bytes) {
        *to = *from;
    }
    i64::from_le_bytes(whole)
}

/// Where the run is that has a cluster of an attribute.
pub(super) fn find(runs: &[Run], cluster: u64) -> Option<&Run> {
    let after = runs.partition_point(|run| run.at <= cluster);
    let run = runs.get(after.checked_sub(1)?)?;
    (cluster - run.at < run.count).then_some(run)
}

/// The byte of the disk that a cluster begins with, if `count` from there on are on the disk.
pub(super) fn place(ntfs: &Ntfs, cluster: u64, count: u64) -> Result<u64, Error> {
    let place = cluster.checked_mul(ntfs.cluster);
    let end = cluster
        .checked_add(count)
        .and_then(|end| end.checked_mul(ntfs.cluster));
    match (place, end) {
        (Some(place), Some(end)) if end <= ntfs.source.size() => Ok(place),
        _ => Err(Error::Corrupt("a file has clusters behind the end")),
    }
}

/// Bytes of an attribute as they are on the disk, with zeros for holes.
pub(super) fn read(
    ntfs: &Ntfs,
    runs: &[Run],
    offset: u64,
    length: usize,
) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![0; length];
    let mut done = 0;
    while done < length {
        let at = offset + done as u64;
        let run = find(runs, at / ntfs.cluster);
        let run = run.ok_or(Error::Corrupt("a file ends before its size"))?;
        let within = at - run.at * ntfs.cluster;
        let rest = run.count.saturating_mul(ntfs.cluster) - within;
        let part = rest.min((length - done) as u64) as usize;
        if let Some(cluster) = run.place {
            let start = place(ntfs, cluster, run.count)? + within;
            bytes[done..done + part].copy_from_slice(&ntfs.source.bytes(start, part)?);
        }
        done += part;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::{Run, decode, find};

    #[test]
    fn runs_go_back_and_have_holes() {
        let bytes = [0x11, 3, 0x10, 0x01, 5, 0x21, 2, 0xf8, 0xff, 0, 9];
        let runs = decode(&bytes, 7).expect("they are right");
        let run = |at, count, place| Run { at, count, place };
        assert_eq!(
            runs,
            [run(7, 3, Some(16)), run(10, 5, None), run(15, 2, Some(8))]
        );
        assert_eq!(find(&runs, 16).map(|run| run.at), Some(15));
        assert_eq!((find(&runs, 6), find(&runs, 17)), (None, None));
        for bad in [
            &[0x19, 1][..],
            &[0x11, 3],
            &[0x11, 0, 1],
            &[0x11, 1, 0x80],
            &[0x10, 1],
        ] {
            assert!(decode(bad, 0).is_err(), "{bad:?}");
        }
    }
}

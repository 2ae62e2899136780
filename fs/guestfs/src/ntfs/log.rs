//! Whether the log was done with when the volume was copied. It is not replayed: Windows does that, and no
//! other. What it holds are changes of names and sizes in the last seconds.

use super::{Ntfs, record::DATA, stream};
use crate::bytes::{le16, le64};
use crate::{Error, Journal};

/// The file of the log.
const LOG: u64 = 2;
/// Its two first pages say the same, of different moments.
const PAGE: usize = 4096;
const CLEAN: u16 = 2;
/// No program has it open.
const NOBODY: u16 = 0xffff;

pub(super) fn state(ntfs: &Ntfs) -> Result<Journal, Error> {
    let file = super::record::file(ntfs, LOG)?;
    let Some(data) = file.get(DATA, b"") else {
        return Err(Error::Corrupt("the log is missing"));
    };
    let pages = stream::head(ntfs, data, 2 * PAGE as u64)?;
    said(&pages)
}

/// What the newer of the two pages says.
fn said(pages: &[u8]) -> Result<Journal, Error> {
    let mut newest = None;
    for page in pages.chunks_exact(PAGE) {
        if !page.starts_with(b"RSTR") {
            continue;
        }
        let at = usize::from(le16(page, 24)?);
        let (moment, client) = (le64(page, at)?, le16(page, at + 12)?);
        let is_clean = client == NOBODY || le16(page, at + 14)? & CLEAN != 0;
        if newest.is_none_or(|(known, _)| moment > known) {
            newest = Some((moment, is_clean));
        }
    }
    // An emptied log has no such page.
    Ok(match newest {
        Some((_, false)) => Journal::Left,
        Some((_, true)) | None => Journal::Clean,
    })
}

#[cfg(test)]
mod tests {
    use super::{PAGE, said};
    use crate::Journal;

    /// A page of a moment: whether a program has the log open, and what it says of being clean.
    fn page(moment: u64, client: u16, flags: u16) -> Vec<u8> {
        let mut page = vec![0; PAGE];
        page[..4].copy_from_slice(b"RSTR");
        page[24] = 0x30;
        page[0x30..0x38].copy_from_slice(&moment.to_le_bytes());
        page[0x3c..0x3e].copy_from_slice(&client.to_le_bytes());
        page[0x3e..0x40].copy_from_slice(&flags.to_le_bytes());
        page
    }

    #[test]
    fn the_newer_page_says_whether_it_was_in_use() {
        let of = |a: Vec<u8>, b: Vec<u8>| said(&[a, b].concat()).expect("long enough");
        let (used, closed, clean) = ((0, 0), (0xffff, 0), (0, 2));
        let page = |moment, (client, flags)| page(moment, client, flags);
        assert_eq!(of(page(1, closed), page(2, used)), Journal::Left);
        assert_eq!(of(page(3, closed), page(2, used)), Journal::Clean);
        assert_eq!(of(page(1, used), page(2, clean)), Journal::Clean);
        let emptied = vec![0xff; PAGE];
        assert_eq!(of(emptied.clone(), page(2, used)), Journal::Left);
        assert_eq!(of(emptied.clone(), emptied), Journal::Clean);
        let mut far = page(1, used);
        (far[24], far[25]) = (0xff, 0xff);
        assert!(said(&far).is_err());
    }
}

//! Numbers of bytes as people write them: plain, or with one of QEMU's suffixes. Pure.

/// "512", "64k", "1M", "2G", "1T".
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.chars().last().map(|last| last.to_ascii_lowercase()) {
        Some('k') => (&text[..text.len() - 1], 10),
        Some('m') => (&text[..text.len() - 1], 20),
        Some('g') => (&text[..text.len() - 1], 30),
        Some('t') => (&text[..text.len() - 1], 40),
        Some(_) | None => (text, 0),
    };
    let number: Option<u64> = digits.parse().ok();
    number
        .and_then(|number| number.checked_mul(1 << shift))
        .ok_or_else(|| "not a number of bytes, like 4096, 64k or 1M".to_owned())
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn plain_and_with_suffixes() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("64k", 64 << 10),
            ("64K", 64 << 10),
            ("3M", 3 << 20),
            ("2G", 2 << 30),
            ("1T", 1 << 40),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for bad in ["", "k", "-1", "1.5M", "1kB", "1 k", "99999999999T", "é"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}

//! Symbolic links of a guest, made to stay inside its tree. Pure.
//! Invariant of `rewrite`: no target that it gives leads above the root of the tree, whatever other
//! links there are, as `..` stands only at its beginning and never more often than the link is deep.

/// How links are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Links {
    /// Leading where they lead in the guest, as seen from the root of its tree.
    #[default]
    Rewrite,
    /// As they are.
    Guest,
    /// Not at all.
    Hide,
}

/// The longest target there is, on any system.
const TARGET_MAX: usize = 4095;

/// What a link at `depth` directories below the root is shown to lead to; None where nothing can be
/// shown that stays inside.
pub fn shown(links: Links, target: &[u8], depth: u8) -> Option<Vec<u8>> {
    match links {
        Links::Guest => Some(target.to_vec()),
        Links::Hide => None,
        Links::Rewrite if stays(target, depth) => Some(target.to_vec()),
        // How deep it is was counted no further.
        Links::Rewrite if depth == u8::MAX => None,
        Links::Rewrite => Some(rewritten(target, depth)).filter(|it| it.len() <= TARGET_MAX),
    }
}

/// Whether it depends on the link's depth what is shown.
pub fn depends_on_depth(links: Links, target: &[u8]) -> bool {
    links == Links::Rewrite && !stays(target, 0)
}

fn parts(target: &[u8]) -> impl Iterator<Item = &[u8]> {
    let parts = target.split(|byte| *byte == b'/');
    parts.filter(|part| !matches!(*part, b"" | b"."))
}

/// Whether a target can be shown as it is: relative, and up only at its beginning and not too often.
fn stays(target: &[u8], depth: u8) -> bool {
    let up = parts(target).take_while(|part| *part == b"..").count();
    let later = parts(target).skip(up).any(|part| part == b"..");
    !target.starts_with(b"/") && !later && up <= usize::from(depth)
}

fn rewritten(target: &[u8], depth: u8) -> Vec<u8> {
    let is_absolute = target.starts_with(b"/");
    let depth = usize::from(depth);
    // Above the root there is only the root.
    let (mut up, mut down) = if is_absolute {
        (depth, Vec::new())
    } else {
        (0, Vec::new())
    };
    for part in parts(target) {
        match part {
            b".." if down.pop().is_none() => up = depth.min(up + 1),
            b".." => {}
            name => down.push(name),
        }
    }
    let mut all = vec![&b".."[..]; up];
    all.extend(down);
    if all.is_empty() {
        all.push(b".");
    }
    all.join(&b'/')
}

#[cfg(test)]
mod tests {
    use super::{Links, depends_on_depth, shown};

    fn rewrite(target: &str, depth: u8) -> String {
        let shown = shown(Links::Rewrite, target.as_bytes(), depth).expect("it can be shown");
        String::from_utf8(shown).expect("text stays text")
    }

    #[test]
    fn absolute_targets_lead_to_the_root_of_the_tree() {
        assert_eq!(rewrite("/etc/passwd", 2), "../../etc/passwd");
        assert_eq!(rewrite("/etc/passwd", 0), "etc/passwd");
        assert_eq!(rewrite("/", 0), ".");
        assert_eq!(rewrite("/", 3), "../../..");
        assert_eq!(rewrite("/a/../../../b//./c/", 1), "../b/c");
    }

    #[test]
    fn relative_targets_stay_as_they_are_or_stay_inside() {
        for (target, depth) in [
            ("a/b", 0),
            ("../a", 1),
            ("../../x", 2),
            ("./a//b", 0),
            (".", 4),
        ] {
            assert_eq!(rewrite(target, depth), target);
        }
        assert_eq!(rewrite("../a", 0), "a");
        assert_eq!(rewrite("../../../../etc/shadow", 2), "../../etc/shadow");
        // what `d` leads to nobody knows
        assert_eq!(rewrite("d/../../../x", 1), "../x");
        assert_eq!(rewrite("..", 0), ".");
    }

    #[test]
    fn too_deep_to_be_counted_is_not_shown() {
        assert_eq!(shown(Links::Rewrite, b"/etc", u8::MAX), None);
        assert_eq!(rewrite("../x", u8::MAX), "../x");
        assert_eq!(shown(Links::Hide, b"x", 1), None);
        assert_eq!(
            shown(Links::Guest, b"/etc", 1).as_deref(),
            Some(&b"/etc"[..])
        );
        assert!(depends_on_depth(Links::Rewrite, b"/x"));
        assert!(!depends_on_depth(Links::Rewrite, b"x/y"));
        assert!(!depends_on_depth(Links::Guest, b"/x"));
    }
}

//! Who holds what: locks, shared layers, pins.

use super::{Images, held, marks, open};
use crate::errno::Errno;
use crate::model::Format;
use crate::sys;
use crate::view::{LayerCache, LayerSpec, OpenLayer, View, written_by_someone};
use std::fs::File;
use std::sync::Arc;

/// The files of a view.
fn layers(view: &View) -> &[Arc<OpenLayer>] {
    view.opened().expect("a view of files").layers()
}

#[test]
fn byte_100_is_held_on_every_layer_and_no_other_ever_201() {
    let (_images, chain) = Images::chain();
    let cache = LayerCache::default();
    let view = open(&cache, &chain);
    for spec in &chain {
        assert_eq!(held(&spec.path), [100], "{}", spec.path.display());
    }
    // The kernel's own list: our locks, byte by byte.
    let inode = format!(":{} ", chain[2].file.unwrap().ino);
    let locks = std::fs::read_to_string("/proc/locks").unwrap();
    let ours: Vec<_> = locks
        .lines()
        .filter(|line| format!("{line} ").contains(&inode))
        .collect();
    assert!(ours.iter().all(|line| line.contains("OFDLCK")
        && line.contains(" READ ")
        && line.ends_with(" 100 100")));
    assert_eq!(ours.len(), 1, "{ours:?}");
    drop(view);
    for spec in &chain {
        assert_eq!(held(&spec.path), [0u32; 0]);
    }
}

#[test]
fn a_layer_that_is_being_committed_is_left_alone() {
    let (_images, chain) = Images::chain();
    let qemu = File::open(&chain[1].path).unwrap();
    sys::lock_byte_shared(&qemu, 200).unwrap();
    let refused = LayerCache::default().open(&chain, None).err().unwrap();
    assert_eq!(refused.errno, Errno::EBUSY);
    for spec in &chain {
        assert!(!held(&spec.path).contains(&100), "backed off whole");
    }
    sys::unlock_byte(&qemu, 200).unwrap();
    LayerCache::default().open(&chain, None).unwrap();

    assert!(!written_by_someone(&chain[1].path).unwrap());
    sys::lock_byte_shared(&qemu, 101).unwrap();
    assert!(written_by_someone(&chain[1].path).unwrap());
}

#[test]
fn views_share_their_layers() {
    let (_images, chain) = Images::chain();
    let cache = LayerCache::default();
    let (top, middle) = (open(&cache, &chain), open(&cache, &chain[..2]));
    assert!(Arc::ptr_eq(&layers(&top)[0], &layers(&middle)[0]));
    assert_eq!(marks(&top), [1, 2, 3, 0]);
    assert_eq!(marks(&middle), [1, 2, 0, 0]);
    let first = Arc::downgrade(&layers(&top)[2]);
    drop(top);
    assert!(
        first.upgrade().is_none(),
        "a cache keeps nothing open by itself"
    );
    assert_eq!(marks(&open(&cache, &chain)), [1, 2, 3, 0]);
}

#[test]
fn a_file_that_somebody_rewrote_is_read_anew() {
    let (images, chain) = Images::chain();
    let cache = LayerCache::default();
    let old = open(&cache, &chain);
    assert_eq!(marks(&old), [1, 2, 3, 0]);
    images.fill("top", 3, 4);
    let new = open(&cache, &chain);
    assert_eq!(marks(&new), [1, 2, 3, 4]);
    assert!(
        Arc::ptr_eq(&layers(&new)[0], &layers(&old)[0]),
        "the others are shared"
    );
}

#[test]
fn pinned_layers_stay_as_they_were() {
    let (images, chain) = Images::chain();
    let cache = LayerCache::default();
    let pin = cache.pin(&chain, None).unwrap();
    let before = open(&cache, &chain);
    assert_eq!(marks(&before), [1, 2, 3, 0]);

    // Our own commit of top into middle needs top's lock, and rewrites both files.
    cache.unlock(chain[2].file.unwrap());
    assert_eq!(held(&chain[2].path), [0u32; 0]);
    assert_eq!(held(&chain[1].path), [100]);
    images.fill("top", 3, 4);
    let busy = File::open(&chain[2].path).unwrap();
    sys::lock_byte_shared(&busy, 200).unwrap();
    let second = cache.pin(&chain[2..], None).unwrap();
    let during = open(&cache, &chain);
    assert!(Arc::ptr_eq(&layers(&during)[2], &layers(&before)[2]));
    assert_eq!(
        held(&chain[2].path),
        [200],
        "opened while pinned means not locked again"
    );
    let nameless = LayerSpec {
        file: None,
        ..chain[2].clone()
    };
    let by_name = open(&cache, &[chain[0].clone(), chain[1].clone(), nameless]);
    assert!(Arc::ptr_eq(&layers(&by_name)[2], &layers(&before)[2]));

    drop(pin);
    assert_eq!(
        cache.open(&chain, None).unwrap().layers().len(),
        3,
        "the second pin still holds it"
    );
    drop(second);
    assert_eq!(cache.open(&chain, None).err().unwrap().errno, Errno::EBUSY);
    sys::unlock_byte(&busy, 200).unwrap();
    let after = open(&cache, &chain);
    assert_eq!(marks(&after), [1, 2, 3, 4]);
    assert_eq!(marks(&before)[..3], [1, 2, 3]);
    assert!(!Arc::ptr_eq(&layers(&after)[2], &layers(&before)[2]));
    drop(after);
    let again = open(&cache, &chain);
    assert!(
        !Arc::ptr_eq(&layers(&again)[2], &layers(&before)[2]),
        "never the old map again"
    );
}

#[test]
fn a_pin_that_fails_keeps_nothing() {
    let (images, mut chain) = Images::chain();
    std::fs::remove_file(images.path("top")).unwrap();
    let cache = LayerCache::default();
    assert_eq!(cache.pin(&chain, None).err().unwrap().errno, Errno::ENOENT);
    assert_eq!(held(&chain[0].path), [0u32; 0]);
    chain[2].format = Format::Other("luks".into());
    let _pin = cache.pin(&chain, None).unwrap();
    assert_eq!(
        held(&chain[1].path),
        [100],
        "what cannot be read needs no keeping"
    );
}

#[test]
fn another_file_under_the_name_is_stale() {
    let (images, chain) = Images::chain();
    let cache = LayerCache::default();
    std::fs::copy(images.path("top"), images.path("copy")).unwrap();
    std::fs::rename(images.path("copy"), images.path("top")).unwrap();
    assert_eq!(cache.open(&chain, None).err().unwrap().errno, Errno::ESTALE);

    let strange = |path: &str, format| LayerSpec {
        path: path.into(),
        file: None,
        format,
    };
    for (spec, errno) in [
        (strange("/dev/null", Format::Raw), Errno::EOPNOTSUPP),
        (strange("/", Format::Raw), Errno::EOPNOTSUPP),
        (strange("/no/such", Format::Raw), Errno::ENOENT),
        (strange("/etc/passwd", Format::Qcow2), Errno::EUCLEAN),
        (
            strange("/etc/passwd", Format::Other("vmdk".into())),
            Errno::EOPNOTSUPP,
        ),
    ] {
        assert_eq!(cache.open(&[spec], None).err().unwrap().errno, errno);
    }
}

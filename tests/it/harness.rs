//! The harness itself: what it would miss, no test would find.

use qmpfs_tests::machine::{Attachment, Disk, Machine};
use qmpfs_tests::model::{BLOCK, Model, STEP};
use qmpfs_tests::scratch::Scratch;
use qmpfs_tests::writer::Writer;
use qmpfs_tests::{oracle, sh, wait};

const SIZE: u64 = 4 << 20;

fn disk(scratch: &Scratch) -> Disk {
    let image = scratch.file("web1.qcow2");
    oracle::create(&image, SIZE);
    Disk::qcow2("vda", &image)
}

over_attachments! {
    /// A writer's model is what qemu-img finds, also after a restart with the same command line.
    a_machine_keeps_what_is_written => |name, attachment| {
        let scratch = Scratch::new(name);
        let disk = disk(&scratch);
        let mut machine = Machine::start(&scratch, "vm", attachment, std::slice::from_ref(&disk));
        let mut model = Model::default();
        let all = scratch.file("all.raw");
        for round in 0..2 {
            let writer = Writer::start(&machine.endpoint("vda"), 0..SIZE, model, round);
            writer.progress(100);
            model = writer.stop();
            machine.quit();
            oracle::check(&disk.image);
            oracle::convert(&disk.image, &all);
            model.assert_holds(&all, 0..SIZE);
            machine.start_again();
        }
    }
}

#[test]
fn the_writer_notices_one_wrong_byte() {
    let scratch = Scratch::new("harness-writer");
    let disk = disk(&scratch);
    let machine = Machine::start(&scratch, "vm", Attachment::StorageDaemon, &[disk]);
    let writer = Writer::start(&machine.endpoint("vda"), 0..STEP * 8, Model::default(), 5);
    writer.progress(50);
    let mut other = machine.nbd("vda");
    wait::until_true("the writer has read the byte", || {
        other
            .write(STEP * 3 + 77, &[0x5a])
            .expect("a write beside it");
        writer.lost().is_some()
    });
    let lost = writer.lost().expect("a lost byte");
    assert!(lost.contains(&format!("byte {}", STEP * 3 + 77)), "{lost}");
}

#[test]
fn the_oracle_finds_one_wrong_byte() {
    let scratch = Scratch::new("harness-oracle");
    let (a, b) = (scratch.file("a"), scratch.file("b"));
    sh!(
        "head -c 3000000 /dev/urandom >{0}; cp {0} {1}",
        a.display(),
        b.display()
    );
    oracle::assert_same(&a, &b);
    sh!(
        "printf x | dd of={} bs=1 seek=2999999 conv=notrunc status=none; truncate -s 3000000 {0}",
        a.display()
    );
    let byte = std::fs::read(&b).expect("b")[2_999_999];
    let found = oracle::compare(&a, &b);
    assert_eq!(found.is_err(), byte != b'x', "{found:?}");
    sh!("truncate -s 3000001 {}", a.display());
    assert!(
        oracle::compare(&a, &b).is_err(),
        "another size is a difference"
    );
}

#[test]
fn an_instant_beside_a_writer_is_neither_too_old_nor_too_new() {
    let scratch = Scratch::new("harness-between");
    let image = scratch.file("image.raw");
    let mut block = vec![0; BLOCK];
    qmpfs_tests::model::fill(&mut block, 0, 5);
    std::fs::write(&image, &block).expect("an image");
    let at = |number| Model([(0, number)].into());
    at(4).assert_between(&at(6), &image, 0..STEP);
    for (before, after) in [(6, 9), (1, 4)] {
        let outcome =
            std::panic::catch_unwind(|| at(before).assert_between(&at(after), &image, 0..STEP));
        assert!(outcome.is_err(), "write 5 is not in {before}..={after}");
    }
}

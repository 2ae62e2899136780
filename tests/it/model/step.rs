//! What a sequence is made of: the guest's writes, the verbs, and what goes wrong meanwhile.

use std::ops::RangeInclusive;

use proptest::prelude::*;

/// The disk is small, so that all of it is compared after every step.
pub(super) const DISK: u64 = 2 << 20;
/// Few names, so that they meet.
const NAMES: RangeInclusive<u8> = 0..=4;
/// More steps than a verb has (a file operation or a QMP command each).
const VERB_STEPS: u8 = 36;

/// How a disk is made, and mounted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Setting {
    pub(super) cluster: u32,
    pub(super) policy: Policy,
}

/// `-o merge=`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Policy {
    Auto,
    Stream,
    Commit,
}

/// Something that a user asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Seal(u8),
    Remove(u8),
    TakeInternal(u8),
    DeleteInternal(u8),
}

/// What the guest does with its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Guest {
    Write(u8),
    ZeroesAsHole,
    ZeroesAsData,
    Trim,
}

/// How a verb is cut short, at one of its steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    KillBefore,
    KillAfter,
    /// The connection to QEMU ends.
    Cut,
    /// An operation on a file, or a command, fails.
    Fail,
}

/// One step of a sequence.
#[derive(Debug, Clone)]
pub(super) enum Step {
    Guest { what: Guest, at: u32, length: u32 },
    Do(Verb),
    Interrupted { verb: Verb, at: u8, fault: Fault },
    Forbidden(u8),
    KillQmpfs,
    CutMonitor,
    RestartDaemon,
    KillDaemon,
    Unmount,
}

pub(super) fn setting() -> impl Strategy<Value = Setting> {
    let clusters = prop_oneof![3 => Just(65536), 1 => Just(4096)];
    let policies = prop_oneof![
        3 => Just(Policy::Auto),
        1 => Just(Policy::Stream),
        2 => Just(Policy::Commit),
    ];
    (clusters, policies).prop_map(|(cluster, policy)| Setting { cluster, policy })
}

pub(super) fn steps(count: RangeInclusive<usize>) -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step(), count)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => guest(),
        12 => verb().prop_map(Step::Do),
        6 => (verb(), 0..VERB_STEPS, fault())
            .prop_map(|(verb, at, fault)| Step::Interrupted { verb, at, fault }),
        1 => (0u8..8).prop_map(Step::Forbidden),
        1 => Just(Step::KillQmpfs),
        1 => Just(Step::CutMonitor),
        1 => Just(Step::RestartDaemon),
        1 => Just(Step::KillDaemon),
        1 => Just(Step::Unmount),
    ]
}

fn verb() -> impl Strategy<Value = Verb> {
    prop_oneof![
        5 => NAMES.prop_map(Verb::Seal),
        5 => NAMES.prop_map(Verb::Remove),
        1 => NAMES.prop_map(Verb::TakeInternal),
        2 => NAMES.prop_map(Verb::DeleteInternal),
    ]
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        Just(Fault::KillBefore),
        Just(Fault::KillAfter),
        Just(Fault::Cut),
        Just(Fault::Fail),
    ]
}

fn guest() -> impl Strategy<Value = Step> {
    let what = prop_oneof![
        6 => (1u8..).prop_map(Guest::Write),
        1 => Just(Guest::ZeroesAsHole),
        1 => Just(Guest::ZeroesAsData),
        1 => Just(Guest::Trim),
    ];
    let disk = u32::try_from(DISK).expect("small");
    // many short ones across cluster borders, some long ones; NBD wants no more than whole sectors of 512
    let length = prop_oneof![2 => 1..32u32, 2 => 32..512u32, 1 => 512..2048u32];
    (what, 0..disk / 512, length).prop_map(move |(what, at, length)| {
        let at = at * 512;
        let length = (length * 512).min(disk - at);
        Step::Guest { what, at, length }
    })
}

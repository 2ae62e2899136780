//! Which faults there are, and at which steps: rounds of one verb, by how much of it was asked for. What a round does, and
//! what it then looks at, whoever drives it knows.

use qmpfs_tests::model::Dice;
use qmpfs_tests::sample::Share;
use qmpfs_tests::steps::{COMMANDS, Deed, FILES};

/// Far more steps than any verb has.
const TOO_MANY: usize = 200;

/// How many rounds of an everyday run, of each verb on each attachment: a second or two each.
const EVERYDAY: usize = 2;

/// Steps of all kinds.
pub(super) const ANY: u32 = FILES | COMMANDS;

/// A fault: what, to whom, at steps of which kinds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fault {
    pub(super) deed: Deed,
    pub(super) kinds: u32,
    pub(super) whom: Whom,
}

/// Of several steps with the same words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    /// Counted from 0.
    Nth(usize),
    Last,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whom {
    Nobody,
    Qmpfs,
    /// Both, as when the host dies.
    Host,
    /// QEMU alone.
    Qemu,
}

impl Fault {
    /// Whether what became of a command is not known to the caller.
    pub(super) fn is_unheard(self) -> bool {
        match self.deed {
            Deed::CutBefore | Deed::CutAfter | Deed::Silence | Deed::Mute => true,
            Deed::Pass | Deed::KillBefore | Deed::KillAfter | Deed::Fail(_) | Deed::FailFrom(_) => {
                false
            }
        }
    }

    /// The errnos that tell of a file operation that failed. A link that is not permitted means a filesystem without hard
    /// links.
    pub(super) fn told(self) -> Option<[i32; 2]> {
        let (Deed::Fail(errno @ 1..) | Deed::FailFrom(errno @ 1..)) = self.deed else {
            return None;
        };
        let errno = errno.cast_signed();
        let unlinkable = if errno == libc::EPERM {
            libc::EOPNOTSUPP
        } else {
            errno
        };
        Some([errno, unlinkable])
    }
}

fn faults(patient: bool) -> Vec<Fault> {
    let fault = |deed, kinds, whom| Fault { deed, kinds, whom };
    let mut all = Vec::new();
    for deed in [Deed::KillBefore, Deed::KillAfter] {
        all.push(fault(deed, ANY, Whom::Qmpfs));
        all.push(fault(deed, ANY, Whom::Host));
        all.push(fault(deed, ANY, Whom::Qemu));
    }
    for errno in [libc::EIO, libc::ENOSPC, libc::EPERM, libc::EROFS] {
        let errno = errno.unsigned_abs();
        all.push(fault(Deed::Fail(errno), FILES, Whom::Nobody));
        if patient {
            all.push(fault(Deed::FailFrom(errno), FILES, Whom::Nobody));
        }
    }
    all.push(fault(Deed::Fail(0), COMMANDS, Whom::Nobody));
    all.push(fault(Deed::CutBefore, COMMANDS, Whom::Nobody));
    all.push(fault(Deed::CutAfter, COMMANDS, Whom::Nobody));
    if patient {
        // these wait for deadlines
        all.push(fault(Deed::Silence, COMMANDS, Whom::Nobody));
        all.push(fault(Deed::Mute, COMMANDS, Whom::Nobody));
    }
    all
}

/// Who can run a verb with a fault at one of its steps.
pub(super) trait Rounds {
    /// One run of the verb with one fault. Gives whether it came to it, and the steps.
    fn round(&mut self, fault: Fault, number: usize) -> (bool, Vec<String>);

    fn dice(&mut self) -> &mut Dice;

    /// All rounds that were asked for.
    fn every_round(&mut self) {
        let seen = self.undisturbed();
        let mut survived = 0;
        match Share::asked_for() {
            Share::Full => {
                for fault in faults(true) {
                    survived += self.everywhere(fault);
                }
            }
            Share::Kills => {
                for fault in faults(true).into_iter().filter(|f| f.whom == Whom::Qmpfs) {
                    survived += self.everywhere(fault);
                }
            }
            Share::Everyday => survived += self.some(EVERYDAY, &faults(false), &seen),
            Share::Rounds(rounds) => survived += self.some(rounds, &faults(true), &seen),
        }
        println!("survived {survived} faults");
    }

    /// One fault at a step whose words begin like this.
    fn at(&mut self, whom: Whom, deed: Deed, which: Which, words: &str) {
        let seen = self.undisturbed();
        // files and commands side by side come in another order the next time
        let kinds = kind(words);
        let of_kind = seen.iter().filter(|step| kind(step) == kinds);
        let mut with_words = of_kind
            .enumerate()
            .filter(|(_, step)| step.starts_with(words))
            .map(|(number, _)| number);
        let number = match which {
            Which::Nth(nth) => with_words.nth(nth),
            Which::Last => with_words.last(),
        };
        let number = number.unwrap_or_else(|| panic!("no step {words} in {seen:?}"));
        let (fired, _) = self.round(Fault { deed, kinds, whom }, number);
        assert!(fired, "it did not come to {words}");
    }

    /// Gives the verb's steps.
    fn undisturbed(&mut self) -> Vec<String> {
        let nothing = Fault {
            deed: Deed::Pass,
            kinds: ANY,
            whom: Whom::Nobody,
        };
        let (_, seen) = self.round(nothing, TOO_MANY);
        assert!(!seen.is_empty(), "no step was seen");
        seen
    }

    /// So many of these faults, at one of the steps each.
    fn some(&mut self, rounds: usize, faults: &[Fault], seen: &[String]) -> usize {
        let mut survived = 0;
        for _ in 0..rounds {
            let fault = faults[self.below(faults.len())];
            let of_kind = seen.iter().filter(|step| fault.kinds & kind(step) != 0);
            let number = match of_kind.count() {
                0 => continue,
                count => self.below(count),
            };
            survived += usize::from(self.round(fault, number).0);
        }
        survived
    }

    /// At one step later each time, until the verb ends undisturbed.
    fn everywhere(&mut self, fault: Fault) -> usize {
        for number in 0..TOO_MANY {
            if !self.round(fault, number).0 {
                return number;
            }
        }
        panic!("it never ends");
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.dice().below(end as u64)).expect("small")
    }
}

/// A step on a file has a name behind its verb.
fn kind(step: &str) -> u32 {
    if step.contains(' ') { FILES } else { COMMANDS }
}

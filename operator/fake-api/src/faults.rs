//! Faults on demand.
//!
//! Owns which call fails, and how. A fault counts the calls that it could concern; the same calls
//! in the same order meet the same faults, because chance comes from a seed.

use std::time::Duration;

/// What a call does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the names are those of Kubernetes")]
pub enum Verb {
    Get,
    List,
    Watch,
    Create,
    Update,
    /// Patches other than applies.
    Patch,
    /// Server-side applies.
    Apply,
    Delete,
    DeleteCollection,
    /// Discovery and everything else.
    Other,
}

impl Verb {
    /// Whether it may change something.
    pub fn is_write(self) -> bool {
        !matches!(self, Self::Get | Self::List | Self::Watch | Self::Other)
    }
}

/// Which calls a fault concerns; what is empty or `None` concerns all.
#[derive(Debug, Clone, Default)]
pub struct On {
    /// Any of these verbs.
    pub verbs: Vec<Verb>,
    /// Only writes.
    pub writes_only: bool,
    /// A kind such as `Pod`.
    pub kind: Option<&'static str>,
    /// A part of the object's name.
    pub name: Option<String>,
}

impl On {
    /// Every write.
    pub fn writes() -> Self {
        Self {
            writes_only: true,
            ..Self::default()
        }
    }

    /// These verbs of a kind.
    pub fn kind(kind: &'static str, verbs: &[Verb]) -> Self {
        Self {
            kind: Some(kind),
            verbs: verbs.to_vec(),
            ..Self::default()
        }
    }

    /// These verbs of all kinds.
    pub fn verbs(verbs: &[Verb]) -> Self {
        Self {
            verbs: verbs.to_vec(),
            ..Self::default()
        }
    }
}

/// When a fault strikes among the calls that it concerns.
#[derive(Debug, Clone, Copy)]
pub enum When {
    /// At each.
    Always,
    /// At this one, counted from 1.
    Nth(u64),
    /// At each so manieth.
    Every(u64),
    /// By chance, out of a thousand.
    PerMille(u16),
}

/// What happens.
#[derive(Debug, Clone)]
pub enum What {
    /// This status code, with `Retry-After` if there are seconds to wait.
    Status {
        /// The code.
        code: u16,
        /// What the header says.
        retry_after_seconds: Option<u32>,
    },
    /// The connection ends before the call is looked at.
    Drop,
    /// The call takes effect, then the connection ends without an answer.
    LoseAnswer,
    /// The answer is late.
    Delay(Duration),
    /// A watch ends without a word after so many events.
    CutWatch(u64),
    /// A watch says after so many events that its version is too old.
    ExpireWatch(u64),
    /// A watch tells every event twice.
    RepeatEvents,
    /// A watch loses so many events and then says that its version is too old.
    LoseEvents(u64),
    /// A watch tells every event this late.
    LateEvents(Duration),
}

/// A fault.
#[derive(Debug, Clone)]
pub struct Fault {
    /// Where.
    pub on: On,
    /// When.
    pub when: When,
    /// How often at most.
    pub times_max: u64,
    /// What.
    pub what: What,
}

impl Fault {
    /// A fault without a limit to how often.
    pub fn new(on: On, when: When, what: What) -> Self {
        Self {
            on,
            when,
            times_max: u64::MAX,
            what,
        }
    }

    /// A status code at the n-th call.
    pub fn nth(on: On, n: u64, what: What) -> Self {
        Self::new(on, When::Nth(n), what)
    }
}

/// The call at which faults look.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call<'a> {
    pub(crate) verb: Verb,
    pub(crate) kind: &'a str,
    pub(crate) name: &'a str,
}

#[derive(Debug)]
struct Rule {
    fault: Fault,
    seen: u64,
    struck: u64,
}

/// The faults that are set.
#[derive(Debug)]
pub(crate) struct Faults {
    rules: Vec<Rule>,
    chance: u64,
}

impl Faults {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            rules: Vec::new(),
            chance: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1,
        }
    }

    pub(crate) fn set(&mut self, faults: Vec<Fault>) {
        let rule = |fault| Rule {
            fault,
            seen: 0,
            struck: 0,
        };
        self.rules = faults.into_iter().map(rule).collect();
    }

    /// How often faults struck since they were set.
    pub(crate) fn struck(&self) -> u64 {
        self.rules.iter().map(|rule| rule.struck).sum()
    }

    /// What happens to a call: the first fault that strikes.
    pub(crate) fn strike(&mut self, call: Call<'_>) -> Option<What> {
        let mut happens = None;
        for rule in &mut self.rules {
            if !concerns(&rule.fault.on, call) {
                continue;
            }
            rule.seen += 1;
            let strikes = match rule.fault.when {
                When::Always => true,
                When::Nth(n) => rule.seen == n,
                When::Every(n) => n > 0 && rule.seen.is_multiple_of(n),
                When::PerMille(n) => next(&mut self.chance) % 1000 < u64::from(n),
            };
            if strikes && happens.is_none() && rule.struck < rule.fault.times_max {
                rule.struck += 1;
                happens = Some(rule.fault.what.clone());
            }
        }
        happens
    }
}

fn concerns(on: &On, call: Call<'_>) -> bool {
    (on.verbs.is_empty() || on.verbs.contains(&call.verb))
        && (!on.writes_only || call.verb.is_write())
        && on.kind.is_none_or(|kind| kind == call.kind)
        && on
            .name
            .as_ref()
            .is_none_or(|part| call.name.contains(part.as_str()))
}

/// Marsaglia's xorshift.
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(verb: Verb, kind: &'static str) -> Call<'static> {
        Call {
            verb,
            kind,
            name: "a",
        }
    }

    #[test]
    fn the_nth_call_of_a_kind_is_struck_once() {
        let mut faults = Faults::new(1);
        let on = On::kind("Pod", &[Verb::Apply]);
        faults.set(vec![Fault::nth(on, 2, What::Drop)]);
        assert!(faults.strike(call(Verb::Apply, "Pod")).is_none());
        assert!(faults.strike(call(Verb::Apply, "Secret")).is_none());
        assert!(faults.strike(call(Verb::Get, "Pod")).is_none());
        assert!(faults.strike(call(Verb::Apply, "Pod")).is_some());
        assert!(faults.strike(call(Verb::Apply, "Pod")).is_none());
        assert_eq!(faults.struck(), 1);
    }

    #[test]
    fn chance_comes_from_the_seed_and_has_a_limit() {
        let strikes = |seed| {
            let mut faults = Faults::new(seed);
            let mut fault = Fault::new(On::writes(), When::PerMille(300), What::Drop);
            fault.times_max = 20;
            faults.set(vec![fault]);
            let calls = (0..200).map(|_| faults.strike(call(Verb::Delete, "Pod")).is_some());
            calls.collect::<Vec<_>>()
        };
        assert_eq!(strikes(7), strikes(7));
        assert_ne!(strikes(7), strikes(8));
        assert_eq!(strikes(7).iter().filter(|it| **it).count(), 20);
    }
}

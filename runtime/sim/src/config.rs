//! What one run is made of: a seed, and bounds that shrinking lowers.
//!
//! Invariant: a config as text reads back as the same config.

use std::fmt;
use std::str::FromStr;

use crate::random::{Random, Stream};

/// A run, completely: the same config is the same run.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "independent switches of a run"
)]
pub struct Config {
    /// Decides everything that the rest leaves open.
    pub seed: u64,
    /// Graphs.
    pub graphs: u32,
    /// Tasks of one graph at most.
    pub tasks: u32,
    /// Workers at the beginning.
    pub workers: u32,
    /// Faults; the first ones of the seed's list.
    pub faults: u32,
    /// Positions in the list of faults that are left out.
    pub without: Vec<u32>,
    /// Whether tasks fail.
    pub has_failures: bool,
    /// Whether the workers' memory is scarce.
    pub is_tight: bool,
    /// Whether clients cancel, close and release before the end.
    pub is_fickle: bool,
    /// Whether the graphs are open-ended: clients want results, give them back and want them again.
    pub is_open_ended: bool,
    /// Whether workers are told which peers are gone.
    pub tells_gone: bool,
    /// A task that was running on more workers that died than this fails.
    pub crash_limit: u32,
    /// How long graphs wait for a client that went away.
    pub grace_millis: u32,
    /// How long a worker that nobody hears of may come back.
    pub suspect_millis: u32,
    /// After how long what runs there runs elsewhere too.
    pub rerun_millis: u32,
    /// Longest ordinary way of a message.
    pub delay_micros: u32,
}

/// A text that is no config.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{word}` is no part of a config")]
pub struct NoConfig {
    /// The word that was not understood.
    pub word: String,
}

impl Config {
    /// The run of a seed.
    pub fn of_seed(seed: u64) -> Self {
        let mut random = Random::new(seed, Stream::Config);
        let is_calm = random.chance(120);
        Self {
            seed,
            graphs: random.small(4) + 1,
            tasks: random.small(60) + 1,
            workers: random.small(6) + 1,
            faults: if is_calm { 0 } else { random.small(24) + 1 },
            without: Vec::new(),
            has_failures: random.chance(500),
            is_tight: random.chance(200),
            is_fickle: random.chance(400),
            tells_gone: random.chance(500),
            crash_limit: if random.chance(300) {
                random.small(4)
            } else {
                255
            },
            grace_millis: if random.chance(300) { 500 } else { 60_000 },
            delay_micros: [200, 2_000, 2_000, 10_000, 60_000][random.index(5)],
            suspect_millis: if random.chance(300) { 1_000 } else { 10_000 },
            rerun_millis: if random.chance(300) { 200 } else { 2_000 },
            is_open_ended: random.chance(300),
        }
    }

    /// Whether nothing goes wrong, so that nothing may be done twice.
    pub(crate) fn is_calm(&self) -> bool {
        self.faults == 0 && !self.is_tight
    }

    fn set(&mut self, name: &str, value: &str) -> Option<()> {
        let is_on = value == "1";
        match name {
            "seed" => self.seed = value.parse().ok()?,
            "graphs" => self.graphs = value.parse().ok()?,
            "tasks" => self.tasks = value.parse().ok()?,
            "workers" => self.workers = value.parse().ok()?,
            "faults" => self.faults = value.parse().ok()?,
            "without" => {
                let numbers = value.split('+').filter(|word| !word.is_empty());
                self.without = numbers.map(str::parse).collect::<Result<_, _>>().ok()?;
            }
            "failures" => self.has_failures = is_on,
            "tight" => self.is_tight = is_on,
            "fickle" => self.is_fickle = is_on,
            "open" => self.is_open_ended = is_on,
            "tells_gone" => self.tells_gone = is_on,
            "crash_limit" => self.crash_limit = value.parse().ok()?,
            "grace" => self.grace_millis = value.parse().ok()?,
            "suspect" => self.suspect_millis = value.parse().ok()?,
            "rerun" => self.rerun_millis = value.parse().ok()?,
            "delay" => self.delay_micros = value.parse().ok()?,
            _ => return None,
        }
        Some(())
    }
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let without: Vec<String> = self.without.iter().map(ToString::to_string).collect();
        write!(
            f,
            "seed={} graphs={} tasks={} workers={} faults={} without={} failures={} tight={} \
             fickle={} tells_gone={} crash_limit={} grace={} suspect={} rerun={} delay={} \
             open={}",
            self.seed,
            self.graphs,
            self.tasks,
            self.workers,
            self.faults,
            without.join("+"),
            u8::from(self.has_failures),
            u8::from(self.is_tight),
            u8::from(self.is_fickle),
            u8::from(self.tells_gone),
            self.crash_limit,
            self.grace_millis,
            self.suspect_millis,
            self.rerun_millis,
            self.delay_micros,
            u8::from(self.is_open_ended),
        )
    }
}

impl FromStr for Config {
    type Err = NoConfig;

    fn from_str(text: &str) -> Result<Self, NoConfig> {
        let mut config = Self {
            is_open_ended: false,
            ..Self::of_seed(0)
        };
        for word in text.split_whitespace() {
            word.split_once('=')
                .and_then(|(name, value)| config.set(name, value))
                .ok_or_else(|| NoConfig {
                    word: word.to_owned(),
                })?;
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_reads_back() {
        for seed in 0..100 {
            let mut config = Config::of_seed(seed);
            config.without = vec![1, u32::try_from(seed).unwrap()];
            assert_eq!(config.to_string().parse(), Ok(config));
        }
        assert!("seed=x".parse::<Config>().is_err());
        assert!("sead=1".parse::<Config>().is_err());
    }
}

//! From a run that fails to a small run that fails.

use crate::config::Config;
use crate::world::{Failure, run};

/// Runs that shrinking may take.
const TRIES_MAX: u32 = 2_000;

/// The smallest run near a failed one that still fails.
pub fn shrink(failure: Failure) -> Failure {
    let mut best = failure;
    let mut tries = 0;
    while let Some(smaller) = smaller(&best.config)
        .into_iter()
        .take_while(|_| {
            tries += 1;
            tries < TRIES_MAX
        })
        .find_map(|config| run(&config).err())
    {
        best = smaller;
    }
    best
}

/// Configs with a little less of something, the boldest first.
fn smaller(config: &Config) -> Vec<Config> {
    let mut all = Vec::new();
    let mut with = |change: &dyn Fn(&mut Config)| {
        let mut smaller = config.clone();
        change(&mut smaller);
        if smaller != *config {
            all.push(smaller);
        }
    };
    let fewer = |number: u32, least: u32| {
        [least, number / 2, number.saturating_sub(1)]
            .map(|fewer| fewer.clamp(least, number.max(least)))
    };
    for faults in fewer(config.faults, 0) {
        with(&|config| config.faults = faults);
    }
    for tasks in fewer(config.tasks, 1) {
        with(&|config| config.tasks = tasks);
    }
    for graphs in fewer(config.graphs, 1) {
        with(&|config| config.graphs = graphs);
    }
    for workers in fewer(config.workers, 1) {
        with(&|config| config.workers = workers);
    }
    with(&|config| config.is_fickle = false);
    with(&|config| config.is_tight = false);
    with(&|config| config.is_open_ended = false);
    with(&|config| config.has_failures = false);
    with(&|config| config.tells_gone = true);
    with(&|config| config.crash_limit = 255);
    for fault in (0..config.faults).filter(|fault| !config.without.contains(fault)) {
        with(&|config| config.without.push(fault));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_makes_a_config_smaller() {
        let size = |config: &Config| {
            let counts = config.graphs + config.tasks + config.workers + config.faults;
            let switches = [
                config.is_fickle,
                config.is_tight,
                config.is_open_ended,
                config.has_failures,
            ];
            u64::from(counts) * 100 + switches.iter().filter(|on| **on).count() as u64
                - config.without.len() as u64
        };
        for seed in 0..50 {
            let config = Config {
                tells_gone: true,
                crash_limit: 255,
                ..Config::of_seed(seed)
            };
            assert!(
                smaller(&config)
                    .iter()
                    .all(|other| size(other) < size(&config))
            );
        }
    }
}

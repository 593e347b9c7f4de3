//! Clients whose graphs are open-ended: they want results, give them back and want them again, while
//! tasks keep coming.
//!
//! Invariant: what a client wants follows from how many chunks the scheduler has, so that it can go on
//! after any of them.

use std::collections::BTreeSet;

use oxidask_core::{GraphChunk, GraphId, TaskIndex};

use crate::graphs::{Plan, Task};
use crate::network::{Link, Up};
use crate::random::Random;
use crate::world::World;

/// Chunks without tasks at the end of a graph.
const LATE_WISHES_MAX: u32 = 8;
/// Longest pause between two chunks.
pub(crate) const WISH_PAUSE_MAX: u64 = 600_000;

/// What a client does with one chunk.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wish {
    /// Tasks that the chunk brings.
    pub(crate) tasks: usize,
    /// Given back before the chunk is sent.
    pub(crate) releases: Vec<u32>,
    /// Wanted by the chunk.
    pub(crate) wants: Vec<u32>,
}

/// What the client of a graph does until it rests.
pub(crate) fn wishes(tasks: &[Task], chunk_tasks: usize, random: &mut Random) -> Vec<Wish> {
    let mut all = Vec::new();
    let mut wanted = BTreeSet::new();
    let mut sent = 0;
    while sent < tasks.len() {
        let is_new = sent == 0 || random.chance(600);
        let count = if is_new {
            chunk_tasks.clamp(1, tasks.len() - sent)
        } else {
            0
        };
        let new = sent..sent + count;
        sent += count;
        let mut wish = wish(sent, &mut wanted, random);
        wish.tasks = count;
        for task in new.filter(|task| tasks[*task].is_wanted) {
            let task = u32::try_from(task).unwrap_or(0);
            if wanted.insert(task) {
                wish.wants.push(task);
            }
        }
        all.push(wish);
    }
    for _ in 0..random.small(LATE_WISHES_MAX) {
        all.push(wish(sent, &mut wanted, random));
    }
    all
}

/// Some are given back, some of those that are there are wanted; never the same.
fn wish(sent: usize, wanted: &mut BTreeSet<u32>, random: &mut Random) -> Wish {
    let share = random.below(500);
    let before = wanted.clone();
    wanted.retain(|_| !random.chance(share));
    let releases = before.difference(wanted).copied().collect();
    let mut wish = Wish {
        releases,
        ..Wish::default()
    };
    for _ in 0..random.below(3) {
        let task = u32::try_from(random.index(sent)).unwrap_or(0);
        if !before.contains(&task) && wanted.insert(task) {
            wish.wants.push(task);
        }
    }
    wish
}

impl Plan {
    /// Whether what nobody needs goes at once.
    pub(crate) fn is_open_ended(&self) -> bool {
        !self.wishes.is_empty()
    }

    /// Makes the graph open-ended: what is wanted is what is wanted at the end.
    pub(crate) fn open(&mut self, random: &mut Random) {
        self.wishes = wishes(&self.tasks, self.chunk_tasks, random);
        let wanted = self.wanted_after(self.wishes.len());
        for (index, task) in (0..).zip(&mut self.tasks) {
            task.is_wanted = wanted.contains(&index);
        }
        self.releases = false;
    }

    /// What is wanted when so many chunks are there.
    fn wanted_after(&self, chunks: usize) -> BTreeSet<u32> {
        let mut wanted = BTreeSet::new();
        for wish in self.wishes.iter().take(chunks) {
            wanted.retain(|task| !wish.releases.contains(task));
            wanted.extend(wish.wants.iter().copied());
        }
        wanted
    }

    /// The chunk as its wish says.
    pub(crate) fn wished(mut chunk: GraphChunk, wish: &Wish) -> GraphChunk {
        chunk.wanted = wish.wants.iter().copied().map(TaskIndex).collect();
        chunk
    }
}

impl World {
    /// What was given back may not have reached a scheduler that has begun anew.
    pub(crate) fn client_repeats_releases(&mut self, link: Link, run: usize, graph: GraphId) {
        let plan = &self.plans[run];
        let known = self.runs[run].chunks_promised();
        let wanted = plan.wanted_after(known);
        let given: BTreeSet<u32> = plan.wishes[..known.min(plan.wishes.len())]
            .iter()
            .flat_map(|wish| wish.releases.iter().copied())
            .filter(|task| !wanted.contains(task))
            .collect();
        for task in given {
            let task = Self::task_ref(graph, task as usize);
            self.send_up(link, Up::Release(task));
        }
    }

    /// Before a chunk that the scheduler does not have: the client gives results back.
    pub(crate) fn client_releases_before(&mut self, link: Link, run: usize, number: u32) {
        let Some(graph) = self.runs[run].id else {
            return;
        };
        let number = number as usize;
        if number < self.runs[run].chunks_promised() {
            return;
        }
        let wish = self.plans[run].wishes.get(number);
        for task in wish.map(|wish| wish.releases.clone()).unwrap_or_default() {
            let task = Self::task_ref(graph, task as usize);
            self.send_up(link, Up::Release(task));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::graphs::plans;

    #[test]
    fn clients_want_give_back_and_want_again() {
        let (mut again, mut releases) = (0, 0);
        for seed in 0..50 {
            let config = Config {
                is_open_ended: true,
                ..Config::of_seed(seed)
            };
            for plan in plans(&config) {
                assert!(plan.is_open_ended());
                let count: usize = plan.wishes.iter().map(|wish| wish.tasks).sum();
                assert_eq!(count, plan.tasks.len());
                let mut given = BTreeSet::new();
                for wish in &plan.wishes {
                    again += wish
                        .wants
                        .iter()
                        .filter(|task| given.contains(*task))
                        .count();
                    releases += wish.releases.len();
                    given.extend(wish.releases.iter().copied());
                }
            }
        }
        assert!(again > 50 && releases > 500, "{again} of {releases}");
    }
}

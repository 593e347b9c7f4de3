//! Submissions: checked as a whole, then only what is new and needed becomes tasks.
//!
//! A key that somebody wants is attached to. What depends on a key that is not there is cancelled,
//! because nobody can make it.

use std::sync::Arc;

use oxidask_core::{
    GRAPH_EDGES_MAX, GRAPH_KEY_BYTES_MAX, GRAPH_TASKS_MAX, GraphChunk, KEY_BYTES_MAX,
    NAME_BYTES_MAX, REQUIREMENT_NAMES_MAX, TASK_INPUTS_MAX, TaskIndex,
};
use oxidask_diagnostic::Diagnostic;

use super::event::{Effect, KeyEvent, NewChunk, Submission};
use super::graph::TaskGraph;
use super::table::{Slot, task_ref};
use super::{Futures, KEYS_MAX, OTHER_GROUP, REQUIREMENTS_MAX, SUBMISSION_BYTES_MAX, index};
use crate::FuturesError;

/// Why the dependents of unknown keys are cancelled, in the words that clients of Dask know.
const LOST_DEPENDENCIES: &str = "lost dependencies";

/// What becomes of a position of a submission.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// It is this task of the graph.
    Task(u32),
    /// It is new.
    New,
    /// It cannot be made.
    Lost,
}

impl Futures {
    /// New tasks of a client.
    pub(super) fn submit(
        &mut self,
        slot: Slot,
        submission: &Submission,
        effects: &mut Vec<Effect>,
    ) {
        if let Err(error) = self.check_submission(submission) {
            let checked = Arc::new(Diagnostic::from_error(&error));
            let error = self.trouble.clone().filter(|_| self.graph.is_none());
            let error = error.unwrap_or(checked);
            self.refuse(slot, submission, &error, effects);
            return;
        }
        let keys = keys(submission);
        let mut places = self.places(submission, &keys);
        let externals = submission.external.len();
        let needed = needed(submission, &places);
        let first = self.graph.as_ref().map_or(0, |graph| graph.tasks);
        let mut next = first;
        for (place, is_needed) in places[externals..].iter_mut().zip(&needed) {
            if *place == Place::New && *is_needed {
                *place = Place::Task(next);
                next += 1;
            }
        }
        let Some(graph) = self.graph.as_mut() else {
            return;
        };
        let mut chunk = (next > first).then(|| build(graph, submission, &keys, &places));
        let graph = graph.id;
        for position in &submission.wanted {
            let position = *position as usize;
            let key = keys[position];
            if let Some(id) = self.keys.find(key) {
                self.attach(slot, id, effects);
                continue;
            }
            match places[externals + position] {
                Place::Task(number) => {
                    self.enter(slot, key, task_ref(graph, number));
                    if let Some(new) = &mut chunk {
                        new.chunk.wanted.push(TaskIndex(number));
                    }
                }
                Place::New | Place::Lost => {
                    let event = KeyEvent::Cancelled {
                        reason: Arc::from(LOST_DEPENDENCIES),
                        message: Arc::from(LOST_DEPENDENCIES),
                    };
                    self.tell(slot, &Arc::from(key), event, effects);
                }
            }
        }
        if let Some(chunk) = chunk {
            self.chunks_sent += 1;
            effects.push(Effect::Chunk(Box::new(chunk)));
        }
    }

    /// What each position is: externals, then tasks.
    fn places(&self, submission: &Submission, keys: &[&str]) -> Vec<Place> {
        let mut places = Vec::with_capacity(submission.external.len() + keys.len());
        let graph = self.graph();
        let known = |key: &str| {
            let entry = self.keys.get(self.keys.find(key)?)?;
            // A task of a graph that was ended cannot be an input.
            let is_here = Some(entry.task.graph) == graph;
            Some(if is_here {
                Place::Task(entry.task.task.0)
            } else {
                Place::Lost
            })
        };
        let externals = submission.external.iter();
        places.extend(externals.map(|key| known(key).unwrap_or(Place::Lost)));
        let mut rest = submission.inputs.as_slice();
        for (at, key) in keys.iter().enumerate() {
            let count = submission.input_counts.get(at).copied().unwrap_or(0);
            let (inputs, others) = rest.split_at(count as usize);
            rest = others;
            let is_lost = |input: &u32| places[*input as usize] == Place::Lost;
            let place = known(key).unwrap_or_else(|| {
                if inputs.iter().any(is_lost) {
                    Place::Lost
                } else {
                    Place::New
                }
            });
            places.push(place);
        }
        places
    }

    /// A submission that is not taken: its keys fail for this client.
    fn refuse(
        &mut self,
        slot: Slot,
        submission: &Submission,
        error: &Arc<Diagnostic>,
        effects: &mut Vec<Effect>,
    ) {
        let keys = keys(submission);
        let wanted = submission.wanted.iter();
        for key in wanted.filter_map(|position| keys.get(*position as usize)) {
            let event = KeyEvent::Failed(Arc::clone(error));
            self.tell(slot, &Arc::from(*key), event, effects);
        }
        let client = self.clients.get(slot);
        if keys.is_empty()
            && let Some(connection) = client.and_then(|client| client.connection)
        {
            // Nobody could be told which keys are meant.
            let error = Arc::clone(error);
            effects.push(Effect::HangUp { connection, error });
        }
    }

    /// Everything that the core would check: what it refuses ends the graph.
    fn check_submission(&self, submission: &Submission) -> Result<(), FuturesError> {
        let tasks = submission.key_lengths.len();
        check_columns(submission, tasks)?;
        check_keys(submission)?;
        check_inputs(submission, tasks)?;
        check_names(submission)?;
        limit("bytes", bytes(submission), SUBMISSION_BYTES_MAX as u64)?;
        limit(
            "keys that are wanted, with those before it,",
            (self.keys.len() + submission.wanted.len()) as u64,
            KEYS_MAX as u64,
        )?;
        let Some(graph) = &self.graph else {
            return Err(FuturesError::Submission("there is no graph".to_owned()));
        };
        let all = u64::from(graph.tasks) + tasks as u64;
        limit("tasks, with those before it,", all, GRAPH_TASKS_MAX.into())?;
        let edges = graph.edges + submission.inputs.len() as u64;
        limit(
            "inputs, with those before it,",
            edges,
            GRAPH_EDGES_MAX.into(),
        )?;
        let key_bytes = graph.key_bytes + submission.keys.len() as u64;
        limit(
            "bytes of keys, with those before it,",
            key_bytes,
            GRAPH_KEY_BYTES_MAX as u64,
        )?;
        if graph.has_room_for(&submission.requirements) {
            Ok(())
        } else {
            let limit = REQUIREMENTS_MAX;
            Err(FuturesError::Requirements { limit })
        }
    }
}

/// The keys of a submission; none if their lengths do not fit.
fn keys(submission: &Submission) -> Vec<&str> {
    let mut rest = submission.keys.as_str();
    let mut found = Vec::with_capacity(submission.key_lengths.len());
    for length in &submission.key_lengths {
        let Some((key, others)) = rest.split_at_checked(*length as usize) else {
            return Vec::new();
        };
        found.push(key);
        rest = others;
    }
    found
}

/// Which tasks are wanted, or are inputs of new ones that are needed.
fn needed(submission: &Submission, places: &[Place]) -> Vec<bool> {
    let externals = submission.external.len();
    let tasks = submission.key_lengths.len();
    let mut needed = vec![false; tasks];
    for position in &submission.wanted {
        needed[*position as usize] = true;
    }
    let mut end = submission.inputs.len();
    for at in (0..tasks).rev() {
        let count = submission.input_counts.get(at).copied().unwrap_or(0) as usize;
        let start = end - count;
        if needed[at] && places[externals + at] == Place::New {
            for input in &submission.inputs[start..end] {
                if let Some(task) = (*input as usize).checked_sub(externals) {
                    needed[task] = true;
                }
            }
        }
        end = start;
    }
    needed
}

/// The chunk of the tasks that were given a number of the graph.
fn build(
    graph: &mut TaskGraph,
    submission: &Submission,
    keys: &[&str],
    places: &[Place],
) -> NewChunk {
    let externals = submission.external.len();
    let (body, is_new_body) = graph.body(&submission.body);
    let mut chunk = GraphChunk {
        new_bodies_count: u32::from(is_new_body),
        ..GraphChunk::default()
    };
    let mut arguments = Vec::new();
    let (mut groups, mut requirements) = (Names::default(), Names::default());
    let (first, mut input_end) = (graph.tasks, 0);
    for (at, key) in keys.iter().enumerate() {
        let count = submission.input_counts.get(at).copied().unwrap_or(0) as usize;
        let inputs = &submission.inputs[input_end..input_end + count];
        input_end += count;
        let Place::Task(number) = places[externals + at] else {
            continue;
        };
        if number < first {
            continue;
        }
        chunk.keys.push_str(key);
        chunk.key_lengths.push(index(key.len()).0);
        chunk.body.push(body);
        let group = submission.group.get(at).copied().unwrap_or(u32::MAX);
        chunk.group.push(groups.number(group, || {
            let name = submission.groups.get(group as usize);
            let name = name.map_or(OTHER_GROUP, String::as_str);
            graph.group(name, &mut chunk.new_groups)
        }));
        let asked = submission.requirement.get(at).copied().unwrap_or(0);
        let asked = asked.checked_sub(1).unwrap_or(u32::MAX);
        let requirement = requirements.number(asked, || {
            let requirement = submission.requirements.get(asked as usize);
            let new = &mut chunk.new_requirements;
            requirement
                .and_then(|requirement| graph.requirement(requirement, new))
                .unwrap_or(0)
        });
        chunk.requirement.push(requirement);
        let priority = submission.priority.get(at).copied().unwrap_or(0);
        chunk.priority.push(priority);
        let retries = submission.retries.get(at).copied().unwrap_or(0);
        chunk.retries.push(retries);
        chunk.input_counts.push(index(count).0);
        chunk.inputs.extend(inputs.iter().map(|input| {
            match places[*input as usize] {
                Place::Task(number) => TaskIndex(number),
                // Whatever has such an input is lost itself, or is there already.
                Place::New | Place::Lost => TaskIndex(0),
            }
        }));
        if let Some(own) = submission.arguments.get(at) {
            arguments.push(own.clone());
        }
    }
    simplify(&mut chunk);
    graph.tasks += index(chunk.body.len()).0;
    graph.edges += chunk.inputs.len() as u64;
    graph.key_bytes += chunk.keys.len() as u64;
    let number = graph.next_chunk;
    graph.next_chunk += 1;
    NewChunk {
        graph: graph.id,
        number,
        chunk,
        body: is_new_body.then(|| submission.body.clone()),
        arguments,
    }
}

/// Numbers in the graph by positions in the submission, each looked up once.
#[derive(Default)]
struct Names(Vec<(u32, u32)>);

impl Names {
    fn number(&mut self, position: u32, find: impl FnOnce() -> u32) -> u32 {
        // Neighbours mostly have the same.
        if let Some((last, number)) = self.0.last()
            && *last == position
        {
            return *number;
        }
        if let Some(at) = self.0.iter().position(|(known, _)| *known == position) {
            let end = self.0.len() - 1;
            self.0.swap(at, end);
            return self.0[end].1;
        }
        let number = find();
        self.0.push((position, number));
        number
    }
}

/// Columns of defaults are left out.
fn simplify(chunk: &mut GraphChunk) {
    if chunk.requirement.iter().all(|number| *number == 0) {
        chunk.requirement = Vec::new();
    }
    if chunk.priority.iter().all(|priority| *priority == 0) {
        chunk.priority = Vec::new();
    }
    if chunk.retries.iter().all(|retries| *retries == 0) {
        chunk.retries = Vec::new();
    }
    if chunk.inputs.is_empty() {
        chunk.input_counts = Vec::new();
    }
}

// ---- checks ----

fn invalid<T>(message: String) -> Result<T, FuturesError> {
    Err(FuturesError::Submission(message))
}

fn limit(what: &'static str, count: u64, limit: u64) -> Result<(), FuturesError> {
    if count <= limit {
        Ok(())
    } else {
        Err(FuturesError::Limit { what, count, limit })
    }
}

fn check_columns(submission: &Submission, tasks: usize) -> Result<(), FuturesError> {
    for (name, length) in [
        ("arguments", submission.arguments.len()),
        ("group", submission.group.len()),
        ("priority", submission.priority.len()),
        ("retries", submission.retries.len()),
        ("requirement", submission.requirement.len()),
        ("input_counts", submission.input_counts.len()),
    ] {
        if length != 0 && length != tasks {
            let message = format!("column `{name}` has {length} entries for {tasks} tasks");
            return invalid(message);
        }
    }
    let below = |numbers: &[u32], bound: usize| {
        let beyond = numbers.iter().find(|number| **number as usize >= bound);
        beyond.map(|number| (*number, bound))
    };
    let groups = below(&submission.group, submission.groups.len());
    let requirements = below(&submission.requirement, submission.requirements.len() + 1);
    let wanted = below(&submission.wanted, tasks);
    match groups.or(requirements).or(wanted) {
        None => Ok(()),
        Some((number, bound)) => {
            invalid(format!("a position is {number}, and must be below {bound}"))
        }
    }
}

fn check_keys(submission: &Submission) -> Result<(), FuturesError> {
    let mut end = 0;
    for length in &submission.key_lengths {
        let length = *length as usize;
        limit("bytes in a key", length as u64, KEY_BYTES_MAX as u64)?;
        end += length;
        if length == 0 || !submission.keys.is_char_boundary(end) {
            return invalid("the lengths of the keys do not fit the keys".to_owned());
        }
    }
    if end == submission.keys.len() {
        return Ok(());
    }
    invalid("the lengths of the keys do not fit the keys".to_owned())
}

fn check_inputs(submission: &Submission, tasks: usize) -> Result<(), FuturesError> {
    let mut rest = submission.inputs.as_slice();
    let externals = submission.external.len();
    for at in 0..tasks {
        let count = submission.input_counts.get(at).copied().unwrap_or(0);
        limit("inputs of a task", count.into(), TASK_INPUTS_MAX.into())?;
        let Some((inputs, others)) = rest.split_at_checked(count as usize) else {
            return invalid("there are fewer inputs than the tasks count".to_owned());
        };
        let bound = externals + at;
        if let Some(input) = inputs.iter().find(|input| **input as usize >= bound) {
            return invalid(format!("an input is {input}, and must be below {bound}"));
        }
        rest = others;
    }
    if rest.is_empty() {
        Ok(())
    } else {
        invalid(format!("{} inputs belong to no task", rest.len()))
    }
}

fn check_names(submission: &Submission) -> Result<(), FuturesError> {
    let bound = NAME_BYTES_MAX as u64;
    for name in &submission.groups {
        limit("bytes in the name of a group", name.len() as u64, bound)?;
    }
    for requirement in &submission.requirements {
        let count = requirement.resources.len().max(requirement.workers.len());
        let names = REQUIREMENT_NAMES_MAX as u64;
        limit("names in a requirement", count as u64, names)?;
        let resources = requirement.resources.iter().map(|(name, _)| name);
        for name in resources.chain(&requirement.workers) {
            limit("bytes in a name of a requirement", name.len() as u64, bound)?;
        }
    }
    Ok(())
}

/// About what a submission takes as a message.
fn bytes(submission: &Submission) -> u64 {
    let arguments: usize = submission.arguments.iter().map(|own| own.len() + 6).sum();
    let columns = submission.key_lengths.len() * 24 + submission.inputs.len() * 5;
    (submission.keys.len() + submission.body.len() + arguments + columns) as u64
}

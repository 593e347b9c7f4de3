//! Chunks: checked as a whole, then taken in; nothing of a chunk that is refused stays.

use std::sync::Arc;

use oxidask_diagnostic::{Code, Diagnostic};

use crate::chunk::{
    GRAPH_EDGES_MAX, GRAPH_GROUPS_MAX, GRAPH_KEY_BYTES_MAX, GRAPH_REQUIREMENTS_MAX,
    GRAPH_TASKS_MAX, GraphChunk, KEY_BYTES_MAX, NAME_BYTES_MAX, REQUIREMENT_NAMES_MAX, Requirement,
    TASK_INPUTS_MAX,
};
use crate::effect::Effect;
use crate::graph::{Graph, NewTask};
use crate::group::Group;
use crate::ids::{ClientId, GraphId};
use crate::machine::Core;
use crate::restore::Restored;
use crate::scope::Scope;
use crate::transitions::TaskState;

/// The next part of a graph, from its client, with its number.
pub(super) fn arrived(
    core: &mut Core,
    (client, graph, number): (ClientId, GraphId, u32),
    chunk: &GraphChunk,
    effects: &mut Vec<Effect>,
) {
    let Some(mut scope) = core.scope(graph, effects) else {
        return;
    };
    if scope.graph.client != Some(client) {
        return;
    }
    if number < scope.graph.next_chunk {
        scope.effects.push(Effect::ChunkAccepted {
            client,
            graph,
            number,
        });
        return;
    }
    if let Some(error) = scope.graph.ended_error() {
        scope.effects.push(Effect::GraphRefused {
            client,
            graph,
            error,
        });
        return;
    }
    match check(scope.graph, number, chunk) {
        Ok(()) => {
            scope.effects.push(Effect::ChunkAccepted {
                client,
                graph,
                number,
            });
            accept(&mut scope, chunk);
        }
        Err(error) => {
            let error = Arc::new(error);
            scope.graph.is_refused = true;
            scope.notes.note(|| Restored::Refused {
                graph,
                error: Arc::clone(&error),
            });
            let refusal = Effect::GraphRefused {
                client,
                graph,
                error: Arc::clone(&error),
            };
            scope.effects.push(refusal);
            scope.stop(error);
        }
    }
    scope.conclude();
}

// ---- checks ----

fn check(graph: &Graph, number: u32, chunk: &GraphChunk) -> Result<(), Diagnostic> {
    if number != graph.next_chunk || graph.is_sealed {
        let expected = graph.next_chunk;
        let message = if graph.is_sealed {
            format!("chunk {number} follows the last chunk")
        } else {
            format!("chunk {number} is out of order, chunk {expected} is expected")
        };
        return Err(Diagnostic::new(Code::GraphSyntax, message));
    }
    check_names(graph, chunk)?;
    check_columns(graph, chunk)?;
    check_keys(graph, chunk)?;
    check_inputs(graph, chunk)?;
    let total = u64::from(graph.len()) + chunk.len() as u64;
    check_below(
        "a wanted task",
        chunk.wanted.iter().map(|task| task.0),
        total,
    )
}

fn check_names(graph: &Graph, chunk: &GraphChunk) -> Result<(), Diagnostic> {
    check_limit(
        "groups",
        graph.groups.len() + chunk.new_groups.len(),
        GRAPH_GROUPS_MAX,
    )?;
    let requirements = graph.classes.len() + chunk.new_requirements.len();
    check_limit(
        "different requirements",
        requirements,
        GRAPH_REQUIREMENTS_MAX,
    )?;
    for name in &chunk.new_groups {
        check_limit("bytes in the name of a group", name.len(), NAME_BYTES_MAX)?;
    }
    for requirement in &chunk.new_requirements {
        let count = requirement.resources.len().max(requirement.workers.len());
        check_limit("names in a requirement", count, REQUIREMENT_NAMES_MAX)?;
        let resources = requirement.resources.iter().map(|(name, _)| name);
        for name in resources.chain(&requirement.workers) {
            check_limit(
                "bytes in a name of a requirement",
                name.len(),
                NAME_BYTES_MAX,
            )?;
        }
    }
    Ok(())
}

fn check_columns(graph: &Graph, chunk: &GraphChunk) -> Result<(), Diagnostic> {
    let tasks = chunk.len();
    check_limit(
        "tasks",
        graph.len() as usize + tasks,
        GRAPH_TASKS_MAX as usize,
    )?;
    let required = [
        ("group", chunk.group.len()),
        ("key_lengths", chunk.key_lengths.len()),
    ];
    let optional = [
        ("requirement", chunk.requirement.len()),
        ("priority", chunk.priority.len()),
        ("retries", chunk.retries.len()),
        ("input_counts", chunk.input_counts.len()),
    ];
    let optional = optional.into_iter().filter(|(_, length)| *length != 0);
    for (name, length) in required.into_iter().chain(optional) {
        if length != tasks {
            return Err(syntax(&format!(
                "column `{name}` has {length} entries for {tasks} tasks"
            )));
        }
    }
    let bodies = graph.bodies + u64::from(chunk.new_bodies_count);
    check_below("a body", chunk.body.iter().copied(), bodies)?;
    let groups = graph.groups.len() + chunk.new_groups.len();
    check_below("a group", chunk.group.iter().copied(), groups as u64)?;
    let requirements = graph.classes.len() + chunk.new_requirements.len();
    check_below(
        "a requirement",
        chunk.requirement.iter().copied(),
        requirements as u64,
    )
}

fn check_keys(graph: &Graph, chunk: &GraphChunk) -> Result<(), Diagnostic> {
    let bytes = graph.key_bytes().saturating_add(chunk.keys.len());
    check_limit("bytes in all keys", bytes, GRAPH_KEY_BYTES_MAX)?;
    let mut end = 0;
    for length in &chunk.key_lengths {
        let length = *length as usize;
        if length == 0 {
            return Err(syntax("a key is empty"));
        }
        check_limit("bytes in a key", length, KEY_BYTES_MAX)?;
        end += length;
        if !chunk.keys.is_char_boundary(end) {
            return Err(syntax("the lengths of the keys do not fit the keys"));
        }
    }
    if end == chunk.keys.len() {
        Ok(())
    } else {
        Err(syntax("the lengths of the keys do not fit the keys"))
    }
}

fn check_inputs(graph: &Graph, chunk: &GraphChunk) -> Result<(), Diagnostic> {
    let edges = graph.edges().saturating_add(chunk.inputs.len());
    check_limit("inputs in all", edges, GRAPH_EDGES_MAX as usize)?;
    let mut rest = chunk.inputs.as_slice();
    for (task, count) in (u64::from(graph.len())..).zip(&chunk.input_counts) {
        let count = *count as usize;
        check_limit("inputs of a task", count, TASK_INPUTS_MAX as usize)?;
        let Some((inputs, others)) = rest.split_at_checked(count) else {
            return Err(syntax("there are fewer inputs than the tasks count"));
        };
        check_below("an input", inputs.iter().map(|input| input.0), task)?;
        rest = others;
    }
    if rest.is_empty() {
        Ok(())
    } else {
        Err(syntax(&format!("{} inputs belong to no task", rest.len())))
    }
}

fn check_below(
    what: &str,
    mut numbers: impl Iterator<Item = u32>,
    bound: u64,
) -> Result<(), Diagnostic> {
    match numbers.find(|number| u64::from(*number) >= bound) {
        None => Ok(()),
        Some(number) => {
            let message = format!("{what} has number {number}, which must be below {bound}");
            Err(syntax(&message))
        }
    }
}

fn check_limit(what: &str, count: usize, limit: usize) -> Result<(), Diagnostic> {
    if count <= limit {
        return Ok(());
    }
    Err(Diagnostic::new(
        Code::LimitPassed,
        format!("the graph has {count} {what}, at most {limit} are allowed"),
    ))
}

fn syntax(message: &str) -> Diagnostic {
    Diagnostic::new(
        Code::GraphSyntax,
        format!("a chunk of the graph is not valid: {message}"),
    )
}

// ---- taking in ----

fn accept(scope: &mut Scope<'_>, chunk: &GraphChunk) {
    enter(scope, chunk);
    append(scope, chunk);
    if chunk.is_last {
        scope.seal();
    }
}

/// Takes in what the tasks of a chunk refer to.
fn enter(scope: &mut Scope<'_>, chunk: &GraphChunk) {
    scope.graph.next_chunk += 1;
    scope.graph.bodies += u64::from(chunk.new_bodies_count);
    for name in &chunk.new_groups {
        scope.graph.groups.push(Group::new(name.as_str().into()));
    }
    for requirement in &chunk.new_requirements {
        let class = scope.classes.enter(&normal_form(requirement), scope.fleet);
        scope.graph.classes.push(class);
    }
}

/// Resources sorted, each once and none of zero; workers sorted, each once; at least one slot.
fn normal_form(requirement: &Requirement) -> Requirement {
    let mut normal = Requirement {
        slots: requirement.slots.max(1),
        ..requirement.clone()
    };
    normal.resources.sort();
    normal.resources.dedup_by(|(name, amount), (kept, sum)| {
        let is_same = name == kept;
        if is_same {
            *sum = sum.saturating_add(*amount);
        }
        is_same
    });
    normal.resources.retain(|(_, amount)| *amount > 0);
    normal.workers.sort();
    normal.workers.dedup();
    normal
}

fn append(scope: &mut Scope<'_>, chunk: &GraphChunk) {
    scope.graph.expect(chunk);
    let first = scope.graph.len();
    let mut released = Vec::new();
    each_task(chunk, |new| {
        let task = scope.graph.push(new);
        if new.inputs.is_empty() {
            scope.transition(task, TaskState::Ready);
        } else {
            scope.await_inputs(task, &mut released);
        }
    });
    scope.recompute(released);
    for task in &chunk.wanted {
        want(scope, task.0);
    }
    if scope.graph.is_open_ended {
        for task in first..scope.graph.len() {
            scope.release_if_unneeded(task);
        }
    }
}

/// The tasks of a chunk that was checked, in order.
fn each_task<'a>(chunk: &'a GraphChunk, mut add: impl FnMut(NewTask<'a>)) {
    let narrow = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
    let mut keys = chunk.keys.as_str();
    let mut inputs = chunk.inputs.as_slice();
    for at in 0..chunk.len() {
        let (key, other_keys) = keys.split_at(chunk.key_lengths[at] as usize);
        let count = chunk.input_counts.get(at).copied().unwrap_or(0);
        let (own_inputs, other_inputs) = inputs.split_at(count as usize);
        (keys, inputs) = (other_keys, other_inputs);
        add(NewTask {
            key,
            inputs: own_inputs,
            body: chunk.body[at],
            group: narrow(chunk.group[at]),
            requirement: narrow(chunk.requirement.get(at).copied().unwrap_or(0)),
            priority: chunk.priority.get(at).copied().unwrap_or(0),
            retries: chunk.retries.get(at).copied().unwrap_or(0),
        });
    }
}

/// Takes in a chunk that a journal has kept: its tasks stay waiting, whatever their inputs.
pub(crate) fn restore(
    scope: &mut Scope<'_>,
    number: u32,
    chunk: &GraphChunk,
) -> Result<(), Diagnostic> {
    check(scope.graph, number, chunk)?;
    enter(scope, chunk);
    scope.graph.expect(chunk);
    each_task(chunk, |task| {
        scope.graph.push(task);
    });
    restore_wanted(scope.graph, chunk);
    scope.graph.is_sealed |= chunk.is_last;
    Ok(())
}

/// What a chunk that a journal has kept wants. Said again by a chunk that comes twice: what was given
/// back before it comes twice too.
pub(crate) fn restore_wanted(graph: &mut Graph, chunk: &GraphChunk) {
    for task in &chunk.wanted {
        if let Some(is_wanted) = graph.is_wanted.get_mut(task.0 as usize) {
            graph.wanted_pending += u32::from(!*is_wanted);
            *is_wanted = true;
        }
    }
}

/// The client wants the result of a task that is there already.
fn want(scope: &mut Scope<'_>, task: u32) {
    let at = task as usize;
    if scope.graph.is_wanted[at] {
        return;
    }
    scope.graph.is_wanted[at] = true;
    let state = scope.state(task);
    scope.graph.wanted_pending += u32::from(state.is_pending());
    match state {
        TaskState::Released => scope.recompute(vec![task]),
        _ => scope.tell_state(task),
    }
}

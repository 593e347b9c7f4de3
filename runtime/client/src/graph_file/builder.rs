//! Collects tasks in any order, then makes a plan of them.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use oxidask_core::{
    GRAPH_GROUPS_MAX, GRAPH_REQUIREMENTS_MAX, GRAPH_TASKS_MAX, KEY_BYTES_MAX, Requirement,
    TASK_INPUTS_MAX,
};
use oxidask_diagnostic::nearest;
use oxidask_exec::{Body, catalogue, encode_into};

use super::error::{GraphFileError, Place, shown};
use super::group::group_name;
use super::interner::Interner;
use super::order::{self, Inputs};
use super::reader::output_repeated;
use super::{BODY_BYTES_MAX, GraphPlan, REQUIREMENT_NAMES_MAX, SUGGESTION_TASKS_MAX};

/// A name that no task has yet.
const UNDEFINED: u32 = u32::MAX;

/// The group of all tasks whose own group is one too many.
const REST_GROUP: &str = "others";

/// What a task may say besides its operation and its inputs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TaskOptions {
    /// Larger first.
    pub priority: i32,
    /// How often a failed attempt is tried again.
    pub retries: u32,
    /// Task resources by name with their amounts.
    pub resources: Vec<(String, u64)>,
    /// Names of workers or worker groups that the task is limited to.
    pub workers: Vec<String>,
}

/// Makes a plan without a file: for SQL jobs, tests and measurements.
///
/// ```
/// use oxidask_client::graph_file::GraphPlanBuilder;
/// use oxidask_exec::Body;
///
/// let mut builder = GraphPlanBuilder::new("example");
/// let one = builder.task("one", &Body::new("value").with("value", 1), &[])?;
/// builder.task("sum", &Body::new("sum"), &[one, one])?;
/// let plan = builder.finish()?;
/// assert_eq!(plan.len(), 2);
/// assert_eq!(plan.key(plan.outputs()[0]), "sum");
/// # Ok::<(), oxidask_client::graph_file::GraphFileError>(())
/// ```
#[derive(Debug)]
pub struct GraphPlanBuilder {
    columns: Columns,
    encoded: Vec<u8>,
}

impl GraphPlanBuilder {
    /// Without tasks. `origin` names the graph in messages.
    pub fn new(origin: &str) -> Self {
        Self {
            columns: Columns::new(Origin::Whole(origin.into())),
            encoded: Vec::new(),
        }
    }

    /// Adds a task and gives its number, which later tasks use as an input. The operation is not
    /// checked: internal ones are welcome.
    pub fn task(&mut self, key: &str, body: &Body, inputs: &[u32]) -> Result<u32, GraphFileError> {
        self.task_with(key, body, inputs, TaskOptions::default())
    }

    /// Adds a task with options.
    pub fn task_with(
        &mut self,
        key: &str,
        body: &Body,
        inputs: &[u32],
        options: TaskOptions,
    ) -> Result<u32, GraphFileError> {
        self.encoded.clear();
        encode_into(&body.op, &body.args, &mut self.encoded);
        if self.encoded.len() > BODY_BYTES_MAX {
            let what = "bytes in a task's operation and arguments";
            return Err(self.columns.limit(what, BODY_BYTES_MAX, 0));
        }
        let (body, _) = self.columns.body(&self.encoded, catalogue::slots, &body.op);
        self.columns.check_inputs_count(inputs.len(), 0)?;
        if let Some(input) = inputs
            .iter()
            .find(|input| !self.columns.is_defined(**input))
        {
            return Err(GraphFileError::UndefinedInput {
                place: self.columns.place(None),
                key: shown(key),
                input: format!("task number {input}"),
                nearest: None,
            });
        }
        self.columns.add(key, body, inputs, options, 0)
    }

    /// Wants the result of a task. Without any call all results that nothing uses are wanted.
    pub fn output(&mut self, task: u32) {
        self.columns.outputs.get_or_insert_default().push(task);
    }

    /// Orders the tasks and leaves out what no output needs.
    pub fn finish(self) -> Result<GraphPlan, GraphFileError> {
        self.columns.finish()
    }
}

/// How places are told.
#[derive(Debug)]
pub(super) enum Origin {
    Lines(Arc<str>),
    /// A list, and where each of its items stands if that is known.
    Items(Arc<str>, Vec<Arc<str>>),
    Whole(Arc<str>),
}

/// The place of an item.
pub(super) fn item(origin: &Arc<str>, places: &[Arc<str>], index: u32) -> Place {
    match places.get(index as usize) {
        Some(place) => Place::Whole {
            origin: Arc::clone(place),
        },
        None => Place::Item {
            origin: Arc::clone(origin),
            index,
        },
    }
}

/// Tasks in the order in which they came. Names are numbered at first sight, as a key or as an
/// input; `definitions` says which task has the name.
#[derive(Debug)]
pub(super) struct Columns {
    origin: Origin,
    tasks_max: usize,
    names: Interner,
    definitions: Vec<u32>,
    bodies: Interner,
    body_slots: Vec<u32>,
    groups: Interner,
    requirements: Vec<Requirement>,
    requirement_numbers: HashMap<Requirement, u32>,
    outputs: Option<Vec<u32>>,
    outputs_line: Option<u32>,
    // One entry a task.
    name: Vec<u32>,
    line: Vec<u32>,
    body: Vec<u32>,
    group: Vec<u32>,
    requirement: Vec<u32>,
    priority: Vec<i32>,
    retries: Vec<u32>,
    input_ends: Vec<usize>,
    // Names; tasks once they are resolved.
    inputs: Vec<u32>,
}

impl Columns {
    pub(super) fn new(origin: Origin) -> Self {
        let default = Requirement::default();
        Self {
            origin,
            tasks_max: GRAPH_TASKS_MAX as usize,
            names: Interner::default(),
            definitions: Vec::new(),
            bodies: Interner::default(),
            body_slots: Vec::new(),
            groups: Interner::default(),
            requirement_numbers: HashMap::from([(default.clone(), 0)]),
            requirements: vec![default],
            outputs: None,
            outputs_line: None,
            name: Vec::new(),
            line: Vec::new(),
            body: Vec::new(),
            group: Vec::new(),
            requirement: Vec::new(),
            priority: Vec::new(),
            retries: Vec::new(),
            input_ends: Vec::new(),
            inputs: Vec::new(),
        }
    }

    pub(super) fn place(&self, number: Option<u32>) -> Place {
        match (&self.origin, number) {
            (Origin::Lines(origin), Some(line)) => Place::Line {
                origin: Arc::clone(origin),
                line,
                column: None,
            },
            (Origin::Items(origin, places), Some(index)) => item(origin, places, index),
            (Origin::Lines(origin) | Origin::Items(origin, _) | Origin::Whole(origin), _) => {
                Place::Whole {
                    origin: Arc::clone(origin),
                }
            }
        }
    }

    pub(super) fn limit(&self, what: &'static str, limit: usize, number: u32) -> GraphFileError {
        GraphFileError::Limit {
            place: self.place(Some(number)),
            what,
            limit,
        }
    }

    fn text(&self, name: u32) -> &str {
        std::str::from_utf8(self.names.get(name)).unwrap_or_default()
    }

    fn is_defined(&self, name: u32) -> bool {
        self.definitions
            .get(name as usize)
            .is_some_and(|task| *task != UNDEFINED)
    }

    pub(super) fn has_outputs(&self) -> bool {
        self.outputs.is_some()
    }

    /// The number of a name. Each must be a task's in the end, so there are no more than tasks.
    pub(super) fn name(&mut self, key: &str, number: u32) -> Result<u32, GraphFileError> {
        let (name, is_new) = self.names.intern(key.as_bytes());
        if is_new {
            if self.names.len() > self.tasks_max {
                return Err(self.limit("tasks in a graph", self.tasks_max, number));
            }
            self.definitions.push(UNDEFINED);
        }
        Ok(name)
    }

    /// The number of an encoded body, and whether it is new.
    pub(super) fn body(
        &mut self,
        encoded: &[u8],
        slots: impl FnOnce(&str) -> u32,
        op: &str,
    ) -> (u32, bool) {
        let (body, is_new) = self.bodies.intern(encoded);
        if is_new {
            self.body_slots.push(slots(op));
        }
        (body, is_new)
    }

    pub(super) fn check_inputs_count(
        &self,
        count: usize,
        number: u32,
    ) -> Result<(), GraphFileError> {
        let limit = TASK_INPUTS_MAX as usize;
        if count > limit {
            return Err(self.limit("inputs of a task", limit, number));
        }
        Ok(())
    }

    pub(super) fn want_keys<'a>(
        &mut self,
        keys: impl Iterator<Item = &'a str>,
        number: Option<u32>,
    ) -> Result<(), GraphFileError> {
        let mut outputs = Vec::new();
        for key in keys {
            outputs.push(self.name(key, number.unwrap_or_default())?);
        }
        self.outputs = Some(outputs);
        self.outputs_line = number;
        Ok(())
    }

    /// Adds a task whose body and inputs have their numbers; gives the number of its name.
    pub(super) fn add(
        &mut self,
        key: &str,
        body: u32,
        inputs: &[u32],
        options: TaskOptions,
        number: u32,
    ) -> Result<u32, GraphFileError> {
        if key.is_empty() {
            return Err(GraphFileError::WrongField {
                place: self.place(Some(number)),
                field: "key",
                expected: "a string that is not empty",
                found: "\"\"".to_owned(),
            });
        }
        if key.len() > KEY_BYTES_MAX {
            return Err(self.limit("bytes in a key", KEY_BYTES_MAX, number));
        }
        let name = self.name(key, number)?;
        if let Some(first) = self.line.get(self.definitions[name as usize] as usize) {
            return Err(GraphFileError::DuplicateKey {
                place: self.place(Some(number)),
                key: shown(key),
                first: self.place(Some(*first)),
            });
        }
        let slots = self.body_slots[body as usize];
        self.requirement_of(slots, &options.resources, options.workers, number)?;
        self.definitions[name as usize] = u32::try_from(self.name.len()).unwrap_or(UNDEFINED);
        self.name.push(name);
        self.line.push(number);
        self.body.push(body);
        let group = self.group_of(key);
        self.group.push(group);
        self.priority.push(options.priority);
        self.retries.push(options.retries);
        self.inputs.extend_from_slice(inputs);
        self.input_ends.push(self.inputs.len());
        Ok(name)
    }

    fn group_of(&mut self, key: &str) -> u32 {
        let name = group_name(key);
        let name = if self.groups.len() + 1 < GRAPH_GROUPS_MAX {
            name
        } else {
            REST_GROUP
        };
        self.groups.intern(name.as_bytes()).0
    }

    fn requirement_of(
        &mut self,
        slots: u32,
        resources: &[(String, u64)],
        mut workers: Vec<String>,
        number: u32,
    ) -> Result<(), GraphFileError> {
        if resources.len().max(workers.len()) > REQUIREMENT_NAMES_MAX {
            let what = "resources or workers of a task";
            return Err(self.limit(what, REQUIREMENT_NAMES_MAX, number));
        }
        workers.sort_unstable();
        workers.dedup();
        let mut resources: Vec<_> = resources
            .iter()
            .filter(|(_, amount)| *amount > 0)
            .cloned()
            .collect();
        resources.sort_unstable();
        let requirement = Requirement {
            slots,
            resources,
            workers,
        };
        let found = match self.requirement_numbers.get(&requirement) {
            Some(found) => *found,
            None if self.requirements.len() > GRAPH_REQUIREMENTS_MAX => {
                let what = "different resources and workers in a graph";
                return Err(self.limit(what, GRAPH_REQUIREMENTS_MAX, number));
            }
            None => {
                let new = u32::try_from(self.requirements.len()).unwrap_or_default();
                self.requirement_numbers.insert(requirement.clone(), new);
                self.requirements.push(requirement);
                new
            }
        };
        self.requirement.push(found);
        Ok(())
    }

    /// Names become tasks.
    fn resolve_inputs(&mut self) -> Result<(), GraphFileError> {
        let mut inputs = std::mem::take(&mut self.inputs);
        let mut start = 0;
        for (task, end) in self.input_ends.iter().enumerate() {
            for input in &mut inputs[start..*end] {
                let found = self.definitions[*input as usize];
                if found == UNDEFINED {
                    let input = self.text(*input);
                    return Err(GraphFileError::UndefinedInput {
                        place: self.place(Some(self.line[task])),
                        key: shown(self.text(self.name[task])),
                        input: shown(input),
                        nearest: self.nearest_key(input),
                    });
                }
                *input = found;
            }
            start = *end;
        }
        self.inputs = inputs;
        Ok(())
    }

    /// The wanted tasks, in the order in which they are printed.
    fn resolve_outputs(&self) -> Result<Vec<u32>, GraphFileError> {
        let tasks_count = self.name.len();
        let mut is_seen = vec![false; tasks_count];
        let Some(outputs) = &self.outputs else {
            for input in &self.inputs {
                is_seen[*input as usize] = true;
            }
            let unused = (0..).zip(is_seen).filter(|(_, is_used)| !is_used);
            return Ok(unused.map(|(task, _)| task).collect());
        };
        let mut tasks = Vec::with_capacity(outputs.len());
        for output in outputs {
            let place = || self.place(self.outputs_line);
            let task = self
                .definitions
                .get(*output as usize)
                .copied()
                .unwrap_or(UNDEFINED);
            if task == UNDEFINED {
                let is_named = (*output as usize) < self.names.len();
                let output = if is_named { self.text(*output) } else { "" };
                return Err(GraphFileError::UndefinedOutput {
                    place: place(),
                    output: shown(output),
                    nearest: self.nearest_key(output),
                });
            }
            if std::mem::replace(&mut is_seen[task as usize], true) {
                return Err(output_repeated(place(), self.text(*output)));
            }
            tasks.push(task);
        }
        Ok(tasks)
    }

    fn nearest_key(&self, key: &str) -> Option<String> {
        if self.name.len() > SUGGESTION_TASKS_MAX {
            return None;
        }
        nearest(key, self.name.iter().map(|name| self.text(*name))).map(str::to_owned)
    }

    /// Checks what concerns the whole, orders, leaves out, and numbers anew.
    pub(super) fn finish(mut self) -> Result<GraphPlan, GraphFileError> {
        self.resolve_inputs()?;
        let outputs = self.resolve_outputs()?;
        let inputs = Inputs {
            ends: &self.input_ends,
            tasks: &self.inputs,
        };
        let order = order::sort(inputs).map_err(|cycle| GraphFileError::Cycle {
            place: self.place(cycle.first().map(|task| self.line[*task as usize])),
            path: order::path_text(&cycle, |task| shown(self.text(self.name[task as usize]))),
        })?;
        let order = order::needed(order, inputs, &outputs);
        Ok(self.into_plan(&order, &outputs))
    }

    /// `order` has the tasks that stay.
    fn into_plan(mut self, order: &[u32], outputs: &[u32]) -> GraphPlan {
        let tasks_count = self.name.len();
        let mut position = vec![UNDEFINED; tasks_count];
        for (new, old) in (0..).zip(order) {
            position[*old as usize] = new;
        }
        let mut bodies = FirstUse::new(self.bodies.len());
        let mut groups = FirstUse::new(self.groups.len());
        let mut requirements = FirstUse::new(self.requirements.len());
        requirements.number(0);
        let inputs = Inputs {
            ends: &self.input_ends,
            tasks: &self.inputs,
        };
        let mut plan_inputs = Vec::with_capacity(self.inputs.len());
        let mut input_ends = Vec::with_capacity(order.len());
        for old in order {
            plan_inputs.extend(
                inputs
                    .of(*old)
                    .iter()
                    .map(|input| position[*input as usize]),
            );
            input_ends.push(plan_inputs.len());
        }
        let numbered = |column: &[u32], first_use: &mut FirstUse| -> Vec<u32> {
            order
                .iter()
                .map(|old| first_use.number(column[*old as usize]))
                .collect()
        };
        let body = numbered(&self.body, &mut bodies);
        let group = numbered(&self.group, &mut groups);
        let requirement = numbered(&self.requirement, &mut requirements);
        let body_ranges: Vec<_> = bodies
            .order
            .iter()
            .map(|old| self.bodies.range(*old))
            .collect();
        let body_texts = Bytes::from(self.bodies.into_texts());
        let group_text = |old: &u32| String::from_utf8_lossy(self.groups.get(*old)).into_owned();
        self.names.seal();
        GraphPlan {
            name: order.iter().map(|old| self.name[*old as usize]).collect(),
            body,
            group,
            requirement,
            priority: order
                .iter()
                .map(|old| self.priority[*old as usize])
                .collect(),
            retries: order
                .iter()
                .map(|old| self.retries[*old as usize])
                .collect(),
            input_ends,
            inputs: plan_inputs,
            names: self.names,
            bodies: body_ranges
                .into_iter()
                .map(|range| body_texts.slice(range))
                .collect(),
            groups: groups.order.iter().map(group_text).collect(),
            requirements: requirements
                .order
                .iter()
                .map(|old| std::mem::take(&mut self.requirements[*old as usize]))
                .collect(),
            outputs: outputs.iter().map(|old| position[*old as usize]).collect(),
            skipped: tasks_count - order.len(),
        }
    }
}

/// Numbers things by their first use, so that a chunk can bring along what it is first to need.
struct FirstUse {
    numbers: Vec<u32>,
    order: Vec<u32>,
}

impl FirstUse {
    fn new(count: usize) -> Self {
        Self {
            numbers: vec![UNDEFINED; count],
            order: Vec::new(),
        }
    }

    fn number(&mut self, old: u32) -> u32 {
        let number = &mut self.numbers[old as usize];
        if *number == UNDEFINED {
            *number = u32::try_from(self.order.len()).unwrap_or(UNDEFINED);
            self.order.push(old);
        }
        *number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_tasks_than_the_limit_are_refused() {
        let mut builder = GraphPlanBuilder::new("test");
        builder.columns.tasks_max = 3;
        for key in ["a", "b", "c"] {
            builder.task(key, &Body::new("noop"), &[]).unwrap();
        }
        let error = builder.task("d", &Body::new("noop"), &[]).unwrap_err();
        assert_eq!(error.to_string(), "test: more than 3 tasks in a graph");
    }

    #[test]
    fn first_use_numbers_from_zero() {
        let mut first_use = FirstUse::new(5);
        assert_eq!(
            [4, 1, 4, 0, 1].map(|old| first_use.number(old)),
            [0, 1, 0, 2, 1]
        );
        assert_eq!(first_use.order, [4, 1, 0]);
    }
}

//! What holds whatever happens: stale snapshots, plans that are carried out in part, silences,
//! restarts, foreign and broken pods.

use k8s_openapi::api::core::v1::Pod;
use oxidask_operator_plan::signal::Standing;
use oxidask_operator_plan::{DRAIN, names};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::world::*;

/// One thing that happens.
#[derive(Debug, Clone)]
enum Happening {
    Scale(u32),
    Template(u8),
    Silence(bool),
    Work(usize, u32, u64),
    Suspect(usize),
    Crash(usize),
    DeletePod(usize),
    DrainByHand(usize),
    Room(usize),
    Quota(usize),
    Want(u64),
    /// Plans from a snapshot that is so many seconds old, and does only so many steps.
    Stale(usize, usize),
    Seconds(usize),
    Deadline(u32),
}

fn happening() -> impl Strategy<Value = Happening> {
    let pod = 0..8_usize;
    prop_oneof![
        3 => (0..6_u32).prop_map(Happening::Scale),
        1 => (0..3_u8).prop_map(Happening::Template),
        2 => any::<bool>().prop_map(Happening::Silence),
        4 => (pod.clone(), 0..9_u32, 0..100_u64).prop_map(|(a, b, c)| Happening::Work(a, b, c)),
        1 => pod.clone().prop_map(Happening::Suspect),
        1 => pod.clone().prop_map(Happening::Crash),
        1 => pod.clone().prop_map(Happening::DeletePod),
        1 => pod.prop_map(Happening::DrainByHand),
        1 => (0..8_usize).prop_map(Happening::Room),
        1 => (0..8_usize).prop_map(Happening::Quota),
        2 => (0..9_u64).prop_map(Happening::Want),
        4 => (0..20_usize, 0..6_usize).prop_map(|(a, b)| Happening::Stale(a, b)),
        6 => (1..9_usize).prop_map(Happening::Seconds),
        1 => (0..2_u32).prop_map(|it| Happening::Deadline(it * 4)),
    ]
}

struct Run {
    world: World,
    history: Vec<Snapshot>,
    has_autoscale: bool,
}

impl Run {
    fn name(&self, index: usize) -> Option<String> {
        let names = self.world.names();
        (!names.is_empty()).then(|| names[index % names.len()].clone())
    }

    fn happen(&mut self, happening: &Happening) {
        let world = &mut self.world;
        match happening {
            Happening::Scale(replicas) if !self.has_autoscale => world.scale(GROUP, *replicas),
            Happening::Template(image) => {
                let image = Some(format!("image:{image}"));
                world.group_mut(GROUP).spec.worker.image = image;
            }
            Happening::Silence(is_silent) => world.is_silent = *is_silent,
            Happening::Room(room) => world.room = *room,
            Happening::Quota(quota) => world.quota = *quota,
            Happening::Want(wanted) => {
                world.wanted.insert("default".to_owned(), *wanted);
            }
            Happening::Seconds(seconds) => {
                for _ in 0..*seconds {
                    self.history.push(self.world.snapshot(GROUP));
                    self.world.round();
                }
            }
            Happening::Stale(age, steps) => {
                let index = self.history.len().saturating_sub(age + 1);
                if let Some(snapshot) = self.history.get(index) {
                    let plan = self.world.plan(snapshot);
                    self.world.carry_out(GROUP, plan, *steps);
                }
            }
            Happening::Deadline(seconds) => {
                let strategy = json!({"drainTimeoutSeconds": seconds});
                world.cluster.spec.update_strategy = Some(read(strategy));
            }
            Happening::Work(index, ..)
            | Happening::Suspect(index)
            | Happening::Crash(index)
            | Happening::DeletePod(index)
            | Happening::DrainByHand(index) => {
                if let Some(name) = self.name(*index) {
                    self.happen_to(&name, happening);
                }
            }
            Happening::Scale(_) => {}
        }
    }

    fn happen_to(&mut self, name: &str, happening: &Happening) {
        let world = &mut self.world;
        if let Happening::DeletePod(_) = happening {
            world.pods.remove(name);
            return;
        }
        let Some(known) = world.known.get_mut(name) else {
            return;
        };
        match happening {
            Happening::Work(_, running, held) if known.standing == Standing::Active => {
                (known.running, known.held) = (*running, *held);
            }
            Happening::Suspect(_) if known.standing == Standing::Active => {
                known.standing = Standing::Suspect;
            }
            Happening::Suspect(_) if known.standing == Standing::Suspect => {
                known.standing = Standing::Active;
            }
            Happening::DrainByHand(_) if known.standing == Standing::Active => {
                known.standing = Standing::Retiring;
            }
            Happening::Crash(_) => {
                let failed = json!({"phase": "Failed", "reason": "Evicted"});
                world.pods.get_mut(name).unwrap().status = Some(read(failed));
                world.group_mut(GROUP);
            }
            _ => {}
        }
    }

    /// Everything gets well, and all has to come to rest.
    fn heal(&mut self) {
        let world = &mut self.world;
        world.is_silent = false;
        (world.room, world.quota) = (usize::MAX, usize::MAX);
        for known in world.known.values_mut() {
            (known.running, known.held) = (0, 0);
            if known.standing == Standing::Suspect {
                known.standing = Standing::Active;
            }
        }
        world.settle();
    }
}

fn check_rest(world: &World) -> Result<(), TestCaseError> {
    let wanted = world.replicas(GROUP) as usize;
    prop_assert_eq!(world.pods_of(GROUP), wanted);
    let own = world.pods.values();
    let own = own.filter(|pod| is_owned(&pod.metadata, "uid-flights-default"));
    for pod in own {
        prop_assert!(is_ready(pod));
        let annotations = pod.metadata.annotations.as_ref();
        prop_assert!(annotations.is_none_or(|it| !it.contains_key(DRAIN)));
        let image = pod.spec.as_ref().unwrap().containers[0].image.as_deref();
        let wanted = world.groups[GROUP].spec.worker.image.as_deref();
        prop_assert_eq!(image, wanted.or(Some("runtime:1")));
    }
    prop_assert!(world.plan_group(GROUP).is_empty());
    let conditions = world.status(GROUP).conditions;
    prop_assert_eq!(&condition(&conditions, "Ready").status, "True");
    Ok(())
}

/// A pod that was there before.
#[derive(Debug, Clone)]
struct Sketch {
    index: u64,
    has_planned_name: bool,
    is_owned: bool,
    is_outdated: bool,
    mark: Option<&'static str>,
    status: Value,
}

fn sketch() -> impl Strategy<Value = Sketch> {
    let marks = prop::sample::select(vec![
        None,
        Some("1970-01-12T13:46:40Z"),
        Some("cancelled"),
        Some("nonsense"),
    ]);
    let statuses = prop::sample::select(vec![
        json!({}),
        waiting("ContainerCreating"),
        running(999_990, None),
        running(999_990, Some(999_991)),
        json!({"phase": "Failed"}),
        json!({"phase": "Unknown"}),
    ]);
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    (0..8_u64, flags, marks, statuses).prop_map(|(index, flags, mark, status)| Sketch {
        index,
        has_planned_name: flags.0,
        is_owned: flags.1,
        is_outdated: flags.2,
        mark,
        status,
    })
}

fn place(world: &mut World, sketch: &Sketch, template: &Pod) {
    let name = if sketch.has_planned_name {
        names::worker_pod(GROUP, "uid-flights-default", sketch.index)
    } else {
        format!("pod-{}", sketch.index)
    };
    if world.pods.contains_key(&name) {
        return;
    }
    let mut pod = template.clone();
    let metadata = &mut pod.metadata;
    metadata.name = Some(name.clone());
    metadata.uid = Some(format!("uid-{name}"));
    metadata.resource_version = Some("1".to_owned());
    metadata.creation_timestamp = None;
    let labels = metadata.labels.get_or_insert_default();
    if sketch.is_outdated {
        labels.remove("kubernetes.dask.org/template-hash");
        let container = &mut pod.spec.as_mut().unwrap().containers[0];
        container.image = Some("earlier".to_owned());
    }
    if !sketch.is_owned {
        let owner = &mut metadata.owner_references.as_mut().unwrap()[0];
        "somebody".clone_into(&mut owner.uid);
    }
    if let Some(mark) = sketch.mark {
        let annotations = metadata.annotations.get_or_insert_default();
        annotations.insert(DRAIN.to_owned(), mark.to_owned());
    }
    pod.status = Some(read(sketch.status.clone()));
    if is_ready(&pod) {
        let known = Known {
            uid: format!("uid-{name}"),
            group: "default".to_owned(),
            standing: Standing::Active,
            running: 3,
            held: 7,
            idle: 0,
        };
        world.known.insert(name.clone(), known);
    }
    world.pods.insert(name, pod);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn nothing_that_happens_loses_data_and_all_comes_to_rest(
        happenings in prop::collection::vec(happening(), 1..40),
        has_autoscale in any::<bool>(),
        surge in 0..3_u8,
    ) {
        let mut worker = json!({"replicas": 3});
        if has_autoscale {
            worker["autoscale"] = json!({"minimum": 1, "maximum": 6});
        }
        let mut world = World::of(json!({
            "worker": worker, "updateStrategy": {"maxSurge": surge, "maxUnavailable": 1},
        }));
        world.settle();
        let mut run = Run { world, history: Vec::new(), has_autoscale };
        for happening in &happenings {
            run.happen(happening);
            let world = &run.world;
            prop_assert!(world.lost.is_empty(), "{happening:?}: {:?}", world.deletions.last());
            prop_assert!(!has_autoscale || (1..=6).contains(&world.replicas(GROUP)));
            prop_assert!(world.pods.len() <= 6 + usize::from(surge.max(1)) + 6);
        }
        run.heal();
        prop_assert!(run.world.lost.is_empty());
        check_rest(&run.world)?;
    }

    #[test]
    fn whatever_is_there_comes_to_rest_and_others_are_left_alone(
        sketches in prop::collection::vec(sketch(), 0..10),
        replicas in 0..6_u32,
    ) {
        let mut model = World::settled(json!({"replicas": 1}));
        let template = model.pods.values().next().unwrap().clone();
        model.pods.clear();
        let mut world = World::new(json!({"replicas": replicas}));
        for sketch in &sketches {
            place(&mut world, sketch, &template);
        }
        let foreign = |world: &World| -> Vec<String> {
            let pods = world.pods.iter();
            let foreign = pods.filter(|(_, pod)| is_owned(&pod.metadata, "somebody"));
            foreign.map(|(name, _)| name.clone()).collect()
        };
        let others = foreign(&world);
        world.rounds(5);
        prop_assert!(world.lost.is_empty());
        for known in world.known.values_mut() {
            known.held = 0;
        }
        world.settle();
        prop_assert_eq!(foreign(&world), others);
        prop_assert!(world.lost.is_empty());
        prop_assert_eq!(world.pods_of(GROUP), replicas as usize);
    }
}

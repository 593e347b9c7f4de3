//! What holds for any sequence of events.

use crate::world::*;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use oxidask_operator_api::kubernetes::JobState;
use oxidask_operator_plan::ObjectKind;
use oxidask_operator_plan::job::{LOST_RUNNERS_MAX, Observed};
use proptest::prelude::*;
use serde_json::{Value, json};

/// What happens.
#[derive(Debug, Clone)]
enum Step {
    /// Time passes, or the clock is set.
    Time(i64),
    /// The operator plans, and what it plans is done.
    Plan,
    /// The operator plans and ends before the last step is done.
    Crash,
    /// From now on until something is written, the operator sees an old state.
    Freeze,
    Start,
    Succeed,
    Fail,
    Evict,
    Hold,
    RemovePod,
    EndPod,
    RemoveCluster,
    Collect,
    Suspend(bool),
    Quota(bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => Just(Step::Plan),
        2 => Just(Step::Crash),
        1 => Just(Step::Freeze),
        3 => (0..400_i64).prop_map(Step::Time),
        1 => (-5000..5000_i64).prop_map(Step::Time),
        4 => Just(Step::Start),
        1 => Just(Step::Succeed),
        3 => Just(Step::Fail),
        1 => Just(Step::Evict),
        1 => Just(Step::Hold),
        1 => Just(Step::RemovePod),
        1 => Just(Step::EndPod),
        1 => Just(Step::RemoveCluster),
        4 => Just(Step::Collect),
        2 => any::<bool>().prop_map(Step::Suspend),
        1 => any::<bool>().prop_map(Step::Quota),
    ]
}

fn spec() -> impl Strategy<Value = Value> {
    let limits = prop::option::of(0..4_u32);
    let deadlines = prop::option::of(1..3000_u64);
    let keep = prop::sample::select(vec!["Never", "OnFailure", "Always"]);
    (limits, deadlines, keep, 0..4_u8).prop_map(|(limit, deadline, keep, kind)| {
        let mut fields = json!({"keepCluster": keep});
        if let Some(limit) = limit {
            fields["backoffLimit"] = json!(limit);
        }
        if let Some(deadline) = deadline {
            fields["activeDeadlineSeconds"] = json!(deadline);
        }
        match kind {
            0 => sql(fields),
            1 => {
                let mut spec = stock(fields);
                spec["job"]["spec"]["restartPolicy"] = json!("Never");
                spec
            }
            2 => {
                let mut spec = sql(fields);
                let fields = spec.as_object_mut().unwrap();
                fields.remove("sql");
                fields.insert("script".to_owned(), json!({"source": "print(1)"}));
                spec
            }
            _ => {
                let mut spec = stock(json!({}));
                spec["job"]["spec"]["restartPolicy"] = json!("Never");
                spec
            }
        }
    })
}

/// The world and what the operator sees of it.
struct Play {
    world: World,
    frozen: Option<Observed>,
}

impl Play {
    fn plan(&mut self, is_crash: bool) {
        self.world.is_stale = self.frozen.is_some();
        let observed = match &self.frozen {
            Some(observed) => observed.clone(),
            None => self.world.observe(NAME),
        };
        let mut plan = self.world.plan_from(&observed);
        let again = self.world.plan_from(&observed);
        assert_eq!(
            plan.status, again.status,
            "the same snapshot, the same plan"
        );
        assert_eq!(plan.delete, again.delete);
        // The operator sees its own writes before it plans again.
        if !plan.apply.is_empty() || !plan.delete.is_empty() || plan.status.is_some() {
            self.frozen = None;
        }
        for object in &plan.apply {
            if object.kind() == ObjectKind::Pod {
                let starts = |annotations: Option<&std::collections::BTreeMap<String, String>>| {
                    annotations.unwrap()["kubernetes.dask.org/runner-start"].clone()
                };
                if let Some(present) = self.world.pods.get(RUNNER) {
                    let present = starts(present.metadata.annotations.as_ref());
                    let planned = starts(object.metadata().annotations.as_ref());
                    assert_eq!(present, planned, "never a second runner");
                }
            }
        }
        self.check_wake(&plan);
        if is_crash {
            if plan.delete.pop().is_none() {
                plan.apply.pop();
            }
            plan.events.clear();
        }
        self.world.carry_out(NAME, plan);
    }

    /// Where time decides, the operator looks at the clock again.
    fn check_wake(
        &self,
        plan: &oxidask_operator_plan::Plan<oxidask_operator_api::kubernetes::JobStatus>,
    ) {
        let job = &self.world.jobs[NAME];
        let status = plan.status.clone().unwrap_or_else(|| self.world.status());
        let is_final = status.job_status.is_some_and(JobState::is_final);
        let is_suspended = job.spec.suspend == Some(true);
        if is_final || is_suspended {
            return;
        }
        let has_deadline = job.spec.active_deadline_seconds.is_some();
        let now = self.world.now;
        let has_pause = status.next_attempt_time.as_ref().is_some_and(|time| {
            time.0 > at(now) && time.0 <= at(now + 360) && !self.world.is_stale
        });
        let is_leaving = self
            .world
            .pods
            .get(RUNNER)
            .is_some_and(|pod| pod.metadata.deletion_timestamp.is_some());
        if has_deadline || has_pause && !is_leaving && self.world.clusters.is_empty() {
            assert!(plan.wake_after.is_some(), "{status:#?}");
        }
    }

    fn pod_status(&mut self, status: Value) {
        let ends = |phase: &str| matches!(phase, "Succeeded" | "Failed");
        let Some(pod) = self.world.pods.get_mut(RUNNER) else {
            return;
        };
        let phase = pod.status.as_ref().and_then(|status| status.phase.clone());
        // Ended pods stay ended.
        if !phase.is_some_and(|phase| ends(&phase)) {
            pod.status = Some(read(status));
        }
    }

    fn step(&mut self, step: &Step) {
        let now = at(self.world.now);
        match step {
            Step::Time(seconds) => self.world.now += seconds,
            Step::Plan => self.plan(false),
            Step::Crash => self.plan(true),
            Step::Freeze => self.frozen = Some(self.world.observe(NAME)),
            Step::Start => self.world.play_kubelet(),
            Step::Succeed => self.pod_status(json!({"phase": "Succeeded"})),
            Step::Fail => self.pod_status(json!({"phase": "Failed"})),
            Step::Evict => self.pod_status(json!({"phase": "Failed", "reason": "Evicted"})),
            Step::Hold => self.pod_status(json!({"phase": "Pending"})),
            Step::RemovePod => {
                self.world.pods.remove(RUNNER);
            }
            Step::EndPod => {
                if let Some(pod) = self.world.pods.get_mut(RUNNER) {
                    pod.metadata.deletion_timestamp = Some(Time(now));
                }
            }
            Step::RemoveCluster => {
                if let Some(cluster) = self.world.clusters.get_mut(NAME) {
                    cluster.metadata.deletion_timestamp = Some(Time(now));
                }
            }
            Step::Collect => self.world.collect_garbage(),
            Step::Suspend(is_suspended) => {
                let job = self.world.jobs.get_mut(NAME).unwrap();
                if !job.spec.is_stock() && job.spec.suspend != Some(*is_suspended) {
                    job.spec.suspend = Some(*is_suspended);
                }
            }
            Step::Quota(is_full) => self.world.is_full = *is_full,
        }
    }

    fn check_counts(&self) {
        let job = &self.world.jobs[NAME];
        let status = self.world.status();
        let limit = job.spec.backoff_limit.unwrap_or(0);
        assert!(status.attempts.unwrap_or(0) <= limit + 1, "{status:#?}");
        assert!(
            status.lost_runners.unwrap_or(0) <= LOST_RUNNERS_MAX,
            "{status:#?}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn a_job_goes_forward_with_one_runner_and_comes_to_rest(
        spec in spec(),
        steps in prop::collection::vec(step(), 0..120),
    ) {
        let mut play = Play { world: World::new(spec), frozen: None };
        for step in &steps {
            play.step(step);
            play.check_counts();
        }
        // In the end all goes well.
        play.frozen = None;
        play.world.is_stale = false;
        play.step(&Step::Quota(false));
        play.step(&Step::Suspend(false));
        play.world.collect_garbage();
        for _ in 0..8 {
            play.world.now += 361;
            play.world.settle();
            play.pod_status(json!({"phase": "Succeeded"}));
            play.check_counts();
        }
        play.world.settle();
        let state = play.world.state();
        prop_assert!(state.is_some_and(JobState::is_final), "{state:?} {:#?}", play.world.status());
        let keep = play.world.jobs[NAME].spec.keep_cluster.unwrap_or_default();
        if keep == oxidask_operator_api::KeepCluster::Never {
            prop_assert!(play.world.clusters.is_empty());
        }
        prop_assert!(play.world.plan().is_empty());
        if play.world.jobs[NAME].spec.is_stock() {
            let value = serde_json::to_value(play.world.status()).unwrap();
            prop_assert!(value.as_object().unwrap().len() <= 5, "{value}");
        }
    }

    #[test]
    fn objects_of_others_are_never_touched(
        is_cluster_ours in any::<bool>(),
        is_runner_ours in any::<bool>(),
        phase in prop::sample::select(vec!["Pending", "Running", "Succeeded", "Failed"]),
        is_suspended in any::<bool>(),
        state in prop::sample::select(vec!["JobCreated", "Running", "Successful", "Failed"]),
    ) {
        let mut world = World::running(sql(json!({"activeDeadlineSeconds": 1})));
        world.job().spec.suspend = Some(is_suspended);
        world.set_runner(json!({"phase": phase}));
        world.now += 100;
        world.job().status = Some(read(json!({"jobStatus": state, "clusterName": NAME})));
        if !is_cluster_ours {
            world.clusters.get_mut(NAME).unwrap().metadata.owner_references = None;
        }
        if !is_runner_ours {
            world.runner().metadata.owner_references = None;
        }
        let plan = world.plan();
        for deletion in &plan.delete {
            prop_assert!(deletion.object.kind != ObjectKind::Cluster || is_cluster_ours);
            prop_assert!(deletion.object.kind != ObjectKind::Pod || is_runner_ours);
        }
        for object in &plan.apply {
            prop_assert!(object.kind() != ObjectKind::Cluster || is_cluster_ours);
            prop_assert!(object.kind() != ObjectKind::Pod || is_runner_ours);
        }
    }

    #[test]
    fn a_schedule_starts_each_time_once_whatever_the_clock_does(
        policy in prop::sample::select(vec!["Allow", "Forbid", "Replace"]),
        deadline in prop::option::of(0..3000_u64),
        steps in prop::collection::vec((-4000..9000_i64, any::<bool>(), 0..4_u8), 1..60),
    ) {
        let mut fields = json!({"schedule": "*/20 * * * *", "concurrencyPolicy": policy});
        if let Some(deadline) = deadline {
            fields["startingDeadlineSeconds"] = json!(deadline);
        }
        let mut world = World::new(sql(fields));
        for (seconds, ends, what) in steps {
            world.now += seconds;
            if what == 0 {
                let is_suspended = world.job().spec.suspend == Some(true);
                world.job().spec.suspend = Some(!is_suspended);
            }
            let before = world.log.len();
            world.settle();
            let made = world.log[before..].iter().filter(|line| line.starts_with("DaskJob "));
            prop_assert!(made.count() <= 2, "a pause starts one run: {:?}", &world.log[before..]);
            let active = world.jobs.values().filter(|job| {
                let state = job.status.as_ref().and_then(|status| status.job_status);
                job.metadata.name.as_deref() != Some(NAME) && !state.is_some_and(JobState::is_final)
            });
            prop_assert!(policy == "Allow" || active.count() <= 1);
            if ends {
                for pod in world.pods.values_mut() {
                    pod.status = Some(read(json!({"phase": "Succeeded"})));
                }
                world.settle();
            }
        }
        let mut runs: Vec<&String> = world.log.iter().filter(|l| l.starts_with("DaskJob ")).collect();
        let count = runs.len();
        runs.sort();
        runs.dedup();
        prop_assert_eq!(runs.len(), count, "a time twice");
    }
}

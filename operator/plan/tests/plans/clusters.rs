//! A cluster from its manifest to its end.

use crate::support::*;
use oxidask_identity::Role;
use oxidask_operator_api::kubernetes::Phase;
use oxidask_operator_plan::{
    APPLIED_HASH, AuthorityStep, CLUSTER_REPLICAS, DeletionReason, EventKind, Object,
};
use serde_json::json;

fn two_workers() -> World {
    World::with_cluster(cluster("flights", json!({"worker": {"replicas": 2}})))
}

#[test]
fn a_new_cluster_gets_certificates_then_service_scheduler_and_group() {
    let world = two_workers();
    let plan = world.plan_cluster("flights");
    let status = plan.status.unwrap();
    assert_eq!(status.phase, Some(Phase::Created));
    assert_eq!(status.observed_generation, Some(1));
    assert!(!is_true(&status.conditions, "Ready"));
    assert!(is_true(&status.conditions, "Reconciling"));
    assert!(!is_true(&status.conditions, "Stalled"));
    let request = plan.certificates.unwrap();
    assert_eq!(request.authority, Some(AuthorityStep::Create));
    assert!(request.needs_http_token);
    assert_eq!(request.roles, Role::ALL);
    assert_eq!(request.owner.uid, "uid-flights");
    assert_eq!(
        request.scheduler_dns_names,
        [
            "flights-scheduler",
            "flights-scheduler.science",
            "flights-scheduler.science.svc"
        ]
    );
    let applied: Vec<(String, &str)> = plan
        .apply
        .iter()
        .map(|object| (object.kind().to_string(), object.name()))
        .collect();
    assert_eq!(
        applied,
        [
            ("Service".to_owned(), "flights-scheduler"),
            ("PodDisruptionBudget".to_owned(), "flights-default"),
            ("Deployment".to_owned(), "flights-scheduler"),
            ("DaskWorkerGroup".to_owned(), "flights-default"),
        ]
    );
    for object in &plan.apply {
        let metadata = object.metadata();
        assert!(is_owned(metadata, Some("uid-flights")));
        assert_eq!(
            metadata.annotations.as_ref().unwrap()[APPLIED_HASH].len(),
            16
        );
        assert!(object.to_value().get("status").is_none());
    }
    assert!(plan.delete.is_empty());
}

#[test]
fn it_becomes_ready_and_then_there_is_nothing_to_do() {
    let mut world = two_workers();
    world.settle();
    let status = world.cluster_status("flights");
    assert_eq!(status.phase, Some(Phase::Running));
    assert_eq!((status.replicas, status.ready_replicas), (Some(2), Some(2)));
    assert_eq!(
        status.scheduler_address.as_deref(),
        Some("oxidask://flights-scheduler.science.svc:8786")
    );
    for (kind, wanted) in [
        ("Ready", true),
        ("SchedulerReady", true),
        ("WorkersReady", true),
        ("Reconciling", false),
        ("Stalled", false),
    ] {
        assert_eq!(is_true(&status.conditions, kind), wanted, "{kind}");
    }
    let ready = condition(&status.conditions, "Ready");
    assert_eq!(ready.message, "2 of 2 workers are ready");
    assert_eq!(ready.observed_generation, Some(1));
    assert!(world.has_event("Ready"));
    assert_eq!(world.workers().len(), 2);
    assert!(is_true(
        &world.group_status("flights-default").conditions,
        "Ready"
    ));
    let order: Vec<&str> = world
        .log
        .iter()
        .map(|line| line.split(' ').next().unwrap())
        .collect();
    let first = |kind: &str| order.iter().position(|found| *found == kind).unwrap();
    assert!(first("Secret") < first("Service") && first("DaskWorkerGroup") < first("Pod"));
}

#[test]
fn times_of_transitions_stay_while_the_status_does() {
    let mut world = two_workers();
    world.settle();
    let before = world.cluster_status("flights");
    world.now += 1000;
    world.settle();
    assert_eq!(world.cluster_status("flights"), before);
    let name = world.workers()[0].clone();
    world.pods.get_mut(&name).unwrap().status =
        Some(pod_status("Running", false, running(world.now)));
    world.round();
    let after = world.cluster_status("flights");
    let time = |status: &oxidask_operator_api::kubernetes::ClusterStatus, kind: &str| {
        condition(&status.conditions, kind)
            .last_transition_time
            .clone()
    };
    assert_ne!(time(&before, "Ready"), time(&after, "Ready"));
    assert_eq!(
        time(&before, "SchedulerReady"),
        time(&after, "SchedulerReady")
    );
    assert_eq!(
        condition(&after.conditions, "Ready").message,
        "1 of 2 workers are ready"
    );
    assert_eq!(after.phase, Some(Phase::Running));
}

#[test]
fn what_was_deleted_is_made_again() {
    let mut world = two_workers();
    world.settle();
    world.services.clear();
    world.deployments.clear();
    world.secrets.remove("flights-tls-client");
    let plan = world.plan_cluster("flights");
    assert_eq!(plan.apply.len(), 2);
    let request = plan.certificates.unwrap();
    assert_eq!(
        (request.authority, request.roles),
        (None, vec![Role::Client])
    );
    assert_eq!(plan.status.unwrap().phase, Some(Phase::Pending));
    world.settle();
    world.groups.clear();
    world.settle();
    assert!(is_true(
        &world.cluster_status("flights").conditions,
        "Ready"
    ));
    assert_eq!(world.workers().len(), 2);
}

#[test]
fn certificates_are_renewed_a_week_before_their_end() {
    let mut world = two_workers();
    world.settle();
    let wake_after = world.plan_cluster("flights").wake_after.unwrap();
    assert_eq!(wake_after.as_secs(), 24 * 3600);
    world.now += 82 * DAY;
    assert!(world.plan_cluster("flights").certificates.is_none());
    world.now += DAY;
    let request = world.plan_cluster("flights").certificates.unwrap();
    assert_eq!(request.roles, Role::ALL);
    assert_eq!(request.lifetime.as_secs(), 90 * 24 * 3600);
    assert_eq!(request.authority, None);
    world.settle();
    let worker = world.secrets.get_mut("flights-tls-worker").unwrap();
    worker.1.not_after = None;
    worker.1.written_at = None;
    let request = world.plan_cluster("flights").certificates.unwrap();
    assert_eq!(request.roles, [Role::Worker]);
}

#[test]
fn the_lifetime_can_be_set_down_to_five_minutes() {
    let spec = json!({"worker": {}, "tls": {"certificateLifetime": "5m"}});
    let mut world = World::with_cluster(cluster("flights", spec));
    let request = world.plan_cluster("flights").certificates.unwrap();
    assert_eq!(request.lifetime.as_secs(), 300);
    world.settle();
    let end = at(world.now + 300);
    for (name, (_, state)) in &mut world.secrets {
        if name.contains("-tls-") {
            state.not_after = Some(end);
        }
    }
    world.now += 190;
    assert!(world.plan_cluster("flights").certificates.is_none());
    world.now += 15;
    let request = world.plan_cluster("flights").certificates.unwrap();
    assert_eq!(request.roles.len(), 4, "a third of the lifetime is left");
    for (tls, part) in [
        (json!({"certificateLifetime": "4m"}), "certificateLifetime"),
        (
            json!({"certificateLifetime": "soon"}),
            "certificateLifetime",
        ),
        (
            json!({"certificateLifetime": "10m", "renewBefore": "6m"}),
            "renewBefore",
        ),
        (
            json!({"caSecretRef": {"name": "a"}, "issuerRef": {"name": "b"}}),
            "both",
        ),
        (
            json!({"issuerRef": {"name": "b"}, "certificateLifetime": "10m"}),
            "60m",
        ),
    ] {
        let spec = json!({"worker": {}, "tls": tls});
        let mut world = World::with_cluster(cluster("flights", spec));
        world.settle();
        let status = world.cluster_status("flights");
        let stalled = condition(&status.conditions, "Stalled");
        assert_eq!(
            (stalled.status.as_str(), stalled.reason.as_str()),
            ("True", "OX105")
        );
        assert!(stalled.message.contains(part), "{}", stalled.message);
    }
}

#[test]
fn a_lost_authority_comes_back_beside_what_is_trusted() {
    let mut world = two_workers();
    world.settle();
    world.secrets.get_mut("flights-ca").unwrap().1.has_all_keys = false;
    let request = world.plan_cluster("flights").certificates.unwrap();
    assert_eq!(request.authority, Some(AuthorityStep::Create));
    assert!(request.roles.is_empty(), "pods have to trust it first");
}

#[test]
fn lost_tokens_come_back() {
    let mut world = two_workers();
    world.settle();
    world.secrets.remove("flights-http-token");
    let request = world.plan_cluster("flights").certificates.unwrap();
    assert!(request.needs_http_token && request.authority.is_none() && request.roles.is_empty());
    world.settle();
    assert!(world.secrets.contains_key("flights-http-token"));
}

#[test]
fn a_bad_name_is_an_error_and_nothing_is_made() {
    for name in ["has.dot", "-a", &"x".repeat(54)] {
        let mut world = World::with_cluster(cluster(name, json!({"worker": {}})));
        let plan = world.plan_cluster(name);
        assert!(plan.apply.is_empty() && plan.certificates.is_none() && plan.delete.is_empty());
        assert_eq!(reasons(&plan.events), ["Stalled"]);
        assert_eq!(plan.events[0].kind, EventKind::Warning);
        world.settle();
        let status = world.cluster_status(name);
        assert_eq!(status.phase, Some(Phase::Error));
        let stalled = condition(&status.conditions, "Stalled");
        assert_eq!(
            (stalled.status.as_str(), stalled.reason.as_str()),
            ("True", "OX502")
        );
        assert!(stalled.message.contains("; hint: "), "{}", stalled.message);
        assert!(!is_true(&status.conditions, "Reconciling"));
        assert_eq!(world.events.len(), 1, "one event, not one a round");
    }
}

#[test]
fn python_pods_and_unusable_templates_stall() {
    let template = json!({"containers": [{"name": "worker", "image": "dask"}]});
    for (spec, code) in [
        (json!({"runtime": "Dask", "worker": {}}), "OX540"),
        (json!({"worker": {"spec": template}}), "OX540"),
        (
            json!({"worker": {"volumes": [{"nam": 1, "name": 3}]}}),
            "OX503",
        ),
        (
            json!({"worker": {}, "scheduler": {"service": {"ports": 1}}}),
            "OX503",
        ),
        (
            json!({"worker": {}, "workerGroups": [{"name": "x".repeat(60)}]}),
            "OX502",
        ),
    ] {
        let mut world = World::with_cluster(cluster("flights", spec));
        world.settle();
        let status = world.cluster_status("flights");
        assert_eq!(condition(&status.conditions, "Stalled").reason, code);
        assert!(is_true(&status.conditions, "Stalled"));
        assert!(world.services.is_empty() && world.pods.is_empty() && world.groups.is_empty());
    }
}

#[test]
fn a_repaired_spec_goes_on() {
    let mut world =
        World::with_cluster(cluster("flights", json!({"runtime": "Dask", "worker": {}})));
    world.settle();
    let object = world.clusters.get_mut("flights").unwrap();
    object.spec.runtime = None;
    object.metadata.generation = Some(2);
    world.settle();
    let status = world.cluster_status("flights");
    assert!(is_true(&status.conditions, "Ready"));
    assert_eq!(status.observed_generation, Some(2));
}

#[test]
fn objects_of_others_are_left_alone() {
    let mut world = two_workers();
    let service = read(json!({"metadata": metadata("flights-scheduler", "uid-other")}));
    world
        .services
        .insert("flights-scheduler".to_owned(), service);
    world.settle();
    let status = world.cluster_status("flights");
    let stalled = condition(&status.conditions, "Stalled");
    assert_eq!(stalled.reason, "OX504");
    assert!(stalled.message.contains("Service `flights-scheduler`"));
    assert!(world.deployments.is_empty());
    world.services.clear();
    world.settle();
    assert!(is_true(
        &world.cluster_status("flights").conditions,
        "Ready"
    ));
}

#[test]
fn the_clusters_number_is_applied_only_when_it_changes() {
    let mut world = two_workers();
    world.settle();
    world
        .groups
        .get_mut("flights-default")
        .unwrap()
        .spec
        .worker
        .replicas = Some(5);
    world.settle();
    assert_eq!(world.workers().len(), 5, "scaling the group counts");
    assert_eq!(world.cluster_status("flights").replicas, Some(5));

    // Another change of the cluster keeps the group's number, and insists on its version.
    let object = world.clusters.get_mut("flights").unwrap();
    object.spec.worker.threads = Some(4);
    object.metadata.generation = Some(2);
    let plan = world.plan_cluster("flights");
    let [Object::WorkerGroup(group)] = plan.apply.as_slice() else {
        panic!("{:#?}", plan.apply);
    };
    assert_eq!(group.spec.worker.replicas, Some(5));
    assert_eq!(group.spec.worker.threads, Some(4));
    let version = &world.groups["flights-default"].metadata.resource_version;
    assert_eq!(&group.metadata.resource_version, version);
    world.settle();
    assert_eq!(world.workers().len(), 5);

    // A change of the cluster's number wins.
    let object = world.clusters.get_mut("flights").unwrap();
    object.spec.worker.replicas = Some(3);
    object.metadata.generation = Some(3);
    let plan = world.plan_cluster("flights");
    let [Object::WorkerGroup(group)] = plan.apply.as_slice() else {
        panic!("{:#?}", plan.apply);
    };
    assert_eq!(
        group.metadata.annotations.as_ref().unwrap()[CLUSTER_REPLICAS],
        "3"
    );
    assert_eq!(group.metadata.resource_version, None);
    world.settle();
    assert_eq!(world.workers().len(), 3);
    assert!(is_true(
        &world.cluster_status("flights").conditions,
        "Ready"
    ));
}

#[test]
fn further_groups_come_and_go_and_made_ones_are_adopted() {
    let groups = json!([{"name": "gpu", "replicas": 1, "taskResources": {"gpu": 1}}]);
    let spec = json!({"worker": {"replicas": 1}, "workerGroups": groups});
    let mut world = World::with_cluster(cluster("flights", spec));
    let mine = worker_group("flights-mine", "flights", json!({"replicas": 2}));
    let other = worker_group("other-default", "other", json!({"replicas": 2}));
    world.groups.insert("flights-mine".to_owned(), mine);
    world.groups.insert("other-default".to_owned(), other);
    world.settle();
    assert_eq!(world.workers().len(), 4);
    assert!(is_owned(
        &world.groups["flights-mine"].metadata,
        Some("uid-flights")
    ));
    assert!(
        world.groups["other-default"]
            .metadata
            .owner_references
            .is_none()
    );
    let ready = world.cluster_status("flights");
    assert_eq!(
        condition(&ready.conditions, "Ready").message,
        "4 of 4 workers are ready"
    );
    assert_eq!(
        ready.replicas,
        Some(1),
        "the scale subresource is about the default group"
    );

    let object = world.clusters.get_mut("flights").unwrap();
    object.spec.worker_groups.clear();
    object.metadata.generation = Some(2);
    world.settle();
    let removed = |reason: DeletionReason| {
        let mut deletions = world.deletions.iter();
        deletions
            .find(|deletion| deletion.reason == reason)
            .unwrap()
    };
    assert_eq!(world.deletions.len(), 2, "the group and its budget");
    assert_eq!(
        removed(DeletionReason::GroupRemoved).object.name,
        "flights-gpu"
    );
    assert!(
        world.groups.contains_key("flights-mine"),
        "a user's group stays"
    );
    assert_eq!(world.workers().len(), 3);
}

#[test]
fn a_load_balancer_without_an_address_is_pending() {
    let spec = json!({"worker": {}, "scheduler": {"service": {"type": "LoadBalancer"}}});
    let mut world = World::with_cluster(cluster("flights", spec));
    world.settle();
    let status = world.cluster_status("flights");
    assert_eq!(status.phase, Some(Phase::Pending));
    assert!(
        is_true(&status.conditions, "Ready"),
        "pods reach it all the same"
    );
    let service = world.services.get_mut("flights-scheduler").unwrap();
    service.status = Some(read(
        json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}}),
    ));
    world.settle();
    assert_eq!(world.cluster_status("flights").phase, Some(Phase::Running));
}

#[test]
fn a_pod_that_cannot_start_is_named_once() {
    let mut world = two_workers();
    world.settle();
    world.events.clear();
    let name = world.workers()[1].clone();
    let fail = |world: &mut World, reason: &str, message: &str| {
        let status = pod_status("Pending", false, waiting(reason, message));
        world.pods.get_mut(&name).unwrap().status = Some(status);
    };
    fail(&mut world, "ErrImagePull", "not found");
    world.settle();
    let message = |world: &World| {
        condition(&world.cluster_status("flights").conditions, "Ready")
            .message
            .clone()
    };
    let wanted = format!(
        "1 of 2 workers are ready; pod `{name}` cannot start: ImagePullBackOff: image `image`: \
         not found"
    );
    assert_eq!(message(&world), wanted);
    fail(
        &mut world,
        "ImagePullBackOff",
        "Back-off pulling image \"image\": ErrImagePull: not found",
    );
    assert!(
        world.plan_cluster("flights").is_empty(),
        "kubelet's to and fro changes nothing"
    );
    let count = |world: &World| {
        let told = world
            .events
            .iter()
            .filter(|event| event.reason == "PodCannotStart");
        told.filter(|event| event.note.starts_with("OX505: "))
            .count()
    };
    world.settle();
    assert_eq!(count(&world), 2, "one by the cluster and one by the group");
    fail(
        &mut world,
        "CreateContainerConfigError",
        "secret \"a\" not found",
    );
    world.settle();
    assert_eq!(count(&world), 4);
    assert!(message(&world).contains("CreateContainerConfigError: secret \"a\" not found"));
}

#[test]
fn an_object_that_is_being_deleted_gets_no_plan() {
    let mut world = two_workers();
    world.settle();
    let now = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(1)));
    world.services.clear();
    world.pods.clear();
    world
        .clusters
        .get_mut("flights")
        .unwrap()
        .metadata
        .deletion_timestamp = now;
    assert!(world.plan_cluster("flights").is_empty());
    assert!(world.plan_group("flights-default").apply.is_empty());
    world.collect_garbage();
    let left = world.services.len() + world.deployments.len() + world.groups.len();
    assert_eq!(left + world.pods.len() + world.secrets.len(), 0);
}

#[test]
fn a_group_that_cannot_be_operated_shows_in_its_cluster() {
    let mut world = two_workers();
    let mine = worker_group("mine", "flights", json!({"tolerations": [1]}));
    world.groups.insert("mine".to_owned(), mine);
    world.settle();
    let status = world.cluster_status("flights");
    let message = &condition(&status.conditions, "Ready").message;
    let wanted = "2 of 3 workers are ready; group `mine`: `spec.worker.tolerations[0]` cannot be";
    assert!(message.starts_with(wanted), "{message}");
}

//! Names, labels, variables, phases, repair.

use crate::world::*;
use oxidask_operator_api::kubernetes::Phase;
use oxidask_operator_plan::dask::{ROUTES, ROUTES_VARIABLE};
use serde_json::{Value, json};

fn environment(object: &Value) -> Vec<(String, String)> {
    let containers = object["spec"]["template"]["spec"]["containers"]
        .as_array()
        .unwrap();
    let variables = containers[0]["env"].as_array().unwrap();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    variables
        .iter()
        .map(|it| (text(&it["name"]), text(&it["value"])))
        .collect()
}

#[test]
fn objects_have_the_names_labels_and_variables_of_dask_kubernetes() {
    let mut spec = cluster_spec(2);
    spec["worker"]["metadata"] = json!({"labels": {"own": "1"}, "annotations": {"note": "x"}});
    let mut world = World::new(spec);
    let metadata = &mut world.clusters.get_mut("c").unwrap().metadata;
    metadata.labels = Some([("team".to_owned(), "a".to_owned())].into());
    world.rounds(4);
    let workers = world.workers("c-default");
    assert_eq!(workers.len(), 2);
    let digits = workers[0].strip_prefix("c-default-worker-").unwrap();
    assert!(digits.len() == 10 && digits.bytes().all(|it| it.is_ascii_hexdigit()));
    let worker = serde_json::to_value(&world.deployments[&workers[0]]).unwrap();
    let labels = json!({
        "dask.org/cluster-name": "c", "dask.org/workergroup-name": "c-default",
        "dask.org/component": "worker", "sidecar.istio.io/inject": "false",
        "team": "a", "own": "1",
    });
    assert_eq!(worker["metadata"]["labels"], labels);
    assert_eq!(worker["spec"]["template"]["metadata"]["labels"], labels);
    assert_eq!(
        worker["spec"]["template"]["metadata"]["annotations"],
        json!({"note": "x"})
    );
    assert_eq!(worker["spec"]["replicas"], 1);
    let address = "tcp://c-scheduler.science.svc:8786".to_owned();
    let wanted = [
        ("WORKER_ENV".to_owned(), "hello-world".to_owned()),
        ("DASK_WORKER_NAME".to_owned(), workers[0].clone()),
        ("DASK_SCHEDULER_ADDRESS".to_owned(), address),
    ];
    assert_eq!(environment(&worker), wanted);
    let scheduler = serde_json::to_value(&world.deployments["c-scheduler"]).unwrap();
    let wanted = [
        ("SCHEDULER_ENV".to_owned(), "x".to_owned()),
        (ROUTES_VARIABLE.to_owned(), ROUTES.to_owned()),
    ];
    assert_eq!(environment(&scheduler), wanted);
    assert_eq!(
        serde_json::from_str::<Vec<String>>(ROUTES).unwrap().len(),
        7
    );
    let service = serde_json::to_value(&world.services["c-scheduler"]).unwrap();
    assert_eq!(
        service["metadata"]["labels"]["dask.org/component"],
        "scheduler"
    );
    assert_eq!(
        service["metadata"]["labels"]["sidecar.istio.io/inject"],
        Value::Null
    );
    let group = &world.groups["c-default"].metadata.labels.as_ref().unwrap()["dask.org/component"];
    assert_eq!(group, "workergroup");
}

#[test]
fn variables_of_the_user_are_kept() {
    let mut spec = cluster_spec(1);
    let own = json!([{"name": "DASK_WORKER_NAME", "value": "test-worker"}]);
    spec["worker"]["spec"]["containers"][0]["env"] = own;
    let routes = json!([{"name": ROUTES_VARIABLE, "value": "[]"}]);
    spec["scheduler"]["spec"]["containers"][0]["env"] = routes;
    let mut world = World::new(spec);
    world.rounds(4);
    let worker = serde_json::to_value(&world.deployments[&world.workers("c-default")[0]]).unwrap();
    assert_eq!(environment(&worker)[0].1, "test-worker");
    let scheduler = serde_json::to_value(&world.deployments["c-scheduler"]).unwrap();
    assert_eq!(
        environment(&scheduler),
        [(ROUTES_VARIABLE.to_owned(), "[]".to_owned())]
    );
}

#[test]
fn short_fields_alone_are_enough_but_an_image() {
    let mut world = World::new(json!({
        "runtime": "Dask", "scheduler": {"image": IMAGE},
        "worker": {"replicas": 1, "image": IMAGE, "env": [{"name": "A", "value": "b"}]},
    }));
    world.rounds(4);
    let worker = serde_json::to_value(&world.deployments[&world.workers("c-default")[0]]).unwrap();
    assert_eq!(
        worker["spec"]["template"]["spec"]["containers"][0]["args"][0],
        "dask-worker"
    );
    assert_eq!(environment(&worker)[0].0, "A");
    assert_eq!(
        world.services["c-scheduler"]
            .spec
            .as_ref()
            .unwrap()
            .ports
            .as_ref()
            .unwrap()
            .len(),
        2
    );
    let without = json!({"runtime": "Dask", "worker": {"replicas": 1}});
    let plan = World::new(without).plan_cluster("c");
    let status = plan.status.unwrap();
    assert!(plan.apply.is_empty());
    assert!(
        status
            .conditions
            .iter()
            .any(|it| it.type_ == "Stalled" && it.message.contains("image"))
    );
}

/// `Running` is written by two writers there, and one of them may win with `Pending`.
#[test]
fn running_means_that_the_service_has_an_address() {
    let mut world = World::new(cluster_spec(1));
    assert_eq!(
        world.plan_cluster("c").status.unwrap().phase,
        Some(Phase::Created)
    );
    world.rounds(2);
    assert_eq!(
        world.clusters["c"].status.as_ref().unwrap().phase,
        Some(Phase::Running)
    );
    let mut spec = cluster_spec(1);
    spec["scheduler"]["service"]["type"] = json!("LoadBalancer");
    let mut world = World::new(spec);
    world.rounds(3);
    assert_eq!(
        world.clusters["c"].status.as_ref().unwrap().phase,
        Some(Phase::Pending)
    );
    let service = world.services.get_mut("c-scheduler").unwrap();
    service.status = read(json!({"loadBalancer": {"ingress": [{"ip": "1.2.3.4"}]}}));
    world.rounds(1);
    assert_eq!(
        world.clusters["c"].status.as_ref().unwrap().phase,
        Some(Phase::Running)
    );
}

#[test]
fn a_bad_name_is_an_error_and_makes_nothing() {
    for name in ["c.d", &"x".repeat(54)] {
        let mut world = World::new(cluster_spec(1));
        let mut cluster = world.clusters.remove("c").unwrap();
        cluster.metadata.name = Some(name.to_owned());
        world.clusters.insert(name.to_owned(), cluster);
        world.rounds(2);
        let status = world.clusters[name].status.clone().unwrap();
        assert_eq!(status.phase, Some(Phase::Error));
        assert!(world.deployments.is_empty() && world.services.is_empty());
    }
}

#[test]
fn a_settled_cluster_is_left_alone() {
    let mut world = World::settled(3);
    world.rounds(5);
    assert_eq!(world.written, 0);
    assert!(world.plan_cluster("c").is_empty() && world.plan_group("c-default").is_empty());
}

/// Deleted and edited objects stay as they are there, and a half-made cluster stays half-made.
#[test]
fn deleted_and_edited_objects_are_repaired_and_nobody_is_argued_with() {
    let mut world = World::settled(2);
    let worker = world.workers("c-default")[0].clone();
    world.services.clear();
    world.deployments.remove("c-scheduler");
    world.groups.remove("c-default");
    world.rounds(6);
    assert!(world.services.contains_key("c-scheduler"));
    assert!(world.deployments.contains_key("c-scheduler"));
    assert_eq!(world.workers("c-default").len(), 2);
    let edit = |world: &mut World, image: &str| {
        let scheduler = world.deployments.get_mut("c-scheduler").unwrap();
        let spec = scheduler
            .spec
            .as_mut()
            .unwrap()
            .template
            .spec
            .as_mut()
            .unwrap();
        spec.containers[0].image = Some(image.to_owned());
    };
    let image = |world: &World| {
        let scheduler = &world.deployments["c-scheduler"];
        let spec = scheduler
            .spec
            .as_ref()
            .unwrap()
            .template
            .spec
            .as_ref()
            .unwrap();
        spec.containers[0].image.clone().unwrap()
    };
    for _ in 0..2 {
        edit(&mut world, "other");
        world.rounds(3);
        assert_eq!(image(&world), IMAGE);
    }
    assert!(world.plan_cluster("c").is_empty());
    // Something that puts its own image into every object.
    world.written = 0;
    for _ in 0..10 {
        edit(&mut world, "mirror/dask");
        world.rounds(1);
        edit(&mut world, "mirror/dask");
    }
    assert!(world.written <= 2, "{}", world.written);
    drop(worker);
}

/// Labels of Argo CD and Helm are copied to every child there, which makes Argo CD prune them.
#[test]
fn labels_of_tools_are_not_handed_down_and_new_labels_restart_nothing() {
    let mut world = World::settled(1);
    let before = world.deployments.clone();
    let metadata = &mut world.clusters.get_mut("c").unwrap().metadata;
    let labels = [("argocd.argoproj.io/instance", "x"), ("team", "b")];
    metadata.labels = Some(
        labels
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
    );
    world.rounds(4);
    for (name, deployment) in &world.deployments {
        let template =
            |it: &k8s_openapi::api::apps::v1::Deployment| it.spec.clone().unwrap().template;
        assert_eq!(template(deployment), template(&before[name]), "{name}");
        let labels = deployment.metadata.labels.as_ref().unwrap();
        assert!(!labels.contains_key("argocd.argoproj.io/instance"));
    }
    assert_eq!(
        world.deployments["c-scheduler"]
            .metadata
            .labels
            .as_ref()
            .unwrap()["team"],
        "b"
    );
}

/// The group's own number stays there as well; the cluster's counts only when it is changed.
#[test]
fn both_ways_of_scaling_work_and_do_not_fight() {
    let mut world = World::settled(1);
    world.scale("c-default", 3);
    world.rounds(4);
    assert_eq!(world.workers("c-default").len(), 3);
    let cluster = world.clusters.get_mut("c").unwrap();
    cluster.spec.worker.replicas = Some(2);
    world.rounds(8);
    assert_eq!(world.workers("c-default").len(), 2);
}

/// A cluster that was never idle raises an error every five seconds there.
#[test]
fn an_idle_cluster_ends_and_a_busy_one_does_not() {
    let mut spec = cluster_spec(1);
    spec["idleTimeout"] = json!(60);
    let mut world = World::new(spec);
    world.rounds(5);
    world.now += 600;
    world.rounds(1);
    assert!(world.clusters.contains_key("c"));
    world.idle_since = Some(world.now);
    assert!(world.plan_cluster("c").wake_after.is_some());
    world.now += 60;
    world.rounds(1);
    assert_eq!(world.deleted, ["c"]);
}

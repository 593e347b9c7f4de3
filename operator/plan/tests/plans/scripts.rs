//! Jobs of Python programs, and images of the user's own.

use k8s_openapi::api::core::v1::{Container, PodSpec};
use serde_json::{Value, json};

use crate::support::*;

/// What the strictest pod policy of Kubernetes asks of a container.
fn assert_restricted(container: &Container) {
    let context = container.security_context.as_ref().unwrap();
    assert_eq!(context.allow_privilege_escalation, Some(false));
    assert_eq!(context.read_only_root_filesystem, Some(true));
    let dropped = context
        .capabilities
        .as_ref()
        .unwrap()
        .drop
        .as_ref()
        .unwrap();
    assert_eq!(dropped, &["ALL".to_owned()]);
}

fn job(worker: Value, script: Value) -> World {
    let spec = json!({"cluster": {"spec": {"worker": worker}}, "script": script});
    let mut world = World::with_job(job_of("flights", spec));
    world.settle();
    world
}

fn runner(world: &World) -> PodSpec {
    world.pods["flights-runner"].spec.clone().unwrap()
}

fn worker(world: &World) -> PodSpec {
    let name = world.workers()[0].clone();
    world.pods[&name].spec.clone().unwrap()
}

fn value<'a>(container: &'a Container, name: &str) -> Option<&'a str> {
    let mut variables = container.env.iter().flatten();
    let found = variables.find(|variable| variable.name == name)?;
    found.value.as_deref()
}

fn mounts(container: &Container) -> Vec<&str> {
    let mounts = container.volume_mounts.iter().flatten();
    mounts.map(|mount| mount.mount_path.as_str()).collect()
}

#[test]
fn the_runner_of_a_script() {
    let mut world = job(
        json!({"image": "registry/tools:1"}),
        json!({"source": "print(1)\n", "args": ["--rows", "10"],
               "env": [{"name": "MODE", "value": "fast"}]}),
    );
    world.pods.remove("flights-runner");
    world.config_maps.clear();
    let plan = world.plan_job("flights");
    let shown: Vec<String> = plan
        .apply
        .iter()
        .map(|object| serde_json::to_string_pretty(&object.to_value()).unwrap())
        .collect();
    insta::assert_snapshot!("script_work", shown[0]);
    insta::assert_snapshot!("script_runner_pod", shown[1]);
}

#[test]
fn a_script_in_a_config_map_is_mounted_from_there() {
    let reference = json!({"name": "programs", "key": "a.py"});
    let world = job(json!({}), json!({"configMapKeyRef": reference}));
    let manifest = &world.config_maps["flights-work"].data.as_ref().unwrap()["job.json"];
    let manifest: Value = serde_json::from_str(manifest).unwrap();
    assert_eq!(manifest["spec"]["script"], json!({"file": "script.py"}));
    let spec = serde_json::to_value(runner(&world)).unwrap();
    let volumes = spec["volumes"].as_array().unwrap();
    let work = volumes.iter().find(|it| it["name"] == "oxidask-work");
    let sources = &work.unwrap()["projected"]["sources"];
    assert_eq!(
        sources[1]["configMap"],
        json!({"name": "programs", "items": [{"key": "a.py", "path": "script.py"}]})
    );
}

#[test]
fn the_runner_of_a_script_finds_what_the_workers_find() {
    let world = job(
        json!({
            "image": "registry/tools:1",
            "resources": {"limits": {"cpu": 2, "nvidia.com/gpu": 1}},
            "nodeSelector": {"gpu": "yes"},
            "workingDir": "/work",
            "serviceAccountName": "reader",
            "env": [{"name": "MODE", "value": "slow"}, {"name": "REGION", "value": "eu"}],
            "volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": "d"}}],
            "volumeMounts": [{"name": "d", "mountPath": "/work/d"}],
        }),
        json!({"source": "a", "env": [
            {"name": "MODE", "value": "fast"},
            {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
        ]}),
    );
    let spec = runner(&world);
    let container = &spec.containers[0];
    assert_eq!(container.image.as_deref(), Some("registry/tools:1"));
    assert_eq!(container.working_dir.as_deref(), Some("/work"));
    assert_eq!(value(container, "OXIDASK_BASE_DIR"), Some("/work"));
    assert_eq!(value(container, "MODE"), Some("fast"));
    assert_eq!(value(container, "REGION"), Some("eu"));
    let mut variables = container.env.iter().flatten();
    assert!(variables.any(|it| it.name == "KEY" && it.value_from.is_some()));
    assert!(mounts(container).contains(&"/work/d"));
    assert_eq!(spec.service_account_name.as_deref(), Some("reader"));
    assert!(
        container.resources.is_none(),
        "the devices are the workers'"
    );
    assert!(
        spec.node_selector.is_none(),
        "it stands beside the scheduler"
    );
    let manifest = &world.config_maps["flights-work"].data.as_ref().unwrap()["job.json"];
    assert!(!manifest.contains("fast") && !manifest.contains("secretKeyRef"));
}

#[test]
fn the_runner_of_a_script_takes_image_and_files_from_a_pod_template() {
    let template = json!({
        "containers": [
            {"name": "side", "image": "side:1"},
            {"name": "worker", "image": "registry/tools:1", "command": ["dask-worker"],
             "resources": {"limits": {"memory": "1Gi"}},
             "env": [{"name": "A", "value": "1"}],
             "volumeMounts": [{"name": "d", "mountPath": "/d"}]},
        ],
        "volumes": [{"name": "d", "emptyDir": {}}],
        "securityContext": {"runAsUser": 1000},
        "nodeSelector": {"gpu": "yes"},
    });
    let world = job(json!({"spec": template}), json!({"source": "a"}));
    let spec = runner(&world);
    assert_eq!(spec.containers.len(), 1);
    let container = &spec.containers[0];
    assert_eq!(container.name, "runner");
    assert_eq!(container.image.as_deref(), Some("registry/tools:1"));
    assert_eq!(
        container.command.as_ref().unwrap(),
        &["/opt/oxidask/oxidask"]
    );
    assert_eq!(value(container, "A"), Some("1"));
    assert!(mounts(container).contains(&"/d"));
    assert!(container.resources.is_none() && spec.node_selector.is_none());
    assert_eq!(spec.security_context.unwrap().run_as_user, Some(1000));
}

#[test]
fn the_program_is_brought_into_images_of_the_user() {
    let limits = json!({"limits": {"cpu": 1, "memory": "1Gi"}});
    let world = job(
        json!({"image": "registry/tools:1", "resources": limits}),
        json!({"source": "a"}),
    );
    for spec in [runner(&world), worker(&world)] {
        let bringing = &spec.init_containers.as_ref().unwrap()[0];
        assert_eq!(bringing.image.as_ref(), Some(&settings().runtime_image));
        assert_eq!(bringing.args.as_ref().unwrap(), &["unpack", "/brought"]);
        assert_eq!(bringing.command, None);
        assert_restricted(bringing);
        let main = &spec.containers[0];
        assert_restricted(main);
        assert_eq!(bringing.resources, main.resources);
        assert_eq!(main.command.as_ref().unwrap(), &["/opt/oxidask/oxidask"]);
        assert!(mounts(main).contains(&"/opt/oxidask"));
        assert_eq!(value(main, "PYTHONPATH"), Some("/opt/oxidask/python"));
        assert_eq!(value(main, "HOME"), Some("/tmp"));
        let context = spec.security_context.as_ref().unwrap();
        assert_eq!(context.run_as_non_root, Some(true));
    }
    let deployment = world.deployments["flights-scheduler"].spec.clone().unwrap();
    let scheduler = deployment.template.spec.unwrap();
    assert!(scheduler.init_containers.is_none());
    let image = scheduler.containers[0].image.as_ref();
    assert_eq!(image, Some(&settings().runtime_image));
}

#[test]
fn images_of_ours_have_the_program() {
    let own = format!("elsewhere.example.com/{}", settings().runtime_image);
    for image in [json!(null), json!(own)] {
        let mut fields = json!({"replicas": 1});
        if !image.is_null() {
            fields["image"] = image;
        }
        let world = job(fields, json!({"source": "a"}));
        for spec in [runner(&world), worker(&world)] {
            assert!(spec.init_containers.is_none());
            assert_eq!(spec.containers[0].command, None);
        }
    }
}

#[test]
fn the_environment_of_the_user_wins_over_ours() {
    let env = json!([{"name": "PYTHONPATH", "value": "/mine"}, {"name": "HOME", "value": "/h"}]);
    let world = job(
        json!({"image": "registry/tools:1", "env": env}),
        json!({"source": "a"}),
    );
    for spec in [runner(&world), worker(&world)] {
        let container = &spec.containers[0];
        assert_eq!(value(container, "PYTHONPATH"), Some("/mine"));
        assert_eq!(value(container, "HOME"), Some("/h"));
    }
}

#[test]
fn other_kinds_of_work_run_in_the_image_of_the_scheduler() {
    let spec = json!({
        "cluster": {"spec": {"worker": {"image": "registry/tools:1"}}},
        "sql": {"statements": "SELECT 1"},
    });
    let mut world = World::with_job(job_of("flights", spec));
    world.settle();
    let spec = runner(&world);
    assert!(spec.init_containers.is_none());
    let image = spec.containers[0].image.as_ref();
    assert_eq!(image, Some(&settings().runtime_image));
    assert!(worker(&world).init_containers.is_some());
}

//! The network policy of a cluster: who may open a connection to its pods.
//!
//! Owns its rules. Every connection is mutual TLS or has a token anyway; the policy keeps strangers
//! from knocking. What leaves the pods is not restricted: data lies anywhere.

use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort,
    NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use oxidask_operator_api::kubernetes::DaskCluster;

use super::labels::{self, CLIENT_OF, CLUSTER_NAME, COMPONENT};
use crate::{Settings, names, owner};

/// The label that every namespace has by itself.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// Where schedulers and workers answer about health and metrics.
const HTTP_PORTS: [i32; 2] = [8787, 8788];

/// The policy of the cluster. A Service that the manifest opens to the outside stays open.
pub(crate) fn policy(cluster: &DaskCluster, name: &str, settings: &Settings) -> NetworkPolicy {
    let mut trusted = vec![NetworkPolicyPeer {
        pod_selector: Some(selector(&[(CLUSTER_NAME, name)])),
        ..NetworkPolicyPeer::default()
    }];
    trusted.extend(settings.operator_namespace.as_deref().map(namespace));
    let clients = NetworkPolicyPeer {
        pod_selector: Some(selector(&[(CLIENT_OF, name)])),
        namespace_selector: Some(LabelSelector::default()),
        ..NetworkPolicyPeer::default()
    };
    let is_open = is_open(cluster);
    let metrics = settings.metrics_namespace.as_deref().map(namespace);
    let rules = vec![
        NetworkPolicyIngressRule {
            from: Some(trusted),
            ports: None,
        },
        NetworkPolicyIngressRule {
            from: (!is_open).then(|| vec![clients]),
            ports: Some(ports(&[names::COMM_PORT, HTTP_PORTS[0]])),
        },
        NetworkPolicyIngressRule {
            from: metrics.map(|peer| vec![peer]),
            ports: Some(ports(&HTTP_PORTS)),
        },
    ];
    let mut metadata = owner::metadata(
        names::network_policy(name),
        "DaskCluster",
        &cluster.metadata,
    );
    let owner_labels = cluster.metadata.labels.as_ref();
    let reserved = [(CLUSTER_NAME, name), (COMPONENT, labels::SCHEDULER)];
    metadata.labels = Some(labels::labels(owner_labels, None, &reserved));
    NetworkPolicy {
        metadata,
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(selector(&[(CLUSTER_NAME, name)])),
            ingress: Some(rules),
            policy_types: Some(vec!["Ingress".to_owned()]),
            egress: None,
        }),
    }
}

/// Whether the manifest opens the scheduler to the outside.
fn is_open(cluster: &DaskCluster) -> bool {
    let scheduler = cluster.spec.scheduler.as_ref();
    let service = scheduler.and_then(|scheduler| scheduler.service.as_ref());
    let kind = service.and_then(|service| service.get("type")?.as_str());
    matches!(kind, Some("NodePort" | "LoadBalancer"))
}

fn selector(pairs: &[(&str, &str)]) -> LabelSelector {
    let pairs = pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    LabelSelector {
        match_labels: Some(pairs.collect()),
        match_expressions: None,
    }
}

fn namespace(name: &str) -> NetworkPolicyPeer {
    NetworkPolicyPeer {
        namespace_selector: Some(selector(&[(NAMESPACE_NAME, name)])),
        ..NetworkPolicyPeer::default()
    }
}

fn ports(numbers: &[i32]) -> Vec<NetworkPolicyPort> {
    let ports = numbers.iter().map(|number| NetworkPolicyPort {
        port: Some(IntOrString::Int(*number)),
        protocol: Some("TCP".to_owned()),
        end_port: None,
    });
    ports.collect()
}

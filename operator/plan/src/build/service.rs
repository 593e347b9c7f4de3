//! The Service in front of a scheduler.
//!
//! Owns its ports and its selector; the rest of a Service spec in the manifest is kept.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use oxidask_operator_api::kubernetes::DaskCluster;

use super::extras::Extras;
use super::labels::{self, CLUSTER_NAME, COMPONENT};
use super::scheduler::{self, PORTS};
use crate::{Object, PlanError, names, owner};

/// The Service of the cluster.
pub(crate) fn service(cluster: &DaskCluster, name: &str) -> Result<Object, PlanError> {
    let template = scheduler::template(cluster);
    let given = cluster
        .spec
        .scheduler
        .as_ref()
        .and_then(|scheduler| scheduler.service.as_ref());
    let mut spec: ServiceSpec = match given {
        Some(given) => template.read("service", given)?,
        None => ServiceSpec::default(),
    };
    spec.type_.get_or_insert_with(|| "ClusterIP".to_owned());
    spec.publish_not_ready_addresses.get_or_insert(false);
    let reserved = [(CLUSTER_NAME, name), (COMPONENT, labels::SCHEDULER)];
    let selector = reserved
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    spec.selector = Some(selector.collect::<BTreeMap<_, _>>());
    let ports = spec.ports.get_or_insert_default();
    for (port_name, number) in PORTS {
        let node_port = ports
            .iter()
            .find(|port| port.port == number)
            .and_then(|port| port.node_port);
        ports.retain(|port| port.port != number && port.name.as_deref() != Some(port_name));
        ports.push(ServicePort {
            name: Some(port_name.to_owned()),
            port: number,
            protocol: Some("TCP".to_owned()),
            target_port: Some(IntOrString::String(port_name.to_owned())),
            node_port,
            ..ServicePort::default()
        });
    }
    let mut metadata = owner::metadata(names::scheduler(name), "DaskCluster", &cluster.metadata);
    let own = template.metadata;
    metadata.labels = Some(labels::labels(
        cluster.metadata.labels.as_ref(),
        own,
        &reserved,
    ));
    metadata.annotations = labels::annotations(cluster.metadata.annotations.as_ref(), own);
    let mut extras = Extras::default();
    if let Some(given) = given {
        extras.compare::<ServiceSpec>("/spec", given);
    }
    let service = Service {
        metadata,
        spec: Some(spec),
        status: None,
    };
    Ok(Object::Service(Box::new(service)).extended(extras))
}

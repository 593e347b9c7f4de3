//! KEDA's external scaler: the workers that a group wants, in the form that KEDA asks for.
//!
//! Answers from the loop's backlog; decides nothing that telemetry does not say. The one metric is a
//! number of workers with a target of 1, so that KEDA's bounds and delays apply to it as it is.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use oxidask_comm::caller;
use oxidask_identity::Role;
use oxidask_proto::keda::external_scaler_server::ExternalScaler;
use oxidask_proto::keda::{
    GetMetricSpecResponse, GetMetricsRequest, GetMetricsResponse, IsActiveResponse, MetricSpec,
    MetricValue, ScaledObjectRef,
};
use oxidask_proto::wire;
use tonic::{Request, Response, Status};

use crate::grpc::Shared;
use crate::look::TARGET_SECONDS;
use crate::telemetry;

/// In the trigger's metadata: the worker group.
const GROUP: &str = "group";
/// In the trigger's metadata: seconds of work that a worker should have at most.
const TARGET: &str = "targetSeconds";
/// The metric, before the name of the group.
const METRIC: &str = "oxidask-workers-wanted";
/// Who may ask.
const ROLES: [Role; 2] = [Role::Operator, Role::Client];

/// The service.
pub(crate) struct Scaler(pub(crate) Arc<Shared>);

/// What a trigger asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wish {
    /// Nothing: all groups together.
    group: Option<String>,
    target_seconds: u64,
}

impl Wish {
    #[allow(clippy::result_large_err, reason = "the form of tonic's services")]
    fn read(metadata: &HashMap<String, String>) -> Result<Self, Status> {
        let group = metadata.get(GROUP).filter(|group| !group.is_empty());
        let target_seconds = match metadata.get(TARGET) {
            None => TARGET_SECONDS,
            Some(text) => text.parse().ok().filter(|s| *s > 0).ok_or_else(|| {
                let message = format!("`{TARGET}` is `{text}`, not a whole number of seconds");
                Status::invalid_argument(message)
            })?,
        };
        Ok(Self {
            group: group.cloned(),
            target_seconds,
        })
    }

    fn metric(&self) -> String {
        match &self.group {
            Some(group) => format!("{METRIC}-{group}"),
            None => METRIC.to_owned(),
        }
    }

    /// A group that nobody has seen wants nothing, unless there is work that no group can do: the
    /// first worker of a group that starts at zero has to come from somewhere.
    fn workers(&self, told: &wire::TelemetryReply) -> u64 {
        let is_asked = |group: &&wire::GroupBacklog| {
            self.group.as_ref().is_none_or(|name| *name == group.group)
        };
        let mut groups = told.groups.iter().filter(is_asked).peekable();
        if groups.peek().is_none() {
            return u64::from(!told.unplaceable.is_empty());
        }
        groups.map(|group| group.workers_wanted).sum()
    }
}

impl Scaler {
    async fn workers(&self, wish: Wish) -> Result<u64, Status> {
        let target = wish.target_seconds;
        let told = self
            .0
            .inputs
            .look(move |main_loop| main_loop.telemetry(target));
        Ok(wish.workers(&told.await?))
    }
}

type ActiveStream = Pin<Box<dyn Stream<Item = Result<IsActiveResponse, Status>> + Send>>;

#[tonic::async_trait]
impl ExternalScaler for Scaler {
    type StreamIsActiveStream = ActiveStream;

    async fn is_active(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<IsActiveResponse>, Status> {
        caller(&request, &ROLES)?;
        let wish = Wish::read(&request.get_ref().scaler_metadata)?;
        let result = self.workers(wish).await? > 0;
        Ok(Response::new(IsActiveResponse { result }))
    }

    async fn stream_is_active(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<ActiveStream>, Status> {
        caller(&request, &ROLES)?;
        let wish = Wish::read(&request.get_ref().scaler_metadata)?;
        let told = telemetry::open(&self.0, wish.target_seconds).await?;
        let mut last = None;
        let changes = told.filter_map(move |told| {
            let answer = match told {
                Ok(told) => {
                    let result = wish.workers(&told) > 0;
                    let is_new = last.replace(result) != Some(result);
                    is_new.then_some(Ok(IsActiveResponse { result }))
                }
                Err(status) => Some(Err(status)),
            };
            std::future::ready(answer)
        });
        Ok(Response::new(Box::pin(changes)))
    }

    async fn get_metric_spec(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<GetMetricSpecResponse>, Status> {
        caller(&request, &ROLES)?;
        let wish = Wish::read(&request.get_ref().scaler_metadata)?;
        Ok(Response::new(GetMetricSpecResponse {
            metric_specs: vec![MetricSpec {
                metric_name: wish.metric(),
                target_size: 1,
                target_size_float: 1.0,
            }],
        }))
    }

    async fn get_metrics(
        &self,
        request: Request<GetMetricsRequest>,
    ) -> Result<Response<GetMetricsResponse>, Status> {
        caller(&request, &ROLES)?;
        let asked = request.into_inner();
        let object = asked.scaled_object_ref.unwrap_or_default();
        let wish = Wish::read(&object.scaler_metadata)?;
        let metric_name = match asked.metric_name {
            name if name.is_empty() => wish.metric(),
            name => name,
        };
        let workers = self.workers(wish).await?;
        Ok(Response::new(GetMetricsResponse {
            metric_values: vec![MetricValue {
                metric_name,
                metric_value: i64::try_from(workers).unwrap_or(i64::MAX),
                #[allow(clippy::cast_precision_loss, reason = "a number of workers is small")]
                metric_value_float: workers as f64,
            }],
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(pairs: &[(&str, &str)]) -> Result<Wish, Status> {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        Wish::read(&pairs.iter().map(owned).collect())
    }

    fn told(groups: &[(&str, u64)], unplaceable: usize) -> wire::TelemetryReply {
        let group = |(name, wanted): &(&str, u64)| wire::GroupBacklog {
            group: (*name).to_owned(),
            workers_wanted: *wanted,
            ..Default::default()
        };
        wire::TelemetryReply {
            groups: groups.iter().map(group).collect(),
            unplaceable: vec![wire::ClassBacklog::default(); unplaceable],
            ..Default::default()
        }
    }

    #[test]
    fn the_metadata_names_group_and_target() {
        let all = wish(&[]).unwrap();
        assert_eq!(
            (all.group.as_deref(), all.target_seconds),
            (None, TARGET_SECONDS)
        );
        let one = wish(&[("group", "gpu"), ("targetSeconds", "30")]).unwrap();
        assert_eq!(one.metric(), "oxidask-workers-wanted-gpu");
        assert_eq!(one.target_seconds, 30);
        for text in ["0", "x", "-1"] {
            let refused = wish(&[("targetSeconds", text)]).unwrap_err();
            assert_eq!(refused.code(), tonic::Code::InvalidArgument);
        }
    }

    #[test]
    fn a_group_that_never_was_wants_a_first_worker_only_for_work_that_nobody_can_do() {
        let gpu = wish(&[("group", "gpu")]).unwrap();
        assert_eq!(gpu.workers(&told(&[("default", 4), ("gpu", 2)], 1)), 2);
        assert_eq!(gpu.workers(&told(&[("default", 4)], 0)), 0);
        assert_eq!(gpu.workers(&told(&[("default", 4)], 1)), 1);
        let all = wish(&[]).unwrap();
        assert_eq!(all.workers(&told(&[("default", 4), ("gpu", 2)], 0)), 6);
    }
}

//! Runs the reconciliations of one kind: as many beside each other as allowed, each object at most
//! once at a time, again after a while.

use std::convert::Infallible;
use std::sync::Arc;

use futures::{StreamExt as _, future, stream};
use kube::runtime::applier;
use kube::runtime::controller::{Action, Config};
use kube::runtime::reflector::ObjectRef;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::kinds::Operated;
use crate::reconcile::{Failure, reconcile};

/// Runs until the token fires and what was begun is done.
pub(crate) async fn run<K: Operated>(
    context: Arc<Context>,
    mut queue: mpsc::Receiver<ObjectRef<K>>,
    concurrency: u16,
    shutdown: CancellationToken,
) {
    let store = K::cache(&context.caches).store();
    let queue = stream::poll_fn(move |task| queue.poll_recv(task))
        .map(Ok::<_, Infallible>)
        .take_until(shutdown.cancelled_owned());
    let again = |_: Arc<K>, failure: &Failure, _: Arc<Context>| Action::requeue(failure.wait);
    let reconcile = |object, context| Box::pin(reconcile::<K>(object, context));
    let config = Config::default().concurrency(concurrency);
    // Outcomes are logged and counted where they come about.
    applier(reconcile, again, context, store, queue, config)
        .for_each(|_| future::ready(()))
        .await;
}

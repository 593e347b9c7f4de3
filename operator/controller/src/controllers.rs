//! Runs the reconciliations of one kind: as many beside each other as allowed, each object at most
//! once at a time, again after a while.

use std::convert::Infallible;
use std::panic;
use std::sync::Arc;

use futures::{StreamExt as _, future, stream};
use kube::runtime::applier;
use kube::runtime::controller::{Action, Config};
use kube::runtime::reflector::ObjectRef;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

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
    let reconcile = |object, context| Box::pin(on_any_thread::<K>(object, context));
    let config = Config::default().concurrency(concurrency);
    // Outcomes are logged and counted where they come about.
    applier(reconcile, again, context, store, queue, config)
        .for_each(|_| future::ready(()))
        .await;
}

/// The controller itself runs on one thread; what it starts need not.
async fn on_any_thread<K: Operated>(
    object: Arc<K>,
    context: Arc<Context>,
) -> Result<Action, Failure> {
    let task = AbortOnDropHandle::new(tokio::spawn(reconcile::<K>(object, context)));
    match task.await {
        Ok(done) => done,
        // A bug of ours: the controller ends with it, and so does the process.
        Err(error) => match error.try_into_panic() {
            Ok(cause) => panic::resume_unwind(cause),
            Err(_) => Ok(Action::await_change()),
        },
    }
}

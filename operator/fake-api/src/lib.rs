//! A Kubernetes API server in memory, for tests and benchmarks of the operator.
//!
//! Owns objects, their versions and watches, server-side apply, garbage collection, a kubelet that
//! only pretends, and faults on demand. Never checks schemas, rights or quotas, and never keeps
//! anything beyond its process.
//!
//! Invariants: versions grow over all kinds; every write that took effect is told to every watch
//! in the order of versions, unless a fault says otherwise; an apply that changes nothing keeps
//! the version.

mod apply;
mod clock;
mod discovery;
mod error;
mod fake;
mod faults;
mod fields;
mod http;
mod kinds;
mod life;
mod patch;
mod request;
mod scheduler;
mod selector;
mod store;
mod verbs;
mod watch;

pub use error::FakeError;
pub use fake::{Calls, Fake, Kubelet, Options};
pub use faults::{Fault, On, Verb, What, When};
pub use scheduler::FakeScheduler;

//! The messages and the service of KEDA's external scalers, as `prost` and `tonic` make them from
//! `proto/externalscaler.proto`.
//!
//! Nothing is written by hand here. The names are KEDA's.

#![allow(
    missing_docs,
    missing_debug_implementations,
    unused_qualifications,
    clippy::pedantic,
    clippy::or_fun_call,
    clippy::too_many_lines,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]

include!("generated_keda.rs");

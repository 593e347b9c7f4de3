//! The messages and the service as `prost` and `tonic` make them from `proto/oxidask.proto`.
//!
//! Nothing is written by hand here; the comments on the messages are in the `.proto` file.

#![allow(
    missing_docs,
    missing_debug_implementations,
    unused_qualifications,
    clippy::pedantic,
    clippy::large_enum_variant,
    clippy::or_fun_call,
    clippy::too_many_lines,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]

include!("generated.rs");

//! The objects in their desired form, one module each.
//!
//! Owns what stands in them. Knows nothing about what is there already.

pub(crate) mod cluster;
pub(crate) mod group;
pub(crate) mod labels;
pub(crate) mod pod;
pub(crate) mod runner;
pub(crate) mod scheduler;
pub(crate) mod service;
pub(crate) mod template;
pub(crate) mod work;
pub(crate) mod worker;

//! The objects in their desired form, one module each.
//!
//! Owns what stands in them. Knows nothing about what is there already.

pub(crate) mod budget;
pub(crate) mod cluster;
pub(crate) mod driver;
pub(crate) mod extras;
pub(crate) mod group;
pub(crate) mod journal;
pub(crate) mod labels;
pub(crate) mod network;
pub(crate) mod pod;
pub(crate) mod program;
pub(crate) mod run;
pub(crate) mod runner;
pub(crate) mod scheduler;
pub(crate) mod service;
pub(crate) mod template;
pub(crate) mod work;
pub(crate) mod worker;

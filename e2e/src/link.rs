//! A node's link to the others, cut for a while.
//!
//! Only a lab can do that. Invariant: the link is there again when the value is dropped.

use std::process::Command;
use std::time::Duration;

use crate::process::{failure, finish};
use crate::settings::Settings;
use crate::{Outcome, say};

const CALL: Duration = Duration::from_secs(10);

/// A link that is cut.
#[derive(Debug)]
pub(crate) struct Cut<'a> {
    settings: &'a Settings,
    place: String,
}

impl<'a> Cut<'a> {
    /// Cuts the link of a node of the lab: nothing arrives there and nothing leaves, and nobody is
    /// told.
    pub(crate) fn new(settings: &'a Settings, node: &str) -> Outcome<Self> {
        let prefix = format!("{}-", settings.lab_name);
        let place = node.strip_prefix(&prefix).ok_or_else(|| {
            failure(format!(
                "node {node} is not one of the lab `{}`: this case needs `--lab`",
                settings.lab_name
            ))
        })?;
        let cut = Self {
            settings,
            place: place.to_owned(),
        };
        cut.set("down")?;
        Ok(cut)
    }

    /// Restores it.
    pub(crate) fn restore(self) -> Outcome {
        self.set("up")
    }

    fn set(&self, state: &str) -> Outcome {
        let mut command = Command::new(&self.settings.lab);
        command.args(["enter", "--name", &self.settings.lab_name, "hub"]);
        command.args(["ip", "link", "set", &self.place, state]);
        finish(&mut command, None, CALL)?.succeeded().map(drop)
    }
}

impl Drop for Cut<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.set("up") {
            say!("the link of {} stays cut: {error}", self.place);
        }
    }
}

//! Where the scheduler of a cluster listens.

use std::str::FromStr;

use oxidask_comm::check_address;

use crate::cache::ClusterKey;

/// As pods of any namespace find it.
pub(crate) const TEMPLATE_DEFAULT: &str = "{cluster}-scheduler.{namespace}.svc:8786";

/// `host:port` with `{cluster}` and `{namespace}` in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AddressTemplate(String);

impl AddressTemplate {
    /// The address of a cluster's scheduler.
    pub(crate) fn address(&self, key: &ClusterKey) -> String {
        let host_port = self
            .0
            .replace("{cluster}", &key.cluster)
            .replace("{namespace}", &key.namespace);
        format!("oxidask://{host_port}")
    }
}

impl Default for AddressTemplate {
    fn default() -> Self {
        Self(TEMPLATE_DEFAULT.to_owned())
    }
}

impl FromStr for AddressTemplate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let template = Self(text.to_owned());
        let example = template.address(&ClusterKey::new("namespace", "cluster"));
        match check_address(&example) {
            Ok(()) => Ok(template),
            Err(error) => Err(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_put_in() {
        let key = ClusterKey::new("science", "flights");
        assert_eq!(
            AddressTemplate::default().address(&key),
            "oxidask://flights-scheduler.science.svc:8786"
        );
        let fixed: AddressTemplate = "127.0.0.1:7000".parse().unwrap();
        assert_eq!(fixed.address(&key), "oxidask://127.0.0.1:7000");
        for bad in ["", "{cluster}", "{cluster}:x", "{other}:1", "tcp://a:1"] {
            assert!(bad.parse::<AddressTemplate>().is_err(), "{bad}");
        }
    }
}

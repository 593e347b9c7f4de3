//! `helm`, and how the charts are installed.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::process::finish;
use crate::settings::Settings;
use crate::{Outcome, say};

/// Where the operator runs.
pub(crate) const NAMESPACE: &str = "oxidask-system";
/// The release of the custom resource definitions, and its chart.
pub(crate) const DEFINITIONS: &str = "oxidask-crds";
/// The release of the operator, and its chart.
pub(crate) const OPERATOR: &str = "oxidask-operator";

const WAIT: &str = "180s";
const CALL: Duration = Duration::from_mins(4);

/// Runs helm in the operator's namespace.
pub(crate) fn helm(settings: &Settings, arguments: &[&str]) -> Outcome<String> {
    helm_in(settings, NAMESPACE, arguments)
}

/// Runs helm in a namespace.
pub(crate) fn helm_in(settings: &Settings, namespace: &str, arguments: &[&str]) -> Outcome<String> {
    let home = tempfile::tempdir()?;
    let mut command = Command::new(&settings.helm);
    command
        .args(arguments)
        .args(["--namespace", namespace])
        .env("KUBECONFIG", &settings.kubeconfig)
        .env("HELM_CACHE_HOME", home.path())
        .env("HELM_CONFIG_HOME", home.path())
        .env("HELM_DATA_HOME", home.path());
    finish(&mut command, None, CALL)?.succeeded()
}

/// Installs both charts, or brings them up to date, and waits until they are ready.
pub(crate) fn install(settings: &Settings) -> Outcome {
    if !settings.has_helm() {
        return Ok(());
    }
    for chart in [DEFINITIONS, OPERATOR] {
        let start = Instant::now();
        install_chart(settings, chart)?;
        say!(
            "helm install {chart}: {:.1} s",
            start.elapsed().as_secs_f64()
        );
    }
    Ok(())
}

/// Installs one chart and waits until it is ready.
pub(crate) fn install_chart(settings: &Settings, chart: &str) -> Outcome {
    upgrade_chart(settings, NAMESPACE, chart, &[])
}

/// Installs or upgrades the release of a chart's name in a namespace, with these values
/// (`path=JSON`), and waits until it is ready.
pub(crate) fn upgrade_chart(
    settings: &Settings,
    namespace: &str,
    chart: &str,
    values: &[&str],
) -> Outcome {
    let folder = settings.root.join("charts").join(chart);
    let folder = folder.display().to_string();
    let mut arguments = vec![
        "upgrade",
        "--install",
        chart,
        &folder,
        "--create-namespace",
        "--wait",
        "--timeout",
        WAIT,
    ];
    for value in values {
        arguments.extend(["--set-json", *value]);
    }
    helm_in(settings, namespace, &arguments).map(drop)
}

/// Uninstalls one chart.
pub(crate) fn uninstall_chart(settings: &Settings, chart: &str) -> Outcome {
    uninstall_chart_in(settings, NAMESPACE, chart)
}

/// Uninstalls the release of a chart's name in a namespace.
pub(crate) fn uninstall_chart_in(settings: &Settings, namespace: &str, chart: &str) -> Outcome {
    let arguments = ["uninstall", chart, "--wait", "--timeout", WAIT];
    helm_in(settings, namespace, &arguments).map(drop)
}

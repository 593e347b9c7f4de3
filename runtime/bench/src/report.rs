//! What was measured: a table for people, JSON for programs, and the machine it was measured on.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Failure;

/// One load of one system, measured several times.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Measurement {
    /// Name of the load.
    pub(crate) shape: String,
    /// Tasks of the graph.
    #[serde(default)]
    pub(crate) tasks: u64,
    /// Edges of the graph.
    #[serde(default)]
    pub(crate) edges: u64,
    /// Bytes that went from one worker to the other.
    #[serde(default)]
    pub(crate) bytes: u64,
    /// Wall-clock seconds of each run.
    pub(crate) seconds: Vec<f64>,
}

impl Measurement {
    /// The least, middle and greatest of the runs.
    fn spread(&self) -> [f64; 3] {
        let mut sorted = self.seconds.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
        [
            at(0),
            at(sorted.len() / 2),
            at(sorted.len().saturating_sub(1)),
        ]
    }

    /// Tasks a second, or GiB a second where bytes count, in the middle run.
    #[allow(clippy::cast_precision_loss, reason = "figures for people")]
    fn rate(&self) -> f64 {
        let amount = match self.bytes {
            0 => self.tasks as f64,
            bytes => bytes as f64 / f64::from(1 << 30),
        };
        amount / self.spread()[1]
    }

    fn row(&self, system: &str, ratio: Option<f64>) -> String {
        let [min, median, max] = self.spread();
        let rate = self.rate();
        let rate = if self.bytes == 0 {
            format!("{rate:.0}/s")
        } else {
            format!("{rate:.2} GiB/s")
        };
        let ratio = ratio.map_or(String::new(), |ratio| format!("{ratio:.1}x"));
        let Self {
            shape,
            tasks,
            edges,
            ..
        } = self;
        format!(
            "| {shape} | {system} | {tasks} | {edges} | {min:.3} | {median:.3} | {max:.3} | {rate} | {ratio} |"
        )
    }
}

/// All measurements of a run of the bench program.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    machine: String,
    oxidask: Vec<Measurement>,
    dask: Vec<Measurement>,
}

impl Report {
    /// A report on our own figures, with a peer's beside them if its file is given.
    pub(crate) fn new(oxidask: Vec<Measurement>, peer: Option<&Path>) -> Result<Self, Failure> {
        let peer = peer
            .map(std::fs::read_to_string)
            .transpose()?
            .unwrap_or_default();
        let dask = peer
            .lines()
            .map(serde_json::from_str)
            .collect::<Result<_, _>>()?;
        Ok(Self {
            machine: machine(),
            oxidask,
            dask,
        })
    }

    /// A Markdown table. The ratio is our rate over the peer's.
    pub(crate) fn table(&self) -> String {
        let mut lines = vec![
            format!("{}\n", self.machine),
            "| load | system | tasks | edges | min s | median s | max s | rate | ratio |"
                .to_owned(),
            "|---|---|---:|---:|---:|---:|---:|---:|---:|".to_owned(),
        ];
        for ours in &self.oxidask {
            let peer = self.dask.iter().find(|peer| peer.shape == ours.shape);
            let ratio = peer.map(|peer| ours.rate() / peer.rate());
            lines.push(ours.row("oxidask", ratio));
            lines.extend(peer.map(|peer| peer.row("dask", None)));
        }
        lines.join("\n")
    }

    /// The same as one JSON object.
    pub(crate) fn json(&self) -> Result<String, Failure> {
        Ok(serde_json::to_string(self)?)
    }
}

/// Processor, cores, memory and kernel, as the system names them.
pub(crate) fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_once(':'))
            .map_or("?", |(_, value)| value.trim())
            .to_owned()
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = field(&read("/proc/meminfo"), "MemTotal");
    let processor = field(&read("/proc/cpuinfo"), "model name");
    let kernel = read("/proc/sys/kernel/osrelease");
    format!(
        "{processor}, {cores} cores, {memory} memory, Linux {}",
        kernel.trim()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(seconds: &[f64], tasks: u64, bytes: u64) -> Measurement {
        Measurement {
            shape: "x".to_owned(),
            tasks,
            edges: 0,
            bytes,
            seconds: seconds.to_vec(),
        }
    }

    #[test]
    fn rates_are_of_the_middle_run() {
        assert_eq!(
            measured(&[4.0, 1.0, 2.0], 100, 0).rate().to_bits(),
            50f64.to_bits()
        );
        assert_eq!(
            measured(&[2.0], 0, 1 << 30).rate().to_bits(),
            0.5f64.to_bits()
        );
    }

    #[test]
    fn a_peer_stands_below_with_the_ratio() {
        let report = Report {
            machine: "m".to_owned(),
            oxidask: vec![measured(&[1.0], 100, 0)],
            dask: vec![measured(&[2.0], 10, 0)],
        };
        let table = report.table();
        assert!(
            table.contains("| x | oxidask | 100 | 0 | 1.000 | 1.000 | 1.000 | 100/s | 20.0x |")
        );
        assert!(table.contains("| x | dask | 10 | 0 | 2.000 | 2.000 | 2.000 | 5/s |  |"));
    }
}

// Prometheus: the real one, which finds the pods of a lab by asking its API server. Debian's cannot.
//
// Owns its configuration. Jobs and labels are those of the monitors in the operator's chart, so that
// the chart's rules hold here too.

package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

const prometheusAddress = "127.0.0.1:9090"

// scraped are the jobs: the pods of each have this label with this value, and this port.
var scraped = []struct{ job, label, value, port string }{
	{"oxidask-operator", "app_kubernetes_io_name", "oxidask-operator", "http-metrics"},
	{"dask-scheduler", "dask_org_component", "scheduler", "http-dashboard"},
	{"dask-worker", "dask_org_component", "worker", "http-dashboard"},
}

func preparePrometheus(p plan, o options, dir string) ([]addonProgram, error) {
	if o.programs == "" || o.rules == "" {
		return nil, errors.New(
			"Prometheus needs --programs, the folder of its build, and --rules, a file of alerts")
	}
	prometheus, err := filepath.Abs(filepath.Join(o.programs, "prometheus"))
	if err != nil {
		return nil, err
	}
	rules, err := os.ReadFile(o.rules)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "rules.yaml"), rules, 0o644); err != nil {
		return nil, err
	}
	kubeconfig, err := insideKubeconfig(p, dir)
	if err != nil {
		return nil, err
	}
	config := filepath.Join(dir, "prometheus.yaml")
	if err := os.WriteFile(config, []byte(prometheusConfig(kubeconfig)), 0o644); err != nil {
		return nil, err
	}
	return []addonProgram{{program{"prometheus", prometheus, []string{
		"prometheus",
		"--config.file=" + config,
		"--storage.tsdb.path=" + filepath.Join(dir, "data"),
		"--storage.tsdb.retention.time=1h",
		"--web.listen-address=" + prometheusAddress,
		"--log.level=warn",
	}}, nil, prometheusAddress}}, nil
}

func prometheusConfig(kubeconfig string) string {
	var text strings.Builder
	text.WriteString(`global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}
rule_files: [rules.yaml]
scrape_configs:
`)
	for _, s := range scraped {
		fmt.Fprintf(&text, `  - job_name: %s
    metrics_path: /metrics
    kubernetes_sd_configs: [{role: pod, kubeconfig_file: %s}]
    relabel_configs:
      - {source_labels: [__meta_kubernetes_pod_label_%s], regex: %s, action: keep}
      - {source_labels: [__meta_kubernetes_pod_container_port_name], regex: %s, action: keep}
      - {source_labels: [__meta_kubernetes_namespace], target_label: namespace}
      - {source_labels: [__meta_kubernetes_pod_name], target_label: pod}
      - {source_labels: [__meta_kubernetes_pod_label_dask_org_cluster_name], target_label: dask_org_cluster_name}
      - {source_labels: [__meta_kubernetes_pod_label_dask_org_workergroup_name], target_label: dask_org_workergroup_name}
`, s.job, kubeconfig, s.label, s.value, s.port)
	}
	return text.String()
}

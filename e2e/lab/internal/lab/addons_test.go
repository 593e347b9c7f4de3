package lab

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestProgramsInTheHubReachTheAPIServerThere(t *testing.T) {
	text := inside(string(kubeconfig("https://127.0.0.1:40123", "lab", []byte("ca"), pair{})))
	if strings.Contains(text, "40123") || !strings.Contains(text, "https://10.99.0.1:6443") {
		t.Error(text)
	}
}

func TestOnlyProcessesAreEnded(t *testing.T) {
	// 0 and 1 would mean this process's own group, or all of the machine.
	if got := numbers("12\n0\n1\n-4\nx\n345\n"); len(got) != 2 || got[0] != 12 || got[1] != 345 {
		t.Error(got)
	}
}

func TestAddonsSayWhatTheyNeed(t *testing.T) {
	for _, words := range [][]string{{"argocd"}, {"prometheus", "--name", "x"}} {
		if _, err := parse(words[0], words[1:]); err == nil {
			t.Errorf("%v was accepted", words)
		}
	}
	o, err := parse("prometheus", []string{"--name", "x", "--rules", "r.yaml", "up"})
	if err != nil || o.rules != "r.yaml" || o.rest[0] != "up" {
		t.Error(o, err)
	}
}

func TestAJobForEachMonitorOfTheChart(t *testing.T) {
	config := prometheusConfig("/k")
	chart, err := os.ReadFile(filepath.Join("../../../../charts/oxidask-operator/files/alerts.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range scraped {
		if !strings.Contains(config, "job_name: "+s.job) {
			t.Error(s.job)
		}
	}
	for _, line := range strings.Split(string(chart), "\n") {
		_, rest, isUsed := strings.Cut(line, `job="`)
		job, _, _ := strings.Cut(rest, `"`)
		if isUsed && !strings.Contains(config, "job_name: "+job) {
			t.Errorf("no job `%s`", job)
		}
	}
}

func TestArgoCDFindsEverySettingsObject(t *testing.T) {
	documents := strings.Split(argoCDObjects, "\n---\n")
	if len(documents) != 10 {
		t.Errorf("%d objects", len(documents))
	}
	for _, document := range documents {
		if !strings.HasPrefix(document, "apiVersion: ") {
			t.Error(document)
		}
	}
}

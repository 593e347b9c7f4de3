// Argo CD: the controller and the repository server, with what they need around them.
//
// Owns their command lines, their settings in the cluster, and a git server beside them: a bare
// repository below the folder `argocd/git` is at git://127.0.0.1:9418/NAME.

package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

const (
	redisAddress      = "127.0.0.1:6379"
	gitAddress        = "127.0.0.1:9418"
	repoServerAddress = "127.0.0.1:8081"
	controllerAddress = "127.0.0.1:8082" // its metrics
	crdLimit          = 20 * time.Second
)

// argoCDFiles are in the folder that `--programs` names.
var argoCDFiles = []string{"argocd", "application-crd.yaml", "appproject-crd.yaml"}

func prepareArgoCD(p plan, o options, dir string) ([]addonProgram, error) {
	redis, err := found("redis-server", "redis-server")
	if err != nil {
		return nil, err
	}
	git, err := found("git", "git")
	if err != nil {
		return nil, err
	}
	if o.programs == "" || o.helm == "" {
		return nil, errors.New("Argo CD needs --programs, the folder of its build, and --helm")
	}
	for _, name := range argoCDFiles {
		if _, err := os.Stat(filepath.Join(o.programs, name)); err != nil {
			return nil, err
		}
	}
	for _, name := range []string{"bin", "git", "tmp", "gnupg", "empty"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			return nil, err
		}
	}
	bin := filepath.Join(dir, "bin")
	if err := links(bin, map[string]string{
		"helm": o.helm, "git": git, "argocd": filepath.Join(o.programs, "argocd"),
	}); err != nil {
		return nil, err
	}
	kubeconfig, err := insideKubeconfig(p, dir)
	if err != nil {
		return nil, err
	}
	if err := settleArgoCD(p, o.programs); err != nil {
		return nil, err
	}
	return argoCDPrograms(dir, bin, redis, git, kubeconfig), nil
}

func links(dir string, files map[string]string) error {
	for name, file := range files {
		file, err := filepath.Abs(file)
		if err == nil {
			err = os.Symlink(file, filepath.Join(dir, name))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// settleArgoCD makes what Argo CD looks for in the cluster.
func settleArgoCD(p plan, programs string) error {
	for _, name := range argoCDFiles[1:] {
		if err := apply(p, filepath.Join(programs, name), ""); err != nil {
			return err
		}
	}
	// The API server takes a moment to serve what was just defined.
	deadline := time.Now().Add(crdLimit)
	for {
		err := apply(p, "-", argoCDObjects)
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(pollInterval)
	}
}

func argoCDPrograms(dir, bin, redis, git, kubeconfig string) []addonProgram {
	argocd := filepath.Join(bin, "argocd")
	empty := filepath.Join(dir, "empty")
	env := []string{
		"PATH=" + bin + ":" + searchPath[len("PATH="):],
		"TMPDIR=" + filepath.Join(dir, "tmp"),
		"ARGOCD_GPG_ENABLED=false",
		"ARGOCD_GNUPGHOME=" + filepath.Join(dir, "gnupg"),
		"ARGOCD_TLS_DATA_PATH=" + empty,
		"ARGOCD_SSH_DATA_PATH=" + empty,
		"ARGOCD_PLUGINSOCKFILEPATH=" + empty,
		"KUBECONFIG=" + kubeconfig,
		// The kubeconfig stands in for the service account of a pod.
		"ARGOCD_FAKE_IN_CLUSTER=true",
		"GIT_TERMINAL_PROMPT=0",
		// A look at everything this often, for what its watches miss, instead of every two minutes.
		"ARGOCD_RECONCILIATION_TIMEOUT=10s",
		"ARGOCD_RECONCILIATION_JITTER=0s",
		// With the health of each object in the status, where tests look.
		"ARGOCD_APPLICATION_CONTROLLER_PERSIST_RESOURCE_HEALTH=true",
	}
	part := func(name, address string, words ...string) addonProgram {
		return addonProgram{program{name, argocd, append([]string{name}, words...)}, env, address}
	}
	return []addonProgram{
		{program{"redis", redis, []string{
			"redis-server", "--bind", "127.0.0.1", "--port", "6379", "--save", "", "--dir", dir,
		}}, nil, redisAddress},
		{program{"git-daemon", git, []string{
			"git", "daemon", "--base-path=" + filepath.Join(dir, "git"), "--export-all",
			"--reuseaddr", "--informative-errors", "--listen=127.0.0.1", "--port=9418",
		}}, nil, gitAddress},
		part("argocd-repo-server", repoServerAddress,
			"--port=8081", "--address=127.0.0.1", "--metrics-port=8084", "--disable-tls",
			"--redis="+redisAddress, "--loglevel=warn"),
		part("argocd-application-controller", controllerAddress,
			"--namespace=argocd", "--repo-server="+repoServerAddress, "--repo-server-plaintext",
			"--redis="+redisAddress, "--metrics-port=8082", "--status-processors=4",
			"--operation-processors=4", "--self-heal-timeout-seconds=2", "--loglevel=warn"),
	}
}

func argoCDMap(kind, name, more string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: %s
metadata:
  name: %s
  namespace: argocd
  labels: {app.kubernetes.io/part-of: argocd, app.kubernetes.io/name: %s}
%s---
`, kind, name, name, more)
}

// argoCDObjects are those that an installation of Argo CD has, with nothing in them.
var argoCDObjects = `apiVersion: v1
kind: Namespace
metadata: {name: argocd}
---
` +
	argoCDMap("ConfigMap", "argocd-cm", "data: {application.resourceTrackingMethod: annotation}\n") +
	argoCDMap("ConfigMap", "argocd-cmd-params-cm", "") +
	argoCDMap("ConfigMap", "argocd-rbac-cm", "") +
	argoCDMap("ConfigMap", "argocd-gpg-keys-cm", "") +
	argoCDMap("ConfigMap", "argocd-tls-certs-cm", "") +
	argoCDMap("ConfigMap", "argocd-ssh-known-hosts-cm", "") +
	argoCDMap("Secret", "argocd-secret", "stringData: {server.secretkey: of-a-lab}\n") +
	argoCDMap("Secret", "argocd-redis", "stringData: {auth: ''}\n") +
	`apiVersion: argoproj.io/v1alpha1
kind: AppProject
metadata: {name: default, namespace: argocd}
spec:
  sourceRepos: ['*']
  destinations: [{namespace: '*', server: '*'}]
  clusterResourceWhitelist: [{group: '*', kind: '*'}]
`

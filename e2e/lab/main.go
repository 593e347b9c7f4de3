// Command oxidask-lab is a whole Kubernetes in one program, and what starts and ends it.
//
// Owns the choice between the parts of Kubernetes, by the program's own name or by its first word.
// Never does anything else: what a lab is and how it is built up lives in internal/lab.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	_ "time/tzdata" // time zones of CronJobs

	_ "github.com/coredns/coredns/plugin/errors"     // says what failed
	_ "github.com/coredns/coredns/plugin/kubernetes" // the names of Services and pods
	_ "github.com/coredns/coredns/plugin/template"   // says that other names do not exist

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"
	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/metrics/prometheus/clientgo" // client metrics
	_ "k8s.io/component-base/metrics/prometheus/version"  // version metric
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"

	"oxidask.dev/lab/internal/lab"
)

// parts make the commands of Kubernetes. Each one makes its own context that ends by a signal.
var parts = map[string]func() *cobra.Command{
	"kube-apiserver":          apiserver.NewAPIServerCommand,
	"kube-controller-manager": controllers.NewControllerManagerCommand,
	"kube-proxy":              proxy.NewProxyCommand,
	"kube-scheduler":          func() *cobra.Command { return scheduler.NewSchedulerCommand() },
	"kubelet":                 newKubelet,
}

func newKubelet() *cobra.Command { return kubelet.NewKubeletCommand(context.Background()) }

func main() {
	name := filepath.Base(os.Args[0])
	if !isPart(name) && len(os.Args) > 1 && isPart(os.Args[1]) {
		name = os.Args[1]
		os.Args = os.Args[1:]
	}
	switch {
	case name == "etcd":
		etcdmain.Main(os.Args)
	case name == "coredns":
		dnsserver.Directives = []string{"errors", "kubernetes", "template"}
		coremain.Run()
	case isPart(name):
		os.Exit(cli.Run(parts[name]()))
	default:
		if err := lab.Main(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, "oxidask-lab:", err)
			os.Exit(1)
		}
	}
}

func isPart(name string) bool {
	_, isCommand := parts[name]
	return isCommand || name == "etcd" || name == "coredns"
}

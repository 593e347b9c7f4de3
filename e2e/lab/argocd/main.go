// Command argocd is the two parts of Argo CD that bring what is in git into a cluster.
//
// Owns the choice between them, by the program's own name. Never holds settings: who starts them,
// in the network of a lab, gives them all. The parts with a face (server, dex) are not in it.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	controller "github.com/argoproj/argo-cd/v3/cmd/argocd-application-controller/commands"
	repositories "github.com/argoproj/argo-cd/v3/cmd/argocd-repo-server/commands"
)

var parts = map[string]func() *cobra.Command{
	"argocd-application-controller": controller.NewCommand,
	"argocd-repo-server":            repositories.NewCommand,
}

func main() {
	name := filepath.Base(os.Args[0])
	if _, isPart := parts[name]; !isPart && len(os.Args) > 1 {
		name = os.Args[1]
		os.Args = os.Args[1:]
	}
	part, isPart := parts[name]
	if !isPart {
		fmt.Fprintln(os.Stderr, "argocd: say which part: argocd-repo-server, argocd-application-controller")
		os.Exit(2)
	}
	if err := part().Execute(); err != nil {
		os.Exit(1)
	}
}

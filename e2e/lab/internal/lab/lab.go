// Package lab brings up a real Kubernetes of several nodes on one machine, and takes it down again.
//
// Owns the commands that a person or a test suite gives. Needs root, containerd, runc, CNI plugins,
// iptables and iproute2; needs no Docker, no registry and no network. Never changes the machine's
// own interfaces, packet rules or kernel settings.
package lab

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
)

const usage = `usage: oxidask-lab COMMAND

  up    [--name NAME] [--nodes N]   make a lab; returns when it can be used
  down  [--name NAME | --all]       end a lab, in whatever state it is
  list                              the labs of this machine's state folder
  load  [--name NAME] IMAGE.tar…    import OCI archives into every node
  logs  [--name NAME]               where the logs of a lab's programs are
  enter [--name NAME] PLACE WORD…   run a command in the hub's or a node's network:
                                    PLACE is hub, node-1, node-2, …
  argocd     [--name NAME] --programs DIR --helm FILE up
                                    Argo CD and a git server in the hub
  prometheus [--name NAME] --programs DIR --rules FILE up
                                    Prometheus in the hub, at 127.0.0.1:9090
  argocd, prometheus [--name NAME] down

  --state DIR   folder of all labs (default ` + stateDefault + `)
  --name NAME   default: ` + nameDefault + `
  --nodes N     default: 2`

const (
	stateDefault = "/var/lib/oxidask-lab"
	nameDefault  = "lab"
	nodesDefault = 2
)

// options are what a command line says.
type options struct {
	name  string
	state string
	nodes int
	isAll bool
	rest  []string

	// Of what a lab can be given.
	programs, helm, rules string
}

func parse(command string, words []string) (options, error) {
	var o options
	flags := flag.NewFlagSet(command, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&o.name, "name", nameDefault, "")
	flags.StringVar(&o.state, "state", stateDefault, "")
	flags.IntVar(&o.nodes, "nodes", nodesDefault, "")
	flags.BoolVar(&o.isAll, "all", false, "")
	flags.StringVar(&o.programs, "programs", "", "")
	flags.StringVar(&o.helm, "helm", "", "")
	flags.StringVar(&o.rules, "rules", "", "")
	if err := flags.Parse(words); err != nil {
		return o, fmt.Errorf("%w\n%s", err, usage)
	}
	o.rest = flags.Args()
	_, isAddon := addons[command]
	takesMore := command == "load" || command == "enter" || isAddon
	if takesMore == (len(o.rest) == 0) {
		return o, errors.New(usage)
	}
	return o, nil
}

// Main runs a command.
func Main(words []string) error {
	if len(words) == 0 {
		return errors.New(usage)
	}
	o, err := parse(words[0], words[1:])
	if err != nil {
		return err
	}
	switch words[0] {
	case "up", supervisorWord:
		p, err := newPlan(o.name, o.state, o.nodes)
		if err != nil {
			return err
		}
		if words[0] == supervisorWord {
			return supervise(p)
		}
		return up(p, os.Stdout)
	case "down":
		return downNamed(o, os.Stdout)
	case "list":
		return list(o.state, os.Stdout)
	}
	p, err := recorded(o.name, o.state)
	if err != nil {
		return err
	}
	if a, isAddon := addons[words[0]]; isAddon {
		return a.run(p, o, os.Stdout)
	}
	switch words[0] {
	case "load":
		return load(p, o.rest, os.Stdout)
	case "logs":
		fmt.Println(p.file("logs"))
		return nil
	case "enter":
		return enter(p, o.rest)
	}
	return errors.New(usage)
}

func downNamed(o options, out io.Writer) error {
	names := []string{o.name}
	if o.isAll {
		var err error
		if names, err = known(o.state); err != nil {
			return err
		}
	}
	var failures []error
	for _, name := range names {
		p, err := newPlan(name, o.state, 1)
		if err == nil {
			err = down(p, out)
		}
		failures = append(failures, err)
	}
	return errors.Join(failures...)
}

// known are the names of all labs of a state folder, from what is on disk and in the kernel.
func known(state string) ([]string, error) {
	state, err := resolved(state)
	if err != nil {
		return nil, err
	}
	names := map[string]bool{}
	found, err := filepath.Glob(filepath.Join(state, "*", recordName))
	if err != nil {
		return nil, err
	}
	for _, file := range found {
		names[filepath.Base(filepath.Dir(file))] = true
	}
	grouped, err := groupNames()
	if err != nil {
		return nil, err
	}
	for _, name := range grouped {
		names[name] = true
	}
	running, err := supervisors()
	if err != nil {
		return nil, err
	}
	for _, s := range running {
		names[s.name] = s.state == state
	}
	var sorted []string
	for name, isOurs := range names {
		if isOurs {
			sorted = append(sorted, name)
		}
	}
	sort.Strings(sorted)
	return sorted, nil
}

func list(state string, out io.Writer) error {
	names, err := known(state)
	if err != nil {
		return err
	}
	for _, name := range names {
		fmt.Fprintln(out, describeLab(name, state))
	}
	return nil
}

func describeLab(name, state string) string {
	p, err := recorded(name, state)
	if err != nil {
		return fmt.Sprintf("%s  left over, without a folder", name)
	}
	s, err := supervisorOf(p)
	if err != nil || s == nil {
		return fmt.Sprintf("%s  dead  (`down` removes what is left)", name)
	}
	if _, err := os.Stat(p.kubeconfig()); err != nil {
		return fmt.Sprintf("%s  coming up", name)
	}
	line := fmt.Sprintf("%s  up  %d nodes  %s", name, p.nodeCount, p.kubeconfig())
	if ended, err := os.ReadFile(p.file(endedName)); err == nil {
		line += "\n  " + strings.ReplaceAll(strings.TrimSpace(string(ended)), "\n", "\n  ")
	}
	return line
}

// enter becomes a command inside a place of a running lab.
func enter(p plan, words []string) error {
	s, err := supervisorOf(p)
	if err != nil {
		return err
	}
	if s == nil || len(words) < 2 {
		return fmt.Errorf("the lab `%s` is not running, or no command is given", p.name)
	}
	nsenter, err := exec.LookPath("nsenter")
	if err != nil {
		return err
	}
	root := fmt.Sprintf("/proc/%d", s.process)
	arguments := append([]string{
		"nsenter", "--mount=" + root + "/ns/mnt",
		"--net=" + filepath.Join(root, "root", namespacesDir, words[0]), "--",
	}, words[1:]...)
	return syscall.Exec(nsenter, arguments, os.Environ())
}

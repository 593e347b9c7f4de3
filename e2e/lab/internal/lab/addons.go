// Programs that a running lab can be given for a while: Argo CD, Prometheus.
//
// Owns how they are started, found again and ended. They live in the hub's network and the lab's
// cgroups, so they end with the lab at the latest, and in folders of their own. Nobody watches over
// them: whoever asked for one sees in its log why it is gone.

package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	addonReadyLimit = 60 * time.Second
	addonEndLimit   = 15 * time.Second
	pidsName        = "processes"
)

// addon is what a lab can be given.
type addon struct {
	name string
	// prepare writes files below the folder and tells what to start, in this order.
	prepare func(p plan, o options, dir string) ([]addonProgram, error)
}

// addonProgram is one of its programs.
type addonProgram struct {
	program
	env []string
	// address answers when the program is ready.
	address string
}

var addons = map[string]addon{
	"argocd":     {"argocd", prepareArgoCD},
	"prometheus": {"prometheus", preparePrometheus},
}

func (a addon) dir(p plan) string { return p.file(a.name) }

// run does what the command line says: `up` or `down`.
func (a addon) run(p plan, o options, out io.Writer) error {
	switch o.rest[0] {
	case "up":
		return a.up(p, o, out)
	case "down":
		return a.down(p, out)
	}
	return errors.New(usage)
}

func (a addon) up(p plan, o options, out io.Writer) error {
	s, err := supervisorOf(p)
	if err != nil {
		return err
	}
	if s == nil {
		return fmt.Errorf("the lab `%s` is not running", p.name)
	}
	began := time.Now()
	if err := a.down(p, io.Discard); err != nil {
		return err
	}
	if err := os.MkdirAll(a.dir(p), 0o755); err != nil {
		return err
	}
	programs, err := a.prepare(p, o, a.dir(p))
	if err != nil {
		return err
	}
	if err := joinLab(p); err != nil {
		return err
	}
	hub, err := joinSpace(s.process, "hub")
	if err != nil {
		return err
	}
	for _, what := range programs {
		if err := a.start(p, hub, what); err != nil {
			return errors.Join(err, a.down(p, io.Discard))
		}
	}
	fmt.Fprintf(out, "%5.1f s  %s is up in the lab `%s`\n",
		time.Since(began).Seconds(), a.name, p.name)
	return nil
}

// start starts a program and waits until it answers or is gone.
func (a addon) start(p plan, hub *space, what addonProgram) error {
	log, err := os.Create(p.log(what.name))
	if err != nil {
		return err
	}
	defer log.Close()
	command := &exec.Cmd{
		Path: what.file, Args: what.words, Dir: a.dir(p),
		Env:    append([]string{searchPath, "HOME=" + a.dir(p)}, what.env...),
		Stdout: log, Stderr: log,
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	if err := hub.do(command.Start); err != nil {
		return fmt.Errorf("cannot start %s: %w", what.name, err)
	}
	if err := a.note(p, command.Process.Pid); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- command.Wait() }()
	deadline := time.Now().Add(addonReadyLimit)
	for time.Now().Before(deadline) {
		connection, err := hub.dial(context.Background(), "tcp", what.address)
		if err == nil {
			return connection.Close()
		}
		select {
		case err := <-ended:
			return fmt.Errorf("%s ended: %v; the end of its log:\n%s",
				what.name, err, tail(p.log(what.name)))
		case <-time.After(pollInterval):
		}
	}
	return fmt.Errorf("%s does not answer at %s; the end of its log:\n%s",
		what.name, what.address, tail(p.log(what.name)))
}

// note writes down a process, so that another call can end it.
func (a addon) note(p plan, process int) error {
	file, err := os.OpenFile(filepath.Join(a.dir(p), pidsName),
		os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = fmt.Fprintln(file, process)
	return err
}

// down ends the programs and removes their folder. What they made in the cluster stays.
func (a addon) down(p plan, out io.Writer) error {
	text, err := os.ReadFile(filepath.Join(a.dir(p), pidsName))
	if errors.Is(err, os.ErrNotExist) {
		fmt.Fprintf(out, "%s is not up in the lab `%s`\n", a.name, p.name)
		return os.RemoveAll(a.dir(p))
	}
	if err != nil {
		return err
	}
	deadline := time.Now().Add(addonEndLimit)
	for {
		// A number that is no process of the lab belongs to somebody else by now.
		members, err := groupMembers(p.name)
		if err != nil {
			return err
		}
		left := 0
		for _, process := range numbers(string(text)) {
			if members[process] && !isZombie(process) {
				left++
				_ = syscall.Kill(-process, syscall.SIGKILL)
			}
		}
		if left == 0 {
			break
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d processes of %s do not end", left, a.name)
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err := os.RemoveAll(a.dir(p)); err != nil {
		return err
	}
	fmt.Fprintf(out, "%s is gone from the lab `%s`\n", a.name, p.name)
	return nil
}

func numbers(text string) []int {
	var all []int
	for _, word := range strings.Fields(text) {
		if number, err := strconv.Atoi(word); err == nil && number > 1 {
			all = append(all, number)
		}
	}
	return all
}

// joinLab puts this process, and so those that it starts, into the lab's cgroups.
func joinLab(p plan) error {
	trees, err := hierarchies()
	if err != nil {
		return err
	}
	for _, tree := range trees {
		if err := join(filepath.Join(tree.root, p.group(), systemGroup)); err != nil {
			return err
		}
	}
	return nil
}

// joinSpace is a namespace that a running lab has made.
func joinSpace(supervisor int, place string) (*space, error) {
	file := filepath.Join(fmt.Sprintf("/proc/%d/root", supervisor), namespacesDir, place)
	s := &space{name: place, jobs: make(chan func())}
	entered := make(chan error)
	go func() {
		// Never unlocked: the thread ends with the process.
		runtime.LockOSThread()
		entered <- enterExisting(file)
		for job := range s.jobs {
			job()
		}
	}()
	if err := <-entered; err != nil {
		return nil, fmt.Errorf("cannot enter the network of `%s`: %w", place, err)
	}
	return s, nil
}

func enterExisting(file string) error {
	namespace, err := os.Open(file)
	if err != nil {
		return err
	}
	defer namespace.Close()
	return unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNET)
}

// insideKubeconfig writes the administrator's kubeconfig for programs in the hub, and returns its
// path. The one for people leads through a port of the machine.
func insideKubeconfig(p plan, dir string) (string, error) {
	text, err := os.ReadFile(p.kubeconfig())
	if err != nil {
		return "", err
	}
	file := filepath.Join(dir, "kubeconfig")
	return file, os.WriteFile(file, []byte(inside(string(text))), 0o600)
}

var outsideServer = regexp.MustCompile(`https://127\.0\.0\.1:\d+`)

func inside(kubeconfig string) string {
	return outsideServer.ReplaceAllString(kubeconfig, "https://"+apiAddress())
}

// apply hands objects to the API server, from a file or, with `-`, from a text.
func apply(p plan, file, objects string) error {
	command := exec.Command("kubectl", "--kubeconfig", p.kubeconfig(),
		"apply", "--server-side", "--force-conflicts", "--filename", file)
	command.Stdin = strings.NewReader(objects)
	if text, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("`kubectl apply`: %w: %s", err, text)
	}
	return nil
}

// found is a program on the machine, or why there is none.
func found(name, debianPackage string) (string, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("`%s` is not installed\nhint: apt-get install %s",
			name, debianPackage)
	}
	return filepath.Abs(path)
}

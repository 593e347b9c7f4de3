// The process that holds a running lab together.
//
// Owns the order in which a lab comes up, and the port by which the machine reaches its API server.
// Lives in a mount namespace and a session of its own; it ends at a signal, and the lab with it. It
// never starts a program again that has ended: it says so.

package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	bringUpLimit = 180 * time.Second
	pollInterval = 100 * time.Millisecond
	reportFile   = 3 // the descriptor on which progress is told
	readyLine    = "ready"
	endedName    = "ended"
)

var errStopped = errors.New("told to stop")

// bringUp is the state of a lab that is coming up.
type bringUp struct {
	plan     plan
	self     string // this program, which is all of Kubernetes as well
	deadline time.Time
	report   *os.File
	stop     <-chan os.Signal
	ended    chan *child

	authority *authority
	files     credentials
	hub       *space
	spaces    []*space
	api       *api
	admin     pair
}

// supervise runs a lab until a signal comes.
func supervise(p plan) error {
	syscall.CloseOnExec(reportFile)
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	self, err := os.Executable()
	if err != nil {
		return err
	}
	b := &bringUp{
		plan: p, self: self, deadline: time.Now().Add(bringUpLimit),
		report: os.NewFile(reportFile, "report"), stop: stop, ended: make(chan *child, 64),
	}
	err = b.run()
	if err == nil {
		_, err = fmt.Fprintln(b.report, readyLine)
	}
	if err != nil {
		fmt.Fprintln(b.report, err)
		fmt.Println("not up:", err)
		return endOwn(p)
	}
	b.report.Close()
	b.watch()
	return endOwn(p)
}

// watch waits for a signal, and notes what ends before.
func (b *bringUp) watch() {
	for {
		select {
		case <-b.stop:
			fmt.Println("told to stop")
			return
		case c := <-b.ended:
			line := fmt.Sprintf("%s %s ended %s\n",
				time.Now().UTC().Format(time.RFC3339), c.name, c.end)
			fmt.Print(line)
			file, err := os.OpenFile(b.plan.file(endedName),
				os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
			if err == nil {
				_, _ = file.WriteString(line)
				file.Close()
			}
		}
	}
}

// run brings the lab up, one step after the other.
func (b *bringUp) run() error {
	steps := []struct {
		what string
		do   func() error
	}{
		{"namespaces, cgroups and certificates", b.prepare},
		{"etcd and the API server answer", b.startControl},
		{"controllers, scheduler, name server and nodes started", b.startRest},
		{"all nodes are ready", b.untilNodes},
		{"names and Services lead to the API server", b.untilNetwork},
		{"the default service account exists", b.untilAccount},
		{"the kubeconfig is written", b.publish},
	}
	for _, step := range steps {
		if err := step.do(); err != nil {
			return fmt.Errorf("while waiting for `%s`: %w", step.what, err)
		}
		// Nobody listens any more: whoever wanted this lab is gone.
		if _, err := fmt.Fprintln(b.report, step.what); err != nil {
			return err
		}
	}
	return nil
}

func (b *bringUp) prepare() (err error) {
	if err = makeGroups(b.plan); err != nil {
		return err
	}
	if err = arrangeView(b.plan); err != nil {
		return err
	}
	for _, n := range b.plan.nodes() {
		if err = makeNodeFolders(n); err != nil {
			return err
		}
	}
	if b.hub, b.spaces, err = newNetwork(b.plan.nodes()); err != nil {
		return err
	}
	if b.authority, err = newAuthority(); err != nil {
		return err
	}
	if b.files, err = writeCredentials(b.plan, b.authority); err != nil {
		return err
	}
	if b.admin, err = b.authority.issue("lab:admin", []string{"system:masters"}, nil); err != nil {
		return err
	}
	b.api, err = newAPI(b.hub, b.authority, b.admin)
	return err
}

func (b *bringUp) start(s *space, what program) error {
	return start(b.plan, s, what, b.ended)
}

// startControl starts what keeps the cluster's state. The nodes' runtimes start beside it.
func (b *bringUp) startControl() error {
	if err := b.start(b.hub, etcd(b.plan, b.self)); err != nil {
		return err
	}
	if err := b.start(b.hub, apiServer(b.plan, b.self, b.files)); err != nil {
		return err
	}
	pause, err := writePause(b.plan, b.self)
	if err != nil {
		return err
	}
	nodes := b.plan.nodes()
	for i, n := range nodes {
		runtime, err := containerd(n)
		if err != nil {
			return err
		}
		if err := b.start(b.spaces[i], runtime); err != nil {
			return err
		}
	}
	if err := b.importPause(nodes, pause); err != nil {
		return err
	}
	return b.until(func() error { return b.api.exists("/readyz") })
}

func (b *bringUp) importPause(nodes []node, pause string) error {
	failures := make([]error, len(nodes))
	var waiting sync.WaitGroup
	for i, n := range nodes {
		err := b.until(func() error { _, err := os.Stat(n.socket()); return err })
		if err != nil {
			return err
		}
		waiting.Go(func() { failures[i] = loadOne(n, pause) })
	}
	waiting.Wait()
	return errors.Join(failures...)
}

func (b *bringUp) startRest() error {
	controllers, err := b.user("kube-controller-manager", "system:kube-controller-manager")
	if err != nil {
		return err
	}
	if err := b.start(b.hub, controllerManager(b.plan, b.self, controllers, b.files)); err != nil {
		return err
	}
	scheduling, err := b.user("kube-scheduler", "system:kube-scheduler")
	if err != nil {
		return err
	}
	if err := b.start(b.hub, scheduler(b.plan, b.self, scheduling)); err != nil {
		return err
	}
	if err := b.startNodes(); err != nil {
		return err
	}
	return b.startNameServer()
}

func (b *bringUp) startNodes() error {
	proxying, err := b.user("kube-proxy", "system:kube-proxy")
	if err != nil {
		return err
	}
	for i, n := range b.plan.nodes() {
		agent, err := kubelet(b.plan, n, b.authority, b.self)
		if err != nil {
			return err
		}
		if err := b.start(b.spaces[i], agent); err != nil {
			return err
		}
		if err := b.start(b.spaces[i], proxy(n, b.self, proxying)); err != nil {
			return err
		}
	}
	return nil
}

func (b *bringUp) startNameServer() error {
	naming, err := b.user("coredns", "lab:coredns")
	if err != nil {
		return err
	}
	const below = "/apis/rbac.authorization.k8s.io/v1/"
	if err := b.api.create(below+"clusterroles", nameServerRole); err != nil {
		return err
	}
	if err := b.api.create(below+"clusterrolebindings", nameServerBinding); err != nil {
		return err
	}
	names, err := nameServer(b.plan, b.self, naming)
	if err != nil {
		return err
	}
	return b.start(b.hub, names)
}

func (b *bringUp) user(part, user string) (string, error) {
	return writeUser(b.plan, b.authority, part, user, nil)
}

func (b *bringUp) untilNodes() error {
	return b.until(func() error { return b.api.allReady(b.plan.nodeCount) })
}

func (b *bringUp) untilNetwork() error {
	if err := b.until(func() error { return answers(b.hub) }); err != nil {
		return err
	}
	for _, s := range b.spaces {
		if err := b.until(func() error { return routes(s) }); err != nil {
			return fmt.Errorf("on %s: %w", s.name, err)
		}
	}
	return nil
}

func (b *bringUp) untilAccount() error {
	const below = "/api/v1/namespaces/default/"
	return b.until(func() error {
		if err := b.api.exists(below + "configmaps/kube-root-ca.crt"); err != nil {
			return err
		}
		return b.api.exists(below + "serviceaccounts/default")
	})
}

// publish opens the way in from the machine and says where it is.
func (b *bringUp) publish() error {
	port, err := forward(b.hub)
	if err != nil {
		return err
	}
	server := fmt.Sprintf("https://127.0.0.1:%d", port)
	text := kubeconfig(server, b.plan.name, b.authority.certificate, b.admin)
	return os.WriteFile(b.plan.kubeconfig(), text, 0o600)
}

// until waits for a condition; whatever ends meanwhile is the reason why it never comes.
func (b *bringUp) until(condition func() error) error {
	for {
		err := condition()
		if err == nil {
			return nil
		}
		if time.Now().After(b.deadline) {
			return fmt.Errorf("not within %s: %w", bringUpLimit, err)
		}
		select {
		case <-b.stop:
			return errStopped
		case c := <-b.ended:
			return fmt.Errorf("%s ended: %s; the end of its log:\n%s", c.name, c.end, tail(c.log))
		case <-time.After(pollInterval):
		}
	}
}

// launch starts a supervisor for a lab and returns where it tells its progress.
func launch(p plan) (*os.Process, *os.File, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	log, err := os.Create(p.log("supervisor"))
	if err != nil {
		return nil, nil, err
	}
	defer log.Close()
	progress, report, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer report.Close()
	command := &exec.Cmd{
		Path: self, Args: supervisorWords(p), Dir: p.state,
		Env:    []string{searchPath, "HOME=/root"},
		Stdout: log, Stderr: log, ExtraFiles: []*os.File{report},
		SysProcAttr: &syscall.SysProcAttr{Setsid: true, Unshareflags: syscall.CLONE_NEWNS},
	}
	if err := command.Start(); err != nil {
		progress.Close()
		return nil, nil, fmt.Errorf("cannot start the lab's supervisor: %w", err)
	}
	return command.Process, progress, nil
}

// missingPrograms are those that a lab starts but does not bring with it.
func missingPrograms() error {
	var missing []string
	needed := []string{
		"containerd", "containerd-shim-runc-v2", "ctr", "runc", "iptables", "ip", "nsenter",
	}
	for _, name := range needed {
		if _, err := exec.LookPath(name); err != nil {
			missing = append(missing, "`"+name+"`")
		}
	}
	if _, err := cniFolder(); err != nil {
		missing = append(missing, "the CNI plugins")
	}
	if len(missing) == 0 {
		return nil
	}
	return fmt.Errorf("not installed: %s", strings.Join(missing, ", "))
}

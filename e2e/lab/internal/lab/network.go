// The network of a lab: namespaces, one bridge, and threads that live in them.
//
// Owns how something is done inside a namespace: a space is an operating system thread that entered
// a new namespace and never leaves it. Programs started by it and connections opened by it belong
// to that namespace. The machine's own interfaces, routes and packet rules are never touched; the
// namespaces end with the last process in them.

package lab

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

const (
	namespacesDir = "/run/netns"
	dialTimeout   = 2 * time.Second
)

// space is one network namespace, with the thread that is in it.
type space struct {
	name string
	jobs chan func()
}

// newSpace makes a namespace; `ip netns` of this view of the machine knows it by its name.
func newSpace(name string) (*space, error) {
	s := &space{name: name, jobs: make(chan func())}
	entered := make(chan error)
	go func() {
		// Never unlocked: the thread ends with the process, and its children with it.
		runtime.LockOSThread()
		entered <- enterNew(name)
		for job := range s.jobs {
			job()
		}
	}()
	if err := <-entered; err != nil {
		return nil, fmt.Errorf("cannot make the network namespace `%s`: %w", name, err)
	}
	return s, nil
}

func enterNew(name string) error {
	if err := syscall.Unshare(syscall.CLONE_NEWNET); err != nil {
		return err
	}
	file := filepath.Join(namespacesDir, name)
	if err := os.WriteFile(file, nil, 0o444); err != nil {
		return err
	}
	if err := syscall.Mount("/proc/thread-self/ns/net", file, "", syscall.MS_BIND, ""); err != nil {
		return err
	}
	return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644)
}

// do runs a job on the space's thread and waits for it.
func (s *space) do(job func() error) error {
	result := make(chan error)
	s.jobs <- func() { result <- job() }
	return <-result
}

// dial connects from inside the namespace.
func (s *space) dial(ctx context.Context, network, address string) (net.Conn, error) {
	var connection net.Conn
	err := s.do(func() error {
		dialer := net.Dialer{Timeout: dialTimeout}
		var err error
		connection, err = dialer.DialContext(ctx, network, address)
		return err
	})
	return connection, err
}

// ip runs a list of `ip` commands inside the namespace.
func (s *space) ip(commands []string) error {
	return s.do(func() error {
		command := exec.Command("ip", "-batch", "-")
		command.Stdin = strings.NewReader(strings.Join(commands, "\n") + "\n")
		var messages bytes.Buffer
		command.Stderr = &messages
		if err := command.Run(); err != nil {
			return fmt.Errorf("`ip` in `%s`: %w: %s", s.name, err, messages.String())
		}
		return nil
	})
}

// newNetwork makes the hub and the nodes, connected: every node reaches the hub, the other nodes
// and their pods.
func newNetwork(nodes []node) (hub *space, spaces []*space, err error) {
	if hub, err = newSpace("hub"); err != nil {
		return nil, nil, err
	}
	for _, n := range nodes {
		s, err := newSpace(n.place)
		if err != nil {
			return nil, nil, err
		}
		spaces = append(spaces, s)
	}
	if err := hub.ip(hubCommands(nodes)); err != nil {
		return nil, nil, err
	}
	for i, s := range spaces {
		if err := s.ip(nodeCommands(nodes, i)); err != nil {
			return nil, nil, err
		}
	}
	return hub, spaces, nil
}

func hubCommands(nodes []node) []string {
	commands := []string{
		"link set lo up",
		"link add bridge type bridge",
		fmt.Sprintf("address add %s/%d dev bridge", hubAddress, nodeNetworkBits),
		"link set bridge up",
	}
	for _, n := range nodes {
		commands = append(commands,
			fmt.Sprintf("link add %s type veth peer name eth0 netns %s", n.place, n.place),
			fmt.Sprintf("link set %s master bridge up", n.place),
			fmt.Sprintf("route add %s via %s", n.podRange, n.address))
	}
	return commands
}

func nodeCommands(nodes []node, self int) []string {
	commands := []string{
		"link set lo up",
		fmt.Sprintf("address add %s/%d dev eth0", nodes[self].address, nodeNetworkBits),
		"link set eth0 up",
		// Leads nowhere, but parts of Kubernetes take the node's address from it.
		"route add default via " + hubAddress,
	}
	for i, n := range nodes {
		if i != self {
			commands = append(commands, fmt.Sprintf("route add %s via %s", n.podRange, n.address))
		}
	}
	return commands
}

// forward serves the hub's API server on a port of the machine's loopback, and returns the port.
func forward(hub *space) (int, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	go func() {
		for {
			outside, err := listener.Accept()
			if err != nil {
				return
			}
			go connect(hub, outside)
		}
	}()
	return listener.Addr().(*net.TCPAddr).Port, nil
}

func connect(hub *space, outside net.Conn) {
	defer outside.Close()
	inside, err := hub.dial(context.Background(), "tcp", apiAddress())
	if err != nil {
		return
	}
	defer inside.Close()
	up := make(chan struct{})
	go func() {
		copyHalf(inside.(*net.TCPConn), outside.(*net.TCPConn))
		close(up)
	}()
	copyHalf(outside.(*net.TCPConn), inside.(*net.TCPConn))
	<-up
}

// copyHalf copies one direction and passes its end on. The other direction may go on.
func copyHalf(to, from *net.TCPConn) {
	if _, err := to.ReadFrom(from); err != nil {
		to.Close()
		from.Close()
		return
	}
	_ = to.CloseWrite()
}

func apiAddress() string { return fmt.Sprintf("%s:%d", hubAddress, apiPort) }

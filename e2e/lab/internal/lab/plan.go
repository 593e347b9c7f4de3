// The plan of a lab: its names, addresses and files.
//
// Owns every name, address and path that two parts of a lab must agree on. Never touches the
// machine. All labs have the same addresses: each lives in network namespaces of its own that have
// no way out, so nothing of one lab can be seen from another or from the machine.

package lab

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
)

const (
	nodesMax = 20
	// A socket's path has at most 107 bytes; the longest below a lab's folder needs 46.
	stateBytesMax = 40

	hubAddress        = "10.99.0.1"
	nodeNetworkBits   = 16
	podNetwork        = "10.98.0.0/16"
	serviceNetwork    = "10.97.0.0/16"
	kubernetesService = "10.97.0.1"
	clusterDomain     = "cluster.local"
	apiPort           = 6443

	pauseImage = "docker.io/oxidask/lab-pause:1"
	groupStem  = "oxidask-lab."
)

var namePattern = regexp.MustCompile(`^[a-z][a-z0-9-]{0,18}[a-z0-9]$|^[a-z]$`)

// plan is all that is decided about a lab before anything of it exists.
type plan struct {
	name      string
	state     string // the folder of all labs
	nodeCount int
}

// node is one machine of a lab.
type node struct {
	place    string // `node-1`: the namespace, the folder and the cgroup
	name     string // `NAME-node-1`: the name in Kubernetes
	dir      string
	address  string
	podRange string
}

func newPlan(name, state string, nodeCount int) (plan, error) {
	state, err := resolved(state)
	switch {
	case err != nil:
		return plan{}, err
	case !namePattern.MatchString(name):
		return plan{}, fmt.Errorf(
			"`%s` is no name for a lab: up to 20 lower case letters, digits and `-`", name)
	case len(state) > stateBytesMax:
		return plan{}, fmt.Errorf(
			"the state folder `%s` has more than %d characters, too many for the sockets below it",
			state, stateBytesMax)
	case nodeCount < 1 || nodeCount > nodesMax:
		return plan{}, fmt.Errorf("a lab has 1 to %d nodes, not %d", nodesMax, nodeCount)
	}
	return plan{name: name, state: state, nodeCount: nodeCount}, nil
}

// resolved is the folder's path as the kernel names it in its list of mounts.
func resolved(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real, nil
	}
	return path, nil
}

func (p plan) dir() string             { return filepath.Join(p.state, p.name) }
func (p plan) file(name string) string { return filepath.Join(p.dir(), name) }
func (p plan) log(part string) string  { return filepath.Join(p.dir(), "logs", part+".log") }
func (p plan) kubeconfig() string      { return p.file("kubeconfig") }
func (p plan) group() string           { return groupStem + p.name }

func (p plan) nodes() []node {
	nodes := make([]node, p.nodeCount)
	for i := range nodes {
		place := fmt.Sprintf("node-%d", i+1)
		nodes[i] = node{
			place:    place,
			name:     p.name + "-" + place,
			dir:      filepath.Join(p.dir(), place),
			address:  fmt.Sprintf("10.99.0.%d", 11+i),
			podRange: fmt.Sprintf("10.98.%d.0/24", 1+i),
		}
	}
	return nodes
}

func (n node) socket() string { return filepath.Join(n.dir, "containerd.sock") }

// record is what a lab's folder says about it. Its presence marks the folder as a lab's.
type record struct {
	Nodes int `json:"nodes"`
}

const recordName = "lab.json"

func (p plan) writeRecord() error {
	text, err := json.Marshal(record{Nodes: p.nodeCount})
	if err != nil {
		return err
	}
	return os.WriteFile(p.file(recordName), append(text, '\n'), 0o644)
}

// recorded is the plan of a lab that exists on disk.
func recorded(name, state string) (plan, error) {
	p, err := newPlan(name, state, 1)
	if err != nil {
		return p, err
	}
	text, err := os.ReadFile(p.file(recordName))
	if err != nil {
		return p, fmt.Errorf("there is no lab `%s` in `%s`", name, p.state)
	}
	var r record
	if err := json.Unmarshal(text, &r); err != nil {
		return p, fmt.Errorf("cannot read `%s`: %w", p.file(recordName), err)
	}
	p.nodeCount = r.Nodes
	return p, nil
}

package lab

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestNodesHaveAddressesOfTheirOwn(t *testing.T) {
	p, err := newPlan("one", t.TempDir()[:4], nodesMax)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{hubAddress: true}
	pods := netip.MustParsePrefix(podNetwork)
	for _, n := range p.nodes() {
		podRange := netip.MustParsePrefix(n.podRange)
		if !pods.Contains(podRange.Addr()) {
			t.Errorf("%s is not in %s", n.podRange, podNetwork)
		}
		for _, address := range []string{n.address, n.podRange} {
			if seen[address] {
				t.Errorf("%s is given twice", address)
			}
			seen[address] = true
		}
	}
	services := netip.MustParsePrefix(serviceNetwork)
	if !services.Contains(netip.MustParseAddr(kubernetesService)) || services.Overlaps(pods) {
		t.Error("the networks do not fit")
	}
}

func TestPlansThatCannotWorkAreRefused(t *testing.T) {
	cases := []struct {
		name  string
		state string
		nodes int
		says  string
	}{
		{"", "/s", 2, "no name"},
		{"../x", "/s", 2, "no name"},
		{"Upper", "/s", 2, "no name"},
		{"ends-", "/s", 2, "no name"},
		{strings.Repeat("a", 21), "/s", 2, "no name"},
		{"a", "/s", 0, "1 to 20 nodes"},
		{"a", "/s", 21, "1 to 20 nodes"},
		{"a", "/" + strings.Repeat("s", 40), 2, "too many for the sockets"},
	}
	for _, c := range cases {
		_, err := newPlan(c.name, c.state, c.nodes)
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%q %q %d: %v", c.name, c.state, c.nodes, err)
		}
	}
}

func TestSocketsFitIntoTheKernelsLimit(t *testing.T) {
	state := "/" + strings.Repeat("s", stateBytesMax-1)
	p, err := newPlan(strings.Repeat("n", 20), state, nodesMax)
	if err != nil {
		t.Fatal(err)
	}
	const kernelBytesMax = 107
	nodes := p.nodes()
	longest := filepath.Join(nodes[len(nodes)-1].dir, "containerd.sock.ttrpc")
	if len(longest) > kernelBytesMax {
		t.Errorf("%d bytes: %s", len(longest), longest)
	}
}

const someMounts = `21 25 0:19 / /proc rw,nosuid - proc proc rw
30 25 0:26 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
31 25 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
40 25 253:0 / /l/one/node-1 rw shared:5 master:2 - ext4 /dev/vda rw
41 40 253:0 /a /l/one/node-1/pod\040logs rw - ext4 /dev/vda rw
42 25 253:0 / /l/one-more rw - ext4 /dev/vda rw
`

func TestMountsAreRead(t *testing.T) {
	all, err := parseMounts(strings.NewReader(someMounts))
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != 6 || all[1].kind != "cgroup" || all[1].super != "rw,cpu" {
		t.Errorf("%+v", all)
	}
	want := []string{"/l/one/node-1/pod logs", "/l/one/node-1"}
	if got := pointsBelow(all, "/l/one"); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	if _, err := parseMounts(strings.NewReader("nonsense\n")); err == nil {
		t.Error("nonsense was read")
	}
}

func TestTheKubeconfigHoldsWhatProvesTheUser(t *testing.T) {
	a, err := newAuthority()
	if err != nil {
		t.Fatal(err)
	}
	user, err := a.issue("lab:admin", []string{"system:masters"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	text := string(kubeconfig("https://127.0.0.1:1", "one", a.certificate, user))
	values := map[string]string{}
	for _, line := range strings.Split(text, "\n") {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		values[key] = value
	}
	if values["server"] != "https://127.0.0.1:1" || values["current-context"] != "one" {
		t.Error(text)
	}
	certificate, _ := base64.StdEncoding.DecodeString(values["client-certificate-data"])
	key, _ := base64.StdEncoding.DecodeString(values["client-key-data"])
	own, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		t.Fatal(err)
	}
	trusted := x509.NewCertPool()
	trusted.AppendCertsFromPEM(a.certificate)
	options := x509.VerifyOptions{
		Roots: trusted, CurrentTime: time.Now(),
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if _, err := own.Leaf.Verify(options); err != nil {
		t.Error(err)
	}
	options.KeyUsages = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	if _, err := own.Leaf.Verify(options); err == nil {
		t.Error("a user without hosts may serve")
	}
}

func TestSupervisorsAreKnownByTheirWords(t *testing.T) {
	p := plan{name: "one", state: "/l", nodeCount: 2}
	line := []byte(strings.Join(supervisorWords(p), "\x00") + "\x00")
	s, isOne := parseSupervisor(line)
	if !isOne || s.name != "one" || s.state != "/l" {
		t.Errorf("%+v %v", s, isOne)
	}
	for _, other := range []string{"", "oxidask-lab\x00up\x00--name\x00one", "vi\x00supervise"} {
		if _, isOne := parseSupervisor([]byte(other)); isOne {
			t.Errorf("%q is none", other)
		}
	}
}

func TestNodesThatAreNotReadySayWhy(t *testing.T) {
	ready, reasons, err := readyNodes([]byte(`{"items": [
		{"metadata": {"name": "a"}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}},
		{"metadata": {"name": "b"}, "status": {"conditions": [
			{"type": "DiskPressure", "status": "True"},
			{"type": "Ready", "status": "False", "message": "no network"}]}}]}`))
	if err != nil || ready != 1 || !slices.Equal(reasons, []string{"b: no network"}) {
		t.Errorf("%d %q %v", ready, reasons, err)
	}
}

func TestTheSameProgramGivesTheSameImage(t *testing.T) {
	first, err := singleProgram(pauseImage, []byte("program"))
	if err != nil {
		t.Fatal(err)
	}
	second, err := singleProgram(pauseImage, []byte("program"))
	if err != nil {
		t.Fatal(err)
	}
	if digest(first) != digest(second) {
		t.Error("the archives differ")
	}
}

func TestAFolderThatIsNoLabsIsLeftAlone(t *testing.T) {
	dir := t.TempDir()
	p := plan{name: "one", state: dir, nodeCount: 1}
	precious := filepath.Join(p.dir(), "precious")
	if err := os.MkdirAll(precious, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := clearFolder(p); err == nil {
		t.Error("the folder was cleared")
	}
	if _, err := os.Stat(precious); err != nil {
		t.Error(err)
	}
	if err := p.writeRecord(); err != nil {
		t.Fatal(err)
	}
	if err := clearFolder(p); err != nil {
		t.Error(err)
	}
	if entries, _ := os.ReadDir(p.dir()); len(entries) > 0 {
		t.Errorf("%v is left", entries)
	}
}

func TestALockIsHeldOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "one")
	held, err := lock(dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lock(dir, 0); err != errLocked {
		t.Errorf("%v", err)
	}
	// Whoever held the old folder's lock does not hold the new one's.
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	again, err := lock(dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
	held.Close()
}

func TestConfigurationsAreJSON(t *testing.T) {
	p := plan{name: "one", state: "/l", nodeCount: 2}
	var parsed map[string]any
	if err := json.Unmarshal([]byte(podNetworkConfig(p.nodes()[0])), &parsed); err != nil {
		t.Error(err)
	}
	for _, object := range []string{nameServerRole, nameServerBinding} {
		if err := json.Unmarshal([]byte(object), &parsed); err != nil {
			t.Error(err)
		}
	}
}

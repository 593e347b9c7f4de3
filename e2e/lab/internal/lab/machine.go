// One node: how containerd, the kubelet and kube-proxy are started.
//
// Owns their configuration files and command lines. Everything they write lies below the node's
// folder or in the lab's own view of the machine.

package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

const overlayMagic = 0x794c7630

// cniFolders are where distributions put the CNI plugins.
var cniFolders = []string{"/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"}

func makeNodeFolders(n node) error {
	for _, name := range []string{"cni", "kubelet", "pod-logs", "volume-plugins", "pki"} {
		if err := os.MkdirAll(filepath.Join(n.dir, name), 0o755); err != nil {
			return err
		}
	}
	return nil
}

// containerd writes the configuration of a node's container runtime and its network.
func containerd(n node) (program, error) {
	file, err := exec.LookPath("containerd")
	if err != nil {
		return program{}, errors.New("containerd is not installed")
	}
	plugins, err := cniFolder()
	if err != nil {
		return program{}, err
	}
	config := filepath.Join(n.dir, "containerd.toml")
	text := containerdConfig(n, plugins, snapshotter(n.dir))
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return program{}, err
	}
	network := filepath.Join(n.dir, "cni", "10-lab.conflist")
	if err := os.WriteFile(network, []byte(podNetworkConfig(n)), 0o644); err != nil {
		return program{}, err
	}
	return program{"containerd-" + n.place, file, []string{"containerd", "--config", config}}, nil
}

func cniFolder() (string, error) {
	for _, dir := range cniFolders {
		if _, err := os.Stat(filepath.Join(dir, "ptp")); err == nil {
			return dir, nil
		}
	}
	return "", errors.New("the CNI plugins are not installed")
}

// snapshotter is the fastest way to stack an image's layers that the file system can bear.
func snapshotter(dir string) string {
	var about syscall.Statfs_t
	if err := syscall.Statfs(dir, &about); err == nil && about.Type == overlayMagic {
		return "native"
	}
	return "overlayfs"
}

func containerdConfig(n node, plugins, snapshotter string) string {
	return fmt.Sprintf(`version = 2
root = %[1]q
state = %[2]q
disabled_plugins = [
  "io.containerd.internal.v1.opt", # would make a folder below /opt
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
  "io.containerd.tracing.processor.v1.otlp",
  "io.containerd.internal.v1.tracing",
]

[grpc]
  address = %[3]q

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = %[4]q
  # Lowering it is refused inside many virtual machines.
  restrict_oom_score_adj = true
  disable_apparmor = true
  stream_server_address = "127.0.0.1"

  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = %[5]q
    conf_dir = %[6]q

  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = %[7]q
    default_runtime_name = "runc"

    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
`,
		filepath.Join(n.dir, "containerd"), filepath.Join(n.dir, "containerd-state"), n.socket(),
		pauseImage, plugins, filepath.Join(n.dir, "cni"), snapshotter)
}

// podNetworkConfig connects each pod by a cable of its own, so that the node routes all its
// traffic and sees both directions of what kube-proxy redirects.
func podNetworkConfig(n node) string {
	return fmt.Sprintf(`{
  "cniVersion": "0.4.0",
  "name": "lab",
  "plugins": [
    {
      "type": "ptp",
      "ipMasq": false,
      "ipam": {
        "type": "host-local",
        "dataDir": %q,
        "ranges": [[{"subnet": %q}]],
        "routes": [{"dst": "0.0.0.0/0"}]
      }
    },
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
`, filepath.Join(n.dir, "pod-addresses"), n.podRange)
}

// kubelet writes a node's configuration and its credentials.
func kubelet(p plan, n node, a *authority, self string) (program, error) {
	user, groups := "system:node:"+n.name, []string{"system:nodes"}
	issued, err := a.issue(user, groups, []string{n.name, n.address})
	if err != nil {
		return program{}, err
	}
	pki := filepath.Join(n.dir, "pki")
	certificate, key, err := issued.write(pki, "kubelet")
	if err != nil {
		return program{}, err
	}
	text, err := json.MarshalIndent(kubeletConfig(p, n, certificate, key), "", "  ")
	if err != nil {
		return program{}, err
	}
	config := filepath.Join(n.dir, "kubelet.json")
	if err := os.WriteFile(config, text, 0o644); err != nil {
		return program{}, err
	}
	access := filepath.Join(pki, "kubelet.kubeconfig")
	text = kubeconfig("https://"+apiAddress(), p.name, a.certificate, issued)
	if err := os.WriteFile(access, text, 0o600); err != nil {
		return program{}, err
	}
	return program{"kubelet-" + n.place, self, []string{
		"kubelet",
		"--config=" + config,
		"--kubeconfig=" + access,
		"--root-dir=" + filepath.Join(n.dir, "kubelet"),
		"--cert-dir=" + pki,
		"--hostname-override=" + n.name,
		"--node-ip=" + n.address,
	}}, nil
}

func kubeletConfig(p plan, n node, certificate, key string) map[string]any {
	type object = map[string]any
	return object{
		"apiVersion":    "kubelet.config.k8s.io/v1beta1",
		"kind":          "KubeletConfiguration",
		"clusterDNS":    []string{hubAddress},
		"clusterDomain": clusterDomain,
		"resolvConf":    "",
		"authentication": object{
			"anonymous": object{"enabled": false},
			"webhook":   object{"enabled": true},
			"x509":      object{"clientCAFile": filepath.Join(p.file("pki"), "ca.crt")},
		},
		"authorization":     object{"mode": "Webhook"},
		"tlsCertFile":       certificate,
		"tlsPrivateKeyFile": key,

		"containerRuntimeEndpoint": "unix://" + n.socket(),
		"podLogsDir":               filepath.Join(n.dir, "pod-logs"),
		"volumePluginDir":          filepath.Join(n.dir, "volume-plugins"),
		"cgroupDriver":             "cgroupfs",
		"cgroupRoot":               "/" + p.group() + "/" + n.place,
		"failCgroupV1":             false,
		"enforceNodeAllocatable":   []string{"none"},
		"failSwapOn":               false,
		"maxPods":                  110,

		"nodeStatusUpdateFrequency": "5s",
		"syncFrequency":             "10s",
		"registryPullQPS":           0,
		// Images come from archives: none can be had again, and nobody vouches for them.
		"imagePullCredentialsVerificationPolicy": "NeverVerify",
		"imageGCHighThresholdPercent":            100,
		// Pods are not evicted because the machine's disk is nearly full for other reasons.
		"evictionHard": object{
			"memory.available":  "50Mi",
			"nodefs.available":  "1%",
			"nodefs.inodesFree": "1%",
			"imagefs.available": "1%",
		},
	}
}

func proxy(n node, self, user string) program {
	return program{"kube-proxy-" + n.place, self, []string{
		"kube-proxy",
		"--kubeconfig=" + user,
		"--hostname-override=" + n.name,
		"--proxy-mode=iptables",
		"--cluster-cidr=" + podNetwork,
		"--iptables-min-sync-period=100ms",
		// These settings belong to the whole machine.
		"--conntrack-max-per-core=0",
		"--conntrack-min=0",
		"--conntrack-tcp-timeout-established=0s",
		"--conntrack-tcp-timeout-close-wait=0s",
	}}
}

// The control plane: how etcd, the API server and what works beside it are started.
//
// Owns their command lines. All of them live in the hub; the ports below are the hub's own.

package lab

import (
	"fmt"
	"os"
	"path/filepath"
)

const etcdAddress = "http://127.0.0.1:2379"

// credentials are the files that the control plane's programs are pointed at.
type credentials struct {
	ca, caKey, server, serverKey, kubelet, kubeletKey, account, accountPublic string
}

func writeCredentials(p plan, a *authority) (c credentials, err error) {
	dir := p.file("pki")
	if err = os.MkdirAll(dir, 0o700); err != nil {
		return c, err
	}
	hosts := []string{
		"kubernetes", "kubernetes.default", "kubernetes.default.svc",
		"kubernetes.default.svc." + clusterDomain, "localhost",
		kubernetesService, hubAddress, "127.0.0.1",
	}
	server, err := a.issue("kube-apiserver", nil, hosts)
	if err != nil {
		return c, err
	}
	kubelet, err := a.issue("kube-apiserver-kubelet-client", []string{"system:masters"}, nil)
	if err != nil {
		return c, err
	}
	if c.ca, c.caKey, err = a.write(dir, "ca"); err != nil {
		return c, err
	}
	if c.server, c.serverKey, err = server.write(dir, "kube-apiserver"); err != nil {
		return c, err
	}
	if c.kubelet, c.kubeletKey, err = kubelet.write(dir, "kubelet-client"); err != nil {
		return c, err
	}
	c.account, c.accountPublic, err = writeAccount(dir)
	return c, err
}

// writeUser writes the kubeconfig of a part of the lab and returns its path.
func writeUser(p plan, a *authority, part, user string, groups []string) (string, error) {
	issued, err := a.issue(user, groups, nil)
	if err != nil {
		return "", err
	}
	file := filepath.Join(p.file("pki"), part+".kubeconfig")
	text := kubeconfig("https://"+apiAddress(), p.name, a.certificate, issued)
	return file, os.WriteFile(file, text, 0o600)
}

func etcd(p plan, self string) program {
	return program{"etcd", self, []string{
		"etcd",
		"--name=lab",
		"--data-dir=" + p.file("etcd"),
		"--listen-client-urls=" + etcdAddress,
		"--advertise-client-urls=" + etcdAddress,
		"--listen-peer-urls=http://127.0.0.1:2380",
		"--initial-advertise-peer-urls=http://127.0.0.1:2380",
		"--initial-cluster=lab=http://127.0.0.1:2380",
		"--unsafe-no-fsync", // what a lab holds is not worth a disk's wait
		"--log-level=warn",
	}}
}

func apiServer(p plan, self string, c credentials) program {
	return program{"kube-apiserver", self, []string{
		"kube-apiserver",
		"--etcd-servers=" + etcdAddress,
		"--advertise-address=" + hubAddress,
		fmt.Sprintf("--secure-port=%d", apiPort),
		"--cert-dir=" + p.file("pki"),
		"--client-ca-file=" + c.ca,
		"--tls-cert-file=" + c.server,
		"--tls-private-key-file=" + c.serverKey,
		"--kubelet-certificate-authority=" + c.ca,
		"--kubelet-client-certificate=" + c.kubelet,
		"--kubelet-client-key=" + c.kubeletKey,
		"--kubelet-preferred-address-types=InternalIP",
		"--service-account-issuer=https://kubernetes.default.svc." + clusterDomain,
		"--service-account-signing-key-file=" + c.account,
		"--service-account-key-file=" + c.accountPublic,
		"--service-cluster-ip-range=" + serviceNetwork,
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction",
		// The hub has no kube-proxy: Services are reached through their pods.
		"--enable-aggregator-routing=true",
		"--allow-privileged=true",
		"--anonymous-auth=true",
		"--profiling=false",
	}}
}

func controllerManager(p plan, self, user string, c credentials) program {
	return program{"kube-controller-manager", self, []string{
		"kube-controller-manager",
		"--kubeconfig=" + user,
		"--authentication-kubeconfig=" + user,
		"--authorization-kubeconfig=" + user,
		"--cert-dir=" + p.file("pki"),
		"--bind-address=127.0.0.1",
		"--leader-elect=false",
		"--use-service-account-credentials=true",
		"--service-account-private-key-file=" + c.account,
		"--root-ca-file=" + c.ca,
		"--cluster-signing-cert-file=" + c.ca,
		"--cluster-signing-key-file=" + c.caKey,
		"--flex-volume-plugin-dir=" + p.file("volume-plugins"),
		"--cluster-cidr=" + podNetwork,
		"--allocate-node-cidrs=false",
		"--kube-api-qps=100",
		"--kube-api-burst=200",
		"--profiling=false",
	}}
}

func scheduler(p plan, self, user string) program {
	return program{"kube-scheduler", self, []string{
		"kube-scheduler",
		"--kubeconfig=" + user,
		"--authentication-kubeconfig=" + user,
		"--authorization-kubeconfig=" + user,
		"--cert-dir=" + p.file("pki"),
		"--bind-address=127.0.0.1",
		"--leader-elect=false",
		"--kube-api-qps=100",
		"--kube-api-burst=200",
		"--profiling=false",
	}}
}

// nameServer answers the names of Services and pods, and says of all others that they do not exist.
func nameServer(p plan, self, user string) (program, error) {
	corefile := fmt.Sprintf(`.:53 {
    errors
    kubernetes %s in-addr.arpa ip6.arpa {
        kubeconfig %s
        pods insecure
    }
    template ANY ANY . {
        rcode NXDOMAIN
    }
}
`, clusterDomain, user)
	file := p.file("Corefile")
	if err := os.WriteFile(file, []byte(corefile), 0o644); err != nil {
		return program{}, err
	}
	return program{"coredns", self, []string{"coredns", "-conf", file}}, nil
}

// nameServerRole is what CoreDNS may read.
const nameServerRole = `{
  "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
  "metadata": {"name": "lab:coredns"},
  "rules": [
    {"apiGroups": [""], "resources": ["services", "pods", "namespaces"],
     "verbs": ["list", "watch"]},
    {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"],
     "verbs": ["list", "watch"]}
  ]
}`

const nameServerBinding = `{
  "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
  "metadata": {"name": "lab:coredns"},
  "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole",
              "name": "lab:coredns"},
  "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "lab:coredns"}]
}`

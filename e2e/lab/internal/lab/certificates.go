// The lab's certificate authority, and files that let a program reach the API server.
//
// Owns keys and certificates. All of them are made for one lab and end with its folder.

package lab

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

const (
	certificateAge = 365 * 24 * time.Hour
	// Clocks are the same on one machine, but a certificate must be valid at once.
	certificateSlack = time.Hour
)

// pair is a certificate with its key, as PEM.
type pair struct {
	certificate []byte
	key         []byte
}

// authority signs the lab's certificates.
type authority struct {
	pair
	signer   *ecdsa.PrivateKey
	template *x509.Certificate
}

func newAuthority() (*authority, error) {
	template := baseTemplate("oxidask-lab", nil)
	template.IsCA = true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	signed, err := encode(template, template, key, key)
	if err != nil {
		return nil, err
	}
	return &authority{pair: signed, signer: key, template: template}, nil
}

func baseTemplate(name string, groups []string) *x509.Certificate {
	now := time.Now()
	return &x509.Certificate{
		SerialNumber:          big.NewInt(now.UnixNano()),
		Subject:               pkix.Name{CommonName: name, Organization: groups},
		NotBefore:             now.Add(-certificateSlack),
		NotAfter:              now.Add(certificateAge),
		BasicConstraintsValid: true,
	}
}

func encode(template, parent *x509.Certificate, key, signer *ecdsa.PrivateKey) (pair, error) {
	signed, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		return pair{}, err
	}
	private, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return pair{}, err
	}
	return pair{
		certificate: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: signed}),
		key:         pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: private}),
	}, nil
}

// issue makes a certificate for a user of the API, who may also serve at the given hosts.
func (a *authority) issue(user string, groups, hosts []string) (pair, error) {
	template := baseTemplate(user, groups)
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if len(hosts) > 0 {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	for _, host := range hosts {
		if address := net.ParseIP(host); address != nil {
			template.IPAddresses = append(template.IPAddresses, address)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return pair{}, err
	}
	return encode(template, a.template, key, a.signer)
}

// write puts a pair into two files and returns their paths.
func (p pair) write(dir, name string) (certificate, key string, err error) {
	certificate = filepath.Join(dir, name+".crt")
	key = filepath.Join(dir, name+".key")
	if err := os.WriteFile(certificate, p.certificate, 0o644); err != nil {
		return "", "", err
	}
	return certificate, key, os.WriteFile(key, p.key, 0o600)
}

// client is the TLS configuration of a user of the lab's API server.
func (a *authority) client(user pair) (*tls.Config, error) {
	own, err := tls.X509KeyPair(user.certificate, user.key)
	if err != nil {
		return nil, err
	}
	trusted := x509.NewCertPool()
	trusted.AppendCertsFromPEM(a.certificate)
	return &tls.Config{Certificates: []tls.Certificate{own}, RootCAs: trusted}, nil
}

// writeAccount makes the key that signs service account tokens; both halves are files.
func writeAccount(dir string) (private, public string, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", "", err
	}
	secret, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return "", "", err
	}
	open, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return "", "", err
	}
	private = filepath.Join(dir, "accounts.key")
	public = filepath.Join(dir, "accounts.pub")
	text := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: secret})
	if err := os.WriteFile(private, text, 0o600); err != nil {
		return "", "", err
	}
	text = pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: open})
	return private, public, os.WriteFile(public, text, 0o644)
}

// kubeconfig is the file that names a server and a user, with everything in it.
func kubeconfig(server, cluster string, authority []byte, user pair) []byte {
	text := base64.StdEncoding.EncodeToString
	return fmt.Appendf(nil, `apiVersion: v1
kind: Config
clusters:
- name: %[2]s
  cluster:
    server: %[1]s
    certificate-authority-data: %[3]s
users:
- name: %[2]s
  user:
    client-certificate-data: %[4]s
    client-key-data: %[5]s
contexts:
- name: %[2]s
  context:
    cluster: %[2]s
    user: %[2]s
current-context: %[2]s
`, server, cluster, text(authority), text(user.certificate), text(user.key))
}

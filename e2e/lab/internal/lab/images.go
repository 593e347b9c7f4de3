// Images: the lab's own pause image, and bringing archives into the nodes.
//
// Owns the writing of the smallest possible OCI archive. Never pulls anything.

package lab

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"time"
)

const (
	layerType    = "application/vnd.oci.image.layer.v1.tar"
	configType   = "application/vnd.oci.image.config.v1+json"
	manifestType = "application/vnd.oci.image.manifest.v1+json"
	indexType    = "application/vnd.oci.image.index.v1+json"
)

// entry is a file in an archive.
type entry struct {
	name string
	mode int64
	data []byte
}

func archive(entries []entry) ([]byte, error) {
	var out bytes.Buffer
	writer := tar.NewWriter(&out)
	for _, e := range entries {
		header := tar.Header{
			Name: e.name, Mode: e.mode, Size: int64(len(e.data)),
			ModTime: time.Unix(0, 0), Format: tar.FormatPAX,
		}
		if err := writer.WriteHeader(&header); err != nil {
			return nil, err
		}
		if _, err := writer.Write(e.data); err != nil {
			return nil, err
		}
	}
	err := writer.Close()
	return out.Bytes(), err
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

func describe(kind string, data []byte) descriptor {
	return descriptor{MediaType: kind, Digest: digest(data), Size: len(data)}
}

func blob(data []byte) entry {
	return entry{"blobs/sha256/" + digest(data)[len("sha256:"):], 0o644, data}
}

// singleProgram is the OCI archive of an image that holds one static program and nothing else.
func singleProgram(image string, program []byte) ([]byte, error) {
	layer, err := archive([]entry{{"program", 0o755, program}})
	if err != nil {
		return nil, err
	}
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH,
		"os":           "linux",
		"config":       map[string]any{"Entrypoint": []string{"/program"}, "User": "65535"},
		"rootfs":       map[string]any{"type": "layers", "diff_ids": []string{digest(layer)}},
	})
	if err != nil {
		return nil, err
	}
	manifest, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": manifestType,
		"config": describe(configType, config),
		"layers": []descriptor{describe(layerType, layer)},
	})
	if err != nil {
		return nil, err
	}
	named := describe(manifestType, manifest)
	named.Annotations = map[string]string{"org.opencontainers.image.ref.name": image}
	index, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": indexType, "manifests": []descriptor{named},
	})
	if err != nil {
		return nil, err
	}
	return archive([]entry{
		{"oci-layout", 0o644, []byte(`{"imageLayoutVersion":"1.0.0"}`)},
		{"index.json", 0o644, index},
		blob(manifest), blob(config), blob(layer),
	})
}

// writePause writes the archive of the image that holds a pod's namespaces. Its program lies beside
// this one.
func writePause(p plan, self string) (string, error) {
	file := filepath.Join(filepath.Dir(self), "pause")
	program, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("the pause program must lie beside this one: %w", err)
	}
	data, err := singleProgram(pauseImage, program)
	if err != nil {
		return "", err
	}
	path := p.file("pause.tar")
	return path, os.WriteFile(path, data, 0o644)
}

// loadOne imports an archive into one node.
func loadOne(n node, path string) error {
	command := exec.Command("ctr", "--address", n.socket(), "--namespace", "k8s.io",
		"images", "import", path)
	command.Env = []string{searchPath}
	if text, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("cannot import `%s` into `%s`: %w: %s", path, n.name, err, text)
	}
	return nil
}

// load imports archives into every node of a running lab.
func load(p plan, paths []string, out io.Writer) error {
	if s, err := supervisorOf(p); err != nil || s == nil {
		return fmt.Errorf("the lab `%s` is not running", p.name)
	}
	nodes := p.nodes()
	for _, path := range paths {
		began := time.Now()
		failures := make([]error, len(nodes))
		var waiting sync.WaitGroup
		for i, n := range nodes {
			waiting.Go(func() { failures[i] = loadOne(n, path) })
		}
		waiting.Wait()
		for _, err := range failures {
			if err != nil {
				return err
			}
		}
		fmt.Fprintf(out, "%5.1f s  %s is in %d nodes\n",
			time.Since(began).Seconds(), path, len(nodes))
	}
	return nil
}

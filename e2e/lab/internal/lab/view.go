// The lab's view of the machine's files, and what is mounted where.
//
// Owns the mounts. A lab's processes share a mount namespace: what they mount, and what they write
// to places that programs have built in (`/run`, `/var/log`, kernel settings and more), is
// seen by them alone and ends with the last of them. Never removes a file.

package lab

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
)

// builtInFolders are built into the CNI library and the kubelet. They are made if missing, and
// removed with the last lab.
var builtInFolders = []string{"/var/lib/cni", "/var/lib/kubelet"}

// kernelSettings is what a kubelet would otherwise set for the whole machine. It finds them so.
var kernelSettings = map[string]string{
	"/proc/sys/vm/overcommit_memory":      "1",
	"/proc/sys/vm/panic_on_oom":           "0",
	"/proc/sys/kernel/panic":              "10",
	"/proc/sys/kernel/panic_on_oops":      "1",
	"/proc/sys/kernel/keys/root_maxkeys":  "1000000",
	"/proc/sys/kernel/keys/root_maxbytes": "25000000",
}

// arrangeView covers the shared places. The process must be in a mount namespace of its own.
func arrangeView(p plan) error {
	// Shared among the lab's own processes, as container runtimes expect it.
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_SHARED, ""); err != nil {
		return fmt.Errorf("cannot share the lab's mounts: %w", err)
	}
	for _, dir := range append([]string{"/run", "/var/log"}, builtInFolders...) {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "mode=755"); err != nil {
			return fmt.Errorf("cannot cover `%s`: %w", dir, err)
		}
	}
	if err := os.MkdirAll(namespacesDir, 0o755); err != nil {
		return err
	}
	return coverSettings(p.file("settings"))
}

// uncover lets the process that arranged the view see the machine's own folders again.
func uncover() {
	for _, dir := range builtInFolders {
		_ = syscall.Unmount(dir, syscall.MNT_DETACH)
	}
}

func coverSettings(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for setting, value := range kernelSettings {
		now, err := os.ReadFile(setting)
		if err != nil || strings.TrimSpace(string(now)) == value {
			continue
		}
		file := filepath.Join(dir, filepath.Base(setting))
		if err := os.WriteFile(file, []byte(value+"\n"), 0o644); err != nil {
			return err
		}
		if err := syscall.Mount(file, setting, "", syscall.MS_BIND, ""); err != nil {
			return fmt.Errorf("cannot cover `%s`: %w", setting, err)
		}
	}
	return nil
}

// mount is a line of `/proc/self/mountinfo`.
type mount struct {
	root   string // the folder of the file system that is mounted
	point  string
	kind   string
	source string
	super  string // options of the file system
}

func mounts() ([]mount, error) {
	file, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return parseMounts(file)
}

func parseMounts(text io.Reader) ([]mount, error) {
	var all []mount
	lines := bufio.NewScanner(text)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		head, tail, found := strings.Cut(lines.Text(), " - ")
		left, right := strings.Fields(head), strings.Fields(tail)
		if !found || len(left) < 5 || len(right) < 3 {
			return nil, fmt.Errorf("cannot read the list of mounts: `%s`", lines.Text())
		}
		all = append(all, mount{
			root: unescape(left[3]), point: unescape(left[4]),
			kind: right[0], source: unescape(right[1]), super: right[2],
		})
	}
	return all, lines.Err()
}

// unescape undoes how the kernel writes blanks and backslashes in paths.
func unescape(path string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(path)
}

// pointsBelow are the mount points below a folder, the deepest first.
func pointsBelow(all []mount, dir string) []string {
	var points []string
	for _, m := range all {
		if strings.HasPrefix(m.point, dir+"/") {
			points = append(points, m.point)
		}
	}
	sort.SliceStable(points, func(i, j int) bool { return len(points[i]) > len(points[j]) })
	return points
}

// unmountBelow leaves nothing mounted below a folder, or says what is.
func unmountBelow(dir string) error {
	const roundsMax = 20 // mounts lie upon each other
	var points []string
	for range roundsMax {
		all, err := mounts()
		if err != nil {
			return err
		}
		if points = pointsBelow(all, dir); len(points) == 0 {
			return nil
		}
		for _, point := range points {
			_ = syscall.Unmount(point, syscall.MNT_DETACH)
		}
	}
	return fmt.Errorf("still mounted: %s", strings.Join(points, ", "))
}

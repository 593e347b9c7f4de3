// The cgroups of a lab, by which all its processes are found.
//
// Owns the folder `oxidask-lab.NAME` in every cgroup hierarchy: `system` holds the lab's own
// programs, `node-N` the pods. Every process of a lab is in it from its first moment, so what is to
// be killed is known from the kernel alone. Never kills anything itself.

package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

const systemGroup = "system"

// hierarchy is a mounted tree of cgroups: of one controller (version 1), or unified (version 2).
// Both may be there at once.
type hierarchy struct {
	root      string
	isUnified bool
}

func hierarchies() ([]hierarchy, error) {
	all, err := mounts()
	if err != nil {
		return nil, err
	}
	var found []hierarchy
	for _, m := range all {
		if m.kind == "cgroup" || m.kind == "cgroup2" {
			found = append(found, hierarchy{m.point, m.kind == "cgroup2"})
		}
	}
	if len(found) == 0 {
		return nil, errors.New("no cgroup hierarchy is mounted")
	}
	return found, nil
}

// makeGroups makes the lab's cgroups and puts this process into `system`.
func makeGroups(p plan) error {
	trees, err := hierarchies()
	if err != nil {
		return err
	}
	for _, tree := range trees {
		lab := filepath.Join(tree.root, p.group())
		if err := makeGroup(tree.root, lab, tree.isUnified); err != nil {
			return err
		}
		names := []string{systemGroup}
		for _, n := range p.nodes() {
			names = append(names, n.place)
		}
		for _, name := range names {
			if err := makeGroup(lab, filepath.Join(lab, name), tree.isUnified); err != nil {
				return err
			}
		}
		if err := join(filepath.Join(lab, systemGroup)); err != nil {
			return err
		}
	}
	return nil
}

func makeGroup(parent, group string, isUnified bool) error {
	if isUnified {
		passControllers(parent)
	}
	if err := os.Mkdir(group, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("cannot make a cgroup: %w", err)
	}
	// Without processors and memory banks of its own, a cgroup of version 1 takes no process.
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		value, err := os.ReadFile(filepath.Join(parent, file))
		if err != nil || isUnified {
			continue
		}
		if err := os.WriteFile(filepath.Join(group, file), value, 0o644); err != nil {
			return fmt.Errorf("cannot set up a cgroup: %w", err)
		}
	}
	return nil
}

// passControllers lets a cgroup's children have its controllers. One that is refused is not needed
// or the kubelet will name it.
func passControllers(group string) {
	controllers, _ := os.ReadFile(filepath.Join(group, "cgroup.controllers"))
	for _, controller := range strings.Fields(string(controllers)) {
		file := filepath.Join(group, "cgroup.subtree_control")
		_ = os.WriteFile(file, []byte("+"+controller), 0o644)
	}
}

func join(group string) error {
	file := filepath.Join(group, "cgroup.procs")
	if err := os.WriteFile(file, []byte(strconv.Itoa(os.Getpid())), 0o644); err != nil {
		return fmt.Errorf("cannot enter a cgroup: %w", err)
	}
	return nil
}

// leaveGroups takes this process out of the lab's cgroups, so that they can be removed.
func leaveGroups() error {
	trees, err := hierarchies()
	if err != nil {
		return err
	}
	for _, tree := range trees {
		if err := join(tree.root); err != nil {
			return err
		}
	}
	return nil
}

// groupFolders are the lab's cgroup folders, the deepest first.
func groupFolders(name string) ([]string, error) {
	trees, err := hierarchies()
	if err != nil {
		return nil, err
	}
	var folders []string
	for _, tree := range trees {
		var found []string
		visit := func(path string, entry fs.DirEntry, err error) error {
			// Folders come and go while processes end.
			if err == nil && entry.IsDir() {
				found = append(found, path)
			}
			return nil
		}
		_ = filepath.WalkDir(filepath.Join(tree.root, groupStem+name), visit)
		for i := len(found) - 1; i >= 0; i-- {
			folders = append(folders, found[i])
		}
	}
	return folders, nil
}

// groupMembers are the processes of the lab.
func groupMembers(name string) (map[int]bool, error) {
	folders, err := groupFolders(name)
	if err != nil {
		return nil, err
	}
	members := map[int]bool{}
	for _, folder := range folders {
		text, _ := os.ReadFile(filepath.Join(folder, "cgroup.procs"))
		for _, word := range strings.Fields(string(text)) {
			if id, err := strconv.Atoi(word); err == nil && id > 0 {
				members[id] = true
			}
		}
	}
	return members, nil
}

// removeGroups removes the lab's cgroups. A process that has just ended may hold one for a moment.
func removeGroups(name string, limit time.Duration) error {
	deadline := time.Now().Add(limit)
	for {
		folders, err := groupFolders(name)
		if err != nil || len(folders) == 0 {
			return err
		}
		for _, folder := range folders {
			err = errors.Join(err, os.Remove(folder))
		}
		if err != nil && time.Now().After(deadline) {
			return fmt.Errorf("cannot remove a cgroup: %w", err)
		}
		if err != nil {
			time.Sleep(50 * time.Millisecond)
		}
	}
}

// groupNames are the names of all labs that have a cgroup.
func groupNames() ([]string, error) {
	trees, err := hierarchies()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, tree := range trees {
		entries, _ := os.ReadDir(tree.root)
		for _, entry := range entries {
			if name, found := strings.CutPrefix(entry.Name(), groupStem); found {
				names = append(names, name)
			}
		}
	}
	return names, nil
}

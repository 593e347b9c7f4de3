// Starting, watching and ending the programs of a lab.
//
// Owns child processes and how a lab's processes are found again by somebody else. Knows no program
// by name: what is started, and with which words, is said in control.go and machine.go.

package lab

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// child is a running program of the lab.
type child struct {
	name string
	log  string
	end  string // how it ended; valid once it was sent to `ended`
}

// program is what is to be started.
type program struct {
	name  string // of its log; unique in the lab
	file  string
	words []string // the first is its own name
}

// searchPath finds what containerd, kubelet and CNI start, also for a user without sbin folders.
const searchPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// start starts a program inside a space. It ends with this process at the latest.
func start(p plan, s *space, what program, ended chan<- *child) error {
	log, err := os.OpenFile(p.log(what.name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	command := &exec.Cmd{
		Path: what.file, Args: what.words, Dir: p.dir(),
		// Nothing of the caller's environment, a proxy above all, changes what a lab does.
		Env:    []string{searchPath, "HOME=/root"},
		Stdout: log, Stderr: log,
		SysProcAttr: &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL},
	}
	if err := s.do(command.Start); err != nil {
		return fmt.Errorf("cannot start %s: %w", what.name, err)
	}
	go func() {
		err := command.Wait()
		end := "with success"
		if err != nil {
			end = err.Error()
		}
		ended <- &child{name: what.name, log: p.log(what.name), end: end}
	}()
	return nil
}

const (
	tailLines = 25
	tailBytes = 16 << 10
)

// tail is the end of a log, for people.
func tail(path string) string {
	file, err := os.Open(path)
	if err != nil {
		return "(no log)"
	}
	defer file.Close()
	if info, err := file.Stat(); err == nil && info.Size() > tailBytes {
		_, _ = file.Seek(-tailBytes, io.SeekEnd)
	}
	text, _ := io.ReadAll(file)
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return "  " + strings.Join(lines[max(0, len(lines)-tailLines):], "\n  ")
}

const supervisorWord = "supervise"

// supervisor is a running process that holds a lab together.
type supervisor struct {
	process int
	name    string
	state   string
}

// supervisors finds those of all labs on this machine, by their command lines.
func supervisors() ([]supervisor, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var found []supervisor
	for _, entry := range entries {
		id, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		line, err := os.ReadFile(filepath.Join("/proc", entry.Name(), "cmdline"))
		if err != nil {
			continue
		}
		if s, isOne := parseSupervisor(line); isOne {
			s.process = id
			found = append(found, s)
		}
	}
	return found, nil
}

func supervisorWords(p plan) []string {
	return []string{
		"oxidask-lab", supervisorWord,
		"--name", p.name, "--state", p.state, "--nodes", strconv.Itoa(p.nodeCount),
	}
}

func parseSupervisor(line []byte) (supervisor, bool) {
	words := strings.Split(strings.TrimRight(string(line), "\x00"), "\x00")
	isOne := len(words) >= 6 && filepath.Base(words[0]) == "oxidask-lab" &&
		words[1] == supervisorWord && words[2] == "--name" && words[4] == "--state"
	if !isOne {
		return supervisor{}, false
	}
	return supervisor{name: words[3], state: words[5]}, true
}

// supervisorOf is the process of one lab, or nil. It fails if the name is taken elsewhere.
func supervisorOf(p plan) (*supervisor, error) {
	all, err := supervisors()
	if err != nil {
		return nil, err
	}
	for _, s := range all {
		if s.name != p.name {
			continue
		}
		if s.state != p.state {
			return nil, fmt.Errorf("a lab `%s` of another state folder, `%s`, is running",
				s.name, s.state)
		}
		return &s, nil
	}
	return nil, nil
}

// killAll ends every process of the lab but this one.
func killAll(p plan, limit time.Duration) error {
	deadline := time.Now().Add(limit)
	for {
		members, err := groupMembers(p.name)
		if err != nil {
			return err
		}
		if s, err := supervisorOf(p); err == nil && s != nil {
			members[s.process] = true
		}
		delete(members, os.Getpid())
		for id := range members {
			if isZombie(id) {
				delete(members, id)
				continue
			}
			_ = syscall.Kill(id, syscall.SIGKILL)
		}
		if len(members) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d processes of the lab do not end: %v", len(members), members)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// isZombie tells a process that has ended but whose parent has not yet asked how.
func isZombie(id int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", id))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	return strings.HasPrefix(rest, "Z")
}

// Making a lab, and leaving nothing of it behind.
//
// Owns the lifecycle as its user sees it. Everything that is to be removed is found on disk and in
// the kernel by the lab's name, so an end works however the lab was left. One lock for each lab,
// which the kernel releases with its holder, keeps two callers apart.

package lab

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

const (
	lockWait    = 60 * time.Second
	stopLimit   = 6 * time.Second
	killLimit   = 15 * time.Second
	removeLimit = 10 * time.Second
)

var errLocked = errors.New("somebody else is making or ending this lab")

// lock takes the lab's folder for this process, making it if need be.
func lock(dir string, wait time.Duration) (*os.File, error) {
	deadline := time.Now().Add(wait)
	for {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
		if file, err := tryLock(dir); err == nil {
			return file, nil
		}
		if time.Now().After(deadline) {
			return nil, errLocked
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func tryLock(dir string) (*os.File, error) {
	file, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		file.Close()
		return nil, errLocked
	}
	// The folder may have been removed by whoever held the lock before.
	mine, err := file.Stat()
	if err == nil {
		var current fs.FileInfo
		if current, err = os.Stat(dir); err == nil && os.SameFile(mine, current) {
			return file, nil
		}
	}
	file.Close()
	return nil, errLocked
}

// up makes a lab and returns when it can be used.
func up(p plan, out io.Writer) error {
	if os.Geteuid() != 0 {
		return errors.New("a lab makes namespaces and mounts: only root may start one")
	}
	if err := missingPrograms(); err != nil {
		return err
	}
	if s, err := supervisorOf(p); err != nil {
		return err
	} else if s != nil {
		if _, err := os.Stat(p.kubeconfig()); err == nil {
			fmt.Fprintf(out, "the lab `%s` is already up; its kubeconfig: %s\n",
				p.name, p.kubeconfig())
			return nil
		}
	}
	held, err := lock(p.dir(), lockWait)
	if err != nil {
		return err
	}
	defer held.Close()
	began := time.Now()
	if err := makeFolders(p); err != nil {
		return err
	}
	if err := await(p, began, out); err != nil {
		return errors.Join(err, purge(p, true))
	}
	fmt.Fprintf(out, "%5.1f s  the lab `%s` is up, %d nodes; its kubeconfig: %s\n",
		time.Since(began).Seconds(), p.name, p.nodeCount, p.kubeconfig())
	return nil
}

// makeFolders clears what an earlier lab of this name left, and marks the folder.
func makeFolders(p plan) error {
	if err := purge(p, false); err != nil {
		return err
	}
	if err := p.writeRecord(); err != nil {
		return err
	}
	return os.Mkdir(p.file("logs"), 0o755)
}

// await starts the supervisor and tells its progress until it is done or gone.
func await(p plan, began time.Time, out io.Writer) error {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	defer signal.Stop(stop)
	process, progress, err := launch(p)
	if err != nil {
		return err
	}
	defer progress.Close()
	lines := make(chan string)
	go func() {
		defer close(lines)
		for scanner := bufio.NewScanner(progress); scanner.Scan(); {
			lines <- scanner.Text()
		}
	}()
	var last []string
	for {
		select {
		case <-stop:
			_ = process.Kill()
			_, _ = process.Wait()
			return errors.New("interrupted: the lab is taken down again")
		case line, isOpen := <-lines:
			switch {
			case !isOpen:
				_, _ = process.Wait()
				return fmt.Errorf("the lab did not come up: %s", reason(p, last))
			case line == readyLine:
				return nil
			case isFailure(line, last):
				last = append(last, line)
			default:
				fmt.Fprintf(out, "%5.1f s  %s\n", time.Since(began).Seconds(), line)
			}
		}
	}
}

// isFailure tells the lines of a failure, which come last, from those of progress.
func isFailure(line string, last []string) bool {
	return len(last) > 0 || strings.HasPrefix(line, "while ")
}

func reason(p plan, lines []string) string {
	if len(lines) > 0 {
		return strings.Join(lines, "\n")
	}
	return "its supervisor was killed; the end of its log:\n" + tail(p.log("supervisor"))
}

// down ends a lab in whatever state it is.
func down(p plan, out io.Writer) error {
	began := time.Now()
	s, err := supervisorOf(p)
	if err != nil {
		return err
	}
	if isNothing, err := nothingOf(p); err != nil || isNothing {
		if err == nil {
			fmt.Fprintf(out, "there is no lab `%s`\n", p.name)
		}
		return err
	}
	if s != nil {
		stopSupervisor(p, s.process)
	}
	held, err := lock(p.dir(), lockWait)
	if err != nil {
		return err
	}
	defer held.Close()
	if err := purge(p, true); err != nil {
		return err
	}
	fmt.Fprintf(out, "%5.1f s  the lab `%s` is gone\n", time.Since(began).Seconds(), p.name)
	return nil
}

// stopSupervisor lets a supervisor end its lab, as only a parent can ask how a child ended. What it
// does not manage is done by the caller. Whoever waits for the lab to come up sees its end as well.
func stopSupervisor(p plan, process int) {
	_ = syscall.Kill(process, syscall.SIGTERM)
	deadline := time.Now().Add(stopLimit)
	for time.Now().Before(deadline) {
		if s, err := supervisorOf(p); err != nil || s == nil || s.process != process {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	_ = syscall.Kill(process, syscall.SIGKILL)
}

func nothingOf(p plan) (bool, error) {
	folders, err := groupFolders(p.name)
	if err != nil || len(folders) > 0 {
		return false, err
	}
	_, err = os.Lstat(p.dir())
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	return false, err
}

// endOwn is the supervisor's own end. If somebody else holds the lab, they remove it.
func endOwn(p plan) error {
	held, err := tryLock(p.dir())
	if err != nil {
		return nil
	}
	defer held.Close()
	if err := leaveGroups(); err != nil {
		return err
	}
	if err := killAll(p, killLimit); err != nil {
		return err
	}
	uncover()
	return purge(p, true)
}

// purge removes all of a lab. The caller holds its lock.
func purge(p plan, isWithFolder bool) error {
	if err := killAll(p, killLimit); err != nil {
		return err
	}
	if err := removeGroups(p.name, removeLimit); err != nil {
		return err
	}
	if err := clearFolder(p); err != nil {
		return err
	}
	if !isWithFolder {
		return nil
	}
	if err := os.Remove(p.dir()); err != nil {
		return err
	}
	// These folders stay if something else is in them.
	_ = os.Remove(p.state)
	if others, err := supervisors(); err == nil && isLast(others, p) {
		for _, dir := range builtInFolders {
			_ = os.Remove(dir)
		}
	}
	return nil
}

// isLast tells that no lab but this one is there.
func isLast(all []supervisor, p plan) bool {
	for _, s := range all {
		if s.name != p.name || s.state != p.state {
			return false
		}
	}
	return true
}

// clearFolder empties the lab's folder. It removes nothing that is mounted there from elsewhere,
// and touches no folder that is not a lab's.
func clearFolder(p plan) error {
	entries, err := os.ReadDir(p.dir())
	if err != nil || len(entries) == 0 {
		return err
	}
	if _, err := os.Lstat(p.file(recordName)); err != nil {
		return fmt.Errorf("`%s` is not a lab's folder: it holds no `%s`", p.dir(), recordName)
	}
	if err := unmountBelow(p.dir()); err != nil {
		return err
	}
	for _, entry := range entries {
		if entry.Name() == recordName {
			continue // goes last: an interrupted removal can be taken up again
		}
		if err := os.RemoveAll(p.file(entry.Name())); err != nil {
			return err
		}
	}
	return os.Remove(p.file(recordName))
}

// Package testsystem runs Gancho as real processes on loopback, for end-to-end tests, chaos and benchmarks: a
// broker, a Redis, the services, and the means of a test to disturb them (kill, freeze, stop, start again).
package testsystem

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"gancho/pkg/proctest"
	"gancho/pkg/waittest"
)

// T is the part of a test or a benchmark that the test system needs.
type T = waittest.T

// patience is how long the test system waits for something that must come; far more than it takes.
const patience = 2 * time.Minute

// Programs of the test system, in addition to nats-server and redis-server.
var programs = []string{"publisher", "dispatcher", "suspension-monitor", "management", "gancho"}

// Build compiles the services and nats-server into dir, the services with the race detector if race.
func Build(dir string, race bool) error {
	return BuildWith(dir, race, "", append([]string{"nats-server"}, programs...)...)
}

// BuildWith compiles only those programs, ours with build tags. It links two at a time, as one keeps one processor
// busy, and without debugger tables, which would double that.
func BuildWith(dir string, race bool, tags string, programs ...string) error {
	var builds errgroup.Group
	builds.SetLimit(2)
	for _, name := range programs {
		args := []string{"build", "-ldflags", "-s -w", "-o", filepath.Join(dir, name)}
		pkg := "gancho/services/" + name + "/cmd"
		if name == "nats-server" {
			pkg = "github.com/nats-io/nats-server/v2"
		} else {
			args = append(args, "-tags", tags)
			if race {
				args = append(args, "-race")
			}
		}
		builds.Go(func() error {
			if out, err := exec.Command("go", append(args, pkg)...).CombinedOutput(); err != nil { //nolint:gosec // a build of ours
				return fmt.Errorf("build %s: %w\n%s", name, err, out)
			}
			return nil
		})
	}
	return builds.Wait()
}

// Process is one program that can be started, ended and started again. Its methods are not safe for
// concurrent use, but for Output.
type Process struct {
	Name string
	Args []string // the program first
	Env  []string // added to that of this process
	Dir  string   // where it runs; "": here

	t    T
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // of Wait, after done
	out  *output
	cpu  time.Duration // of earlier lives
}

// output keeps the output of a process.
type output struct {
	mu    sync.Mutex
	lines []string
	more  chan struct{} // closed with the next line
}

func (o *output) read(r io.Reader) {
	scanner := bufio.NewScanner(r)
	scanner.Buffer(nil, 4<<20)
	for scanner.Scan() {
		o.mu.Lock()
		if o.lines = append(o.lines, scanner.Text()); len(o.lines) > 20_000 {
			o.lines = slices.Clone(o.lines[10_000:])
		}
		close(o.more)
		o.more = make(chan struct{})
		o.mu.Unlock()
	}
	_, _ = io.Copy(io.Discard, r) // a line too long must not block the process
}

// NewProcess returns a process that is not started.
func NewProcess(t T, name string, env []string, args ...string) *Process {
	return &Process{Name: name, Args: args, Env: env, t: t}
}

// Start starts the process. It dies with this one.
func (p *Process) Start() {
	p.t.Helper()
	p.out = &output{more: make(chan struct{})}
	cmd := exec.Command(p.Args[0], p.Args[1:]...) //nolint:gosec // ended by Kill or Term
	cmd.Env, cmd.Dir = append(os.Environ(), p.Env...), p.Dir
	cmd.SysProcAttr = proctest.WithParent()
	r, err := cmd.StdoutPipe()
	if err != nil {
		p.t.Fatalf("start %s: %v", p.Name, err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		p.t.Fatalf("start %s: %v", p.Name, err)
	}
	done := make(chan struct{})
	p.cmd, p.done = cmd, done
	go func() {
		p.out.read(r)
		p.err = cmd.Wait()
		close(done)
	}()
}

// Kill ends the process with SIGKILL and waits until it is gone. One that is not running stays so.
func (p *Process) Kill() {
	if p.cmd == nil {
		return
	}
	_ = p.cmd.Process.Kill()
	p.wait()
}

func (p *Process) wait() {
	<-p.done
	if p.cmd != nil && p.cmd.ProcessState != nil {
		p.cpu += p.cmd.ProcessState.UserTime() + p.cmd.ProcessState.SystemTime()
	}
	p.cmd = nil
}

// Term asks the process to stop, waits for it, and returns its exit code and how long it took.
func (p *Process) Term() (code int, took time.Duration) {
	p.t.Helper()
	began := time.Now()
	p.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(patience):
		p.t.Fatalf("%s did not stop within %v of SIGTERM:\n%s", p.Name, patience, p.Output())
	}
	code = p.cmd.ProcessState.ExitCode()
	p.wait()
	return code, time.Since(began)
}

// Signal sends a signal, such as SIGSTOP.
func (p *Process) Signal(s syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatalf("signal %s: %v", p.Name, err)
	}
}

// TrySignal is Signal for a process that may have ended.
func (p *Process) TrySignal(s syscall.Signal) error {
	if p.cmd == nil {
		return nil
	}
	return p.cmd.Process.Signal(s)
}

// Running reports whether the process was started and not ended by the test system.
func (p *Process) Running() bool { return p.cmd != nil }

// Find waits for a line of the process that matches and returns the first submatch.
func (p *Process) Find(pattern string) string {
	p.t.Helper()
	re := regexp.MustCompile(pattern)
	deadline := time.After(patience)
	next := 0
	for {
		p.out.mu.Lock()
		more := p.out.more
		lines := p.out.lines[min(next, len(p.out.lines)):]
		next = len(p.out.lines)
		p.out.mu.Unlock()
		for _, line := range lines {
			if m := re.FindStringSubmatch(line); m != nil {
				return m[1]
			}
		}
		select {
		case <-more:
		case <-p.done:
			p.t.Fatalf("%s ended before it printed %s:\n%s", p.Name, pattern, p.Output())
		case <-deadline:
			p.t.Fatalf("%s did not print %s within %v:\n%s", p.Name, pattern, patience, p.Output())
		}
	}
}

// Output returns the last lines of the process, and before them those of a data race.
func (p *Process) Output() string {
	if p.out == nil {
		return ""
	}
	p.out.mu.Lock()
	defer p.out.mu.Unlock()
	lines := p.out.lines
	out := lines[max(0, len(lines)-5):]
	if at := slices.Index(lines, "WARNING: DATA RACE"); at >= 0 {
		out = slices.Concat(lines[at:min(at+80, len(lines))], out)
	}
	return strings.Join(out, "\n")
}

// Log returns the kept output of the process, at least its last 10,000 lines.
func (p *Process) Log() string {
	if p.out == nil {
		return ""
	}
	p.out.mu.Lock()
	defer p.out.mu.Unlock()
	return strings.Join(p.out.lines, "\n")
}

// CPU returns the processor time of the process, earlier lives included.
func (p *Process) CPU() time.Duration {
	if p.cmd == nil {
		return p.cpu
	}
	return p.cpu + CPUOf(p.cmd.Process.Pid)
}

// CPUOf returns the processor time of a process by its id, 0 when it is gone.
func CPUOf(pid int) time.Duration {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(raw), ") ") // the name may hold spaces
	f := strings.Fields(rest)
	if len(f) < 13 {
		return 0
	}
	user, _ := strconv.ParseInt(f[11], 10, 64)
	system, _ := strconv.ParseInt(f[12], 10, 64)
	return time.Duration(user+system) * 10 * time.Millisecond // USER_HZ is 100 on Linux
}

// SystemCalls returns how often the running process has read and written, by the kernel's count: sockets through
// sendmsg, recvmsg and the like are not in it.
func (p *Process) SystemCalls() (reads, writes int64) {
	if p.cmd == nil {
		return 0, 0
	}
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", p.cmd.Process.Pid))
	if err != nil {
		return 0, 0
	}
	for line := range strings.Lines(string(raw)) {
		name, value, _ := strings.Cut(line, ": ")
		n, _ := strconv.ParseInt(strings.TrimSpace(value), 10, 64)
		switch name {
		case "syscr":
			reads = n
		case "syscw":
			writes = n
		}
	}
	return reads, writes
}

// PeakMemory returns the most resident memory the running process has had, in bytes.
func (p *Process) PeakMemory() int64 {
	if p.cmd == nil {
		return 0
	}
	return peakMemoryOf(p.cmd.Process.Pid)
}

// peakMemoryOf is PeakMemory by process id.
func peakMemoryOf(pid int) int64 {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(raw), "VmHWM:")
	f := strings.Fields(rest)
	if len(f) == 0 {
		return 0
	}
	kb, _ := strconv.ParseInt(f[0], 10, 64)
	return kb << 10
}

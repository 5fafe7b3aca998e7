package harness

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// Process is a binary that runs in a namespace, or on the host, and dies with
// this process.
type Process struct {
	Name string
	Log  string // Path of what it writes to standard error and output.
	// Faultpoint is where the next life of the process dies, NAME or NAME:n; see
	// storage/faultpoint and BuildFaultpoints. Empty: nowhere.
	Faultpoint string
	ns         *NetNS // Nil: on the host.
	dir        string // Its working folder. Empty: this process's.
	bin        string
	args       []string
	cmd        *exec.Cmd
	done       chan struct{}
}

// HostProcess is a binary that is to run on the host.
func HostProcess(name, log, bin string, args ...string) *Process {
	return &Process{Name: name, Log: log, bin: bin, args: args}
}

// Start starts the process; its output is appended to Log.
func (p *Process) Start() error {
	f, err := os.OpenFile(p.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	bin := p.bin
	if p.Faultpoint != "" {
		bin = filepath.Join(filepath.Dir(p.bin), faultpoints, filepath.Base(p.bin))
	}
	p.cmd = p.ns.Command(context.Background(), bin, p.args...)
	if p.Faultpoint != "" {
		p.cmd.Env = append(p.cmd.Environ(), "WEIR_FAULTPOINT="+p.Faultpoint)
	}
	p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr = p.dir, f, f
	if err := p.cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", p.Name, err)
	}
	p.done = make(chan struct{})
	go func(cmd *exec.Cmd, done chan struct{}) { cmd.Wait(); close(done) }(p.cmd, p.done)
	return nil
}

// Kill ends the process at once and waits until it is gone.
func (p *Process) Kill() { p.signal(syscall.SIGKILL) }

// Terminate asks the process to end and waits until it has.
func (p *Process) Terminate() { p.signal(syscall.SIGTERM) }

// Pause stops the process where it stands, until Resume.
func (p *Process) Pause() error  { return p.cmd.Process.Signal(syscall.SIGSTOP) }
func (p *Process) Resume() error { return p.cmd.Process.Signal(syscall.SIGCONT) }

func (p *Process) signal(sig syscall.Signal) {
	if p.cmd == nil || p.cmd.Process == nil {
		return
	}
	p.cmd.Process.Signal(sig)
	<-p.done
}

// Died waits until the process has ended by itself, as at its fault point. From
// then on Start starts one without.
func (p *Process) Died(ctx context.Context) error {
	select {
	case <-p.done:
	case <-ctx.Done():
		return fmt.Errorf("%s lives on, its fault point is %q: %w", p.Name, p.Faultpoint, ctx.Err())
	}
	if state := p.cmd.ProcessState; p.Faultpoint != "" && state.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		return fmt.Errorf("%s ended before its fault point %q: %s\n%s", p.Name, p.Faultpoint, state, p.Tail())
	}
	p.Faultpoint = ""
	return nil
}

// Running is false once the process has ended, or before it was started.
func (p *Process) Running() bool {
	if p.done == nil {
		return false
	}
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Lines are the lines of the process's log.
func (p *Process) Lines() []string {
	b, _ := os.ReadFile(p.Log)
	return strings.Split(strings.TrimSpace(string(b)), "\n")
}

// Tail is the end of the process's log, for messages.
func (p *Process) Tail() string {
	lines := p.Lines()
	return strings.Join(lines[max(0, len(lines)-15):], "\n")
}

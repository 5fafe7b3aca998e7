// Package ovstest starts real Open vSwitch instances for tests and demos, each
// in a network namespace of its own with its own sockets and database, so that
// many run side by side and none touches the machine's own switch.
//
//	Start ─► network namespace ─► ovsdb-server ─► ovs-vswitchd --disable-system
//	                                   └ DIR/db.sock   └ DIR/BRIDGE.mgmt, DIR/vswitchd.ctl
//
// Bridges need datapath_type=netdev: the userspace datapath, which asks nothing
// of the kernel but TUN and veth.
//
// Nothing is left behind. Stop undoes Start; a Start that fails undoes what it
// did; daemons die with the process that started them; and since a killed
// process can remove neither its namespace nor its folder, their names begin
// with "weir-ovs-PID-" and every Start sweeps those of processes that are gone.
//
// New is for tests: it skips, with the reason, where there is no root or no
// Open vSwitch, but fails instead if WEIR_REQUIRE_DATAPLANE=1.
package ovstest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

const namePrefix = "weir-ovs-"

// Config says where an instance lives.
type Config struct {
	// NetNS is the network namespace that it runs in, which must exist and is
	// left as it is. Empty: one is made, and removed by Stop.
	NetNS string
	// Dir holds sockets, database and logs; it must exist and is left in place,
	// and its path must be short (sockets allow about 100 bytes). Empty: a
	// temporary one, removed by Stop.
	Dir string
}

// Instance is a running Open vSwitch.
type Instance struct {
	// NetNS is the name of the network namespace.
	NetNS string
	// Dir is the run directory: DIR/db.sock is the database.
	Dir string

	ownNetNS, ownDir   bool
	database, vswitchd *daemon
}

var counter atomic.Uint32

// Missing says why no instance can run here; empty: one can.
func Missing() string {
	if os.Geteuid() != 0 {
		return "not root"
	}
	for _, tool := range []string{"ip", "ovsdb-server", "ovsdb-tool", "ovs-vswitchd", "ovs-vsctl", "ovs-ofctl", "ovs-appctl"} {
		if _, err := exec.LookPath(tool); err != nil {
			return "no " + tool
		}
	}
	if _, err := os.Stat(schema); err != nil {
		return "no " + schema
	}
	return ""
}

const schema = "/usr/share/openvswitch/vswitch.ovsschema"

// Require skips the test where no instance can run, with the reason; it fails
// it instead if WEIR_REQUIRE_DATAPLANE=1.
func Require(t testing.TB) {
	t.Helper()
	why := Missing()
	if why == "" {
		return
	}
	if os.Getenv("WEIR_REQUIRE_DATAPLANE") == "1" {
		t.Fatalf("no Open vSwitch can run here: %s", why)
	}
	t.Skipf("no Open vSwitch can run here: %s", why)
}

// New starts an instance for the duration of a test.
func New(t testing.TB) *Instance {
	t.Helper()
	Require(t)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	in, err := Start(ctx, Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := in.Stop(); err != nil {
			t.Error(err)
		}
	})
	return in
}

// Start starts an instance and returns when its switch answers.
func Start(ctx context.Context, cfg Config) (in *Instance, err error) {
	sweep()
	in = &Instance{NetNS: cfg.NetNS, Dir: cfg.Dir}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("start open vswitch: %w", err), in.Stop())
			in = nil
		}
	}()
	name := fmt.Sprintf("%s%d-%d", namePrefix, os.Getpid(), counter.Add(1))
	if in.NetNS == "" {
		in.NetNS = name
		if err := run(ctx, "ip", "netns", "add", in.NetNS); err != nil {
			return in, err
		}
		in.ownNetNS = true
		if _, err := in.Run(ctx, "ip", "link", "set", "lo", "up"); err != nil {
			return in, err
		}
	}
	if in.Dir == "" {
		in.Dir = filepath.Join(os.TempDir(), name)
		if err := os.Mkdir(in.Dir, 0o700); err != nil {
			return in, err
		}
		in.ownDir = true
	}
	if err := in.StartDatabase(ctx); err != nil {
		return in, err
	}
	return in, in.StartSwitch(ctx)
}

func (in *Instance) path(name string) string { return filepath.Join(in.Dir, name) }

// OVSDB is the address of the instance's database.
func (in *Instance) OVSDB() string { return "unix:" + in.path("db.sock") }

// KillDatabase ends ovsdb-server as a crash would. A userspace datapath stands
// still from then on, until the switch has the database again: the thread that
// reads ports waits for it.
func (in *Instance) KillDatabase() {
	in.database.stop(syscall.SIGKILL)
}

// StartDatabase starts ovsdb-server after a KillDatabase and returns when it answers.
func (in *Instance) StartDatabase(ctx context.Context) error {
	if _, err := os.Stat(in.path("conf.db")); errors.Is(err, os.ErrNotExist) {
		if err := run(ctx, "ovsdb-tool", "create", in.path("conf.db"), schema); err != nil {
			return err
		}
	}
	d, err := in.spawn("ovsdb-server", in.path("conf.db"), "--remote=punix:"+in.path("db.sock"),
		"--remote=db:Open_vSwitch,Open_vSwitch,manager_options", "--unixctl="+in.path("ovsdb-server.ctl"),
		"--log-file="+in.path("ovsdb-server.log"), "-vconsole:off", "--no-chdir")
	if err != nil {
		return err
	}
	in.database = d
	_, err = in.Vsctl(ctx, "--no-wait", "init")
	return in.explain(err, d)
}

// StartSwitch starts ovs-vswitchd after a StopSwitch or KillSwitch and returns
// when it has configured itself from the database.
func (in *Instance) StartSwitch(ctx context.Context) error {
	d, err := in.spawn("ovs-vswitchd", in.OVSDB(), "--disable-system", "--unixctl="+in.path("vswitchd.ctl"),
		"--pidfile="+in.path("ovs-vswitchd.pid"), "--overwrite-pidfile",
		"--log-file="+in.path("ovs-vswitchd.log"), "-vconsole:off", "--no-chdir")
	if err != nil {
		return err
	}
	in.vswitchd = d
	// Without --no-wait, ovs-vsctl returns when the switch has applied the
	// change; setting what is set already would be none.
	_, err = in.Vsctl(ctx, "set", "Open_vSwitch", ".", fmt.Sprintf("external_ids:weir-started=%d", counter.Add(1)))
	return in.explain(err, d)
}

// explain adds what a daemon that is gone had to say.
func (in *Instance) explain(err error, d *daemon) error {
	if err == nil {
		return nil
	}
	select {
	case <-d.gone:
		return fmt.Errorf("%w; %s ended: %v: %s", err, d.name, d.err, d.output.String())
	default:
		return err
	}
}

// StopSwitch ends ovs-vswitchd, which forgets flows and connections.
func (in *Instance) StopSwitch() {
	in.vswitchd.stop(syscall.SIGTERM)
}

// KillSwitch ends ovs-vswitchd as a crash would.
func (in *Instance) KillSwitch() {
	in.vswitchd.stop(syscall.SIGKILL)
}

// Command is a command that runs in the instance's namespace and talks to the
// instance.
func (in *Instance) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", in.NetNS, name}, args...)...)
	cmd.Env = append(os.Environ(), "OVS_RUNDIR="+in.Dir, "OVS_LOGDIR="+in.Dir, "OVS_DBDIR="+in.Dir)
	return cmd
}

// Run runs a command in the instance's namespace and returns its output.
func (in *Instance) Run(ctx context.Context, name string, args ...string) (string, error) {
	return output(in.Command(ctx, name, args...))
}

// Vsctl runs ovs-vsctl.
func (in *Instance) Vsctl(ctx context.Context, args ...string) (string, error) {
	return in.Run(ctx, "ovs-vsctl", append([]string{"--db=" + in.OVSDB(), "--retry", "--timeout=20"}, args...)...)
}

// Ofctl runs ovs-ofctl with OpenFlow 1.5.
func (in *Instance) Ofctl(ctx context.Context, args ...string) (string, error) {
	return in.Run(ctx, "ovs-ofctl", append([]string{"-O", "OpenFlow15"}, args...)...)
}

// Appctl runs ovs-appctl on the switch.
func (in *Instance) Appctl(ctx context.Context, args ...string) (string, error) {
	return in.Run(ctx, "ovs-appctl", append([]string{"-t", in.path("vswitchd.ctl")}, args...)...)
}

// Stop ends the instance and removes what Start made. It can be called twice.
func (in *Instance) Stop() error {
	in.vswitchd.stop(syscall.SIGTERM)
	in.database.stop(syscall.SIGTERM)
	var errs []error
	if in.ownNetNS {
		in.ownNetNS = false
		errs = append(errs, run(context.Background(), "ip", "netns", "del", in.NetNS))
	}
	if in.ownDir {
		in.ownDir = false
		errs = append(errs, os.RemoveAll(in.Dir))
	}
	return errors.Join(errs...)
}

// daemon is a child process in the foreground.
type daemon struct {
	name   string
	cmd    *exec.Cmd
	output bytes.Buffer // read after gone is closed only
	gone   chan struct{}
	err    error // written before gone is closed
}

func (in *Instance) spawn(name string, args ...string) (*daemon, error) {
	d := &daemon{name: name, cmd: in.Command(context.Background(), name, args...), gone: make(chan struct{})}
	d.cmd.Stdout, d.cmd.Stderr = &d.output, &d.output
	// Die with us, and do not take part in our terminal's signals.
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := d.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		d.err = d.cmd.Wait()
		close(d.gone)
	}()
	return d, nil
}

// stop ends the daemon and waits until it is gone; one that does not heed the
// signal within five seconds is killed.
func (d *daemon) stop(sig syscall.Signal) {
	if d == nil {
		return
	}
	_ = d.cmd.Process.Signal(sig)
	select {
	case <-d.gone:
	case <-time.After(5 * time.Second):
		_ = d.cmd.Process.Kill()
		<-d.gone
	}
}

// sweep removes what processes that are gone have left behind.
func sweep() {
	for _, folder := range []string{"/var/run/netns", os.TempDir()} {
		entries, _ := os.ReadDir(folder)
		for _, e := range entries {
			rest, ok := strings.CutPrefix(e.Name(), namePrefix)
			if !ok {
				continue
			}
			pid, err := strconv.Atoi(strings.SplitN(rest, "-", 2)[0])
			if err != nil || syscall.Kill(pid, 0) != syscall.ESRCH {
				continue
			}
			if folder == os.TempDir() {
				_ = os.RemoveAll(filepath.Join(folder, e.Name()))
			} else {
				_ = run(context.Background(), "ip", "netns", "del", e.Name())
			}
		}
	}
}

func run(ctx context.Context, name string, args ...string) error {
	_, err := output(exec.CommandContext(ctx, name, args...))
	return err
}

func output(cmd *exec.Cmd) (string, error) {
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return string(out), fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return string(out), nil
}

// Followed returns when the switch has applied what the database says, which it
// looks for after 1 s, 2 s, 4 s and 8 s.
func (in *Instance) Followed(ctx context.Context) error {
	_, err := in.Vsctl(ctx, "set", "Open_vSwitch", ".", fmt.Sprintf("external_ids:weir-followed=%d", counter.Add(1)))
	return err
}

package harness

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const namePrefix = "weir-e2e-"

// NetNS is a network namespace.
type NetNS struct {
	Name string
	file *os.File
}

func newNetNS(ctx context.Context, name string) (*NetNS, error) {
	if err := run(ctx, nil, "ip", "netns", "add", name); err != nil {
		return nil, err
	}
	f, err := os.Open(filepath.Join("/run/netns", name))
	if err != nil {
		return nil, err
	}
	n := &NetNS{Name: name, file: f}
	return n, n.IP(ctx, "link set lo up")
}

func (n *NetNS) remove() error {
	n.file.Close()
	return run(context.Background(), nil, "ip", "netns", "del", n.Name)
}

// IP runs lines of ip(8) in the namespace, as one batch.
func (n *NetNS) IP(ctx context.Context, lines ...string) error {
	return run(ctx, []byte(strings.Join(lines, "\n")+"\n"), "ip", "-n", n.Name, "-batch", "-")
}

// linkUp sets a link up whose IPv6 address of the link is good at once. The kernel
// asks for a neighbour of what it forwards from that address, and asks nothing
// while it looks for a duplicate of it: up to two seconds of packets would be lost.
func (n *NetNS) linkUp(ctx context.Context, link string) error {
	err := n.Do(func() error {
		return os.WriteFile("/proc/sys/net/ipv6/conf/"+link+"/accept_dad", []byte("0"), 0o644)
	})
	if err != nil {
		return err
	}
	return n.IP(ctx, "link set "+link+" up")
}

// Do calls fn on a thread that is in the namespace. Sockets that fn makes stay
// there.
func (n *NetNS) Do(fn func() error) error {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer home.Close()
	if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter namespace %s: %w", n.Name, err)
	}
	err = fn()
	if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
		return fmt.Errorf("leave namespace %s: %w", n.Name, back) // The thread is lost with its goroutine.
	}
	runtime.UnlockOSThread()
	return err
}

// Command is a command that runs in the namespace, or on the host where n is
// nil, and dies with this process.
func (n *NetNS) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	if n != nil {
		name, args = "nsenter", append([]string{"--net=/run/netns/" + n.Name, "--", name}, args...)
	}
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// run runs a command and returns what it complained of.
func run(ctx context.Context, stdin []byte, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin = bytes.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// sweep removes the namespaces of processes that are gone.
func sweep(ctx context.Context) {
	entries, _ := os.ReadDir("/run/netns")
	for _, e := range entries {
		rest, ours := strings.CutPrefix(e.Name(), namePrefix)
		if !ours {
			continue
		}
		pid, _, _ := strings.Cut(rest, "-")
		if n, err := strconv.Atoi(pid); err == nil && syscall.Kill(n, 0) == nil {
			continue
		}
		_ = run(ctx, nil, "ip", "netns", "del", e.Name())
	}
}

// Missing says what keeps a harness from running here; empty if nothing does.
func Missing() string {
	if os.Geteuid() != 0 {
		return "root is needed for network namespaces"
	}
	for _, tool := range []string{"ip", "nsenter", "ethtool", "nft", "ovs-vsctl", "ovs-vswitchd", "ovsdb-server"} {
		if _, err := exec.LookPath(tool); err != nil {
			return tool + " is not installed"
		}
	}
	return ""
}

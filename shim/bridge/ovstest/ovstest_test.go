package ovstest

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestInstanceForwardsAndLeavesNothing(t *testing.T) {
	Require(t)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	in, err := Start(ctx, Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer in.Stop()
	if !strings.HasPrefix(in.NetNS, "weir-") {
		t.Errorf("namespace %s does not begin with weir-", in.NetNS)
	}
	if _, err := in.Vsctl(ctx, "add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev", "fail_mode=secure"); err != nil {
		t.Fatal(err)
	}
	if _, err := in.Run(ctx, "ip", "link", "show", "br0"); err != nil {
		t.Errorf("the bridge has no interface in the namespace: %v", err)
	}
	in.KillSwitch()
	if err := in.StartSwitch(ctx); err != nil {
		t.Fatal(err)
	}
	if out, err := in.Ofctl(ctx, "dump-flows", filepath.Join(in.Dir, "br0.mgmt")); err != nil || strings.Contains(out, "NORMAL") {
		t.Errorf("flows after a restart: %s, %v", out, err)
	}
	if err := in.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := exec.Command("ip", "netns", "pids", in.NetNS).Run(); err == nil {
		t.Errorf("namespace %s is left", in.NetNS)
	}
	if _, err := os.Stat(in.Dir); !os.IsNotExist(err) {
		t.Errorf("folder %s is left", in.Dir)
	}
}

func TestStartSweepsWhatTheDeadLeft(t *testing.T) {
	Require(t)
	gone := exec.Command("true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	name := namePrefix + strconv.Itoa(gone.Process.Pid) + "-1"
	if err := run(context.Background(), "ip", "netns", "add", name); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(os.TempDir(), name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	sweep()
	if _, err := os.Stat("/var/run/netns/" + name); !os.IsNotExist(err) {
		t.Errorf("namespace %s survived the sweep", name)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("folder %s survived the sweep", dir)
	}
}

func TestFailedStartLeavesNothing(t *testing.T) {
	Require(t)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	before := len(ours(t))
	if _, err := Start(ctx, Config{}); err == nil {
		t.Fatal("started under a cancelled context")
	}
	if after := ours(t); len(after) > before {
		t.Errorf("left behind: %v", after)
	}
}

func ours(t *testing.T) []string {
	t.Helper()
	var out []string
	for _, folder := range []string{"/var/run/netns", os.TempDir()} {
		found, err := filepath.Glob(filepath.Join(folder, namePrefix+strconv.Itoa(os.Getpid())+"-*"))
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, found...)
	}
	return out
}

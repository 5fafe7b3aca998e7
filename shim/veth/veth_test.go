package veth

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/containernetworking/plugins/pkg/ns"
)

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// namespaces are those of a host and of a Pod, and how to do something on the
// host.
func namespaces(t testing.TB) (pod string, onHost func(fn func() error) error) {
	t.Helper()
	missing := t.Skipf
	if os.Getenv("WEIR_REQUIRE_DATAPLANE") == "1" {
		missing = t.Fatalf
	}
	if os.Geteuid() != 0 {
		missing("needs root")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		missing("needs ip: %v", err)
	}
	var names []string
	for _, of := range []string{"host", "pod"} {
		name := fmt.Sprintf("weir-veth-%d-%s", os.Getpid(), of)
		run(t, "ip", "netns", "add", name)
		t.Cleanup(func() { exec.Command("ip", "netns", "del", name).Run() })
		names = append(names, "/run/netns/"+name)
	}
	return names[1], func(fn func() error) error {
		return ns.WithNetNSPath(names[0], func(ns.NetNS) error { return fn() })
	}
}

func TestLinkIsMadeCheckedAndRemoved(t *testing.T) {
	pod, onHost := namespaces(t)
	mac, _ := net.ParseMAC("0a:58:0a:00:01:05")
	cfg := Config{Host: "weirx", Pod: "eth0", NetNS: pod, MAC: mac, MTU: 1400, NoChecksumOffload: true, Addresses: []Address{
		{IP: netip.MustParseAddr("10.0.1.5"), Gateway: netip.MustParseAddr("10.0.1.1")}, {IP: netip.MustParseAddr("fd00::5"), Gateway: netip.MustParseAddr("fd00::1")}}}
	try := func(what, words string, fn func() error) {
		t.Helper()
		if err := onHost(fn); (err == nil) != (words == "") || err != nil && !strings.Contains(err.Error(), words) {
			t.Errorf("%s: %v, want %q", what, err, words)
		}
	}
	inPod := func(args ...string) string {
		t.Helper()
		return run(t, "ip", append([]string{"netns", "exec", strings.TrimPrefix(pod, "/run/netns/")}, args...)...)
	}
	check := func() error { return Check(cfg) }
	try("check of nothing", "link weirx of the host", check)
	try("make", "", func() error { _, err := Make(cfg); return err })
	try("check", "", check)
	try("make again", "has an interface eth0 already", func() error { _, err := Make(cfg); return err })
	try("check after that", "", check)
	try("peer", "", func() error {
		got, err := Peer(pod, "eth0")
		if err == nil && got.String() != mac.String() {
			t.Errorf("peer is %s", got)
		}
		return err
	})
	if text := inPod("ip", "-6", "addr", "show", "dev", "eth0"); !strings.Contains(text, "fd00::5/128 scope global nodad") {
		t.Errorf("addresses: %s", text)
	}
	if text := inPod("ip", "route"); !strings.Contains(text, "default via 10.0.1.1 dev eth0") || !strings.Contains(text, "10.0.1.1 dev eth0 scope link") {
		t.Errorf("routes: %s", text)
	}
	if _, err := exec.LookPath("ethtool"); err == nil {
		if text := inPod("ethtool", "-k", "eth0"); !strings.Contains(text, "tx-checksumming: off") {
			t.Errorf("offload: %s", text)
		}
	}
	inPod("ip", "link", "set", "eth0", "address", "02:00:00:00:00:01")
	try("another address", "has the address 02:00:00:00:00:01", check)
	inPod("ip", "link", "set", "eth0", "address", mac.String())
	inPod("ip", "-6", "route", "del", "default")
	try("no IPv6 route", "route ::/0 of the Pod is gone", check)
	for range 2 {
		try("remove", "", func() error { return Remove(cfg.Host) })
	}
	try("peer of nothing", "eth0", func() error { _, err := Peer(pod, "eth0"); return err })

	cfg.Addresses = append(cfg.Addresses, cfg.Addresses[0]) // Which fails when the rest is made.
	try("half a make", "10.0.1.5", func() error { _, err := Make(cfg); return err })
	try("after half a make", "link weirx of the host", check)
}

// The host's kernel knows Pods' MACs for as long as it is to. Where a device has
// no IPv6, there is nothing to know of it.
func TestNeighboursAreToldAndForgotten(t *testing.T) {
	_, onHost := namespaces(t)
	mac, _ := net.ParseMAC("0a:58:0a:00:01:05")
	addrs := []netip.Addr{netip.MustParseAddr("10.0.1.5"), netip.MustParseAddr("fd00::5")}
	ip := func(args ...string) (out string) {
		t.Helper()
		err := onHost(func() error { out = run(t, "ip", args...); return nil })
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	ip("link", "add", "bridge", "up", "type", "bridge")
	ip("link", "add", "four", "up", "type", "bridge")
	err := onHost(func() error { return os.WriteFile("/proc/sys/net/ipv6/conf/four/disable_ipv6", []byte("1"), 0o644) })
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		name, device string
		fn           func(device string) error
		want         int // Of the addresses, with the MAC and for good.
		words        string
	}{
		{"told", "bridge", func(d string) error { return SetNeighbours(d, mac, addrs) }, 2, ""},
		{"told again", "bridge", func(d string) error { return SetNeighbours(d, mac, addrs) }, 2, ""},
		{"one forgotten", "bridge", func(d string) error { return RemoveNeighbours(d, addrs[:1]) }, 1, ""},
		{"all forgotten", "bridge", func(d string) error { return RemoveNeighbours(d, addrs) }, 0, ""},
		{"no IPv6", "four", func(d string) error { return SetNeighbours(d, mac, addrs) }, 1, ""},
		{"no IPv6, forgotten", "four", func(d string) error { return RemoveNeighbours(d, addrs) }, 0, ""},
		{"no device", "none", func(d string) error { return SetNeighbours(d, mac, addrs) }, 0, "none"},
		{"no device, forgotten", "none", func(d string) error { return RemoveNeighbours(d, addrs) }, 0, ""},
	} {
		err := onHost(func() error { return step.fn(step.device) })
		if (err == nil) != (step.words == "") || err != nil && !strings.Contains(err.Error(), step.words) {
			t.Errorf("%s: %v, want %q", step.name, err, step.words)
		}
		if step.device == "none" {
			continue
		}
		if got := ip("neigh", "show", "dev", step.device); strings.Count(got, mac.String()+" PERMANENT") != step.want {
			t.Errorf("%s: %q, want %d addresses", step.name, got, step.want)
		}
	}
}

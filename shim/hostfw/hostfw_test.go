package hostfw

import (
	"context"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// isolate brings the test into a network namespace of its own, with devices in
// it. The thread is not given back: it ends with the test.
func isolate(t testing.TB, devices ...string) {
	t.Helper()
	missing := t.Skipf
	if os.Getenv("WEIR_REQUIRE_DATAPLANE") == "1" {
		missing = t.Fatalf
	}
	if os.Geteuid() != 0 {
		missing("needs root")
	}
	for _, tool := range []string{"nft", "ip"} {
		if _, err := exec.LookPath(tool); err != nil {
			missing("needs %s: %v", tool, err)
		}
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		missing("needs a network namespace: %v", err)
	}
	for _, d := range devices {
		run(t, "ip", "link", "add", d, "type", "veth", "peer", "name", d+"-p")
	}
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func ruleset(t *testing.T) string { return run(t, "nft", "list", "ruleset") }

func wants(t *testing.T, text string, lines ...string) {
	t.Helper()
	for _, l := range lines {
		if n := strings.Count(text, l); n != 1 {
			t.Errorf("%q is there %d times in\n%s", l, n, text)
		}
	}
}

func TestMarkOwn(t *testing.T) {
	isolate(t, "weir-br")
	ctx := context.Background()
	if err := MarkOwn(ctx, "weir-br", [6]byte{2, 0, 0, 0, 0, 1}); err != nil {
		t.Fatal(err)
	}
	once := ruleset(t)
	wants(t, once, "table inet weir", "table netdev weir", `oifname "weir-br" meta mark set meta mark | 0x00100000`,
		`hook egress device "weir-br"`, "ether saddr set 02:00:00:00:00:01")
	if err := MarkOwn(ctx, "weir-br", [6]byte{2, 0, 0, 0, 0, 1}); err != nil {
		t.Fatal(err)
	}
	if twice := ruleset(t); twice != once {
		t.Errorf("once:\n%s\ntwice:\n%s", once, twice)
	}
	if err := MarkOwn(ctx, "weir-br", [6]byte{2, 0, 0, 0, 0, 2}); err != nil {
		t.Fatal(err)
	}
	other := ruleset(t)
	wants(t, other, "ether saddr set 02:00:00:00:00:02")
	if strings.Contains(other, "02:00:00:00:00:01") {
		t.Errorf("the former address stays:\n%s", other)
	}
}

func TestHideFromHostAndRemove(t *testing.T) {
	isolate(t, "weir-a", "weir-b")
	ctx := context.Background()
	run(t, "nft", "add", "table", "inet", "others")
	before := ruleset(t)
	for range 2 {
		if err := HideFromHost(ctx, []string{"weir-a"}); err != nil {
			t.Fatal(err)
		}
	}
	if err := HideFromHost(ctx, []string{"weir-b"}); err != nil {
		t.Fatal(err)
	}
	text := ruleset(t)
	wants(t, text, `hook ingress device "weir-a" priority -300`, `hook ingress device "weir-b" priority -300`)
	if n := strings.Count(text, "drop"); n != 2 {
		t.Errorf("%d rules drop in\n%s", n, text)
	}
	for range 2 { // Without tables, too, it is no error.
		if err := Remove(ctx); err != nil {
			t.Fatal(err)
		}
		if after := ruleset(t); after != before {
			t.Errorf("before:\n%s\nafter:\n%s", before, after)
		}
	}
}

func TestMasquerade(t *testing.T) {
	isolate(t)
	ctx := context.Background()
	prefixes := func(texts ...string) (out []netip.Prefix) {
		for _, p := range texts {
			out = append(out, netip.MustParsePrefix(p))
		}
		return out
	}
	nodes := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
	for range 2 {
		if err := Masquerade(ctx, "weir-br", prefixes("10.0.1.0/24", "fd00:1::/64"), prefixes("10.0.1.0/24", "10.0.2.0/24", "fd00:1::/64"), nodes); err != nil {
			t.Fatal(err)
		}
		wants(t, ruleset(t), "hook postrouting priority srcnat", "elements = { 10.0.1.0/24 }", "10.0.1.0/24, 10.0.2.0/24", "elements = { 192.0.2.1 }", "elements = { 2001:db8::1 }",
			`ip saddr @pods-ip ip daddr != @cluster-ip ip daddr != @nodes-ip oifname != "weir-br" masquerade`,
			`ip6 saddr @pods-ip6 ip6 daddr != @cluster-ip6 ip6 daddr != @nodes-ip6 oifname != "weir-br" masquerade`)
	}
	if err := Masquerade(ctx, "weir-br", nil, nil, nil); err != nil {
		t.Fatal(err)
	}
	if text := ruleset(t); strings.Contains(text, "elements") {
		t.Errorf("of no Pods there is still\n%s", text)
	}
}

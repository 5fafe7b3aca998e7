package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/e2e/harness"
	"github.com/weirnet/weir/shim/pipeline"
)

// sticky is what has a Service hold its clients for so many seconds.
func sticky(seconds int) string {
	return fmt.Sprintf("sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: %d}}, ", seconds)
}

// held fails unless one endpoint serves all of some new connections of each
// network and family; it returns which, by network and family.
func held(t *testing.T, what string, from *harness.Host, number int) map[string]string {
	t.Helper()
	out := make(map[string]string)
	for f, v6 := range families {
		for network, port := range webNetworks {
			got := spread(t, from, network, netip.AddrPortFrom(vip(1, v6), port), number)
			if len(got) != 1 {
				t.Errorf("%s: %s %s: %d connections were served by %v", what, f, network, number, got)
			}
			for name := range got {
				out[network+" "+f] = name
			}
		}
	}
	return out
}

// settled is held for clients that come for the first time: the switch may know a
// choice a moment before its cache does, and connections within that choose again.
func settled(t *testing.T, from *harness.Host) map[string]string {
	t.Helper()
	for f, v6 := range families {
		for network, port := range webNetworks {
			eventually(t, func() error {
				if got := spread(t, from, network, netip.AddrPortFrom(vip(1, v6), port), 5); len(got) != 1 {
					return fmt.Errorf("%s %s: 5 connections are served by %v", f, network, got)
				}
				return nil
			})
		}
	}
	return held(t, "at first", from, 20)
}

// remembered waits until a shim that starts anew would know what is in force.
func remembered(t *testing.T, n *harness.Node, since time.Time) {
	t.Helper()
	eventually(t, func() error {
		info, err := os.Stat(filepath.Join(n.OVS.Dir, "state", "checkpoint"))
		if err == nil && !info.ModTime().After(since) {
			err = fmt.Errorf("the checkpoint is of %s, not after %s", info.ModTime(), since)
		}
		return err
	})
}

// same fails where what serves is not what it was.
func same(t *testing.T, what string, now, before map[string]string) {
	t.Helper()
	for k, name := range before {
		if now[k] != name {
			t.Errorf("%s: %s is served by %s, and was by %s", what, k, now[k], name)
		}
	}
}

// learned are the bridge's flows of clients that are held.
func learned(t *testing.T, n *harness.Node) (out []string) {
	t.Helper()
	for _, line := range flows(t, n, fmt.Sprintf("table=%d", pipeline.TableServiceAffinity)) {
		if strings.Contains(line, "idle_timeout") {
			out = append(out, line)
		}
	}
	return out
}

// A Service with session affinity holds a client to its endpoint for as long as
// there is that, others come, and the shim is gone.
func TestAffinity(t *testing.T) {
	t.Parallel()
	requireDataplane(t)
	c := smallCluster(t)
	named(t, c, 8080, "default/nginx", "default/remote", "default/client")
	client, node := c.Pod("default/client"), c.Nodes["node-1"]
	have := func(entries ...string) {
		t.Helper()
		set(t, c, smallObjects(false), clusterService("web", 1, sticky(600)+webPorts), endpoints("web", webTargets, entries...))
	}
	have(entry("default/nginx", ready), entry("default/remote", ready))
	before := settled(t, client)
	if got := learned(t, node); len(got) != 4 {
		t.Errorf("%d flows are learned, want one of each port and family: %v", len(got), got)
	}
	changed := time.Now()
	have(entry("default/nginx", ready), entry("default/remote", ready), entry("default/client", ready))
	same(t, "another came", held(t, "another came", client, 10), before)

	remembered(t, node, changed)
	node.Shim.Kill()
	same(t, "without the shim", held(t, "without the shim", client, 5), before)
	must(t, node.Shim.Start())
	must(t, c.InSync(t.Context()))
	have(entry("default/nginx", ready), entry("default/remote", ready))
	same(t, "with another shim", held(t, "with another shim", client, 10), before)
	if code, out := checkBridge(t, node); code != 0 {
		t.Errorf("the bridge with learned flows is not as it should be: %s", out)
	}

	server := before["tcp IPv4"]
	have(entry(other(server), ready), entry("default/client", ready))
	for k, name := range settled(t, client) {
		if name == server || before[k] != server && name != before[k] {
			t.Errorf("%s was served by %s, %s went, and now %s serves", k, before[k], server, name)
		}
	}
}

// A client that was silent for long is held no longer.
func TestAffinityEnds(t *testing.T) {
	t.Parallel()
	requireDataplane(t)
	c := smallCluster(t)
	named(t, c, 8080, "default/nginx", "default/remote")
	client, node := c.Pod("default/client"), c.Nodes["node-1"]
	set(t, c, smallObjects(false), clusterService("web", 1, sticky(3)+webPorts), endpoints("web", webTargets, entry("default/nginx", ready), entry("default/remote", ready)))
	settled(t, client)
	if got := learned(t, node); len(got) == 0 || !strings.Contains(got[0], "idle_timeout=3,") {
		t.Fatalf("learned flows: %v", got)
	}
	must(t, harness.Eventually(t.Context(), 20*time.Second, func() error {
		if got := learned(t, node); len(got) > 0 {
			return fmt.Errorf("%d flows are left", len(got))
		}
		return nil
	}))
}

package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weirnet/weir/e2e/harness"
)

// barrierCluster is smallCluster, whose shims wait for each other for as long
// as the test takes, with an ear on the server of each node.
func barrierCluster(t *testing.T) (c *harness.Cluster, near, far *ear) {
	c = smallCluster(t, "--peer-barrier", "60s")
	return c, listen(t, c.Pod("default/nginx")), listen(t, c.Pod("default/remote"))
}

const blastPort = 9000

// ear counts the datagrams that come to a Pod, by what they say, and answers
// them.
type ear struct {
	addr netip.Addr
	mu   sync.Mutex // Guards heard.
	said map[string]int
}

func listen(t *testing.T, h *harness.Host) *ear {
	t.Helper()
	e := &ear{addr: h.Addr(false), said: make(map[string]int)}
	var conn net.PacketConn
	err := h.NS.Do(func() (err error) { conn, err = net.ListenPacket("udp4", fmt.Sprintf(":%d", blastPort)); return err })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	go func() {
		buf := make([]byte, 64)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			conn.WriteTo(buf[:n], from) // Which makes an established connection of it.
			e.mu.Lock()
			e.said[string(buf[:n])]++
			e.mu.Unlock()
		}
	}()
	return e
}

func (e *ear) heard(what string) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.said[what]
}

// blast sends datagrams that say a word from a Pod to ears, one after the other
// every millisecond, until the test ends. It counts rounds.
func blast(t *testing.T, c *harness.Cluster, pod, word string, to ...*ear) *atomic.Int64 {
	t.Helper()
	h := c.Pod(pod)
	mac, err := c.Nodes["node-1"].BridgeMAC()
	if err != nil {
		t.Fatal(err)
	}
	if err := h.NS.IP(t.Context(), "neigh replace "+harness.Gateway+" lladdr "+mac+" dev eth0 nud permanent"); err != nil {
		t.Fatal(err) // Nothing is lost to address resolution.
	}
	var conn net.PacketConn
	err = h.NS.Do(func() (err error) { conn, err = net.ListenPacket("udp4", fmt.Sprintf(":%d", blastPort)); return err })
	if err != nil {
		t.Fatal(err)
	}
	rounds := new(atomic.Int64)
	done := make(chan struct{})
	t.Cleanup(func() { conn.Close(); <-done })
	go func() {
		defer close(done)
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for range tick.C {
			for _, e := range to {
				_, err := conn.WriteTo([]byte(word), net.UDPAddrFromAddrPort(netip.AddrPortFrom(e.addr, blastPort)))
				if errors.Is(err, net.ErrClosed) {
					return
				}
			}
			rounds.Add(1)
		}
	}()
	return rounds
}

// further waits until as many more rounds were blasted.
func further(t *testing.T, rounds *atomic.Int64, n int64) {
	t.Helper()
	end := rounds.Load() + n
	eventually(t, func() error {
		if now := rounds.Load(); now < end {
			return fmt.Errorf("%d of %d rounds", now, end)
		}
		return nil
	})
}

func eventually(t *testing.T, try func() error) {
	t.Helper()
	if err := harness.Eventually(t.Context(), 30*time.Second, try); err != nil {
		t.Fatal(err)
	}
}

func hears(e *ear, word string) func() error {
	return func() error {
		if e.heard(word) == 0 {
			return fmt.Errorf("%s has not heard %q", e.addr, word)
		}
		return nil
	}
}

func podObject(name, label, addr string) string {
	return fmt.Sprintf("---\napiVersion: v1\nkind: Pod\nmetadata: {name: %s, labels: {app: %s}}\nspec: {nodeName: node-1, containers: [{name: c, image: c}]}\nstatus: {podIPs: [{ip: %s}]}\n", name, label, addr)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// smallPods are the Pods of smallCluster and more on node-1, by name and address.
func smallPods(more ...string) []harness.PodConfig {
	pods := smallPodConfigs()
	for i := 0; i < len(more); i += 2 {
		pods = append(pods, harness.PodConfig{Namespace: "default", Name: more[i], Node: "node-1", IPs: []netip.Addr{ip(more[i+1])}})
	}
	return pods
}

// noTimeouts fails where a port of node-1 opened because it had waited long enough.
func noTimeouts(t *testing.T, c *harness.Cluster) {
	t.Helper()
	text, err := c.Nodes["node-1"].Metrics()
	must(t, err)
	if !strings.Contains(text, "weir_shim_peer_barrier_timeouts_total 0\n") {
		t.Error("a port did not wait for its release")
	}
}

// A new Pod that a rule of another node drops sends from its first instant.
// While that node's shim is slow to learn of it, its port stays closed, and no
// packet of it comes through, ever. A Pod that no such rule names does not wait.
func TestANewPodIsDroppedElsewhereFromItsFirstPacket(t *testing.T) {
	c, near, far := barrierCluster(t)
	objects := smallObjects(false) + `---
apiVersion: policy.networking.k8s.io/v1alpha1
kind: AdminNetworkPolicy
metadata: {name: no-blasters, annotations: {weir.dev/enable-logging: "true"}}
spec:
  priority: 1
  subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: remote}}}}
  ingress: [{action: Deny, from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: blaster}}}}]}]
`
	set(t, c, objects)
	slow := c.Nodes["node-2"].Shim
	must(t, slow.Pause())
	t.Cleanup(func() { slow.Resume() })

	must(t, c.SetPods(t.Context(), smallPods("blaster", "10.9.1.3", "bystander", "10.9.1.4")))
	rounds := blast(t, c, "default/blaster", "blaster", near, far)
	blast(t, c, "default/bystander", "bystander", near, far)
	must(t, c.WriteManifests(t.Context(), []byte(objects+podObject("blaster", "blaster", "10.9.1.3")+podObject("bystander", "other", "10.9.1.4"))))
	must(t, c.Applied(t.Context(), "node-1"))
	eventually(t, hears(near, "bystander"))
	eventually(t, hears(far, "bystander"))
	further(t, rounds, 200)
	if n := near.heard("blaster") + far.heard("blaster"); n != 0 {
		t.Fatalf("%d packets came through a port that is to wait", n)
	}
	must(t, slow.Resume())
	eventually(t, hears(near, "blaster"))
	further(t, rounds, 200)
	if n := far.heard("blaster"); n != 0 {
		t.Errorf("%d packets of the new Pod came through where they are dropped", n)
	}
	eventually(t, func() error { // And the drops are on record.
		for _, r := range records(t, c) {
			if p := r.Packet; p.Action == "drop" && p.SourceIP == "10.9.1.3" && slices.Equal(p.Policies, []string{"AdminNetworkPolicy:no-blasters"}) {
				return nil
			}
		}
		return errors.New("no record names the policy that drops")
	})
	noTimeouts(t, c)
}

// An address passes from a Pod that a rule of another node allows to one that
// none does. While that node's shim is slow to learn of it, the heir's port
// stays closed, and neither rule nor old connection lets a packet of it through.
func TestAnAddressIsForgottenEverywhereBeforeItsHeirSends(t *testing.T) {
	t.Parallel()
	c, near, far := barrierCluster(t)
	objects := smallObjects(false) + policy("friends", "{podSelector: {matchLabels: {app: remote}}, ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}]}]}")
	slow := c.Nodes["node-2"].Shim
	t.Cleanup(func() { slow.Resume() })
	for _, tc := range []struct {
		name, addr string
		apart      bool // The service learns that the one is gone before it hears of the other.
	}{
		{"at once", "10.9.1.3", false},
		{"one after the other", "10.9.1.4", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			heir := "heir " + tc.name
			must(t, c.SetPods(t.Context(), smallPods("friend", tc.addr)))
			set(t, c, objects, podObject("friend", "friend", tc.addr))
			t.Run("the friend", func(t *testing.T) { // Its connections have the heir's addresses and ports.
				blast(t, c, "default/friend", "friend "+tc.name, near, far)
				eventually(t, hears(far, "friend "+tc.name))
			})
			must(t, slow.Pause())
			must(t, c.SetPods(t.Context(), smallPods("heir", tc.addr)))
			rounds := blast(t, c, "default/heir", heir, near, far)
			if tc.apart {
				must(t, c.WriteManifests(t.Context(), []byte(objects)))
				must(t, c.Applied(t.Context(), "node-1"))
			}
			must(t, c.WriteManifests(t.Context(), []byte(objects+podObject("heir", "heir", tc.addr))))
			must(t, c.Applied(t.Context(), "node-1"))
			further(t, rounds, 200)
			if n := near.heard(heir) + far.heard(heir); n != 0 {
				t.Fatalf("%d packets came through a port that is to wait", n)
			}
			must(t, slow.Resume())
			eventually(t, hears(near, heir))
			further(t, rounds, 200)
			if n := far.heard(heir); n != 0 {
				t.Errorf("%d packets of the heir came through by what its forerunner was allowed", n)
			}
		})
	}
	noTimeouts(t, c)
}

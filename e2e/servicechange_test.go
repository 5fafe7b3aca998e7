package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/weirnet/weir/e2e/harness"
)

// Ports of a Service of TCP and UDP, and of its slices.
const (
	webPorts   = "ports: [{name: http, port: 80, targetPort: 8080}, {name: dns, port: 53, protocol: UDP, targetPort: 8080}]"
	webTargets = "{name: http, protocol: TCP, port: 8080}, {name: dns, protocol: UDP, port: 8080}"
)

// webNetworks are the ports by network.
var webNetworks = map[string]uint16{"tcp": 80, "udp": 53}

// entry is what slices say of a Pod of smallCluster, in a condition.
func entry(pod, conditions string) string {
	addrs := map[string]string{"default/client": clientAddrs + " nodeName: node-1", "default/nginx": nginxAddrs + " nodeName: node-1", "default/remote": remoteAddrs + " nodeName: node-2"}
	return addrs[pod] + ", conditions: {" + conditions + "}"
}

const (
	ready       = "ready: true"
	terminating = "ready: false, serving: true, terminating: true"
	broken      = "ready: false"
)

// other is the server that another is not.
func other(name string) string {
	if name == "default/nginx" {
		return "default/remote"
	}
	return "default/nginx"
}

// talk says something every few milliseconds on one socket, and keeps who answered.
type talk struct {
	mu   sync.Mutex // Guards what follows.
	name string
	last time.Time
	gap  time.Duration // The longest between two answers.
}

func startTalk(t *testing.T, conn net.Conn) *talk {
	k := &talk{last: time.Now()}
	done := make(chan struct{})
	t.Cleanup(func() { conn.Close(); <-done })
	go func() {
		defer close(done)
		buf := make([]byte, 256)
		for {
			if _, err := conn.Write([]byte("who")); err != nil && !refusedOrSoon(err) {
				return
			}
			conn.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
			n, err := conn.Read(buf)
			if err != nil {
				if !refusedOrSoon(err) {
					return
				}
				continue
			}
			k.mu.Lock()
			fmt.Sscanf(string(buf[:n]), "%s to", &k.name)
			k.gap, k.last = max(k.gap, time.Since(k.last)), time.Now()
			k.mu.Unlock()
		}
	}()
	return k
}

// refusedOrSoon says whether a socket is to be tried again: it was refused, or
// nothing came yet.
func refusedOrSoon(err error) bool {
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.EHOSTUNREACH)
}

// served is who answered last, and the longest silence so far.
func (k *talk) served() (name string, gap time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.name, max(k.gap, time.Since(k.last))
}

// An endpoint that leaves its Service takes along what UDP had with it, at once;
// connections of TCP go on. One that is about to go keeps both, and gets new ones
// only where no other is ready.
func TestEndpointsThatGo(t *testing.T) {
	t.Parallel()
	requireDataplane(t)
	c := smallCluster(t)
	named(t, c, 8080, "default/nginx", "default/remote")
	client := c.Pod("default/client")
	have := func(entries ...string) {
		t.Helper()
		set(t, c, smallObjects(false), clusterService("web", 1, webPorts), endpoints("web", webTargets, entries...))
	}
	for f, v6 := range families {
		have(entry("default/nginx", ready), entry("default/remote", ready))
		udp, err := dial(t, client, "udp", netip.AddrPortFrom(vip(1, v6), 53))
		must(t, err)
		server, _, err := ask(udp)
		must(t, err)
		talking := startTalk(t, udp)
		var tcp net.Conn
		for by := ""; by != server; { // A connection to the same.
			tcp, err = dial(t, client, "tcp", netip.AddrPortFrom(vip(1, v6), 80))
			must(t, err)
			by, _, err = ask(tcp)
			must(t, err)
		}

		have(entry(server, terminating), entry(other(server), ready))
		for network, port := range webNetworks {
			if got := spread(t, client, network, netip.AddrPortFrom(vip(1, v6), port), 10); got[other(server)] != 10 {
				t.Errorf("%s %s: %s is about to go, and 10 connections were served by %v", f, network, server, got)
			}
		}
		echoes(t, f+": its endpoint is about to go", tcp)
		if name, _ := talking.served(); name != server {
			t.Errorf("%s: %s is about to go, and %s has its datagrams", f, server, name)
		}

		have(entry(other(server), ready))
		eventually(t, func() error {
			if name, _ := talking.served(); name != other(server) {
				return fmt.Errorf("%s: %s has gone, and %q answers", f, server, name)
			}
			return nil
		})
		if _, gap := talking.served(); gap > time.Second {
			t.Errorf("%s: no answer for %s as the endpoint went", f, gap)
		}
		echoes(t, f+": its endpoint has gone", tcp)

		have(entry(server, terminating), entry(other(server), broken))
		for network, port := range webNetworks {
			if got := spread(t, client, network, netip.AddrPortFrom(vip(1, v6), port), 5); got[server] != 5 {
				t.Errorf("%s %s: none is ready but %s is about to go, and 5 connections were served by %v", f, network, server, got)
			}
		}
	}
}

// echoes fails unless a connection carries both ways.
func echoes(t *testing.T, what string, conn net.Conn) {
	t.Helper()
	buf := make([]byte, 5)
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := conn.Write([]byte("hello")); err != nil {
		t.Errorf("%s: %v", what, err)
	} else if _, err := io.ReadFull(conn, buf); err != nil || string(buf) != "hello" {
		t.Errorf("%s: %q comes back, %v", what, buf, err)
	}
}

// zoned puts the nodes of smallObjects in the zones east and west.
func zoned(objects string) string {
	for node, zone := range map[string]string{"node-1": "east", "node-2": "west"} {
		objects = strings.Replace(objects, "metadata: {name: "+node+",", "metadata: {name: "+node+", labels: {topology.kubernetes.io/zone: "+zone+"},", 1)
	}
	return objects
}

// A Service whose traffic stays on the node is served by those of the client's
// node; one with hints by those of its zone, as long as all have hints.
func TestServicesStayNear(t *testing.T) {
	t.Parallel()
	requireDataplane(t)
	c := smallCluster(t)
	named(t, c, 8080, "default/nginx", "default/remote")
	both := []string{entry("default/nginx", ready), entry("default/remote", ready)}
	zone := func(name string) string { return ", zone: " + name + ", hints: {forZones: [{name: " + name + "}]}" }
	for _, tc := range []struct {
		name, spec string
		entries    []string
		apart      bool
	}{
		{"anywhere", "", both, false},
		{"on the node", "internalTrafficPolicy: Local, ", both, true},
		{"in the zone", "", []string{both[0] + zone("east"), both[1] + zone("west")}, true},
		{"one has no hint", "", []string{both[0] + zone("east"), both[1]}, false},
		{"hints of other zones", "", []string{both[0] + zone("north"), both[1] + zone("south")}, false},
	} {
		set(t, c, zoned(smallObjects(false)), clusterService("web", 1, tc.spec+webPorts), endpoints("web", webTargets, tc.entries...))
		for from, near := range map[string]string{"default/client": "default/nginx", "default/remote": "default/remote"} {
			for f, v6 := range families {
				for network, port := range webNetworks {
					servers := 2
					if tc.apart {
						servers = 1
					}
					got := spreadOver(t, c.Pod(from), network, netip.AddrPortFrom(vip(1, v6), port), 12, servers)
					if tc.apart && got[near] != 12 || len(got) != servers {
						t.Errorf("%s: %s %s from %s: connections were served by %v", tc.name, f, network, from, got)
					}
				}
			}
		}
	}
	outcomes(t, []harness.Probe{tcp(c.Pod("default/client"), "10.9.2.1")}, harness.Allow) // Whatever Services say.
}

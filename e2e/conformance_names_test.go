package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/weirnet/weir/services/policy/evaluate/conformance"
)

// What conformance cases say of hosts by their names. Each has an address outside,
// which the source of a probe asks for first, as a program would, of a DNS server
// that is outside too, behind the cluster's DNS Service.

const nameserverObjects = `---
apiVersion: v1
kind: Namespace
metadata: {name: kube-system}
---
apiVersion: v1
kind: Service
metadata: {name: kube-dns, namespace: kube-system}
spec: {clusterIP: 10.96.99.53, clusterIPs: [10.96.99.53], ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53, protocol: TCP}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: kube-dns-1, namespace: kube-system, labels: {kubernetes.io/service-name: kube-dns}}
addressType: IPv4
endpoints: [{addresses: [203.0.113.253], conditions: {ready: true}}]
ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53, protocol: TCP}]
`

var (
	nameserverVIP = netip.MustParseAddrPort("10.96.99.53:53")
	nameserverAt  = netip.MustParseAddr("203.0.113.253")
)

// zone has the hosts that probes go to, each with an address of its own.
func (run *stepRun) zone(checks []conformance.Probe) *zone {
	z := newZone()
	for _, p := range checks {
		if name := strings.ToLower(p.ToFQDN); name != "" && z.addrs[name] == nil {
			z.set(name, fmt.Sprint("203.0.113.", 1+len(z.addrs)))
		}
	}
	run.names = z
	return z
}

// addressOf is the address of a host outside.
func (run *stepRun) addressOf(name string) netip.Addr {
	return run.names.addrs[strings.ToLower(name)][0]
}

// resolve has the source of each probe ask for the host that it goes to.
func (run *stepRun) resolve(checks []conformance.Probe) error {
	if len(run.names.addrs) == 0 {
		return nil
	}
	h, err := run.cluster.Outside(run.ctx, nameserverAt)
	if err != nil {
		return err
	}
	var server net.PacketConn
	err = h.NS.Do(func() (err error) {
		server, err = net.ListenPacket("udp", netip.AddrPortFrom(nameserverAt, 53).String())
		return err
	})
	if err != nil {
		return err
	}
	defer server.Close()
	go run.names.answerAll(server)
	for _, p := range checks {
		if p.ToFQDN == "" {
			continue
		}
		from, err := run.source(p)
		if err != nil {
			return err
		}
		got, err := lookup(run.ctx, from, nameserverVIP, p.ToFQDN)
		if err != nil || len(got) != 1 || got[0].Unmap() != run.addressOf(p.ToFQDN) {
			return fmt.Errorf("%s asks for %s and gets %v, %v", p.Source(), p.ToFQDN, got, err)
		}
	}
	return nil
}

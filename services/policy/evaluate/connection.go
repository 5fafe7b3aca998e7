package evaluate

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/weirnet/weir/services/policy/api"
)

// Endpoint is one end of a connection: a Pod, a Node's host, or an address.
type Endpoint struct {
	Namespace string // Of the Pod.
	Pod       string // Empty: not a Pod by name.
	Node      string // Empty: not a Node by name.
	// Addr is the address. Of a Pod or Node it chooses one of its addresses;
	// the zero Addr leaves the choice to the evaluation, which takes the first
	// address of a family that both ends have.
	Addr netip.Addr
}

// ParseEndpoint reads "NAMESPACE/POD" or an address.
func ParseEndpoint(s string) (Endpoint, error) {
	if addr, err := netip.ParseAddr(s); err == nil {
		return Endpoint{Addr: addr.Unmap()}, nil
	}
	namespace, pod, found := strings.Cut(s, "/")
	if !found || namespace == "" || pod == "" || strings.Contains(pod, "/") {
		return Endpoint{}, fmt.Errorf("%q is neither NAMESPACE/POD nor an address", s)
	}
	return Endpoint{Namespace: namespace, Pod: pod}, nil
}

// Connection is the first packet of a connection.
type Connection struct {
	From, To   Endpoint
	Protocol   api.Protocol
	Port       uint16 // Destination port. Zero for protocols without ports.
	SourcePort uint16 // Zero: one that no rule names.
}

// party is an end of a flow, resolved. A Pod is there only where it is in the
// Pod network; a hostNetwork Pod has become its Node.
type party struct {
	pod  *api.Pod // Nil: no Pod.
	at   []*api.Pod
	node string // Name of the Node whose host it is. Empty: no host.
	addr netip.Addr
}

// String names the party in reasons.
func (p party) String() string {
	switch {
	case p.pod != nil:
		return p.pod.Namespace + "/" + p.pod.Name
	case p.node != "":
		return "node " + p.node + " (" + p.addr.String() + ")"
	}
	return p.addr.String()
}

// flow is a connection with both ends resolved.
type flow struct {
	from, to   party
	protocol   api.Protocol
	port       uint16
	sourcePort uint16
}

// service names protocol and port in reasons.
func (f *flow) service() string {
	if f.protocol == api.ProtocolICMP {
		return "ICMP"
	}
	return fmt.Sprintf("%s/%d", f.protocol, f.port)
}

// resolve finds out who the ends of a connection are, and which addresses it
// is between.
func (s *State) resolve(c Connection) (*flow, error) {
	switch c.Protocol {
	case api.ProtocolTCP, api.ProtocolUDP, api.ProtocolSCTP:
		if c.Port == 0 {
			return nil, fmt.Errorf("a %s connection needs a destination port", c.Protocol)
		}
	case api.ProtocolICMP:
	default:
		return nil, fmt.Errorf("protocol %d is not one of TCP, UDP, SCTP, ICMP", c.Protocol)
	}
	from, fromAddrs, err := s.party(c.From)
	if err != nil {
		return nil, fmt.Errorf("source: %w", err)
	}
	to, toAddrs, err := s.party(c.To)
	if err != nil {
		return nil, fmt.Errorf("destination: %w", err)
	}
	var ok bool
	if from.addr, to.addr, ok = pair(fromAddrs, toAddrs); !ok {
		return nil, fmt.Errorf("%s and %s have no address of one family", describe(c.From), describe(c.To))
	}
	for _, p := range []*party{&from, &to} {
		if err := s.identify(p); err != nil {
			return nil, err
		}
	}
	return &flow{from: from, to: to, protocol: c.Protocol, port: c.Port, sourcePort: c.SourcePort}, nil
}

// party looks an endpoint up, and lists the addresses that it may use.
func (s *State) party(e Endpoint) (party, []netip.Addr, error) {
	var p party
	var addrs []netip.Addr
	switch {
	case e.Pod != "":
		pod := s.pods[api.Ref{Kind: api.KindPod, Namespace: e.Namespace, Name: e.Pod}]
		if pod == nil {
			return p, nil, fmt.Errorf("there is no Pod %s/%s", e.Namespace, e.Pod)
		}
		addrs = pod.IPs
		if networked(pod) {
			p.pod = pod
		} else if pod.HostNetwork {
			p.node = pod.Node
			if node := s.nodes[pod.Node]; len(addrs) == 0 && node != nil {
				addrs = node.Addresses
			}
		}
		if len(addrs) == 0 {
			return p, nil, fmt.Errorf("the Pod %s/%s has no address yet", e.Namespace, e.Pod)
		}
	case e.Node != "":
		node := s.nodes[e.Node]
		if node == nil {
			return p, nil, fmt.Errorf("there is no Node %s", e.Node)
		}
		p.node = node.Name
		addrs = hostAddresses(node)
	case e.Addr.IsValid():
		return p, []netip.Addr{e.Addr.Unmap()}, nil
	default:
		return p, nil, fmt.Errorf("neither a Pod, a Node nor an address is named")
	}
	if e.Addr.IsValid() {
		if !slices.Contains(addrs, e.Addr.Unmap()) {
			return p, nil, fmt.Errorf("%s is no address of %s", e.Addr, describe(e))
		}
		addrs = []netip.Addr{e.Addr.Unmap()}
	}
	if len(addrs) == 0 {
		return p, nil, fmt.Errorf("%s has no address", describe(e))
	}
	return p, addrs, nil
}

// identify finds the Pods or the host behind a party's address.
func (s *State) identify(p *party) error {
	if p.node == "" {
		p.at = s.podsAt(p.addr)
	}
	if p.pod == nil && len(p.at) > 0 {
		p.pod = p.at[0]
	}
	if p.pod == nil && p.node == "" {
		p.node = s.nodeAt(p.addr)
	}
	if p.pod != nil || p.node != "" {
		return nil
	}
	for _, svc := range s.services {
		for _, ip := range svc.ClusterIPs {
			if ip == p.addr {
				return fmt.Errorf("%s is the ClusterIP of %s: policies see the Pod behind it, name that", ip, svc.Ref())
			}
		}
	}
	return nil
}

// pair chooses the first destination address for which there is a source
// address of its family.
func pair(from, to []netip.Addr) (a, b netip.Addr, ok bool) {
	for _, b := range to {
		for _, a := range from {
			if a.Is4() == b.Is4() {
				return a, b, true
			}
		}
	}
	return a, b, false
}

func describe(e Endpoint) string {
	switch {
	case e.Pod != "":
		return e.Namespace + "/" + e.Pod
	case e.Node != "":
		return "node " + e.Node
	}
	return e.Addr.String()
}

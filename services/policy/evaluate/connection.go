package evaluate

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/weirnet/weir/services/policy/api"
)

// Endpoint is one end of a connection: a Pod, a Node's host, or an address; of
// a destination, also a Service or a domain name.
type Endpoint struct {
	Namespace string // Of the Pod or Service.
	Pod       string // Empty: not a Pod by name.
	Node      string // Empty: not a Node by name.
	Service   string // Empty: not a Service by name.
	Domain    string // Empty: not a domain name.
	// Addr is the address. Of a Pod or Node it chooses one of its addresses;
	// the zero Addr leaves the choice to the evaluation, which takes the first
	// address of a family that both ends have. Of a domain name it is what the
	// name resolved to; a name without one has an address that no policy names.
	Addr netip.Addr
}

// ParseEndpoint reads "NAMESPACE/POD", an address, "node:NAME",
// "service:NAMESPACE/NAME" or "fqdn:NAME".
func ParseEndpoint(s string) (Endpoint, error) {
	if addr, err := netip.ParseAddr(s); err == nil {
		return Endpoint{Addr: addr.Unmap()}, nil
	}
	if name, is := strings.CutPrefix(s, "node:"); is && name != "" {
		return Endpoint{Node: name}, nil
	}
	if name, is := strings.CutPrefix(s, "fqdn:"); is && name != "" {
		return Endpoint{Domain: name}, nil
	}
	rest, isService := strings.CutPrefix(s, "service:")
	namespace, name, found := strings.Cut(rest, "/")
	switch {
	case !found || namespace == "" || name == "" || strings.Contains(name, "/"):
		return Endpoint{}, fmt.Errorf("%q is none of NAMESPACE/POD, an address, node:NAME, service:NAMESPACE/NAME and fqdn:NAME", s)
	case isService:
		return Endpoint{Namespace: namespace, Service: name}, nil
	}
	return Endpoint{Namespace: namespace, Pod: name}, nil
}

// Connection is the first packet of a connection.
type Connection struct {
	From, To   Endpoint
	Protocol   api.Protocol
	Port       uint16 // Destination port. Zero for protocols without ports.
	SourcePort uint16 // Zero: one that no rule names.
	// ICMPType and ICMPCode are those of ICMP and, the former, of IGMP. Nil: an
	// echo request of the family, and of IGMP a membership query.
	ICMPType, ICMPCode *uint8
}

// party is an end of a flow, resolved. A Pod is there only where it is in the
// Pod network; a hostNetwork Pod has become its Node.
type party struct {
	pod  *api.Pod // Nil: no Pod.
	at   []*api.Pod
	node string // Name of the Node whose host it is. Empty: no host.
	name string // Domain name by which it was resolved. Empty: by none that policies see.
	addr netip.Addr
	// hidden has reasons call it by what was asked for, and not say who it is.
	hidden bool
}

// String names the party in reasons.
func (p party) String() string {
	switch {
	case p.hidden && p.name != "":
		return p.name
	case p.hidden:
		return p.addr.String()
	case p.pod != nil:
		return p.pod.Namespace + "/" + p.pod.Name
	case p.node != "":
		return "node " + p.node + " (" + p.addr.String() + ")"
	case p.name != "":
		return p.name
	}
	return p.addr.String()
}

// flow is a connection with both ends resolved.
type flow struct {
	from, to           party
	protocol           api.Protocol
	port               uint16
	sourcePort         uint16
	icmpType, icmpCode uint8        // The type of IGMP too.
	via                *api.Service // Whose ClusterIP it is for. Nil: it is for the endpoint itself.
	nodePort           *api.Service // Whose port on a node it is for.
}

// service names protocol and port in reasons.
func (f *flow) service() string {
	switch f.protocol {
	case api.ProtocolICMP:
		return fmt.Sprintf("ICMP type %d code %d", f.icmpType, f.icmpCode)
	case api.ProtocolIGMP:
		return fmt.Sprintf("IGMP type %#x", f.icmpType)
	}
	return fmt.Sprintf("%s/%d", f.protocol, f.port)
}

// resolve finds out who the ends of a connection are, and which addresses it
// is between. A connection to a Service has a flow for each of its endpoints.
func (s *State) resolve(c Connection) ([]*flow, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	from, fromAddrs, err := s.party(c.From)
	if err != nil {
		return nil, fmt.Errorf("source: %w", err)
	}
	base := &flow{from: from, protocol: c.Protocol, port: c.Port, sourcePort: c.SourcePort}
	svc, name, err := s.serviceOf(c.To)
	switch {
	case err != nil:
		return nil, fmt.Errorf("destination: %w", err)
	case svc != nil:
		return s.toService(base, fromAddrs, svc, name, c)
	}
	to, toAddrs, err := s.party(c.To)
	if err != nil {
		return nil, fmt.Errorf("destination: %w", err)
	}
	base.to = to
	f, err := s.between(base, fromAddrs, toAddrs, c)
	if err != nil {
		return nil, err
	}
	return []*flow{f}, nil
}

// check refuses what is no connection.
func (c *Connection) check() error {
	switch c.Protocol {
	case api.ProtocolTCP, api.ProtocolUDP, api.ProtocolSCTP:
		if c.Port == 0 {
			return fmt.Errorf("a %s connection needs a destination port", c.Protocol)
		}
	case api.ProtocolICMP, api.ProtocolIGMP:
	default:
		return fmt.Errorf("protocol %d is not one of TCP, UDP, SCTP, ICMP, IGMP", c.Protocol)
	}
	return nil
}

// between completes a flow: the addresses that it is between, and who they are.
func (s *State) between(base *flow, from, to []netip.Addr, c Connection) (*flow, error) {
	f, ok := *base, false
	if len(to) == 0 { // A name of which no address is known.
		f.from.addr = from[0]
	} else if f.from.addr, f.to.addr, ok = pair(from, to); !ok {
		return nil, fmt.Errorf("%s and %s have no address of one family", describe(c.From), describe(c.To))
	}
	s.identify(&f.from)
	s.identify(&f.to)
	if f.to.node != "" {
		f.nodePort = s.serviceAtNodePort(f.protocol, f.port)
	}
	f.icmpType = 8 // Echo request (RFC 792).
	switch {
	case c.Protocol == api.ProtocolIGMP:
		f.icmpType = 0x11 // Membership query (RFC 2236).
	case f.from.addr.Is6():
		f.icmpType = 128 // Echo request (RFC 4443).
	}
	if c.ICMPType != nil {
		f.icmpType = *c.ICMPType
	}
	if c.ICMPCode != nil {
		f.icmpCode = *c.ICMPCode
	}
	return &f, nil
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
	case e.Domain != "":
		p.name = e.Domain
		if e.Addr.IsValid() {
			addrs = []netip.Addr{e.Addr.Unmap()}
		}
		return p, addrs, nil
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
func (s *State) identify(p *party) {
	if p.node == "" {
		p.at = s.podsAt(p.addr)
	}
	if p.pod == nil && len(p.at) > 0 {
		p.pod = p.at[0]
	}
	if p.pod == nil && p.node == "" {
		p.node = s.nodeAt(p.addr)
	}
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
	case e.Service != "":
		return "Service " + e.Namespace + "/" + e.Service
	case e.Domain != "":
		return e.Domain
	}
	return e.Addr.String()
}

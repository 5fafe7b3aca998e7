package hostpolicy

import (
	"fmt"
	"math"
	"net/netip"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/order"
)

// list is where a candidate's rule belongs.
func (c *candidate) list() List {
	switch {
	case c.wire.GetNodePorts():
		return NodePorts
	case c.wire.GetDirection() == policyv1.Direction_DIRECTION_EGRESS:
		return Egress
	}
	return Ingress
}

// read makes the rule of a candidate, and says what of it cannot be put.
func (c *candidate) read(s *State) (errs []error) {
	w := c.wire
	if err := c.check(); err != nil {
		return []error{err}
	}
	c.rule = Rule{Policy: c.policy.GetRef(), UID: c.policy.GetUid(), Index: w.GetIndex(), Name: w.GetName(), LogLabel: w.GetLogLabel(), Action: w.GetAction(), Log: w.GetLog(),
		Staged: c.policy.GetStaged(), Baseline: c.policy.GetRank() > order.RankK8s, Lockout: c.policy.GetAllowLockout(), AnyPeer: w.GetPeers() == nil}
	note := func(err error) {
		if err != nil {
			errs = append(errs, err)
		}
	}
	note(c.readPeers(s))
	if w.GetServices() == nil {
		if c.rule.AnyTraffic = !w.GetNodePorts(); w.GetNodePorts() {
			note(fmt.Errorf("it names no port"))
		}
	}
	for _, service := range w.GetServices().GetServices() {
		if w.GetNodePorts() {
			ports, err := portsOf(service)
			if err == nil {
				c.rule.Ports = append(c.rule.Ports, ports)
			}
			note(err)
			continue
		}
		note(c.readService(s, service))
	}
	c.rule.Ports = tidy(c.rule.Ports)
	return errs
}

// readPeers reads who the other end is.
func (c *candidate) readPeers(s *State) (err error) {
	peers := c.wire.GetPeers()
	switch {
	case len(peers.GetServices()) > 0:
		err = fmt.Errorf("a host's peers are no Services")
	case len(peers.GetGroups()) > 0 && c.wire.GetNodePorts():
		err = fmt.Errorf("clients of node ports are known by address alone")
	}
	var list []netip.Prefix
	for _, b := range peers.GetBlocks() {
		prefixes, bad := blockOf(b)
		if bad != nil {
			err = bad
			continue
		}
		list = append(list, prefixes...)
	}
	if c.wire.GetHost() {
		s.members(peers.GetGroups(), func(m *policyv1.Member) { list = append(list, addressesOf(m)...) })
	}
	c.rule.Peers = disjoint(list)
	return err
}

// members calls fn for each member of some groups.
func (s *State) members(groups [][]byte, fn func(*policyv1.Member)) {
	if s.Members == nil {
		return
	}
	for _, id := range groups {
		s.Members(id, fn)
	}
}

func addressesOf(m *policyv1.Member) (list []netip.Prefix) {
	for _, ip := range m.GetIps() {
		if a, ok := netip.AddrFromSlice(ip); ok {
			list = append(list, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	return list
}

// readService adds traffic to a rule of a host.
func (c *candidate) readService(s *State, w *policyv1.Service) error {
	switch {
	case w.GetProtocol() == policyv1.Protocol_PROTOCOL_ICMP:
		m := ICMP{-1, -1}
		if w.IcmpType != nil {
			m.Type = int(w.GetIcmpType())
		}
		if w.IcmpCode != nil {
			m.Code = int(w.GetIcmpCode())
		}
		if m.Type > math.MaxUint8 || m.Code > math.MaxUint8 {
			return fmt.Errorf("ICMP type %d, code %d", m.Type, m.Code)
		}
		c.rule.ICMP = append(c.rule.ICMP, m)
		return nil
	case w.GetPortName() != "":
		return c.readNamed(s, w)
	}
	protocols := []policyv1.Protocol{w.GetProtocol()}
	if w.GetProtocol() == policyv1.Protocol_PROTOCOL_UNSPECIFIED {
		protocols = []policyv1.Protocol{policyv1.Protocol_PROTOCOL_TCP, policyv1.Protocol_PROTOCOL_UDP, policyv1.Protocol_PROTOCOL_SCTP}
	}
	for _, protocol := range protocols {
		p := Ports{Last: math.MaxUint16}
		if err := p.set(protocol, w, w.GetPort() != 0); err != nil {
			return err
		}
		c.rule.Ports = append(c.rule.Ports, p)
	}
	return nil
}

// readNamed adds a port by its name: that of each peer that has one. The host's
// own ports have no names.
func (c *candidate) readNamed(s *State, w *policyv1.Service) error {
	if c.list() != Egress {
		return fmt.Errorf("port %q is no number", w.GetPortName())
	}
	at := make(map[Ports][]netip.Prefix)
	add := func(m *policyv1.Member, within func(netip.Prefix) bool) {
		for _, port := range m.GetPorts() {
			if port.GetName() != w.GetPortName() || w.GetProtocol() != policyv1.Protocol_PROTOCOL_UNSPECIFIED && port.GetProtocol() != w.GetProtocol() {
				continue
			}
			var p Ports
			if err := p.set(port.GetProtocol(), &policyv1.Service{Port: port.GetPort(), SourcePort: w.GetSourcePort(), SourceEndPort: w.GetSourceEndPort()}, true); err != nil {
				continue // As if it were not there.
			}
			for _, a := range addressesOf(m) {
				if within(a) {
					at[p] = append(at[p], a)
				}
			}
		}
	}
	s.members(c.wire.GetPeers().GetGroups(), func(m *policyv1.Member) { add(m, func(netip.Prefix) bool { return true }) })
	s.members(c.wire.GetPortNameGroups(), func(m *policyv1.Member) {
		add(m, func(a netip.Prefix) bool { return c.rule.AnyPeer || contains(c.rule.Peers, a.Addr()) })
	})
	for p, list := range at {
		c.rule.Named = append(c.rule.Named, Named{p, disjoint(list)})
	}
	sortNamed(c.rule.Named)
	return nil
}

// matches says whether there is anything that the rule is about.
func (c *candidate) matches() bool {
	r := &c.rule
	return len(r.Named) > 0 || (r.AnyTraffic || len(r.Ports)+len(r.ICMP) > 0) && (r.AnyPeer || len(r.Peers) > 0)
}

// portsOf reads what a service says of ports of nodes.
func portsOf(s *policyv1.Service) (Ports, error) {
	p := Ports{}
	if s.GetPort() == 0 || s.GetPortName() != "" {
		if _, err := transport(s.GetProtocol()); err != nil {
			return p, err
		}
		return p, fmt.Errorf("port %q is no number", s.GetPortName())
	}
	return p, p.set(s.GetProtocol(), s, true)
}

func transport(p policyv1.Protocol) (uint8, error) {
	switch p {
	case policyv1.Protocol_PROTOCOL_TCP:
		return TCP, nil
	case policyv1.Protocol_PROTOCOL_UDP:
		return UDP, nil
	case policyv1.Protocol_PROTOCOL_SCTP:
		return SCTP, nil
	}
	return 0, fmt.Errorf("protocol %v has no ports", p)
}

// set takes over the ports of a service, of which the destination's may stay as
// they are.
func (p *Ports) set(protocol policyv1.Protocol, s *policyv1.Service, destination bool) (err error) {
	if p.Protocol, err = transport(protocol); err != nil {
		return err
	}
	for _, r := range []struct {
		from, to    uint32
		first, last *uint16
		is          bool
	}{{s.GetPort(), s.GetEndPort(), &p.First, &p.Last, destination}, {s.GetSourcePort(), s.GetSourceEndPort(), &p.SourceFirst, &p.SourceLast, true}} {
		to := max(r.from, r.to)
		if to > math.MaxUint16 {
			return fmt.Errorf("port %d", to)
		}
		if r.is {
			*r.first, *r.last = uint16(r.from), uint16(to)
		}
	}
	return nil
}

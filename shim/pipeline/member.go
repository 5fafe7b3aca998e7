package pipeline

import (
	"net/netip"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

// memberFacts are what is kept of a member of an address group: of most, that there are
// very many of, the addresses. Of nil, which is no member, everything is empty.
type memberFacts struct {
	ips   []netip.Addr
	more  *policyv1.Member // With ports or a block. Nil: it has neither.
	since uint64           // The revision that it came in, as it is.
	pod   bool
}

func (c *Compiler) newMember(w *policyv1.Member) *memberFacts {
	if w == nil {
		return nil
	}
	m := &memberFacts{ips: addrs(w.GetIps()), pod: w.GetPod() != nil, since: c.revision}
	if len(w.GetPorts()) > 0 || w.GetBlock() != nil {
		m.more = w
	}
	return m
}

func (m *memberFacts) addrs() []netip.Addr {
	if m == nil {
		return nil
	}
	return m.ips
}

func (m *memberFacts) ports() []*policyv1.NamedPort {
	if m == nil {
		return nil
	}
	return m.more.GetPorts()
}

func (m *memberFacts) block() *policyv1.IPBlock {
	if m == nil {
		return nil
	}
	return m.more.GetBlock()
}

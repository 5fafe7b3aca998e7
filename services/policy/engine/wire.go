package engine

import (
	"net/netip"
	"slices"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/storage"
)

func memberItem(p *api.Pod) *policyv1.Item {
	return &policyv1.Item{Body: &policyv1.Item_Member{Member: &policyv1.Member{
		Subject: &policyv1.Member_Pod{Pod: &policyv1.PodRef{Namespace: p.Namespace, Name: p.Name}},
		Ips:     wireAddrs(p.IPs),
		Ports:   wirePorts(p.Ports),
	}}}
}

func endpointItem(p *api.Pod, groups [][]byte) *policyv1.Item {
	return &policyv1.Item{Body: &policyv1.Item_Endpoint{Endpoint: &policyv1.Endpoint{
		Namespace: p.Namespace,
		Name:      p.Name,
		Ips:       wireAddrs(p.IPs),
		Groups:    groups,
		Ports:     wirePorts(p.Ports),
	}}}
}

// nodeFacts are a Node's own addresses, wherever they were found, each once
// and sorted, and its gateways as written.
func nodeFacts(n *api.Node) *policyv1.Item {
	all := slices.Concat(n.Addresses, n.Gateways, n.Transport)
	slices.SortFunc(all, netip.Addr.Compare)
	return &policyv1.Item{Body: &policyv1.Item_Node{Node: &policyv1.NodeFacts{
		Name:      n.Name,
		Addresses: wireAddrs(slices.Compact(all)),
		Gateways:  wireAddrs(n.Gateways),
	}}}
}

func wireAddrs(addrs []netip.Addr) [][]byte {
	out := make([][]byte, 0, len(addrs))
	for _, a := range addrs {
		out = append(out, a.Unmap().AsSlice())
	}
	return out
}

func wirePorts(ports []api.ContainerPort) []*policyv1.NamedPort {
	var out []*policyv1.NamedPort
	for _, p := range ports {
		out = append(out, &policyv1.NamedPort{Name: p.Name, Protocol: wireProtocol(p.Protocol), Port: uint32(p.Port)})
	}
	return out
}

func wireProtocol(p api.Protocol) policyv1.Protocol {
	switch p {
	case api.ProtocolTCP:
		return policyv1.Protocol_PROTOCOL_TCP
	case api.ProtocolUDP:
		return policyv1.Protocol_PROTOCOL_UDP
	case api.ProtocolSCTP:
		return policyv1.Protocol_PROTOCOL_SCTP
	case api.ProtocolICMP:
		return policyv1.Protocol_PROTOCOL_ICMP
	}
	return policyv1.Protocol_PROTOCOL_UNSPECIFIED
}

func wireBlock(b *api.IPBlock) *policyv1.IPBlock {
	out := &policyv1.IPBlock{Cidr: storage.PrefixToWire(b.CIDR)}
	for _, x := range b.Except {
		out.Except = append(out.Except, storage.PrefixToWire(x))
	}
	return out
}

package storage

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"

	"google.golang.org/protobuf/proto"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

// ScopeKind says what the items of a scope are.
type ScopeKind = policyv1.ScopeKind

// The kinds of scopes.
const (
	ScopeNode         = policyv1.ScopeKind_SCOPE_KIND_NODE
	ScopePolicies     = policyv1.ScopeKind_SCOPE_KIND_POLICIES
	ScopeAddressGroup = policyv1.ScopeKind_SCOPE_KIND_ADDRESS_GROUP
	ScopeRoutes       = policyv1.ScopeKind_SCOPE_KIND_ROUTES
	ScopeServices     = policyv1.ScopeKind_SCOPE_KIND_SERVICES
)

// Encoded is an item, encoded once; its bytes are shared by every stream.
type Encoded struct {
	Key  string
	Body string // A policyv1.Item, fields in the order of their numbers.
}

// Encode encodes an item. It panics on an item without a key: that is a bug of
// the engine.
func Encode(item *policyv1.Item) Encoded {
	key, err := KeyOf(item)
	if err != nil {
		panic("storage: " + err.Error())
	}
	body, err := canonical.Marshal(item)
	if err != nil {
		panic("storage: encode " + key + ": " + err.Error())
	}
	return Encoded{Key: key, Body: string(body)}
}

// canonical gives the bytes that digests are taken over. Items hold no maps,
// and a field that a receiver does not know has a higher number than those it
// knows, so a receiver encodes again what the sender encoded.
var canonical = proto.MarshalOptions{Deterministic: true}

// KeyOf derives an item's key within its scope from its body.
func KeyOf(item *policyv1.Item) (string, error) {
	switch body := item.GetBody().(type) {
	case *policyv1.Item_Node:
		return nodeKey, nil
	case *policyv1.Item_Endpoint:
		if body.Endpoint.GetNamespace() == "" || body.Endpoint.GetName() == "" {
			return "", errors.New("endpoint without namespace or name")
		}
		return PodKey(body.Endpoint.Namespace, body.Endpoint.Name), nil
	case *policyv1.Item_Policy:
		ref := body.Policy.GetRef()
		if ref.GetName() == "" || ref.GetKind() == 0 {
			return "", errors.New("policy without a reference")
		}
		return PolicyKey(body.Policy), nil
	case *policyv1.Item_Member:
		return memberKey(body.Member)
	case *policyv1.Item_Route:
		if body.Route.GetName() == "" {
			return "", errors.New("route without the name of a node")
		}
		return NodeKey(body.Route.Name), nil
	case *policyv1.Item_Service:
		if body.Service.GetNamespace() == "" || body.Service.GetName() == "" {
			return "", errors.New("service without namespace or name")
		}
		return ServiceKey(body.Service.Namespace, body.Service.Name), nil
	case *policyv1.Item_Backend:
		ip, ok := netip.AddrFromSlice(body.Backend.GetIp())
		if body.Backend.GetNamespace() == "" || body.Backend.GetService() == "" || !ok {
			return "", errors.New("backend without the name of its service, or with an address of another length than 4 or 16 bytes")
		}
		return BackendKey(body.Backend.Namespace, body.Backend.Service, ip), nil
	}
	return "", errors.New("item without a body that is known")
}

// nodeKey is the key of a node's facts.
const nodeKey = "node"

// PodKey is the key of what is said of a Pod: its endpoint item, and its
// member item in every group.
func PodKey(namespace, name string) string { return "pod/" + namespace + "/" + name }

// NodeKey is the key of what is said of a Node to others: its member item in
// every group, and its route.
func NodeKey(name string) string { return "node/" + name }

// ServiceKey is the key of a Service's item.
func ServiceKey(namespace, name string) string { return "service/" + namespace + "/" + name }

// BackendKey is the key of one of a Service's backends.
func BackendKey(namespace, service string, ip netip.Addr) string {
	return "backend/" + namespace + "/" + service + "/" + ip.String()
}

// PolicyKey is the key of a policy item, by its reference and its part.
func PolicyKey(p *policyv1.Policy) string {
	ref := p.GetRef()
	key := "policy/" + strconv.Itoa(int(ref.GetKind())) + "/" + ref.GetNamespace() + "/" + ref.GetName()
	if p.GetPart() != "" {
		key += "/" + p.GetPart()
	}
	return key
}

func memberKey(m *policyv1.Member) (string, error) {
	switch s := m.GetSubject().(type) {
	case *policyv1.Member_Pod:
		if s.Pod.GetNamespace() == "" || s.Pod.GetName() == "" {
			return "", errors.New("member Pod without namespace or name")
		}
		return PodKey(s.Pod.Namespace, s.Pod.Name), nil
	case *policyv1.Member_Node:
		if s.Node == "" {
			return "", errors.New("member Node without name")
		}
		return NodeKey(s.Node), nil
	case *policyv1.Member_Block:
		p, err := PrefixFromWire(s.Block.GetCidr())
		if err != nil {
			return "", err
		}
		return "cidr/" + p.String(), nil
	}
	return "", errors.New("member without a subject")
}

// PrefixFromWire reads a prefix.
func PrefixFromWire(p *policyv1.Prefix) (netip.Prefix, error) {
	addr, ok := netip.AddrFromSlice(p.GetAddress())
	if !ok {
		return netip.Prefix{}, fmt.Errorf("prefix address of %d bytes", len(p.GetAddress()))
	}
	prefix, err := addr.Prefix(int(p.GetLength()))
	if err != nil || p.GetLength() > 128 {
		return netip.Prefix{}, fmt.Errorf("prefix of %d bits on an address of %d", p.GetLength(), addr.BitLen())
	}
	return prefix, nil
}

// PrefixToWire writes a prefix.
func PrefixToWire(p netip.Prefix) *policyv1.Prefix {
	p = p.Masked()
	return &policyv1.Prefix{Address: p.Addr().AsSlice(), Length: uint32(p.Bits())}
}

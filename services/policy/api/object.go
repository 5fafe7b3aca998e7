package api

import (
	"net/netip"
)

// Kind is the kind of an object, qualified where Kubernetes has two of one name.
type Kind uint8

// The kinds that the policy service reads.
const (
	KindUnknown                    Kind = iota
	KindNamespace                       // v1 Namespace
	KindNode                            // v1 Node
	KindPod                             // v1 Pod
	KindService                         // v1 Service
	KindServiceAccount                  // v1 ServiceAccount
	KindEndpointSlice                   // discovery.k8s.io/v1 EndpointSlice
	KindNetworkPolicy                   // networking.k8s.io/v1 NetworkPolicy
	KindAdminNetworkPolicy              // policy.networking.k8s.io/v1alpha1 AdminNetworkPolicy
	KindBaselineAdminNetworkPolicy      // policy.networking.k8s.io/v1alpha1 BaselineAdminNetworkPolicy
	KindClusterNetworkPolicy            // policy.networking.k8s.io/v1alpha2 ClusterNetworkPolicy
	KindTier                            // crd.antrea.io/v1beta1 Tier
	KindAntreaClusterNetworkPolicy      // crd.antrea.io/v1beta1 ClusterNetworkPolicy
	KindAntreaNetworkPolicy             // crd.antrea.io/v1beta1 NetworkPolicy
	KindClusterGroup                    // crd.antrea.io/v1beta1 ClusterGroup
	KindGroup                           // crd.antrea.io/v1beta1 Group
)

var kindNames = [...]string{
	KindUnknown:                    "Unknown",
	KindNamespace:                  "Namespace",
	KindNode:                       "Node",
	KindPod:                        "Pod",
	KindService:                    "Service",
	KindServiceAccount:             "ServiceAccount",
	KindEndpointSlice:              "EndpointSlice",
	KindNetworkPolicy:              "NetworkPolicy",
	KindAdminNetworkPolicy:         "AdminNetworkPolicy",
	KindBaselineAdminNetworkPolicy: "BaselineAdminNetworkPolicy",
	KindClusterNetworkPolicy:       "ClusterNetworkPolicy",
	KindTier:                       "Tier",
	KindAntreaClusterNetworkPolicy: "AntreaClusterNetworkPolicy",
	KindAntreaNetworkPolicy:        "AntreaNetworkPolicy",
	KindClusterGroup:               "ClusterGroup",
	KindGroup:                      "Group",
}

// String is the kind's name as manifests write it, with "Antrea" before it
// where there is another kind of that name.
func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return kindNames[KindUnknown]
}

// Ref names one object. Namespace is empty for cluster-scoped kinds.
type Ref struct {
	Kind      Kind
	Namespace string
	Name      string
}

// String is "Kind name" or "Kind namespace/name", for messages.
func (r Ref) String() string {
	if r.Namespace == "" {
		return r.Kind.String() + " " + r.Name
	}
	return r.Kind.String() + " " + r.Namespace + "/" + r.Name
}

// Object is one of the object types of this package, by pointer.
type Object interface {
	Ref() Ref
}

// Event is a change of one object. A nil Object means that it is not in force.
type Event struct {
	Ref    Ref
	Object Object
	// Fault says why the object is not in force as it is written, where that is
	// for what stands beside it. Empty: it is, or is gone.
	Fault string
	// Version is the object as its source has it, in force or not; nil where it
	// has none, or where versions of the kind are not kept.
	Version *Version
}

// Label is one label of an object.
type Label struct{ Key, Value string }

// Labels are sorted by key; keys are unique.
type Labels []Label

// Get returns the value of a key and whether the key is there.
func (l Labels) Get(key string) (string, bool) {
	for i := range l {
		if l[i].Key == key {
			return l[i].Value, true
		}
	}
	return "", false
}

// Operator of a selector requirement.
type Operator uint8

// The operators of matchExpressions.
const (
	OpIn Operator = iota + 1
	OpNotIn
	OpExists
	OpDoesNotExist
)

// Requirement is one entry of matchExpressions. Values are as written.
type Requirement struct {
	Key      string
	Operator Operator
	Values   []string
}

// Selector is a label selector as written. The empty selector matches everything.
type Selector struct {
	MatchLabels      Labels
	MatchExpressions []Requirement
}

// Protocol is a transport protocol by its IANA number.
type Protocol uint8

// The protocols of ports. ICMP stands for both families.
const (
	ProtocolAny  Protocol = 0
	ProtocolICMP Protocol = 1
	ProtocolIGMP Protocol = 2
	ProtocolTCP  Protocol = 6
	ProtocolUDP  Protocol = 17
	ProtocolSCTP Protocol = 132
)

// String is the protocol as manifests write it.
func (p Protocol) String() string {
	switch p {
	case ProtocolICMP:
		return "ICMP"
	case ProtocolIGMP:
		return "IGMP"
	case ProtocolTCP:
		return "TCP"
	case ProtocolUDP:
		return "UDP"
	case ProtocolSCTP:
		return "SCTP"
	}
	return "any"
}

// Namespace mirrors v1 Namespace. Its Labels hold kubernetes.io/metadata.name
// and antrea.io/metadata.name, whether or not they were written.
type Namespace struct {
	Name   string
	Labels Labels
	// LogPolicies is the annotation networkpolicy.antrea.io/enable-logging: "true".
	LogPolicies bool
}

// Ref implements Object.
func (n *Namespace) Ref() Ref { return Ref{Kind: KindNamespace, Name: n.Name} }

// Node mirrors v1 Node.
type Node struct {
	Name   string
	UID    string // Empty: the source has none.
	Labels Labels
	// Addresses are status.addresses that are IP addresses, in order.
	Addresses []netip.Addr
	// Gateways are the addresses that the host has on the bridge: the
	// annotation weir.dev/gateway-addresses, or else the first address of
	// each podCIDR.
	Gateways []netip.Addr
	// Transport are the addresses of the annotation
	// weir.dev/transport-addresses, or else node.antrea.io/transport-addresses.
	Transport []netip.Addr
	// PodCIDRs are spec.podCIDRs: where the addresses of its Pods come from.
	PodCIDRs []netip.Prefix
	// Reached is where other nodes reach it, an address of each family at most:
	// of Transport, or else the first InternalIP.
	Reached []netip.Addr
	// Zone is the label topology.kubernetes.io/zone. Empty: none.
	Zone string
}

// Ref implements Object.
func (n *Node) Ref() Ref { return Ref{Kind: KindNode, Name: n.Name} }

// ContainerPort is a named port of a container, init containers included.
type ContainerPort struct {
	Name     string
	Protocol Protocol
	Port     uint16
}

// Pod mirrors v1 Pod.
type Pod struct {
	Namespace      string
	Name           string
	UID            string
	Labels         Labels
	Node           string // Empty: not scheduled.
	ServiceAccount string // "default" where the spec names none.
	IPs            []netip.Addr
	HostNetwork    bool
	Finished       bool            // Phase Succeeded or Failed: its addresses are no longer its own.
	Ports          []ContainerPort // Named ones only, in order.
	// Workload is "KIND/NAME" of its controller, a Deployment's ReplicaSet being
	// the Deployment. Empty: none.
	Workload string
}

// Ref implements Object.
func (p *Pod) Ref() Ref { return Ref{Kind: KindPod, Namespace: p.Namespace, Name: p.Name} }

// PolicyType is an entry of policyTypes.
type PolicyType uint8

// The policy types.
const (
	PolicyTypeIngress PolicyType = iota + 1
	PolicyTypeEgress
)

// NetworkPolicy mirrors networking.k8s.io/v1 NetworkPolicy.
type NetworkPolicy struct {
	Namespace  string
	Name       string
	UID        string
	Generation int64
	Created    int64 // Unix seconds; zero where unknown.
	Staged     bool  // Annotation weir.dev/enforcement: staged.

	PodSelector Selector
	PolicyTypes []PolicyType // Empty: to be defaulted.
	Ingress     []NetworkPolicyRule
	Egress      []NetworkPolicyRule
}

// Ref implements Object.
func (p *NetworkPolicy) Ref() Ref {
	return Ref{Kind: KindNetworkPolicy, Namespace: p.Namespace, Name: p.Name}
}

// NetworkPolicyRule is a rule of a NetworkPolicy. Absent and empty lists mean
// the same there: every port, every peer.
type NetworkPolicyRule struct {
	Ports []NetworkPolicyPort
	Peers []NetworkPolicyPeer // from or to
}

// NetworkPolicyPort is one entry of ports.
type NetworkPolicyPort struct {
	Protocol Protocol // TCP where the spec names none.
	Port     uint16   // Zero: every port, or PortName.
	EndPort  uint16   // Zero: Port alone.
	PortName string   // Empty: Port counts.
}

// NetworkPolicyPeer is one entry of from or to. Nil means absent; a peer has
// an IPBlock or at least one selector.
type NetworkPolicyPeer struct {
	PodSelector       *Selector
	NamespaceSelector *Selector
	IPBlock           *IPBlock
}

// IPBlock is a prefix less some prefixes strictly inside it. Host bits are zero.
type IPBlock struct {
	CIDR   netip.Prefix
	Except []netip.Prefix
}

// Service mirrors what is read of v1 Service.
type Service struct {
	Namespace  string
	Name       string
	Type       string // "ClusterIP" where the spec names none.
	ClusterIPs []netip.Addr
	// ExternalIPs are spec.externalIPs, and those of its load balancer.
	ExternalIPs []netip.Addr
	Headless    bool
	Selector    Labels
	Ports       []ServicePort
	// AffinitySeconds is for how long after its last connection a client keeps
	// its endpoint. Zero: sessionAffinity None.
	AffinitySeconds uint32
	// InternalLocal is internalTrafficPolicy: Local.
	InternalLocal bool
}

// ServiceExternalName is the Type of a Service that is a name for another host.
const ServiceExternalName = "ExternalName"

// Balanced says whether what is sent to the Service goes to one of its
// endpoints: a headless Service and an ExternalName are names alone.
func (s *Service) Balanced() bool {
	return !s.Headless && s.Type != ServiceExternalName && len(s.ClusterIPs) > 0
}

// Ref implements Object.
func (s *Service) Ref() Ref { return Ref{Kind: KindService, Namespace: s.Namespace, Name: s.Name} }

// ServicePort is one port of a Service.
type ServicePort struct {
	Name       string
	Protocol   Protocol
	Port       uint16
	TargetPort uint16 // Zero: TargetName counts, or Port where that is empty too.
	TargetName string
	NodePort   uint16
}

// ServiceAccount mirrors what is read of v1 ServiceAccount.
type ServiceAccount struct {
	Namespace string
	Name      string
}

// Ref implements Object.
func (s *ServiceAccount) Ref() Ref {
	return Ref{Kind: KindServiceAccount, Namespace: s.Namespace, Name: s.Name}
}

// EndpointSlice mirrors what is read of discovery.k8s.io/v1 EndpointSlice. One
// of addressType FQDN says nothing here: it has neither Service nor Endpoints.
type EndpointSlice struct {
	Namespace string
	Name      string
	Service   string // Label kubernetes.io/service-name. Empty: of none.
	Endpoints []SliceEndpoint
	Ports     []ServicePort // By Name, Protocol and Port; a Port of zero says nothing.
}

// Ref implements Object.
func (s *EndpointSlice) Ref() Ref {
	return Ref{Kind: KindEndpointSlice, Namespace: s.Namespace, Name: s.Name}
}

// Controls says whether the slice says where nodes are steered from: API servers,
// or the policy service.
func (s *EndpointSlice) Controls() bool {
	of := NamespacedName{s.Namespace, s.Service}
	return of == NamespacedName{"default", "kubernetes"} || of == NamespacedName{"weir-system", "weir-policyd"}
}

// Servers are the addresses and ports at which its endpoints are reached by TCP,
// ready or not.
func (s *EndpointSlice) Servers() (list []netip.AddrPort) {
	for _, e := range s.Endpoints {
		for _, a := range e.Addresses {
			for _, p := range s.Ports {
				if p.Protocol == ProtocolTCP && p.Port != 0 {
					list = append(list, netip.AddrPortFrom(a, p.Port))
				}
			}
		}
	}
	return list
}

// SliceEndpoint is one endpoint of an EndpointSlice.
type SliceEndpoint struct {
	Addresses   []netip.Addr // One is as good as another; the first is used.
	Node        string       // Empty: unknown.
	Ready       bool
	Serving     bool
	Terminating bool
	Zones       []string // hints.forZones. Empty: for clients of every zone.
	Nodes       []string // hints.forNodes. Empty: for clients of every node.
}

package api

import (
	"net/netip"
	"slices"
)

// Action is what a rule does with what it matches.
type Action uint8

// The actions. What upstream admin policies call Deny and Accept are
// ActionDrop and ActionAllow.
const (
	ActionAllow Action = iota + 1
	ActionDrop
	ActionPass // Leaves the decision to the Kubernetes step.
	ActionReject
)

// String is the action as Antrea's policies write it.
func (a Action) String() string {
	switch a {
	case ActionAllow:
		return "Allow"
	case ActionDrop:
		return "Drop"
	case ActionPass:
		return "Pass"
	case ActionReject:
		return "Reject"
	}
	return "unknown"
}

// OrderedPolicy is a policy whose rules are judged in order, of which the first
// that matches decides: ClusterNetworkPolicy and NetworkPolicy of
// crd.antrea.io/v1beta1, AdminNetworkPolicy and BaselineAdminNetworkPolicy of
// policy.networking.k8s.io/v1alpha1, ClusterNetworkPolicy of its v1alpha2.
type OrderedPolicy struct {
	Kind       Kind
	Namespace  string // Empty: cluster-scoped.
	Name       string
	UID        string
	Generation int64
	Created    int64 // Unix seconds; zero where unknown.
	Staged     bool

	// AllowLockout is the annotation weir.dev/allow-lockout: "true": rules of Nodes
	// may deny what it takes to steer them.
	AllowLockout bool

	// Tier is the tier's name, of Antrea's kinds: "application" where the
	// policy names none. Upstream kinds have none.
	Tier string
	// Baseline is set where an upstream policy is judged after Kubernetes
	// NetworkPolicies.
	Baseline  bool
	Priority  float64  // Within the tier, the lower is judged first. Zero for baselines that have none.
	AppliedTo []Target // Empty: each rule has its own.
	Ingress   []OrderedRule
	Egress    []OrderedRule
}

// Ref implements Object.
func (p *OrderedPolicy) Ref() Ref { return Ref{Kind: p.Kind, Namespace: p.Namespace, Name: p.Name} }

// NamespacedName names an object in a Namespace.
type NamespacedName struct{ Namespace, Name string }

// String is "NAMESPACE/NAME".
func (n NamespacedName) String() string { return n.Namespace + "/" + n.Name }

// Target is one entry of appliedTo. It has selectors of Pods or Namespaces or
// both, or one of the other fields.
type Target struct {
	PodSelector       *Selector
	NamespaceSelector *Selector
	Group             string // Name of a ClusterGroup, or of a Group in the policy's Namespace.
	ServiceAccount    *NamespacedName
	Service           *NamespacedName // A NodePort Service, as clients from outside reach it.
	NodeSelector      *Selector       // The Nodes themselves.
}

// OrderedRule is one rule of an OrderedPolicy.
type OrderedRule struct {
	Name       string // As written or generated. Empty: the kind needs none, and none was written.
	Action     Action
	Log        bool
	LogLabel   string
	Layer7     bool             // It allows some of what it matches, by what layer 7 says.
	Traffic    []Traffic        // Empty: any.
	Peers      []Peer           // Empty, and no ToServices: any.
	ToServices []NamespacedName // Of egress, instead of peers.
	AppliedTo  []Target         // Empty: the policy's.
}

// AnyPeer says whether the rule names no peer, and so matches any.
func (r *OrderedRule) AnyPeer() bool { return len(r.Peers) == 0 && len(r.ToServices) == 0 }

// Traffic is packets by what their headers say beside addresses.
type Traffic struct {
	Protocol      Protocol
	Port          uint16     // Destination port. Zero: any, or PortName.
	EndPort       uint16     // Last of a range. Zero: Port alone.
	PortName      string     // Of the destination. Empty: Port counts.
	SourcePort    uint16     // Zero: any.
	SourceEndPort uint16     // Last of a range. Zero: SourcePort alone.
	ICMPType      *uint8     // Nil: any.
	ICMPCode      *uint8     // Nil: any.
	IGMPType      *uint8     // Nil: any report.
	Multicast     netip.Addr // Group of IGMP. Zero: any.
}

// Peer is one entry of from or to. It has selectors of Pods, of Namespaces or
// how these are related, or one of the other fields.
type Peer struct {
	PodSelector       *Selector
	NamespaceSelector *Selector
	// SameLabels are keys: the peer's Namespace has the same values of them as
	// that of the Pod which the rule guards. Match Self is the key that holds a
	// Namespace's name, alone.
	SameLabels     []string
	Group          string // Name of a ClusterGroup, or of a Group in the policy's Namespace.
	ServiceAccount *NamespacedName
	NodeSelector   *Selector
	IPBlock        *IPBlock
	FQDN           string // Lower-case, * for any run of characters.
}

// OwnNamespace says whether the peer is Self: the guarded Pod's own Namespace.
func (p *Peer) OwnNamespace() bool {
	return len(p.SameLabels) == 1 && p.SameLabels[0] == LabelNamespaceName
}

// SameLabelKeys are the keys of all sameLabels of a policy, sorted. The policy
// has no effect on Namespaces that have none of them, and on one that lacks a
// key only by its rules for any peer. Self has no part in it.
func (p *OrderedPolicy) SameLabelKeys() []string {
	var keys []string
	for _, rules := range [][]OrderedRule{p.Ingress, p.Egress} {
		for i := range rules {
			for j := range rules[i].Peers {
				if peer := &rules[i].Peers[j]; !peer.OwnNamespace() {
					keys = append(keys, peer.SameLabels...)
				}
			}
		}
	}
	return sortedUnique(keys)
}

// Group mirrors ClusterGroup and Group of crd.antrea.io/v1beta1. It has
// selectors, blocks, a Service or children.
type Group struct {
	Kind       Kind // KindClusterGroup or KindGroup.
	Namespace  string
	Name       string
	UID        string
	Generation int64

	PodSelector       *Selector
	NamespaceSelector *Selector
	IPBlocks          []IPBlock
	Service           *NamespacedName
	Children          []string // Names, of the same kind and Namespace.
}

// Ref implements Object.
func (g *Group) Ref() Ref { return Ref{Kind: g.Kind, Namespace: g.Namespace, Name: g.Name} }

// GroupRef names the group that a policy of a kind and Namespace means by a name.
func GroupRef(policy Ref, name string) Ref {
	if policy.Kind == KindAntreaNetworkPolicy {
		return Ref{Kind: KindGroup, Namespace: policy.Namespace, Name: name}
	}
	return Ref{Kind: KindClusterGroup, Name: name}
}

// Tier mirrors Tier of crd.antrea.io/v1beta1.
type Tier struct {
	Name     string
	Priority uint8
	Created  int64 // Unix seconds; zero where unknown.
}

// Ref implements Object.
func (t *Tier) Ref() Ref { return Ref{Kind: KindTier, Name: t.Name} }

// Names of the static tiers that mean something by themselves.
const (
	TierApplication = "application" // Of policies that name none.
	TierBaseline    = "baseline"    // Judged after Kubernetes NetworkPolicies.
)

var staticTiers = []Tier{{Name: "emergency", Priority: 50}, {Name: "securityops", Priority: 100}, {Name: "networkops", Priority: 150}, {Name: "platform", Priority: 200}, {Name: TierApplication, Priority: 250}, {Name: TierBaseline, Priority: 253}}

// StaticTiers are the tiers that are there without being written, in the order
// in which they are judged.
func StaticTiers() []Tier { return slices.Clone(staticTiers) }

// StaticTier is the priority of a static tier.
func StaticTier(name string) (priority uint8, is bool) {
	for _, t := range staticTiers {
		if t.Name == name {
			return t.Priority, true
		}
	}
	return 0, false
}

// Places of the upstream policies and the Kubernetes step among the tiers'
// priorities.
const (
	RankAdmin            = 251
	RankK8s              = 252
	RankUpstreamBaseline = 254
)

func sortedUnique(list []string) []string {
	slices.Sort(list)
	return slices.Compact(list)
}

// Package antreav1beta1 has the kinds of crd.antrea.io/v1beta1 that Weir reads,
// as their JSON is written. Names, order and omission of fields are those of
// the API's own Go types, since the names that are generated for rules are
// hashes over that JSON (see api.GenerateRuleName).
//
// What a field means stands in the documentation of the API. Fields that stand
// for things which Weir does not have (external entities, other clusters) are
// here so that validation can say so.
package antreav1beta1

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// APIVersion of these kinds.
const APIVersion = "crd.antrea.io/v1beta1"

// Tier orders policies.
type Tier struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec TierSpec `json:"spec"`
}

// TierSpec of a Tier.
type TierSpec struct {
	Priority    int32  `json:"priority"`
	Description string `json:"description,omitempty"`
}

// ClusterNetworkPolicy is a policy for the whole cluster.
type ClusterNetworkPolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   PolicySpec    `json:"spec"`
	Status *PolicyStatus `json:"status,omitempty"`
}

// NetworkPolicy is a policy for the Pods of its Namespace.
type NetworkPolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   PolicySpec    `json:"spec"`
	Status *PolicyStatus `json:"status,omitempty"`
}

// PolicySpec of both kinds of policies.
type PolicySpec struct {
	Tier      string      `json:"tier,omitempty"`
	Priority  *float64    `json:"priority"`
	AppliedTo []AppliedTo `json:"appliedTo,omitempty"`
	Ingress   []Rule      `json:"ingress,omitempty"`
	Egress    []Rule      `json:"egress,omitempty"`
}

// PolicyStatus of both kinds of policies.
type PolicyStatus struct {
	Phase                string            `json:"phase"`
	ObservedGeneration   int64             `json:"observedGeneration"`
	CurrentNodesRealized int32             `json:"currentNodesRealized"`
	DesiredNodesRealized int32             `json:"desiredNodesRealized"`
	Conditions           []PolicyCondition `json:"conditions"`
}

// PolicyCondition of a PolicyStatus.
type PolicyCondition struct {
	Type               string                 `json:"type"`
	Status             metav1.ConditionStatus `json:"status"`
	LastTransitionTime metav1.Time            `json:"lastTransitionTime,omitempty"`
	Reason             string                 `json:"reason,omitempty"`
	Message            string                 `json:"message,omitempty"`
}

// Rule of a policy, in either direction.
type Rule struct {
	Action        *string       `json:"action"`
	Ports         []Port        `json:"ports,omitempty"`
	Protocols     []Protocol    `json:"protocols,omitempty"`
	L7Protocols   []L7Protocol  `json:"l7Protocols,omitempty"`
	From          []Peer        `json:"from,omitempty"`
	To            []Peer        `json:"to,omitempty"`
	ToServices    []PeerService `json:"toServices,omitempty"`
	Name          string        `json:"name,omitempty"`
	EnableLogging bool          `json:"enableLogging"`
	LogLabel      string        `json:"logLabel,omitempty"`
	AppliedTo     []AppliedTo   `json:"appliedTo,omitempty"`
}

// Peer is an entry of from or to.
type Peer struct {
	IPBlock                *IPBlock              `json:"ipBlock,omitempty"`
	PodSelector            *metav1.LabelSelector `json:"podSelector,omitempty"`
	NamespaceSelector      *metav1.LabelSelector `json:"namespaceSelector,omitempty"`
	Namespaces             *PeerNamespaces       `json:"namespaces,omitempty"`
	ExternalEntitySelector *metav1.LabelSelector `json:"externalEntitySelector,omitempty"`
	Group                  string                `json:"group,omitempty"`
	FQDN                   string                `json:"fqdn,omitempty"`
	ServiceAccount         *NamespacedName       `json:"serviceAccount,omitempty"`
	NodeSelector           *metav1.LabelSelector `json:"nodeSelector,omitempty"`
	Scope                  string                `json:"scope,omitempty"`
}

// AppliedTo is an entry of appliedTo. An ipBlock has no place there, and is
// here so that validation can say so.
type AppliedTo struct {
	PodSelector            *metav1.LabelSelector `json:"podSelector,omitempty"`
	NamespaceSelector      *metav1.LabelSelector `json:"namespaceSelector,omitempty"`
	ExternalEntitySelector *metav1.LabelSelector `json:"externalEntitySelector,omitempty"`
	Group                  string                `json:"group,omitempty"`
	ServiceAccount         *NamespacedName       `json:"serviceAccount,omitempty"`
	Service                *NamespacedName       `json:"service,omitempty"`
	NodeSelector           *metav1.LabelSelector `json:"nodeSelector,omitempty"`
	IPBlock                *IPBlock              `json:"ipBlock,omitempty"`
}

// PeerNamespaces chooses Namespaces by how they are related to that of the
// Pod which the rule guards.
type PeerNamespaces struct {
	Match      string   `json:"match,omitempty"`
	SameLabels []string `json:"sameLabels,omitempty"`
}

// IPBlock is a prefix less some prefixes.
type IPBlock struct {
	CIDR   string   `json:"cidr"`
	Except []string `json:"except,omitempty"`
}

// Port is an entry of ports.
type Port struct {
	Protocol      *corev1.Protocol    `json:"protocol,omitempty"`
	Port          *intstr.IntOrString `json:"port,omitempty"`
	EndPort       *int32              `json:"endPort,omitempty"`
	SourcePort    *int32              `json:"sourcePort,omitempty"`
	SourceEndPort *int32              `json:"sourceEndPort,omitempty"`
}

// Protocol is an entry of protocols.
type Protocol struct {
	ICMP *ICMP `json:"icmp,omitempty"`
	IGMP *IGMP `json:"igmp,omitempty"`
}

// ICMP of a Protocol.
type ICMP struct {
	Type *int32 `json:"icmpType,omitempty"`
	Code *int32 `json:"icmpCode,omitempty"`
}

// IGMP of a Protocol.
type IGMP struct {
	Type         *int32 `json:"igmpType,omitempty"`
	GroupAddress string `json:"groupAddress,omitempty"`
}

// L7Protocol is an entry of l7Protocols.
type L7Protocol struct {
	HTTP *HTTP `json:"http,omitempty"`
	TLS  *TLS  `json:"tls,omitempty"`
}

// HTTP of a L7Protocol.
type HTTP struct {
	Host   string `json:"host,omitempty"`
	Method string `json:"method,omitempty"`
	Path   string `json:"path,omitempty"`
}

// TLS of a L7Protocol.
type TLS struct {
	SNI string `json:"sni,omitempty"`
}

// NamespacedName names an object in a Namespace.
type NamespacedName struct {
	Name      string `json:"name,omitempty"`
	Namespace string `json:"namespace,omitempty"`
}

// PeerService is an entry of toServices.
type PeerService struct {
	Name      string `json:"name,omitempty"`
	Namespace string `json:"namespace,omitempty"`
	Scope     string `json:"scope,omitempty"`
}

// ClusterGroup is a group that ClusterNetworkPolicies refer to.
type ClusterGroup struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   GroupSpec    `json:"spec"`
	Status *GroupStatus `json:"status,omitempty"`
}

// Group is a group that NetworkPolicies of its Namespace refer to.
type Group struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   GroupSpec    `json:"spec"`
	Status *GroupStatus `json:"status,omitempty"`
}

// GroupSpec of both kinds of groups.
type GroupSpec struct {
	PodSelector            *metav1.LabelSelector `json:"podSelector,omitempty"`
	NamespaceSelector      *metav1.LabelSelector `json:"namespaceSelector,omitempty"`
	NodeSelector           *metav1.LabelSelector `json:"nodeSelector,omitempty"`
	IPBlock                *IPBlock              `json:"ipBlock,omitempty"`
	IPBlocks               []IPBlock             `json:"ipBlocks,omitempty"`
	ServiceReference       *NamespacedName       `json:"serviceReference,omitempty"`
	ExternalEntitySelector *metav1.LabelSelector `json:"externalEntitySelector,omitempty"`
	ChildGroups            []string              `json:"childGroups,omitempty"`
}

// GroupStatus of both kinds of groups.
type GroupStatus struct {
	Conditions []GroupCondition `json:"conditions,omitempty"`
}

// GroupCondition of a GroupStatus.
type GroupCondition struct {
	Type               string                 `json:"type"`
	Status             corev1.ConditionStatus `json:"status"`
	LastTransitionTime metav1.Time            `json:"lastTransitionTime,omitempty"`
}

// Package adminv1alpha2 has the ClusterNetworkPolicy of
// policy.networking.k8s.io/v1alpha2, as its JSON is written. The module that
// defines the older kinds of the group does not have it at the version that we
// use. What a field means stands in the documentation of the API.
package adminv1alpha2

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// APIVersion of the kind.
const APIVersion = "policy.networking.k8s.io/v1alpha2"

// ClusterNetworkPolicy is a policy of the cluster's administrators.
type ClusterNetworkPolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   Spec    `json:"spec"`
	Status *Status `json:"status,omitempty"`
}

// Spec of a ClusterNetworkPolicy.
type Spec struct {
	Tier     string        `json:"tier"` // "Admin" or "Baseline".
	Priority *int32        `json:"priority"`
	Subject  Subject       `json:"subject"`
	Ingress  []IngressRule `json:"ingress,omitempty"`
	Egress   []EgressRule  `json:"egress,omitempty"`
}

// Status of a ClusterNetworkPolicy.
type Status struct {
	Conditions []metav1.Condition `json:"conditions"`
}

// Subject is what a policy applies to.
type Subject struct {
	Namespaces *metav1.LabelSelector `json:"namespaces,omitempty"`
	Pods       *NamespacedPod        `json:"pods,omitempty"`
}

// NamespacedPod chooses Pods by their labels and those of their Namespaces.
type NamespacedPod struct {
	NamespaceSelector metav1.LabelSelector `json:"namespaceSelector"`
	PodSelector       metav1.LabelSelector `json:"podSelector"`
}

// IngressRule of a policy.
type IngressRule struct {
	Name      string     `json:"name,omitempty"`
	Action    string     `json:"action"` // "Accept", "Deny" or "Pass".
	From      []Peer     `json:"from"`
	Protocols []Protocol `json:"protocols,omitempty"`
}

// EgressRule of a policy.
type EgressRule struct {
	Name      string     `json:"name,omitempty"`
	Action    string     `json:"action"` // "Accept", "Deny" or "Pass".
	To        []Peer     `json:"to"`
	Protocols []Protocol `json:"protocols,omitempty"`
}

// Peer is an entry of from or to. Nodes, Networks and DomainNames are for
// egress alone; an ingress peer that has one is refused.
type Peer struct {
	Namespaces  *metav1.LabelSelector `json:"namespaces,omitempty"`
	Pods        *NamespacedPod        `json:"pods,omitempty"`
	Nodes       *metav1.LabelSelector `json:"nodes,omitempty"`
	Networks    []string              `json:"networks,omitempty"`
	DomainNames []string              `json:"domainNames,omitempty"`
}

// Protocol is an entry of protocols; exactly one field is set.
type Protocol struct {
	TCP                  *Transport `json:"tcp,omitempty"`
	UDP                  *Transport `json:"udp,omitempty"`
	SCTP                 *Transport `json:"sctp,omitempty"`
	DestinationNamedPort string     `json:"destinationNamedPort,omitempty"`
}

// Transport is a transport protocol with the ports of a Protocol.
type Transport struct {
	DestinationPort *Port `json:"destinationPort,omitempty"`
}

// Port is a number or a range; exactly one field is set.
type Port struct {
	Number int32      `json:"number,omitempty"`
	Range  *PortRange `json:"range,omitempty"`
}

// PortRange is the ports from Start to End, both included.
type PortRange struct {
	Start int32 `json:"start"`
	End   int32 `json:"end"`
}

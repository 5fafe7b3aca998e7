// Package weirv1alpha1 has the kinds of weir.dev/v1alpha1: what Weir itself keeps
// in the Kubernetes API.
package weirv1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// APIVersion of these kinds.
const APIVersion = "weir.dev/v1alpha1"

// NodeEndpoints are the addresses that a node's shim reports for the Pods whose
// ports it has. It is named after the Node. The policy service writes it, so that
// all its replicas know a Pod's address before the kubelet has written it into
// the Pod's status.
type NodeEndpoints struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Endpoints []Endpoint `json:"endpoints,omitempty"` // No two of one Namespace and name.
}

// Endpoint is one Pod.
type Endpoint struct {
	Namespace string   `json:"namespace"`
	Name      string   `json:"name"`
	UID       string   `json:"uid,omitempty"` // Tells it from an earlier Pod of the same name. Empty: unknown.
	IPs       []string `json:"ips,omitempty"`
}

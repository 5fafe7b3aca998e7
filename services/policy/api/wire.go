package api

import (
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

var wireKinds = map[Kind]policyv1.PolicyKind{
	KindNetworkPolicy:              policyv1.PolicyKind_POLICY_KIND_K8S_NETWORK_POLICY,
	KindAdminNetworkPolicy:         policyv1.PolicyKind_POLICY_KIND_ADMIN_NETWORK_POLICY,
	KindBaselineAdminNetworkPolicy: policyv1.PolicyKind_POLICY_KIND_BASELINE_ADMIN_NETWORK_POLICY,
	KindClusterNetworkPolicy:       policyv1.PolicyKind_POLICY_KIND_CLUSTER_NETWORK_POLICY,
	KindAntreaClusterNetworkPolicy: policyv1.PolicyKind_POLICY_KIND_ANTREA_CLUSTER_NETWORK_POLICY,
	KindAntreaNetworkPolicy:        policyv1.PolicyKind_POLICY_KIND_ANTREA_NETWORK_POLICY,
}

// WireKind is a kind of policies on the wire; unspecified for other kinds.
func WireKind(k Kind) policyv1.PolicyKind { return wireKinds[k] }

// WireRef names a policy on the wire.
func WireRef(r Ref) *policyv1.PolicyRef {
	return &policyv1.PolicyRef{Kind: wireKinds[r.Kind], Namespace: r.Namespace, Name: r.Name}
}

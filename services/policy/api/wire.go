package api

import (
	networkingv1 "k8s.io/api/networking/v1"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/api/adminv1alpha2"
	"github.com/weirnet/weir/services/policy/api/antreav1beta1"
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

var policyKindNames = map[policyv1.PolicyKind]string{
	policyv1.PolicyKind_POLICY_KIND_K8S_NETWORK_POLICY:            "K8sNetworkPolicy",
	policyv1.PolicyKind_POLICY_KIND_ANTREA_CLUSTER_NETWORK_POLICY: "AntreaClusterNetworkPolicy",
	policyv1.PolicyKind_POLICY_KIND_ANTREA_NETWORK_POLICY:         "AntreaNetworkPolicy",
	policyv1.PolicyKind_POLICY_KIND_ADMIN_NETWORK_POLICY:          "AdminNetworkPolicy",
	policyv1.PolicyKind_POLICY_KIND_BASELINE_ADMIN_NETWORK_POLICY: "BaselineAdminNetworkPolicy",
	policyv1.PolicyKind_POLICY_KIND_CLUSTER_NETWORK_POLICY:        "ClusterNetworkPolicy",
}

// PolicyKindName is a kind of policies as audit lines have it; that of the enum
// for one that has no name.
func PolicyKindName(k policyv1.PolicyKind) string {
	if name := policyKindNames[k]; name != "" {
		return name
	}
	return k.String()
}

// WireRef names a policy on the wire.
func WireRef(r Ref) *policyv1.PolicyRef {
	return &policyv1.PolicyRef{Kind: wireKinds[r.Kind], Namespace: r.Namespace, Name: r.Name}
}

// RefOf is the policy that a reference on the wire names; false for a kind that
// is none.
func RefOf(w *policyv1.PolicyRef) (Ref, bool) {
	for kind, wire := range wireKinds {
		if wire == w.GetKind() {
			return Ref{Kind: kind, Namespace: w.GetNamespace(), Name: w.GetName()}, true
		}
	}
	return Ref{}, false
}

// written says how manifests write a kind.
var written = map[Kind]struct{ apiVersion, kind string }{
	KindNetworkPolicy:              {networkingv1.SchemeGroupVersion.String(), "NetworkPolicy"},
	KindAdminNetworkPolicy:         {"policy.networking.k8s.io/v1alpha1", "AdminNetworkPolicy"},
	KindBaselineAdminNetworkPolicy: {"policy.networking.k8s.io/v1alpha1", "BaselineAdminNetworkPolicy"},
	KindClusterNetworkPolicy:       {adminv1alpha2.APIVersion, "ClusterNetworkPolicy"},
	KindTier:                       {antreav1beta1.APIVersion, "Tier"},
	KindAntreaClusterNetworkPolicy: {antreav1beta1.APIVersion, "ClusterNetworkPolicy"},
	KindAntreaNetworkPolicy:        {antreav1beta1.APIVersion, "NetworkPolicy"},
	KindClusterGroup:               {antreav1beta1.APIVersion, "ClusterGroup"},
	KindGroup:                      {antreav1beta1.APIVersion, "Group"},
}

// Written is how manifests write a kind of which versions are kept: policies,
// tiers and groups. Both are empty for others.
func Written(k Kind) (apiVersion, kind string) { return written[k].apiVersion, written[k].kind }

package api

import (
	"slices"
	"strings"

	"github.com/weirnet/weir/services/policy/api/adminv1alpha2"
	"github.com/weirnet/weir/services/policy/api/antreav1beta1"
)

// Where the kinds that are read live; two kinds have one name in two groups. An
// object of one of these kinds under another version is refused with the
// version to write.
var readKinds = map[string][]string{
	"Namespace":                  {"v1"},
	"Node":                       {"v1"},
	"Pod":                        {"v1"},
	"Service":                    {"v1"},
	"ServiceAccount":             {"v1"},
	"EndpointSlice":              {"discovery.k8s.io/v1"},
	"NetworkPolicy":              {"networking.k8s.io/v1", antreav1beta1.APIVersion},
	"AdminNetworkPolicy":         {"policy.networking.k8s.io/v1alpha1"},
	"BaselineAdminNetworkPolicy": {"policy.networking.k8s.io/v1alpha1"},
	"ClusterNetworkPolicy":       {antreav1beta1.APIVersion, adminv1alpha2.APIVersion},
	"Tier":                       {antreav1beta1.APIVersion},
	"ClusterGroup":               {antreav1beta1.APIVersion},
	"Group":                      {antreav1beta1.APIVersion},
}

// Kinds of Kubernetes that mean nothing to a network policy, by API group.
// They stand in the same folders as those that do, and are skipped.
var skippedKinds = map[string][]string{
	"": {"Binding", "ComponentStatus", "ConfigMap", "Endpoints", "Event", "LimitRange", "PersistentVolume", "PersistentVolumeClaim",
		"PodTemplate", "ReplicationController", "ResourceQuota", "Secret"},
	"admissionregistration.k8s.io": {"MutatingAdmissionPolicy", "MutatingAdmissionPolicyBinding", "MutatingWebhookConfiguration",
		"ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding", "ValidatingWebhookConfiguration"},
	"apiextensions.k8s.io":   {"CustomResourceDefinition"},
	"apiregistration.k8s.io": {"APIService"},
	"apps":                   {"ControllerRevision", "DaemonSet", "Deployment", "ReplicaSet", "StatefulSet"},
	"autoscaling":            {"HorizontalPodAutoscaler"},
	"batch":                  {"CronJob", "Job"},
	"certificates.k8s.io":    {"CertificateSigningRequest", "ClusterTrustBundle", "PodCertificateRequest"},
	"coordination.k8s.io":    {"Lease", "LeaseCandidate"},
	"crd.antrea.io": {"BGPPolicy", "Egress", "ExternalEntity", "ExternalIPPool", "ExternalNode", "IPPool", "NodeLatencyMonitor", "PacketCapture",
		"SupportBundleCollection", "Traceflow", "TrafficControl"},
	"events.k8s.io":                {"Event"},
	"flowcontrol.apiserver.k8s.io": {"FlowSchema", "PriorityLevelConfiguration"},
	"gateway.networking.k8s.io":    {"Gateway", "GatewayClass", "GRPCRoute", "HTTPRoute", "ReferenceGrant", "TCPRoute", "TLSRoute", "UDPRoute"},
	"kustomize.config.k8s.io":      {"Component", "Kustomization"},
	"networking.k8s.io":            {"Ingress", "IngressClass", "IPAddress", "ServiceCIDR"},
	"node.k8s.io":                  {"RuntimeClass"},
	"policy":                       {"PodDisruptionBudget", "PodSecurityPolicy"},
	"rbac.authorization.k8s.io":    {"ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"},
	"resource.k8s.io":              {"DeviceClass", "DeviceTaintRule", "ResourceClaim", "ResourceClaimTemplate", "ResourceSlice"},
	"scheduling.k8s.io":            {"PriorityClass"},
	"storage.k8s.io":               {"CSIDriver", "CSINode", "CSIStorageCapacity", "StorageClass", "VolumeAttachment", "VolumeAttributesClass"},
}

// Reads reports whether objects of this kind are decoded.
func Reads(apiVersion, kind string) bool {
	return slices.Contains(readKinds[kind], apiVersion)
}

// Skips reports whether objects of this kind are known and passed over.
func Skips(apiVersion, kind string) bool {
	group, _, found := strings.Cut(apiVersion, "/")
	if !found {
		group = ""
	}
	return slices.Contains(skippedKinds[group], kind)
}

// unreadable says what is wrong with a kind that is neither read nor skipped.
func unreadable(apiVersion, kind string) (field, message string) {
	group, _, _ := strings.Cut(apiVersion, "/")
	versions := readKinds[kind]
	inGroup := slices.IndexFunc(versions, func(v string) bool { return strings.HasPrefix(v, group+"/") })
	switch {
	case kind == "":
		return "kind", "missing; write the kind of the object, such as kind: NetworkPolicy"
	case apiVersion == "":
		if len(versions) > 0 {
			return "apiVersion", "missing; write apiVersion: " + strings.Join(versions, " or ")
		}
		return "apiVersion", "missing; write the API version of the object, such as networking.k8s.io/v1"
	case inGroup >= 0:
		return "apiVersion", apiVersion + " is not a version in which " + kind + " is read; write " + versions[inGroup]
	case len(versions) > 0:
		return "apiVersion", apiVersion + " is not a version in which " + kind + " is read; write " + strings.Join(versions, " or ")
	}
	known := make([]string, 0, len(readKinds))
	for k := range readKinds {
		known = append(known, k)
	}
	slices.Sort(known)
	return "kind", kind + " of " + apiVersion + " is unknown; write one of " + strings.Join(known, ", ")
}

// KindOf is the kind of objects that are written so. KindUnknown: they are not read.
func KindOf(apiVersion, kind string) Kind {
	if !Reads(apiVersion, kind) {
		return KindUnknown
	}
	if apiVersion == antreav1beta1.APIVersion {
		switch kind {
		case "NetworkPolicy":
			return KindAntreaNetworkPolicy
		case "ClusterNetworkPolicy":
			return KindAntreaClusterNetworkPolicy
		}
	}
	for k, name := range kindNames {
		if name == kind {
			return Kind(k)
		}
	}
	return KindUnknown
}

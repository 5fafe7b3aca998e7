package api

import (
	"slices"
	"strings"
)

// Where the kinds that are read live. An object of one of these kinds under
// another version is refused with the version to write.
var readKinds = map[string]string{
	"Namespace":                  "v1",
	"Node":                       "v1",
	"Pod":                        "v1",
	"Service":                    "v1",
	"ServiceAccount":             "v1",
	"EndpointSlice":              "discovery.k8s.io/v1",
	"NetworkPolicy":              "networking.k8s.io/v1",
	"AdminNetworkPolicy":         "policy.networking.k8s.io/v1alpha1",
	"BaselineAdminNetworkPolicy": "policy.networking.k8s.io/v1alpha1",
}

// Kinds of Kubernetes that mean nothing to a network policy, by API group.
// They stand in the same folders as those that do, and are skipped.
var skippedKinds = map[string][]string{
	"": {"Binding", "ComponentStatus", "ConfigMap", "Endpoints", "Event", "LimitRange", "PersistentVolume", "PersistentVolumeClaim",
		"PodTemplate", "ReplicationController", "ResourceQuota", "Secret"},
	"admissionregistration.k8s.io": {"MutatingAdmissionPolicy", "MutatingAdmissionPolicyBinding", "MutatingWebhookConfiguration",
		"ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding", "ValidatingWebhookConfiguration"},
	"apiextensions.k8s.io":         {"CustomResourceDefinition"},
	"apiregistration.k8s.io":       {"APIService"},
	"apps":                         {"ControllerRevision", "DaemonSet", "Deployment", "ReplicaSet", "StatefulSet"},
	"autoscaling":                  {"HorizontalPodAutoscaler"},
	"batch":                        {"CronJob", "Job"},
	"certificates.k8s.io":          {"CertificateSigningRequest", "ClusterTrustBundle", "PodCertificateRequest"},
	"coordination.k8s.io":          {"Lease", "LeaseCandidate"},
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

// API groups whose kinds belong to the policy model and are not read yet. They
// are refused: to skip a policy in silence would leave open what it closes.
var plannedGroups = []string{"crd.antrea.io", "policy.networking.k8s.io"}

// Reads reports whether objects of this kind are decoded.
func Reads(apiVersion, kind string) bool {
	version, known := readKinds[kind]
	return known && version == apiVersion
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
	switch {
	case kind == "":
		return "kind", "missing; write the kind of the object, such as kind: NetworkPolicy"
	case apiVersion == "":
		if want := readKinds[kind]; want != "" {
			return "apiVersion", "missing; write apiVersion: " + want
		}
		return "apiVersion", "missing; write the API version of the object, such as networking.k8s.io/v1"
	case slices.Contains(plannedGroups, group) && !strings.HasPrefix(readKinds[kind], group+"/"):
		return "", kind + " of " + apiVersion + " is not supported yet; remove the object until it is"
	case readKinds[kind] != "":
		return "apiVersion", apiVersion + " is not a version in which " + kind + " is read; write " + readKinds[kind]
	}
	known := make([]string, 0, len(readKinds))
	for k := range readKinds {
		known = append(known, k)
	}
	slices.Sort(known)
	return "kind", kind + " of " + apiVersion + " is unknown; write one of " + strings.Join(known, ", ")
}

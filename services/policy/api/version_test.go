package api

import (
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	k8sruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
)

// wrote is an entry of managedFields.
func wrote(manager string, second int64, subresource string) metav1.ManagedFieldsEntry {
	at := metav1.Unix(second, 0)
	return metav1.ManagedFieldsEntry{Manager: manager, Time: &at, Subresource: subresource}
}

func policyObject() *networkingv1.NetworkPolicy {
	return &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "deny", UID: "u1", Generation: 1, ResourceVersion: "7", CreationTimestamp: metav1.Unix(1e9, 0),
			Annotations:   map[string]string{annotationLastApplied: "{}", "note": "a < b", AnnotationChangedBy: "alice"},
			ManagedFields: []metav1.ManagedFieldsEntry{wrote("kubectl", 100, "")}},
		Spec: networkingv1.NetworkPolicySpec{PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}},
	}
}

const policyManifest = `{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"annotations":{"note":"a < b","weir.dev/changed-by":"alice"},` +
	`"creationTimestamp":"2001-09-09T01:46:40Z","generation":1,"name":"deny","namespace":"shop","uid":"u1"},"spec":{"podSelector":{"matchLabels":{"app":"web"}}}}`

func manifestOf(t *testing.T, v *Version) string {
	t.Helper()
	text, err := v.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// Both forms in which objects come make the same version, without what is not
// of the content, and the object stays as it was.
func TestAVersionSaysTheContent(t *testing.T) {
	at := time.Unix(0, 42)
	typed := policyObject()
	raw := map[string]any{}
	if err := kubeJSON(policyObject(), &raw); err != nil {
		t.Fatal(err)
	}
	raw["apiVersion"], raw["kind"], raw["status"] = "networking.k8s.io/v1", "NetworkPolicy", map[string]any{"conditions": []any{}}
	before := fmt.Sprint(raw)
	for name, o := range map[string]metav1.Object{"typed": typed, "as written": &unstructured.Unstructured{Object: raw}} {
		v, err := RecordVersion(o, nil, at)
		if err != nil {
			t.Fatal(err)
		}
		if got := manifestOf(t, v); got != policyManifest {
			t.Errorf("%s: got\n%s, want\n%s", name, got, policyManifest)
		}
		if v.UID != "u1" || v.Generation != 1 || v.Manager != "kubectl" || v.User != "alice" || v.Read != 42 {
			t.Errorf("%s: got %+v", name, v)
		}
	}
	if fmt.Sprint(raw) != before || typed.ManagedFields == nil || typed.ResourceVersion == "" || typed.Annotations[annotationLastApplied] == "" {
		t.Error("the object was changed")
	}
}

func kubeJSON(o *networkingv1.NetworkPolicy, into *map[string]any) error {
	u, err := k8sruntime.DefaultUnstructuredConverter.ToUnstructured(o)
	*into = u
	return err
}

func TestWhoChangedAnObjectLast(t *testing.T) {
	o := policyObject()
	var v *Version
	step := func(name string, change func(), want string, same bool) {
		t.Helper()
		change()
		next, err := RecordVersion(o, v, time.Unix(1, 0))
		if err != nil {
			t.Fatal(err)
		}
		if (next == v) != same {
			t.Errorf("%s: the version is the same: %v, want %v", name, next == v, same)
		}
		if v = next; v.Manager != want {
			t.Errorf("%s: by %q, want %q", name, v.Manager, want)
		}
	}
	change := func(fields ...metav1.ManagedFieldsEntry) func() {
		return func() { o.Generation++; o.ManagedFields = fields }
	}
	step("created", func() {}, "kubectl", false)
	step("read again", func() { o.ResourceVersion = "8" }, "kubectl", true)
	step("in the same second", change(wrote("a-patch", 100, ""), wrote("kubectl", 100, "")), "a-patch", false)
	step("its status", func() { o.ManagedFields = append(o.ManagedFields, wrote("controller", 200, "status")) }, "a-patch", true)
	step("again in the same second", change(wrote("a-patch", 100, ""), wrote("kubectl", 100, ""), wrote("controller", 200, "status")), "kubectl", false)
	step("later", change(wrote("kubectl", 100, ""), wrote("edit", 300, "")), "edit", false)
	step("a label alone", func() {
		o.Labels = map[string]string{"a": "b"}
		o.ManagedFields = []metav1.ManagedFieldsEntry{wrote("label", 301, "")}
	}, "label", false)
	step("by nobody who is named", change(), "", false)
	step("another of its name", func() { o.UID = types.UID("u2") }, "", false)
}

// A manifest that is too large is not kept; its change is told all the same.
func TestALargeManifestIsNotKept(t *testing.T) {
	o := policyObject()
	o.Annotations["note"] = strings.Repeat("x", MaxManifest-len(policyManifest)+len("a < b"))
	whole, err := RecordVersion(o, nil, time.Unix(1, 0))
	if err != nil {
		t.Fatal(err)
	}
	if n := len(manifestOf(t, whole)); n != MaxManifest {
		t.Errorf("a manifest of %d bytes was kept, want %d", n, MaxManifest)
	}
	o.Annotations["note"] += "x"
	cut, err := RecordVersion(o, whole, time.Unix(2, 0))
	if err != nil {
		t.Fatal(err)
	}
	if text := manifestOf(t, cut); cut == whole || text != "" {
		t.Errorf("a manifest of %d bytes was kept", len(text))
	}
}

func TestNoVersionsAreKeptOfPods(t *testing.T) {
	if _, err := RecordVersion(&corev1.Pod{}, nil, time.Unix(1, 0)); err == nil {
		t.Error("a Pod has a version")
	}
}

func TestWorkload(t *testing.T) {
	yes, no := true, false
	for _, test := range []struct {
		name, hash string
		owners     []metav1.OwnerReference
		want       string
	}{
		{"nobody's", "", nil, ""},
		{"an owner that does not control", "", []metav1.OwnerReference{{Kind: "ConfigMap", Name: "x", Controller: &no}, {Kind: "Node", Name: "n"}}, ""},
		{"a Deployment's", "6d5f8", []metav1.OwnerReference{{Kind: "ReplicaSet", Name: "web-6d5f8", Controller: &yes}}, "Deployment/web"},
		{"a bare ReplicaSet's", "", []metav1.OwnerReference{{Kind: "ReplicaSet", Name: "web-6d5f8", Controller: &yes}}, "ReplicaSet/web-6d5f8"},
		{"a ReplicaSet's of another name", "6d5f8", []metav1.OwnerReference{{Kind: "ReplicaSet", Name: "web", Controller: &yes}}, "ReplicaSet/web"},
		{"a Job's", "", []metav1.OwnerReference{{Kind: "Job", Name: "nightly-29384", Controller: &yes}}, "Job/nightly-29384"},
	} {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", OwnerReferences: test.owners}}
		if test.hash != "" {
			pod.Labels = map[string]string{"pod-template-hash": test.hash}
		}
		if got := FromPod(pod).Workload; got != test.want {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
}

func TestAddressesOfAService(t *testing.T) {
	s := FromService(&corev1.Service{Spec: corev1.ServiceSpec{ClusterIPs: []string{"10.96.0.7"}, ExternalIPs: []string{"192.0.2.7", "x"}},
		Status: corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{{IP: "192.0.2.7"}, {Hostname: "lb"}, {IP: "2001:db8::7"}}}}})
	if got := fmt.Sprint(s.ClusterIPs, s.ExternalIPs); got != "[10.96.0.7] [192.0.2.7 2001:db8::7]" {
		t.Errorf("got %s", got)
	}
}

// BenchmarkRecord makes the versions of 75,000 policies as those of
// SmallNamespaces, and keeps them by name where a source and the service do.
func BenchmarkRecord(b *testing.B) {
	var kept [2]map[Ref]*Version
	policies := make([]*networkingv1.NetworkPolicy, 75000)
	for i := range policies {
		var id [16]byte
		rand.Read(id[:])
		o := policyObject()
		o.Name = []string{"default-deny-all", "np-1", "np-2"}[i%3]
		o.Namespace, o.UID = fmt.Sprintf("namespace-%d", i/3), types.UID(base64.StdEncoding.EncodeToString(id[:]))
		o.Annotations = nil
		o.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress}
		o.Spec.PodSelector.MatchLabels = map[string]string{"app-1": "scale-1"}
		o.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{{PodSelector: &o.Spec.PodSelector}}}}
		policies[i] = o
	}
	heap := func() float64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return float64(m.HeapAlloc)
	}
	before := heap()
	for b.Loop() {
		kept = [2]map[Ref]*Version{{}, {}}
		for _, o := range policies {
			v, err := RecordVersion(o, nil, time.Unix(1, 0))
			if err != nil {
				b.Fatal(err)
			}
			for _, m := range kept {
				m[Ref{Kind: KindNetworkPolicy, Namespace: o.Namespace, Name: o.Name}] = v
			}
		}
	}
	b.ReportMetric((heap()-before)/float64(len(policies)), "B/policy")
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*len(policies)), "us/policy")
	runtime.KeepAlive(policies)
	runtime.KeepAlive(kept)
}

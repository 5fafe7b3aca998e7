package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"time"

	"github.com/klauspost/compress/flate"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// Version is an object as its source has it, for those who follow what is
// changed. It does not change. The manifest, which is most of it, is kept
// compressed: there may be tens of thousands.
type Version struct {
	UID        string // Empty: the source has none.
	Generation int64  // Zero: the source has none.
	Manager    string // Field manager that changed it last. Empty: not known.
	User       string // Who did, by AnnotationChangedBy. Empty: not known.
	Read       int64  // When the source read it, in Unix nanoseconds.

	packed string // The manifest. Empty: it is larger than MaxManifest.
}

// MaxManifest is the size of the largest manifest that is kept.
const MaxManifest = 128 << 10

// vocabulary is what policies have in common. What is packed with it is read
// with it.
const vocabulary = `"matchExpressions":[{"key":"operator":"In","values":["NotIn"Exists"DoesNotExist"annotations":{"staged":"icmp":{"appliedTo":[{"group":"serviceAccount":` +
	`"subject":{"namespaces":{"pods":{"action":"Drop","Reject"Pass"Deny"Accept"enableLogging":true,"priority":"tier":"securityops"application"emergency"` +
	`"endPort":"ipBlock":{"cidr":"10.0.0.0/8","except":["192.168.0.0/16"portNumber":{"protocol":"SCTP"UDP"ingress":[{"action":"Allow","from":[{"egress":[{"to":[{"ports":[{"port":80,"protocol":"TCP"` +
	`{"apiVersion":"policy.networking.k8s.io/v1alpha2","kind":"AdminClusterGroup"Tier"{"apiVersion":"crd.antrea.io/v1beta1","kind":"ClusterNetworkPolicy","metadata":{"creationTimestamp":"` +
	`"kind":"NetworkPolicy","apiVersion":"networking.k8s.io/v1","metadata":{"name":"default-deny-all","namespace":"default","uid":"0","generation":1,"creationTimestamp":"2026-01-01T00:00:00Z","labels":{"app.kubernetes.io/name":"` +
	`"namespaceSelector":{"matchLabels":{"kubernetes.io/metadata.name":"default"}},"ingress":[{"from":[{"podSelector":{"matchLabels":{"app":"` +
	`"spec":{"podSelector":{"matchLabels":{"app":"web"}},"policyTypes":["Ingress","Egress"]}}`

// RecordVersion makes the version of an object that was read at a time: one as it was
// written, or a NetworkPolicy. The former version is that of the object until
// now, if any. It is returned where nothing of the content has changed, so that
// versions are compared by their pointers.
func RecordVersion(o metav1.Object, former *Version, at time.Time) (*Version, error) {
	var content any
	switch o := o.(type) {
	case *unstructured.Unstructured:
		content = plain(o.Object)
	case *networkingv1.NetworkPolicy:
		content = plainNetworkPolicy(o)
	default:
		return nil, fmt.Errorf("no versions are kept of a %T", o)
	}
	raw, err := json.Marshal(content)
	if err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	v := &Version{UID: string(o.GetUID()), Generation: o.GetGeneration(), User: intern(o.GetAnnotations()[AnnotationChangedBy]), Read: at.UnixNano()}
	if len(raw) <= MaxManifest {
		if v.packed, err = pack(raw); err != nil {
			return nil, err
		}
	}
	if former != nil && former.UID == v.UID && former.Generation == v.Generation && former.User == v.User && former.packed == v.packed {
		return former, nil
	}
	v.Manager = intern(lastManager(o.GetManagedFields(), former))
	return v, nil
}

// pack compresses a manifest. Unlike compress/flate, this has no tables that
// callers would have to keep and share.
func pack(raw []byte) (string, error) {
	var out bytes.Buffer
	if err := flate.StatelessDeflate(&out, raw, true, []byte(vocabulary)); err != nil {
		return "", fmt.Errorf("compress manifest: %w", err)
	}
	return out.String(), nil
}

// lastManager is who changed an object last, its status aside. Times are whole
// seconds: of several in one, it is one that did not make the former version.
func lastManager(fields []metav1.ManagedFieldsEntry, former *Version) string {
	var last string
	var at time.Time
	for _, f := range fields {
		if f.Subresource != "" || f.Time == nil {
			continue
		}
		same := f.Time.Time.Equal(at)
		if f.Time.After(at) || same && (former == nil || f.Manager != former.Manager) {
			last, at = f.Manager, f.Time.Time
		}
	}
	return last
}

// Manifest is the object as JSON, with its keys in order; nil where it is too
// large to be kept.
func (v *Version) Manifest() ([]byte, error) {
	if v.packed == "" {
		return nil, nil
	}
	r := flate.NewReaderDict(bytes.NewReader([]byte(v.packed)), []byte(vocabulary))
	decoder := json.NewDecoder(io.LimitReader(r, MaxManifest))
	decoder.UseNumber()
	var tree any
	if err := decoder.Decode(&tree); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(tree); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	return bytes.TrimSuffix(out.Bytes(), []byte("\n")), nil
}

// annotationLastApplied repeats the whole object.
const annotationLastApplied = "kubectl.kubernetes.io/last-applied-configuration"

// plain is an object without what is not of its content: status, managed
// fields, the resourceVersion and what kubectl keeps of its own. The object
// that is given stays as it is.
func plain(object map[string]any) map[string]any {
	out := without(object, "status")
	meta, is := object["metadata"].(map[string]any)
	if !is {
		return out
	}
	meta = without(meta, "managedFields", "resourceVersion")
	if own, is := meta["annotations"].(map[string]any); is {
		if own = without(own, annotationLastApplied); len(own) > 0 {
			meta["annotations"] = own
		} else {
			delete(meta, "annotations")
		}
	}
	out["metadata"] = meta
	return out
}

// plainNetworkPolicy is plain of an object as the API server's client gives it,
// which does not say what kind it is.
func plainNetworkPolicy(o *networkingv1.NetworkPolicy) *networkingv1.NetworkPolicy {
	out := *o
	out.APIVersion, out.Kind = Written(KindNetworkPolicy)
	out.ManagedFields, out.ResourceVersion = nil, ""
	out.Annotations = without(o.Annotations, annotationLastApplied)
	return &out
}

func without[V any](m map[string]V, keys ...string) map[string]V {
	out := maps.Clone(m)
	for _, k := range keys {
		delete(out, k)
	}
	return out
}

package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/services/policy/api/weirv1alpha1"
)

// newTestSource is a source that nothing runs: tests fill its mirrors.
func newTestSource(t *testing.T) *Source {
	t.Helper()
	s, err := New(Config{Rest: &rest.Config{Host: "127.0.0.1:1"}, Logger: hclog.NewNullLogger()})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *Source) kindOf(k api.Kind) *kind {
	for _, other := range s.kinds {
		if other.kind == k {
			return other
		}
	}
	panic("no kind " + k.String())
}

// readAll has every kind read as empty, up to a version.
func (s *Source) readAll(version uint64) {
	for _, k := range s.kinds {
		s.wasRead(k, version, true)
	}
	s.wasRead(s.nodes.kind, version, true)
	s.settled = true
}

// said is a batch in short.
func said(b Batch) string {
	var out []string
	for _, ev := range b.Events {
		switch o := ev.Object.(type) {
		case nil:
			out = append(out, "-"+ev.Ref.String())
		case *api.Pod:
			text := "+" + ev.Ref.String()
			for _, ip := range o.IPs {
				text += " " + ip.String()
			}
			out = append(out, text)
		default:
			out = append(out, "+"+ev.Ref.String())
		}
	}
	return strings.Join(out, ", ")
}

// next is the batch that there is, or "nothing".
func next(s *Source) string {
	b, ok := s.take(false)
	if !ok {
		return "nothing"
	}
	return said(b)
}

func pod(name, node, uid, version string, ips ...string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: name, UID: types.UID("u-" + uid), ResourceVersion: version}, Spec: corev1.PodSpec{NodeName: node}}
	for _, ip := range ips {
		p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: ip})
	}
	return p
}

func TestNothingIsHandedOutBeforeAllIsRead(t *testing.T) {
	s := newTestSource(t)
	pods := s.mirrorOf(s.kindOf(api.KindPod))
	if err := pods.Replace([]any{pod("a", "n1", "1", "5", "10.0.0.1")}, "9"); err != nil {
		t.Fatal(err)
	}
	for _, k := range s.kinds {
		if got := next(s); got != "nothing" {
			t.Fatalf("before %s has been read: %s", k, got)
		}
		s.wasRead(k, 9, true)
	}
	if got := next(s); got != "nothing" {
		t.Fatalf("before the nodes' reports have been read: %s", got)
	}
	s.wasRead(s.nodes.kind, 9, true)
	if got := next(s); got != "nothing" {
		t.Fatalf("before it is known which kinds there are: %s", got)
	}
	s.settled = true
	b, ok := s.take(false)
	if !ok || said(b) != "+Pod x/a 10.0.0.1" || b.Position != 5 || b.Read != 9 {
		t.Errorf("%v, %+v", ok, b)
	}
}

func TestChangesGather(t *testing.T) {
	s := newTestSource(t)
	s.readAll(1)
	pods := s.mirrorOf(s.kindOf(api.KindPod))
	for _, err := range []error{
		pods.Add(pod("a", "n1", "1", "5", "10.0.0.1")), pods.Add(pod("b", "n1", "2", "6", "10.0.0.2")),
		pods.Update(pod("a", "n1", "1", "7", "10.0.0.7")), pods.Delete(pod("b", "n1", "2", "8")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if got := next(s); got != "+Pod x/a 10.0.0.7, -Pod x/b" {
		t.Error(got)
	}
	if err := pods.Update(pod("a", "n1", "1", "9", "10.0.0.7")); err != nil { // Its status alone.
		t.Fatal(err)
	}
	if got := next(s); got != "nothing" {
		t.Error(got)
	}
	if b, ok := s.take(true); !ok || len(b.Events) > 0 || b.Position != 8 || b.Read != 9 {
		t.Errorf("progress: %v, %+v", ok, b)
	}
	if b, ok := s.take(true); ok {
		t.Errorf("the same progress again: %+v", b)
	}
}

func TestNextWakesForChangesAtOnceAndForProgressAtLeisure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestSource(t)
		s.readAll(1)
		pods := s.mirrorOf(s.kindOf(api.KindPod))
		take := func() (Batch, time.Duration) {
			start := time.Now()
			b, err := s.Next(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return b, time.Since(start)
		}
		take()
		time.AfterFunc(time.Hour, func() { pods.Add(pod("a", "n1", "1", "5")) })
		if b, took := take(); len(b.Events) != 1 || took != time.Hour {
			t.Errorf("%+v after %v", b, took)
		}
		time.AfterFunc(time.Millisecond, func() { pods.Bookmark("6"); pods.Bookmark("7") })
		if b, took := take(); len(b.Events) != 0 || b.Read != 7 || took > progressInterval {
			t.Errorf("%+v after %v", b, took)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := s.Next(ctx); err == nil {
			t.Error("Next goes on after its context")
		}
	})
}

// tier and group are as the API server has them.
func tier(name string, priority int64, version string) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{"apiVersion": "crd.antrea.io/v1beta1", "kind": "Tier",
		"metadata": map[string]any{"name": name, "resourceVersion": version, "managedFields": []any{map[string]any{"manager": "m"}}},
		"spec":     map[string]any{"priority": priority}}}
}

func TestWhatCannotStandBesideOthersIsNotInForce(t *testing.T) {
	s := newTestSource(t)
	s.readAll(1)
	tiers := s.mirrorOf(s.kindOf(api.KindTier))
	problems := func() int { s.mu.Lock(); defer s.mu.Unlock(); return len(s.problems) + len(s.refused) }
	for _, step := range []struct {
		name     string
		do       func() error
		want     string
		problems int
	}{
		{"a tier", func() error { return tiers.Add(tier("b", 20, "5")) }, "+Tier b", 0},
		{"one of its priority, and before it by name", func() error { return tiers.Add(tier("a", 20, "6")) }, "+Tier a, -Tier b", 1},
		{"that one with another priority", func() error { return tiers.Update(tier("a", 21, "7")) }, "+Tier a, +Tier b", 0},
		{"one that cannot be read", func() error { return tiers.Update(tier("a", 4711, "8")) }, "-Tier a", 1},
		{"and goes", func() error { return tiers.Delete(tier("a", 4711, "9")) }, "-Tier a", 0},
		{"a field that is not known", func() error {
			odd := tier("c", 30, "10")
			odd.Object["spec"].(map[string]any)["narrower"] = true
			return tiers.Add(odd)
		}, "-Tier c", 1},
	} {
		if err := step.do(); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if got := next(s); got != step.want || problems() != step.problems {
			t.Errorf("%s: %q with %d problems, want %q with %d", step.name, got, problems(), step.want, step.problems)
		}
	}
}

// A group that nests twice is in force by its children's children, follows them, and
// is told of for as long as it nests.
func TestANestedGroupIsFlat(t *testing.T) {
	s := newTestSource(t)
	s.readAll(1)
	groups := s.mirrorOf(s.kindOf(api.KindClusterGroup))
	group := func(name, version string, children ...any) *unstructured.Unstructured {
		spec := map[string]any{"childGroups": children}
		if len(children) == 0 {
			spec = map[string]any{"podSelector": map[string]any{}}
		}
		return &unstructured.Unstructured{Object: map[string]any{"apiVersion": "crd.antrea.io/v1beta1", "kind": "ClusterGroup",
			"metadata": map[string]any{"name": name, "resourceVersion": version}, "spec": spec}}
	}
	const nested = "a=[%s] (spec.childGroups[0]: ClusterGroup b has children of its own (%s), and groups nest once; write these instead)"
	for _, step := range []struct {
		name string
		do   func() error
		want string
	}{
		{"a parent", func() error { return groups.Add(group("a", "2", "b")) }, "a=[b]"},
		{"its child has a child", func() error { return groups.Add(group("b", "3", "c")) }, fmt.Sprintf(nested, "c", "c") + " b=[c]"},
		{"which has one, too", func() error { return groups.Add(group("c", "4", "d")) },
			fmt.Sprintf(nested, "d", "c") + " b=[d] (spec.childGroups[0]: ClusterGroup c has children of its own (d), and groups nest once; write these instead) c=[d]"},
		{"another, far below", func() error { return groups.Update(group("c", "5", "e")) },
			fmt.Sprintf(nested, "e", "c") + " b=[e] (spec.childGroups[0]: ClusterGroup c has children of its own (e), and groups nest once; write these instead) c=[e]"},
		{"none of which has children", func() error { return groups.Update(group("b", "6")) }, "a=[b] b=[]"},
	} {
		if err := step.do(); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		b, _ := s.take(false)
		var got []string
		for _, ev := range b.Events {
			text := fmt.Sprintf("%s=%v", ev.Ref.Name, ev.Object.(*api.Group).Children)
			if ev.Fault != "" {
				text += " (" + ev.Fault + ")"
			}
			got = append(got, text)
		}
		if text := strings.Join(got, " "); text != step.want {
			t.Errorf("%s: %s, want %s", step.name, text, step.want)
		}
	}
}

func endpoints(node, version string, of ...weirv1alpha1.Endpoint) *unstructured.Unstructured {
	var list []any
	for _, e := range of {
		var ips []any
		for _, ip := range e.IPs {
			ips = append(ips, ip)
		}
		list = append(list, map[string]any{"namespace": e.Namespace, "name": e.Name, "uid": e.UID, "ips": ips})
	}
	return &unstructured.Unstructured{Object: map[string]any{"metadata": map[string]any{"name": node, "resourceVersion": version}, "endpoints": list}}
}

func TestAddressesThatShimsReport(t *testing.T) {
	s := newTestSource(t)
	s.readAll(1)
	pods, nodes := s.mirrorOf(s.kindOf(api.KindPod)), s.nodes.store
	said := func(name, uid string, ips ...string) weirv1alpha1.Endpoint {
		return weirv1alpha1.Endpoint{Namespace: "x", Name: name, UID: uid, IPs: ips}
	}
	for _, step := range []struct {
		name string
		do   func() error
		want string
	}{
		{"a Pod without an address", func() error { return pods.Add(pod("a", "n1", "1", "5")) }, "+Pod x/a"},
		{"its node reports one", func() error { return nodes.Add(endpoints("n1", "6", said("a", "u-1", "10.0.0.1", "fd00::1"))) }, "+Pod x/a 10.0.0.1 fd00::1"},
		{"the status has it too", func() error { return pods.Update(pod("a", "n1", "1", "7", "10.0.0.1", "fd00::1")) }, "+Pod x/a 10.0.0.1 fd00::1"},
		{"another sandbox of the Pod", func() error { return nodes.Update(endpoints("n1", "8", said("a", "u-1", "10.0.0.9"))) }, "+Pod x/a 10.0.0.9"},
		{"another node claims the Pod", func() error { return nodes.Add(endpoints("n2", "9", said("a", "u-1", "10.0.2.2"))) }, "+Pod x/a 10.0.0.9"},
		{"and does no more", func() error { return nodes.Update(endpoints("n2", "10")) }, "+Pod x/a 10.0.0.9"},
		{"another Pod of the name", func() error { return pods.Update(pod("a", "n1", "2", "11")) }, "+Pod x/a"},
		{"its node reports it", func() error { return nodes.Update(endpoints("n1", "12", said("a", "u-2", "10.0.0.4"))) }, "+Pod x/a 10.0.0.4"},
		{"and no more", func() error { return nodes.Update(endpoints("n1", "13")) }, "+Pod x/a"},
		{"a report before its Pod", func() error { return nodes.Update(endpoints("n1", "14", said("b", "", "10.0.0.5"))) }, "nothing"},
		{"the Pod", func() error { return pods.Add(pod("b", "n1", "3", "15")) }, "+Pod x/b 10.0.0.5"},
		{"an address that is none", func() error { return nodes.Update(endpoints("n1", "16", said("b", "", "10.0.0"))) }, "+Pod x/b"},
		{"the Pod moves", func() error {
			return errors.Join(nodes.Update(endpoints("n1", "17", said("b", "", "10.0.0.5"))), pods.Update(pod("b", "n2", "3", "18")))
		}, "+Pod x/b"},
		{"its new node has claimed it before", func() error {
			return errors.Join(nodes.Update(endpoints("n2", "19", said("c", "", "10.0.2.7"))), nodes.Update(endpoints("n1", "20", said("c", "", "10.0.0.6"))))
		}, "+Pod x/b"},
		{"the Pod of which both speak", func() error { return pods.Add(pod("c", "n2", "4", "21")) }, "+Pod x/c 10.0.2.7"},
		{"the kind ends", func() error { nodes.clear(); return nil }, "+Pod x/c"},
	} {
		if err := step.do(); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if got := next(s); got != step.want {
			t.Errorf("%s: %q, want %q", step.name, got, step.want)
		}
	}
}

func TestWhatIsWrittenIsWhatIsRead(t *testing.T) {
	want := []Address{{Namespace: "x", Name: "a", UID: "u", IPs: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")}}, {Namespace: "x", Name: "b", IPs: []netip.Addr{netip.MustParseAddr("10.0.0.2")}}}
	raw, err := applyOf("n1", "u-7", want)
	if err != nil {
		t.Fatal(err)
	}
	var u unstructured.Unstructured
	if err := u.UnmarshalJSON(raw); err != nil {
		t.Fatal(err)
	}
	if owners := u.GetOwnerReferences(); len(owners) != 1 || owners[0].Kind != "Node" || owners[0].Name != "n1" || owners[0].UID != "u-7" {
		t.Errorf("owned by %v", owners)
	}
	read, err := readNodeEndpoints(&u)
	if err != nil || !sameAddresses(read, want) || u.GetName() != "n1" {
		t.Errorf("%s is read as %v, %v", raw, read, err)
	}
	if sameAddresses(read, want[:1]) || sameAddresses(read, []Address{want[0], {Namespace: "x", Name: "b", IPs: want[0].IPs}}) {
		t.Error("other addresses count as the same")
	}
}

func TestKindsOfAntreaAreKnown(t *testing.T) {
	d := newDefinitions()
	m := d.mirror()
	crd := func(name, version string, labels map[string]any) *unstructured.Unstructured {
		return &unstructured.Unstructured{Object: map[string]any{"metadata": map[string]any{"name": name, "resourceVersion": version, "labels": labels},
			"spec":   map[string]any{"versions": []any{map[string]any{"name": "v1beta1", "served": true}, map[string]any{"name": "v1alpha1", "served": false}}},
			"status": map[string]any{"conditions": []any{map[string]any{"type": "Established", "status": "True"}}}}}
	}
	ours := map[string]any{api.LabelPartOf: api.PartOf}
	if _, known := d.serves(tiersResource); known {
		t.Error("known before anything was read")
	}
	if err := m.Replace([]any{crd("tiers.crd.antrea.io", "1", ours), crd("certificates.cert-manager.io", "2", nil)}, "3"); err != nil {
		t.Fatal(err)
	}
	if is, known := d.serves(tiersResource); !is || !known {
		t.Error("tiers are not served")
	}
	if is, _ := d.serves(tiersResource.GroupResource().WithVersion("v1alpha1")); is {
		t.Error("a version that is not served counts")
	}
	if names := d.foreign(); len(names) > 0 {
		t.Errorf("foreign: %v", names)
	}
	if err := m.Add(crd("antreaagentinfos.crd.antrea.io", "4", nil)); err != nil {
		t.Fatal(err)
	}
	if names := d.foreign(); len(names) != 1 {
		t.Errorf("foreign: %v", names)
	}
}

// Versions come with the batches, of objects that are not in force too; a change
// of nothing that we read is told where versions are kept, and then of the same object.
func TestVersionsComeWithTheBatches(t *testing.T) {
	s := newTestSource(t)
	s.keep = true
	s.readAll(1)
	policies, tiers := s.mirrorOf(s.kindOf(api.KindNetworkPolicy)), s.mirrorOf(s.kindOf(api.KindTier))
	policy := func(version, manager, note string) *networkingv1.NetworkPolicy {
		at := metav1.Unix(7, 0)
		return &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: "p", ResourceVersion: version, Generation: 1,
			Annotations: map[string]string{"note": note}, ManagedFields: []metav1.ManagedFieldsEntry{{Manager: manager, Time: &at}}}}
	}
	take := func(want string, err error) api.Event {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		b, _ := s.take(false)
		if said(b) != want {
			t.Fatalf("got %q, want %q", said(b), want)
		}
		if len(b.Events) == 0 {
			return api.Event{}
		}
		return b.Events[0]
	}
	first := take("+NetworkPolicy x/p", policies.Add(policy("2", "kubectl", "a")))
	if first.Version == nil || first.Version.Manager != "kubectl" {
		t.Fatalf("got %+v", first.Version)
	}
	take("", policies.Update(policy("3", "kubectl", "a")))
	second := take("+NetworkPolicy x/p", policies.Update(policy("4", "edit", "b")))
	if second.Version == nil || second.Version.Manager != "edit" || second.Object != first.Object {
		t.Errorf("got %+v of %p, want it of %p", second.Version, second.Object, first.Object)
	}
	if gone := take("-NetworkPolicy x/p", policies.Delete(policy("5", "edit", "b"))); gone.Version != nil {
		t.Errorf("got %+v", gone.Version)
	}
	bad := take("-Tier t", tiers.Add(&unstructured.Unstructured{Object: map[string]any{"apiVersion": "crd.antrea.io/v1beta1", "kind": "Tier",
		"metadata": map[string]any{"name": "t", "resourceVersion": "6"}, "spec": map[string]any{"order": int64(1)}}}))
	if bad.Version == nil {
		t.Fatal("no version of an object that cannot be read")
	}
	if text, err := bad.Version.Manifest(); err != nil || string(text) != `{"apiVersion":"crd.antrea.io/v1beta1","kind":"Tier","metadata":{"name":"t"},"spec":{"order":1}}` {
		t.Errorf("got %s, %v", text, err)
	}
}

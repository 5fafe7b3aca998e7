package engine

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/storage"
)

// workload is a cluster of a stated size, as the sources hand it over, and
// what it must give, which the maker notes down as it goes.
type workload struct {
	nodes    []*api.Node
	spaces   []*api.Namespace
	pods     []*api.Pod
	policies []*api.NetworkPolicy

	groups  int         // Distinct selections.
	guarded []guarded   // Distinct selections that policies guard.
	peers   []peerGroup // Distinct selections that rules name.

	rng     *rand.Rand
	address netip.Addr
}

type guarded struct {
	pods     []int // Positions in workload.pods.
	policies int
	peers    []int // Positions in workload.peers.
}

type peerGroup struct{ members []int }

// The nodes of every workload.
const workloadNodes = 1000

var workloads = []struct {
	name string
	make func(*workload)
}{
	{"SmallNamespaces", smallNamespaces},
	{"LargeNamespaces", largeNamespaces},
	{"OneNamespace", oneNamespace},
	{"NetpolPerPod", netpolPerPod},
	{"ClusterScoped", clusterScoped},
}

func newWorkload(fill func(*workload)) *workload {
	w := &workload{rng: rand.New(rand.NewPCG(1, 1)), address: netip.MustParseAddr("10.0.0.0")}
	for i := range workloadNodes {
		w.nodes = append(w.nodes, api.FromNode(&corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("node-%04d", i)},
			Status:     corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: fmt.Sprintf("192.168.%d.%d", i/250, 1+i%250)}}},
		}))
	}
	fill(w)
	w.nodes, w.spaces, w.pods, w.policies = slices.Clip(w.nodes), slices.Clip(w.spaces), slices.Clip(w.pods), slices.Clip(w.policies)
	return w
}

func (w *workload) namespace(labels map[string]string) string {
	name := fmt.Sprintf("team-%05d", len(w.spaces))
	w.spaces = append(w.spaces, api.FromNamespace(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}))
	return name
}

func (w *workload) uid() types.UID {
	a, b := w.rng.Uint64(), w.rng.Uint64()
	return types.UID(fmt.Sprintf("%08x-%04x-%04x-%04x-%012x", uint32(a), uint16(a>>32), uint16(a>>48), uint16(b), b>>16))
}

func (w *workload) pod(namespace string, labels map[string]string) int {
	w.address = w.address.Next()
	w.pods = append(w.pods, api.FromPod(&corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: fmt.Sprintf("pod-%06d", len(w.pods)), UID: w.uid(), Labels: labels},
		Spec:       corev1.PodSpec{NodeName: w.nodes[w.rng.IntN(len(w.nodes))].Name, ServiceAccountName: "default"},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: w.address.String()}}},
	}))
	return len(w.pods) - 1
}

// policy is one of both types with a rule for each peer, all ingress.
func (w *workload) policy(namespace, name string, target map[string]string, from ...networkingv1.NetworkPolicyPeer) {
	o := &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: w.uid(), Generation: 1},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: target},
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress},
		},
	}
	if len(from) > 0 {
		o.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{From: from}}
	}
	p, err := api.FromNetworkPolicy(o)
	if err != nil {
		panic(err)
	}
	w.policies = append(w.policies, p)
}

func podPeer(labels map[string]string) networkingv1.NetworkPolicyPeer {
	return networkingv1.NetworkPolicyPeer{PodSelector: &metav1.LabelSelector{MatchLabels: labels}}
}

// selfSelecting notes a selection that one policy guards and names.
func (w *workload) selfSelecting(pods []int, policies int) {
	w.groups++
	w.peers = append(w.peers, peerGroup{members: pods})
	w.guarded = append(w.guarded, guarded{pods: pods, policies: policies, peers: []int{len(w.peers) - 1}})
}

func (w *workload) denyAll(namespace string, pods []int) {
	w.policy(namespace, "default-deny-all", nil)
	w.groups++
	w.guarded = append(w.guarded, guarded{pods: pods, policies: 1})
}

func smallNamespaces(w *workload) { w.appNamespaces(25000, 2, 2) }
func largeNamespaces(w *workload) { w.appNamespaces(100, 100, 10) }

// appNamespaces are Namespaces that deny by default and have apps whose Pods
// may reach each other.
func (w *workload) appNamespaces(namespaces, apps, pods int) {
	for range namespaces {
		ns := w.namespace(nil)
		var all []int
		for app := 1; app <= apps; app++ {
			labels := map[string]string{fmt.Sprintf("app-%d", app): fmt.Sprintf("scale-%d", app)}
			var own []int
			for range pods {
				own = append(own, w.pod(ns, labels))
			}
			w.policy(ns, fmt.Sprintf("np-%d", app), labels, podPeer(labels))
			w.selfSelecting(own, 1)
			all = append(all, own...)
		}
		w.denyAll(ns, all)
	}
}

func oneNamespace(w *workload) {
	ns, labels := w.namespace(nil), map[string]string{"app-1": "scale-1"}
	var all []int
	for i := range 10000 {
		all = append(all, w.pod(ns, labels))
		w.policy(ns, fmt.Sprintf("np-%05d", i), labels, podPeer(labels))
	}
	w.selfSelecting(all, 10000)
}

func netpolPerPod(w *workload) {
	ns := w.namespace(nil)
	for i := range 5000 {
		var labels [2]map[string]string
		var pods [2]int
		for j := range labels {
			labels[j] = map[string]string{"app": fmt.Sprintf("%016x", w.rng.Uint64())}
			pods[j] = w.pod(ns, labels[j])
		}
		for j := range labels {
			w.policy(ns, fmt.Sprintf("np-%d-%d", i, j), labels[j], podPeer(labels[1-j]))
			w.groups++
			w.peers = append(w.peers, peerGroup{members: []int{pods[j]}})
			w.guarded = append(w.guarded, guarded{pods: []int{pods[j]}, policies: 1, peers: []int{2*i + 1 - j}})
		}
	}
}

func clusterScoped(w *workload) {
	const companies, apps = 100, 10
	w.peers = make([]peerGroup, companies*apps)
	w.groups = len(w.peers)
	for i := range 1000 {
		company := i % companies
		ofCompany := map[string]string{"company": fmt.Sprintf("company-%d", company)}
		ns := w.namespace(ofCompany)
		for app := range apps {
			labels := map[string]string{"app": fmt.Sprintf("scale-%d", app)}
			var own []int
			for range 10 {
				own = append(own, w.pod(ns, labels))
			}
			w.policy(ns, fmt.Sprintf("np-%d", app), labels, networkingv1.NetworkPolicyPeer{
				PodSelector: &metav1.LabelSelector{MatchLabels: labels}, NamespaceSelector: &metav1.LabelSelector{MatchLabels: ofCompany}})
			peer := company*apps + app
			w.groups++
			w.peers[peer].members = append(w.peers[peer].members, own...)
			w.guarded = append(w.guarded, guarded{pods: own, policies: 1, peers: []int{peer}})
		}
	}
}

// groupOf is a group of a size, guarded and named by one policy.
func groupOf(size int) func(*workload) {
	return func(w *workload) {
		ns, labels := w.namespace(nil), map[string]string{"app": "web"}
		var all []int
		for range size {
			all = append(all, w.pod(ns, labels))
		}
		w.policy(ns, "web", labels, podPeer(labels))
		w.selfSelecting(all, 1)
	}
}

// apply hands the objects over by kind, as the sources do.
func (w *workload) apply(e *Engine) {
	for _, o := range w.spaces {
		e.Apply(upsert(o))
	}
	for _, o := range w.nodes {
		e.Apply(upsert(o))
	}
	for _, o := range w.pods {
		e.Apply(upsert(o))
	}
	for _, o := range w.policies {
		e.Apply(upsert(o))
	}
}

// work is what was done, counted in what the engine and the store show.
type work struct {
	Groups, AddressGroups, Policies, Scopes int
	Members                                 int // Of all address groups.
	Joins                                   int // Of nodes to scopes of policies and groups.
	Cuts                                    int // Nodes that get one.
	Endpoints, PolicyItems, MemberItems     int // In all cuts together.
}

// expected is the work that a workload must give, by what its maker noted.
func (w *workload) expected() work {
	want := work{Groups: w.groups, AddressGroups: len(w.peers), Scopes: len(w.nodes) + len(w.guarded) + len(w.peers),
		Endpoints: len(w.pods), Cuts: len(w.nodes)}
	reach := make([]map[string]bool, len(w.peers))
	for i := range reach {
		reach[i] = map[string]bool{}
		want.Members += len(w.peers[i].members)
	}
	for _, g := range w.guarded {
		want.Policies += g.policies
		span := map[string]bool{}
		for _, p := range g.pods {
			span[w.pods[p].Node] = true
		}
		want.Joins += len(span)
		want.PolicyItems += len(span) * g.policies
		for _, peer := range g.peers {
			for node := range span {
				reach[peer][node] = true
			}
		}
	}
	for i, span := range reach {
		want.Joins += len(span)
		want.MemberItems += len(span) * len(w.peers[i].members)
	}
	return want
}

// check fails unless engine and store hold exactly what the workload must give.
func (w *workload) check(tb testing.TB, e *Engine, store *storage.Store) {
	tb.Helper()
	var got work
	for _, g := range e.Groups(false) {
		got.Groups++
		if g.Address {
			got.AddressGroups++
			got.Members += g.Members
		}
	}
	got.Policies = len(e.Policies())
	scopes := map[storage.ScopeID]bool{}
	for _, n := range w.nodes {
		sub := store.Subscribe(n.Name)
		cut := sub.Next()
		sub.Close()
		if len(cut.Scopes) > 0 {
			got.Cuts++
		}
		for _, s := range cut.Scopes {
			scopes[s.ID] = true
			switch s.Kind {
			case policyv1.ScopeKind_SCOPE_KIND_NODE:
				got.Endpoints += len(s.Upserts) - 1 // The node's facts.
			case policyv1.ScopeKind_SCOPE_KIND_POLICIES:
				got.Joins++
				got.PolicyItems += len(s.Upserts)
			case policyv1.ScopeKind_SCOPE_KIND_ADDRESS_GROUP:
				got.Joins++
				got.MemberItems += len(s.Upserts)
			}
		}
	}
	got.Scopes = len(scopes)
	if want := w.expected(); got != want {
		tb.Fatalf("the work done is\n%+v, but the workload gives\n%+v", got, want)
	}
}

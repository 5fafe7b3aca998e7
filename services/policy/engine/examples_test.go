package engine

import (
	"cmp"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/storage"
)

// The examples of the reference, where they are at hand: each is compiled for a
// cluster that its selectors select parts of, agrees with the evaluator on
// every connection there, and is short only of what nodes cannot enforce yet.
func TestExamplesAgree(t *testing.T) {
	dir := os.Getenv("WEIR_EXAMPLES_DIR")
	if dir == "" {
		t.Skip("WEIR_EXAMPLES_DIR is not set")
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no examples in %s: %v", dir, err)
	}
	examples := make(map[string][]api.Object)
	children := make(map[api.Ref]api.Object) // A group's children may have a file of their own.
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		m, err := api.Decode(text)
		if err != nil {
			t.Fatalf("%s: %v", filepath.Base(file), err)
		}
		for _, d := range m.Objects {
			examples[file] = append(examples[file], d.Object)
			children[d.Object.Ref()] = d.Object
		}
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			objects := examples[file]
			for _, o := range examples[file] {
				if g, is := o.(*api.Group); is {
					for _, name := range g.Children {
						if child := children[api.Ref{Kind: g.Kind, Namespace: g.Namespace, Name: name}]; child != nil {
							objects = append(objects, child)
						}
					}
				}
			}
			agreeOnExample(t, objects)
		})
	}
}

func agreeOnExample(t *testing.T, objects []api.Object) {
	objects = append(objects, usersOf(objects)...)
	var s selected
	for _, o := range objects {
		s.from(reflect.ValueOf(o))
	}
	cluster := s.cluster()
	e, store := New(), storage.New("e")
	for _, o := range slices.Concat(cluster, objects) {
		e.Apply(upsert(o))
	}
	store.Commit(e.Flush(), nil)
	agreeOn(t, store, slices.Concat(cluster, objects), s.probes())
	for _, p := range e.Policies() {
		var got []string
		for _, f := range p.Faults {
			got = append(got, f.Reason)
		}
		if want := faultsOf(objects, p.Ref); !slices.Equal(got, want) {
			t.Errorf("%s has the faults %v, want reasons %v", p.Ref, p.Faults, want)
		}
		if len(p.Warnings) > 0 && len(p.Faults) == 0 {
			t.Errorf("%s %v in a cluster that was made for it", p.Ref, p.Warnings)
		}
	}
}

// usersOf are policies that use the groups and tiers among some objects: in
// these there is nothing to agree on by themselves.
func usersOf(objects []api.Object) (users []api.Object) {
	everyone := []api.Target{{PodSelector: &api.Selector{}}}
	for _, o := range objects {
		p := &api.OrderedPolicy{Kind: api.KindAntreaClusterNetworkPolicy, Name: "user-of-" + o.Ref().Name, Tier: api.TierApplication, Priority: 5, AppliedTo: everyone}
		rule := api.OrderedRule{Name: "r", Action: api.ActionDrop}
		switch o := o.(type) {
		case *api.Tier:
			p.Tier = o.Name
		case *api.Group:
			rule.Peers = []api.Peer{{Group: o.Name}}
			if o.Kind == api.KindGroup {
				p.Kind, p.Namespace = api.KindAntreaNetworkPolicy, o.Namespace
			}
		default:
			continue
		}
		p.Ingress, p.Egress = []api.OrderedRule{rule}, []api.OrderedRule{rule}
		users = append(users, p)
	}
	return users
}

// faultsOf are the reasons for which a policy is not enforced as it is written,
// by what it holds: first of its appliedTo, then rule by rule.
func faultsOf(objects []api.Object, ref api.Ref) (reasons []string) {
	there := make(map[api.Ref]api.Object)
	for _, o := range objects {
		there[o.Ref()] = o
	}
	p, ordered := there[ref].(*api.OrderedPolicy)
	if !ordered {
		return nil
	}
	add := func(reason string, is bool) {
		if is {
			reasons = append(reasons, reason)
		}
	}
	missing := func(group string) bool { return group != "" && there[api.GroupRef(ref, group)] == nil }
	targets := func(list []api.Target) {
		for _, target := range list {
			add(ReasonGroupNotFound, missing(target.Group))
		}
	}
	targets(p.AppliedTo)
	for _, r := range slices.Concat(p.Ingress, p.Egress) {
		targets(r.AppliedTo)
		add(ReasonNotEnforced, r.Layer7)
		for _, peer := range r.Peers {
			add(ReasonGroupNotFound, missing(peer.Group))
		}
	}
	return reasons
}

// selected is what the selectors of some objects select, and what else they
// tell apart.
type selected struct {
	pods, namespaces, nodes []api.Labels
	related                 []string // Keys of sameLabels.
	spaces                  []string // Namespaces by name.
	accounts, services      []api.NamespacedName
	blocks                  []api.IPBlock
	traffic                 []api.Traffic
}

// from gathers what is in a value, whatever its type.
func (s *selected) from(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			s.from(v.Elem())
		}
	case reflect.Slice:
		for i := range v.Len() {
			s.from(v.Index(i))
		}
	case reflect.Struct:
		switch x := v.Interface().(type) {
		case api.IPBlock:
			s.blocks = append(s.blocks, x)
			return
		case api.Traffic:
			s.traffic = append(s.traffic, x)
			return
		case api.NetworkPolicyPort:
			s.traffic = append(s.traffic, api.Traffic{Protocol: x.Protocol, Port: x.Port, EndPort: x.EndPort, PortName: x.PortName})
			return
		}
		for i := range v.NumField() {
			s.field(v.Type().Field(i).Name, v.Field(i))
		}
	}
}

// field gathers what a field holds: its name says what a selector is of.
func (s *selected) field(name string, v reflect.Value) {
	lists := map[string]*[]api.Labels{"PodSelector": &s.pods, "NamespaceSelector": &s.namespaces, "NodeSelector": &s.nodes}
	switch {
	case v.Kind() == reflect.Pointer && v.IsNil():
	case lists[name] != nil:
		selector := reflect.Indirect(v).Interface().(api.Selector)
		*lists[name] = append(*lists[name], satisfying(selector))
	case name == "SameLabels":
		s.related = append(s.related, v.Interface().([]string)...)
	case name == "Namespace":
		s.spaces = append(s.spaces, v.String())
	case name == "ServiceAccount":
		s.accounts = append(s.accounts, v.Elem().Interface().(api.NamespacedName))
	case name == "Service":
		s.services = append(s.services, v.Elem().Interface().(api.NamespacedName))
	case name == "ToServices":
		s.services = append(s.services, v.Interface().([]api.NamespacedName)...)
	default:
		s.from(v)
	}
}

// satisfying are labels that a selector matches, by as few as will do.
func satisfying(s api.Selector) api.Labels {
	l := slices.Clone(s.MatchLabels)
	for _, r := range s.MatchExpressions {
		if _, there := l.Get(r.Key); there {
			continue
		}
		switch r.Operator {
		case api.OpIn:
			l = append(l, api.Label{Key: r.Key, Value: r.Values[0]})
		case api.OpExists:
			l = append(l, api.Label{Key: r.Key, Value: "some"})
		}
	}
	slices.SortFunc(l, func(a, b api.Label) int { return cmp.Compare(a.Key, b.Key) })
	return l
}

// cluster is Nodes, Namespaces, Services and Pods, each of them some that are
// selected and some that are not.
func (s *selected) cluster() (objects []api.Object) {
	for i, l := range distinct(append(s.nodes, nil)) {
		objects = append(objects, &api.Node{Name: fmt.Sprintf("node-%d", i), Labels: l, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)})}})
	}
	kinds := distinct(append(s.pods, nil))
	for _, svc := range s.services {
		behind := labels("behind", svc.Name)
		objects = append(objects, &api.Service{Namespace: svc.Namespace, Name: svc.Name, Type: "NodePort", Selector: behind,
			ClusterIPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 96, 0, byte(len(kinds))})},
			Ports:      []api.ServicePort{{Protocol: api.ProtocolTCP, Port: 80, NodePort: uint16(30000 + len(kinds))}}})
		kinds = append(kinds, behind)
	}
	pods := 0
	add := func(namespace, account, address string, l api.Labels) {
		pods++
		p := newPod(namespace, fmt.Sprintf("pod-%d", pods), fmt.Sprintf("node-%d", pods%2), cmp.Or(address, fmt.Sprintf("172.16.%d.%d", pods/200, pods%200+1)))
		p.Labels, p.ServiceAccount = l, account
		for i, t := range s.traffic {
			if t.PortName != "" {
				p.Ports = append(p.Ports, api.ContainerPort{Name: t.PortName, Protocol: t.Protocol, Port: uint16(7000 + (i+pods)%2)})
			}
		}
		objects = append(objects, p)
	}
	var spaces []string
	for _, ns := range s.spacesWanted() {
		objects, spaces = append(objects, ns), append(spaces, ns.Name)
		for _, l := range kinds {
			add(ns.Name, "default", "", l)
		}
	}
	for _, a := range s.accounts {
		add(a.Namespace, a.Name, "", nil)
	}
	seen := make(map[netip.Addr]bool)
	for _, b := range s.blocks {
		for _, prefix := range append(b.Except, b.CIDR) {
			if inside := prefix.Addr().Next(); prefix.Bits() > 0 && prefix.Contains(inside) && !seen[inside] {
				seen[inside] = true
				add(spaces[0], "default", inside.String(), nil)
			}
		}
	}
	return objects
}

// spacesWanted are Namespaces: one for each selector and name, one more, and
// for related ones two of each of two values, and some that lack keys.
func (s *selected) spacesWanted() (list []*api.Namespace) {
	add := func(name string, l api.Labels) {
		if !slices.ContainsFunc(list, func(ns *api.Namespace) bool { return ns.Name == name }) {
			var pairs []string
			for _, label := range l {
				if label.Key != api.LabelNamespaceName && label.Key != api.LabelAntreaNamespaceName {
					pairs = append(pairs, label.Key, label.Value)
				}
			}
			list = append(list, newNamespace(name, pairs...))
		}
	}
	for i, l := range distinct(append(s.namespaces, nil)) {
		name := fmt.Sprintf("space-%d", i)
		for _, key := range []string{api.LabelNamespaceName, api.LabelAntreaNamespaceName} {
			if own, there := l.Get(key); there {
				name = own
			}
		}
		add(name, l)
	}
	for _, a := range slices.Concat(s.accounts, s.services) {
		add(a.Namespace, nil)
	}
	for _, name := range s.spaces {
		if name != "" {
			add(name, nil)
		}
	}
	for i, value := range []string{"a", "a", "b"} {
		var l api.Labels
		for n, key := range s.related {
			l = append(l, api.Label{Key: key, Value: value})
			add(fmt.Sprintf("related-%d-%d", i, n), slices.Clone(l))
		}
	}
	return list
}

// probes are traffic that the objects name, and the traffic beside it.
func (s *selected) probes() []probe {
	list := slices.Clone(probes)
	for _, t := range s.traffic {
		switch {
		case t.Protocol != api.ProtocolTCP && t.Protocol != api.ProtocolUDP && t.Protocol != api.ProtocolSCTP:
		case t.PortName != "":
			list = append(list, probe{protocol: t.Protocol, port: 7000})
		case t.Port > 0:
			list = append(list, probe{protocol: t.Protocol, port: t.Port}, probe{protocol: t.Protocol, port: max(t.Port, t.EndPort) + 1}, probe{protocol: t.Protocol, port: max(t.Port, t.EndPort)})
		}
	}
	slices.SortFunc(list[1:], func(a, b probe) int { // The first is tried with hosts.
		return cmp.Or(cmp.Compare(a.protocol, b.protocol), cmp.Compare(a.port, b.port), cmp.Compare(a.sourcePort, b.sourcePort))
	})
	return slices.Compact(list)
}

func distinct(lists []api.Labels) (out []api.Labels) {
	for _, l := range lists {
		if !slices.ContainsFunc(out, func(o api.Labels) bool { return slices.Equal(o, l) }) {
			out = append(out, l)
		}
	}
	return out
}

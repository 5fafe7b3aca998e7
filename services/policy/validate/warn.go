package validate

import (
	"fmt"
	"slices"
	"strings"

	"github.com/weirnet/weir/services/policy/api"
)

// warn tells of an object what its author should know. In a folder a tier may
// come later.
func (x *Index) warn(f *findings, o api.Object, folder bool) {
	switch o := o.(type) {
	case *api.Group:
		x.warnGroup(f, o)
	case *api.NetworkPolicy:
		x.warnNetworkPolicy(f, o)
	case *api.OrderedPolicy:
		x.warnReferences(f, o)
		_, ranked := x.rank(o)
		switch {
		case ranked && folder:
			x.warnRules(f, x.policies[o.Ref()].rules, false)
		case ranked:
			x.warnChanged(f, o)
		case folder:
			f.warn(o.Ref(), "spec.tier", "Tier %s does not exist; the policy is held back, not enforced, until the tier appears", o.Tier)
		}
	}
}

// warnChanged judges the rules of a policy that is not in the index, or there
// otherwise. It is put there for as long as this takes.
func (x *Index) warnChanged(f *findings, p *api.OrderedPolicy) {
	former := x.Get(p.Ref())
	x.Set(p)
	x.warnRules(f, x.policies[p.Ref()].rules, true)
	x.Remove(p.Ref())
	if former != nil {
		x.Set(former)
	}
}

const missingGroup = "%s does not exist; until it does, an Allow rule matches nothing by it, and a rule that drops, rejects or passes is not realised as a whole"

// warnReferences tells of what a policy names and selects.
func (x *Index) warnReferences(f *findings, p *api.OrderedPolicy) {
	ref := p.Ref()
	upstream := p.Tier == ""
	targets := func(at string, list []api.Target) {
		for i := range list {
			field := fmt.Sprintf("%s.appliedTo[%d]", at, i)
			if upstream {
				field = at + ".subject"
			}
			x.warnTarget(f, p, field, &list[i])
		}
	}
	targets("spec", p.AppliedTo)
	for _, d := range []struct {
		list, peers string
		rules       []api.OrderedRule
	}{{"ingress", "from", p.Ingress}, {"egress", "to", p.Egress}} {
		for i := range d.rules {
			at := fmt.Sprintf("spec.%s[%d]", d.list, i)
			targets(at, d.rules[i].AppliedTo)
			for j := range d.rules[i].Peers {
				field := fmt.Sprintf("%s.%s[%d]", at, d.peers, j)
				if upstream { // An entry there may be several peers here.
					field = at + "." + d.peers
				}
				x.warnPeer(f, p, field, &d.rules[i].Peers[j])
			}
			for j, name := range d.rules[i].ToServices {
				field := fmt.Sprintf("%s.toServices[%d]", at, j)
				switch svc := x.services[name]; {
				case svc == nil:
					f.warn(ref, field, "Service %s does not exist; until it does, the rule matches nothing by it", name)
				case svc.Type == api.ServiceExternalName:
					f.warn(ref, field, "Service %s is a name for another host, and never matches; write to with fqdn", name)
				case svc.Headless:
					f.warn(ref, field, "Service %s is headless, and has no address by which traffic to it could be told; write to with a group that has a serviceReference", name)
				}
			}
		}
	}
}

func (x *Index) warnTarget(f *findings, p *api.OrderedPolicy, field string, t *api.Target) {
	ref := p.Ref()
	switch {
	case t.Group != "":
		name := api.GroupRef(ref, t.Group)
		switch g := x.groups[name]; {
		case g == nil:
			f.warn(ref, field+".group", "%s does not exist; until it does, the policy applies to nothing by it", name)
		case len(g.IPBlocks) > 0:
			f.warn(ref, field+".group", "%s holds addresses, to which no policy applies; write a group that selects Pods", name)
		case g.Kind == api.KindGroup && g.NamespaceSelector != nil:
			f.warn(ref, field+".group", "%s selects Pods of other Namespaces, to which a NetworkPolicy does not apply; write a group without namespaceSelector", name)
		}
	case t.ServiceAccount != nil:
		x.warnAccount(f, ref, field, *t.ServiceAccount)
	case t.Service != nil:
		switch svc := x.services[*t.Service]; {
		case svc == nil:
			f.warn(ref, field+".service", "Service %s does not exist; until it does, the policy applies to nothing by it", *t.Service)
		case svc.Type != "NodePort" && !slices.ContainsFunc(svc.Ports, func(p api.ServicePort) bool { return p.NodePort != 0 }):
			f.warn(ref, field+".service", "Service %s is of type %s and has no node port; the policy applies to nothing by it, write a Service of type NodePort", *t.Service, svc.Type)
		}
	case t.NodeSelector != nil:
		x.warnNodes(f, ref, field, t.NodeSelector)
	default:
		x.warnPods(f, ref, field, selected{p.Namespace, t.NamespaceSelector, t.PodSelector})
	}
}

func (x *Index) warnPeer(f *findings, p *api.OrderedPolicy, field string, e *api.Peer) {
	ref := p.Ref()
	switch {
	case e.Group != "":
		if name := api.GroupRef(ref, e.Group); x.groups[name] == nil {
			f.warn(ref, field+".group", missingGroup, name)
		}
	case e.ServiceAccount != nil:
		x.warnAccount(f, ref, field, *e.ServiceAccount)
	case e.NodeSelector != nil:
		x.warnNodes(f, ref, field, e.NodeSelector)
	case e.FQDN != "":
		if svc := x.serviceOf(e.FQDN); svc != nil {
			f.warn(ref, field+".fqdn", "%q is a name of Service %s/%s, whose traffic is judged by the endpoint that it reaches; write toServices, or selectors of the Pods", e.FQDN, svc.Namespace, svc.Name)
		}
	case e.IPBlock != nil:
	case len(e.SameLabels) > 0:
		x.warnPods(f, ref, field, selected{"", nil, e.PodSelector})
	case e.NamespaceSelector == nil:
		x.warnPods(f, ref, field, selected{p.Namespace, nil, e.PodSelector})
	default:
		x.warnPods(f, ref, field, selected{"", e.NamespaceSelector, e.PodSelector})
	}
}

// serviceOf is the Service, with an address of its own, for which a pattern of
// the cluster's DNS stands; of several, the first by name.
func (x *Index) serviceOf(pattern string) *api.Service {
	pattern = strings.TrimSuffix(pattern, ".")
	if !strings.Contains(pattern, "*") {
		parts := strings.Split(pattern, ".")
		if len(parts) < 3 || parts[2] != "svc" {
			return nil
		}
		svc := x.services[api.NamespacedName{Namespace: parts[1], Name: parts[0]}]
		if svc == nil || svc.Headless {
			return nil
		}
		return svc
	}
	if !strings.HasSuffix(pattern, clusterDomain) && !strings.HasSuffix(pattern, ".svc") {
		return nil // What is not about the cluster's own names is not meant for them.
	}
	var first *api.Service
	for name, svc := range x.services {
		host := svc.Name + "." + svc.Namespace + ".svc"
		if svc.Headless || !matches(pattern, host) && !matches(pattern, host+"."+clusterDomain) {
			continue
		}
		if first == nil || name.String() < first.Namespace+"/"+first.Name {
			first = svc
		}
	}
	return first
}

// clusterDomain is what names of a cluster end with where nobody chose otherwise.
const clusterDomain = "cluster.local"

// selected is what selectors select: Pods of a Namespace, or of those that a
// selector matches.
type selected struct {
	namespace        string
	namespaces, pods *api.Selector
}

// warnPods tells of a selector that matches no Pod now. Where no Pod is known
// at all, as in a folder of policies alone, that means nothing.
func (x *Index) warnPods(f *findings, of api.Ref, field string, s selected) {
	if len(x.pods.of) == 0 || x.any(s.namespace, s.namespaces, s.pods) {
		return
	}
	f.warn(of, field, "matches no Pod now; check labels and Namespaces, unless the Pods are yet to come")
}

func (x *Index) warnAccount(f *findings, of api.Ref, field string, name api.NamespacedName) {
	if len(x.pods.of) == 0 {
		return
	}
	for key := range x.pods.classes[name.Namespace] {
		if key.account == name.Name {
			return
		}
	}
	f.warn(of, field+".serviceAccount", "no Pod runs as ServiceAccount %s now; check the name, unless the Pods are yet to come", name)
}

func (x *Index) warnNodes(f *findings, of api.Ref, field string, s *api.Selector) {
	if len(x.nodes) == 0 {
		return
	}
	for _, n := range x.nodes {
		if selects(s, n.Labels) {
			return
		}
	}
	f.warn(of, field+".nodeSelector", "matches no Node now; check the labels, unless the Nodes are yet to come")
}

// warnGroup tells of what a group names and selects.
func (x *Index) warnGroup(f *findings, g *api.Group) {
	ref := g.Ref()
	if g.Service != nil {
		switch svc := x.services[*g.Service]; {
		case svc == nil:
			f.warn(ref, "spec.serviceReference", "Service %s does not exist; until it does, the group holds nothing", *g.Service)
		case len(svc.Selector) == 0:
			f.warn(ref, "spec.serviceReference", "Service %s has no selector, so that its endpoints are not known as Pods, and the group holds nothing; write podSelector or ipBlocks", *g.Service)
		}
	}
	for i, name := range g.Children {
		child := api.Ref{Kind: g.Kind, Namespace: g.Namespace, Name: name}
		if x.groups[child] == nil {
			f.warn(ref, fmt.Sprintf("spec.childGroups[%d]", i), "%s does not exist; until it does, the group holds nothing of it", child)
		}
	}
	if g.PodSelector == nil && g.NamespaceSelector == nil {
		return
	}
	if g.NamespaceSelector != nil {
		x.warnPods(f, ref, "spec", selected{"", g.NamespaceSelector, g.PodSelector})
	} else {
		x.warnPods(f, ref, "spec.podSelector", selected{g.Namespace, nil, g.PodSelector})
	}
}

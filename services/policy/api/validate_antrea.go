package api

import (
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/weirnet/weir/services/policy/api/antreav1beta1"
)

// directions are the lists of rules, in the order in which they are judged.
var directions = [...]string{"ingress", "egress"}

// MostTiers is how many tiers a cluster may have, the static ones included.
const MostTiers = 20

// tier checks the spec of a Tier. That no other tier has its priority is for
// those to judge who see the others; the static ones are always there.
func (f *findings) tier(o *antreav1beta1.Tier) {
	p := o.Spec.Priority
	if own, static := StaticTier(o.Name); static {
		if p != int32(own) {
			f.refuse("spec.priority", "%d; the static tier %s has priority %d for good, write that or remove the object", p, o.Name, own)
		}
		return
	}
	switch {
	case p < 0 || p > 255:
		f.refuse("spec.priority", "%d is no priority; write a number from 0 to 249 that no other tier has", p)
	case p == RankAdmin || p == RankK8s || p == RankUpstreamBaseline || p == 255:
		f.refuse("spec.priority", "%d is reserved for policies of other kinds; write a number from 0 to 249 that no other tier has", p)
	case p >= 250:
		f.refuse("spec.priority", "%d is behind the tiers that may be added; write a number from 0 to 249 that no other tier has", p)
	}
	for _, t := range staticTiers {
		if int32(t.Priority) == p && p < 250 {
			f.refuse("spec.priority", "%d is the priority of the static tier %s; write a number from 0 to 249 that no other tier has", p, t.Name)
		}
	}
}

// antreaPolicy checks the spec of a ClusterNetworkPolicy or NetworkPolicy of
// crd.antrea.io. Whether tier, groups and Services are there is for those to
// judge who see them.
func (f *findings) antreaPolicy(annotations map[string]string, spec *antreav1beta1.PolicySpec) {
	f.enforcement(annotations)
	if v, ok := annotations[AnnotationAllowLockout]; ok && v != "true" && v != "false" {
		f.refuse("metadata.annotations."+AnnotationAllowLockout, "%q is unknown; write true or false", v)
	}
	switch p := spec.Priority; {
	case p == nil:
		f.refuse("spec.priority", "missing; write a number from 1 to 10000, the lower of which is judged first")
	case !(*p >= 1 && *p <= 10000):
		f.refuse("spec.priority", "%v is no priority; write a number from 1 to 10000", *p)
	}
	f.whereApplied(spec)
	own := f.appliedTo("spec.appliedTo", spec.AppliedTo)
	if own.services && len(spec.Egress) > 0 {
		f.refuse("spec.egress", "stands in a policy that applies to a Service, which only receives; remove the rules, or write them in a policy that applies to Pods")
	}
	named := map[string]string{} // Where a rule has the name.
	for d, rules := range [][]antreav1beta1.Rule{spec.Ingress, spec.Egress} {
		for i := range rules {
			r := &ruleFindings{findings: f, at: fmt.Sprintf("spec.%s[%d]", directions[d], i), rule: &rules[i], egress: d == 1,
				baseline: TierName(spec.Tier) == TierBaseline, target: own}
			f.ruleName(named, directions[d], r)
			r.check()
		}
	}
}

// ruleName checks that no two rules of a policy have one name.
func (f *findings) ruleName(named map[string]string, direction string, r *ruleFindings) {
	name, field := r.rule.Name, r.at+".name"
	if name == "" {
		name, field = GenerateRuleName(direction, *r.rule), r.at
	}
	first, taken := named[name]
	switch {
	case taken && r.rule.Name == "":
		f.refuse(field, "has the generated name %q, and so has %s; write names that differ, or remove one of the two if they say the same", name, first)
	case taken:
		f.refuse(field, "%q is the name of %s too; write another name", name, first)
	default:
		named[name] = r.at
	}
}

// whereApplied checks that appliedTo stands on the policy or on every rule.
func (f *findings) whereApplied(spec *antreav1beta1.PolicySpec) {
	var with, without []string
	for d, rules := range [][]antreav1beta1.Rule{spec.Ingress, spec.Egress} {
		for i := range rules {
			at := fmt.Sprintf("spec.%s[%d]", directions[d], i)
			if len(rules[i].AppliedTo) > 0 {
				with = append(with, at)
			} else {
				without = append(without, at)
			}
		}
	}
	switch {
	case len(spec.AppliedTo) > 0 && len(with) > 0:
		f.refuse("spec.appliedTo", "stands on the policy and on %s; write it on the policy alone, or on every rule and not on the policy", strings.Join(with, ", "))
	case len(spec.AppliedTo) > 0:
	case len(with) == 0:
		f.refuse("spec.appliedTo", "missing; write what the policy applies to, here or on every rule")
	default:
		for _, at := range without {
			f.refuse(at+".appliedTo", "missing; other rules have one, write it on every rule, or on the policy alone")
		}
	}
}

// applied is what a list of appliedTo is about.
type applied struct{ nodes, services, others bool }

// appliedTo checks a list of appliedTo.
func (f *findings) appliedTo(list string, entries []antreav1beta1.AppliedTo) applied {
	var all applied
	for i := range entries {
		e, at := &entries[i], fmt.Sprintf("%s[%d]", list, i)
		f.appliedToEntry(at, e)
		all.nodes = all.nodes || e.NodeSelector != nil
		all.services = all.services || e.Service != nil
		all.others = all.others || e.NodeSelector == nil && e.Service == nil
	}
	if all.services && (all.others || all.nodes) {
		f.refuse(list, "a Service stands beside entries of another kind; write a policy, or a rule with its own appliedTo, for each")
	}
	if all.nodes && all.others {
		f.refuse(list, "nodeSelector stands beside entries that select Pods; write a policy for the Nodes and one for the Pods")
	}
	return all
}

func (f *findings) appliedToEntry(at string, e *antreav1beta1.AppliedTo) {
	var alone []string
	for _, field := range []struct {
		name string
		set  bool
	}{{"group", e.Group != ""}, {"serviceAccount", e.ServiceAccount != nil}, {"service", e.Service != nil}, {"nodeSelector", e.NodeSelector != nil}} {
		if field.set {
			alone = append(alone, field.name)
		}
	}
	selects := e.PodSelector != nil || e.NamespaceSelector != nil
	switch {
	case e.IPBlock != nil:
		f.refuse(at+".ipBlock", "a policy applies to Pods, Nodes or Services, not to addresses; write podSelector, namespaceSelector, group, serviceAccount, service or nodeSelector")
	case e.ExternalEntitySelector != nil:
		f.refuse(at+".externalEntitySelector", "reaches beyond the cluster, which is not supported; write podSelector or namespaceSelector, or remove the entry")
	case len(alone) == 0 && !selects:
		f.refuse(at, "selects nothing; write podSelector, namespaceSelector, group, serviceAccount, service or nodeSelector, podSelector: {} for all Pods")
	case len(alone) > 1 || len(alone) == 1 && selects:
		f.refuse(at, "%s stands together with other fields; write an entry for each", alone[0])
	}
	namespaced := f.object.Kind == KindAntreaNetworkPolicy
	f.optionalSelector(at+".podSelector", e.PodSelector)
	f.optionalSelector(at+".namespaceSelector", e.NamespaceSelector)
	if namespaced && e.NamespaceSelector != nil {
		f.refuse(at+".namespaceSelector", "a NetworkPolicy applies to Pods of its own Namespace; remove it, or write a ClusterNetworkPolicy")
	}
	f.reference(at+".serviceAccount", e.ServiceAccount)
	f.reference(at+".service", e.Service)
	f.optionalSelector(at+".nodeSelector", e.NodeSelector)
	if namespaced && e.NodeSelector != nil {
		f.refuse(at+".nodeSelector", "a NetworkPolicy applies to Pods of its own Namespace; write a ClusterNetworkPolicy for Nodes")
	}
	if namespaced {
		f.ownNamespace(at+".serviceAccount.namespace", e.ServiceAccount)
		f.ownNamespace(at+".service.namespace", e.Service)
	}
}

// ownNamespace checks that a reference stays in the Namespace of its object:
// who may write policies in one Namespace must not guard what is in another.
func (f *findings) ownNamespace(at string, r *antreav1beta1.NamespacedName) {
	if r != nil && r.Namespace != "" && r.Namespace != f.object.Namespace {
		f.refuse(at, "%q; a NetworkPolicy applies to its own Namespace, write %q or a ClusterNetworkPolicy", r.Namespace, f.object.Namespace)
	}
}

// reference checks that the name of an object is complete.
func (f *findings) reference(at string, r *antreav1beta1.NamespacedName) {
	if r == nil {
		return
	}
	if r.Name == "" {
		f.refuse(at+".name", "missing; write the object's name")
	}
	if r.Namespace == "" {
		f.refuse(at+".namespace", "missing; write the object's Namespace")
	}
}

// antreaGroup checks the spec of a ClusterGroup or Group. What is wrong between
// groups is for those to judge who see the others.
func (f *findings) antreaGroup(spec *antreav1beta1.GroupSpec) {
	var ways []string
	for _, way := range []struct {
		name string
		set  bool
	}{{"podSelector or namespaceSelector", spec.PodSelector != nil || spec.NamespaceSelector != nil}, {"ipBlock", spec.IPBlock != nil}, {"ipBlocks", len(spec.IPBlocks) > 0},
		{"serviceReference", spec.ServiceReference != nil}, {"childGroups", len(spec.ChildGroups) > 0}} {
		if way.set {
			ways = append(ways, way.name)
		}
	}
	switch {
	case slices.Equal(ways, []string{"ipBlock", "ipBlocks"}):
		f.refuse("spec.ipBlock", "stands beside ipBlocks; move it into that list")
	case len(ways) > 1:
		f.refuse("spec", "selects in several ways: %s; write a group for each, and one with childGroups that holds them", strings.Join(ways, ", "))
	case len(ways) == 0 && spec.NodeSelector == nil && spec.ExternalEntitySelector == nil:
		f.warn("spec", "selects nothing; write podSelector, namespaceSelector, ipBlocks, serviceReference or childGroups")
	}
	f.optionalSelector("spec.podSelector", spec.PodSelector)
	f.optionalSelector("spec.namespaceSelector", spec.NamespaceSelector)
	if spec.NodeSelector != nil {
		f.refuse("spec.nodeSelector", "a group holds no Nodes; write nodeSelector in the policy's appliedTo or in a rule's peer")
	}
	f.groupBlocks(spec)
	f.reference("spec.serviceReference", spec.ServiceReference)
	if spec.ExternalEntitySelector != nil {
		f.refuse("spec.externalEntitySelector", "reaches beyond the cluster, which is not supported; write podSelector, namespaceSelector or ipBlocks")
	}
	for i, child := range spec.ChildGroups {
		at := fmt.Sprintf("spec.childGroups[%d]", i)
		switch _, name, qualified := strings.Cut(child, "/"); {
		case child == "":
			f.refuse(at, "empty; write the name of a group")
		case qualified && f.object.Kind == KindGroup:
			f.refuse(at, "%q; the children of a Group are in its own Namespace, write the name alone: %q", child, name)
		case qualified:
			f.refuse(at, "%q; the children of a ClusterGroup are ClusterGroups, which have no Namespace: write the name alone", child)
		case child == f.object.Name:
			f.refuse(at, "%q is the group itself; remove it", child)
		}
	}
}

func (f *findings) groupBlocks(spec *antreav1beta1.GroupSpec) {
	var kinds addressKinds
	if spec.IPBlock != nil {
		kinds.add(f.block("spec.ipBlock", spec.IPBlock))
	}
	for i := range spec.IPBlocks {
		kinds.add(f.block(fmt.Sprintf("spec.ipBlocks[%d]", i), &spec.IPBlocks[i]))
	}
	if kinds.multicast && kinds.unicast {
		f.refuse("spec.ipBlocks", "multicast and unicast addresses stand together; write a group for each")
	}
}

// labelKey checks the key of a label.
func (f *findings) labelKey(field, key string) {
	for _, m := range validation.IsQualifiedName(key) {
		f.refuse(field, "%q is no label key: %s", key, m)
	}
}

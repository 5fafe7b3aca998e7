package pipeline

import (
	"fmt"
	"slices"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/bridge/openflow"
)

var kindNames = map[CookieKind]string{KindStatic: "static", KindPort: "port", KindClause: "clause", KindRule: "rule", KindIsolation: "isolation",
	KindStaged: "staged", KindDefault: "default", KindCount: "count", KindSpoof: "spoof", KindWatch: "probe", KindService: "service", KindLearned: "learned", KindNames: "names", KindLease: "names", KindMulticast: "multicast", KindObserve: "observe", KindRecovery: "recovery"}

// Describe says what a flow stands for by the present state, be it on the bridge
// or meant to be.
func (c *Compiler) Describe(f openflow.Flow) *policyv1.FlowMeaning {
	kind, id, ours := ParseCookie(f.Cookie)
	m := &policyv1.FlowMeaning{Kind: kindNames[kind]}
	if !ours || m.Kind == "" {
		m.Kind = "foreign"
		return m
	}
	dir := direction(f.Table)
	port := func(ofport uint32) {
		if ep := c.ports[ofport]; ep != nil {
			m.Pod = ep.wire.GetNamespace() + "/" + ep.wire.GetName()
		}
	}
	isolation := func(ofport uint32, w world) {
		if port(ofport); c.ports[ofport] == nil {
			return
		}
		for _, ref := range refs(isolating(c.guarding(c.ports[ofport]), c.ports[ofport], dir, w)) {
			m.Rules = append(m.Rules, &policyv1.RuleName{Policy: ref, Direction: dir})
		}
	}
	_, conjunctive := f.Match.Field(openflow.FieldConjID)
	switch {
	case kind == KindClause:
		for _, a := range f.Actions.List() {
			if conj, ok := a.(openflow.Conjunction); ok {
				m.Rules = c.nameRule(m.Rules, conj.ID)
			}
		}
	case kind == KindRule, kind == KindStaged && (conjunctive || directly(f)):
		m.Rules = c.nameRule(m.Rules, id)
	case kind == KindIsolation:
		isolation(id, enforced)
	case kind == KindStaged:
		isolation(id, staged)
	case kind == KindCount:
		for _, s := range c.Subjects(id) {
			m.Rules = append(m.Rules, s.name())
		}
	case kind == KindService, kind == KindLearned:
		m.Service = c.ServicePort(id)
	default: // Static flows and the default's have no port by this number.
		port(id)
	}
	return m
}

// nameRule adds the rule of a conjunction, once: of those that are alike, the owner.
func (c *Compiler) nameRule(names []*policyv1.RuleName, conj uint32) []*policyv1.RuleName {
	pt := c.byConj[conj]
	if pt == nil {
		return names
	}
	n := pt.body.owner.subject().name()
	if slices.ContainsFunc(names, func(o *policyv1.RuleName) bool {
		a, b := o.GetPolicy(), n.GetPolicy() // A policy may have come in several parts.
		return o.GetRule() == n.GetRule() && o.GetDirection() == n.GetDirection() && a.GetKind() == b.GetKind() && a.GetNamespace() == b.GetNamespace() && a.GetName() == b.GetName()
	}) {
		return names
	}
	return append(names, n)
}

func (s Subject) name() *policyv1.RuleName {
	n := &policyv1.RuleName{Policy: &policyv1.PolicyRef{Kind: s.Kind, Namespace: s.Namespace, Name: s.Name}, Direction: s.Direction}
	if !s.Isolation {
		n.Rule = ruleName(s.Rule, s.Direction, s.Index)
	}
	return n
}

func ruleName(name string, dir policyv1.Direction, index uint32) string {
	if name != "" {
		return name
	}
	return fmt.Sprintf("%s[%d]", directionName(dir), index)
}

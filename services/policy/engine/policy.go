package engine

import (
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/api"
)

// policy is a policy object, or was one when Flush ran last.
type policy struct {
	obj     api.Object
	set     *targetSet // Nil: it is gone.
	told    *targetSet // In whose scope the store has its item. Nil: in none.
	groups  []*group   // One for each selection of its draft: appliedTo, and of each rule peers, appliedTo, named.
	hash    uint32
	touched bool
}

func (p *policy) sum() uint32 { return p.hash }

func (e *Engine) findPolicy(ns *namespace, ref api.Ref) *policy {
	p, _ := ns.policies.find(e.policyHash(ref), func(p *policy) bool { return p.obj.Ref() == ref })
	return p
}

func (e *Engine) policyHash(ref api.Ref) uint32 {
	return hashString(e.seed, ref.Name) + uint32(ref.Kind)
}

// applyPolicy puts an object in the place of the policy's former one. The new
// one is in before the old goes, so that nothing that both use is counted out
// and in again.
func (e *Engine) applyPolicy(ref api.Ref, obj api.Object) {
	ns := e.namespace(ref.Namespace)
	p := e.findPolicy(ns, ref)
	if p == nil {
		p = &policy{obj: obj, hash: e.policyHash(ref)}
		ns.policies.add(p)
	}
	former := *p
	p.obj = obj
	e.attach(p)
	if former.set != nil {
		e.detach(&former)
	}
	e.touchPolicy(p)
}

func (e *Engine) removePolicy(ref api.Ref) {
	ns := e.findNamespace(ref.Namespace)
	if ns == nil {
		return
	}
	if p := e.findPolicy(ns, ref); p != nil && p.set != nil {
		e.detach(p)
		p.set, p.groups = nil, nil
		e.touchPolicy(p)
	}
}

func (e *Engine) touchPolicy(p *policy) {
	if !p.touched {
		p.touched = true
		e.pending.policies = append(e.pending.policies, p)
	}
}

func (e *Engine) attach(p *policy) {
	d := &e.draft
	compile(p.obj, d)
	p.groups = make([]*group, 0, d.selections())
	targets := e.targets[:0]
	add := func(selections []selection) []*group {
		for _, s := range selections {
			p.groups = append(p.groups, e.group(s))
		}
		return p.groups[len(p.groups)-len(selections):]
	}
	targets = append(targets, add(d.appliedTo)...)
	for i := range d.rules {
		r := &d.rules[i]
		add(r.peers)
		targets = append(targets, add(r.appliedTo)...)
		add(r.named)
	}
	e.targets = targets
	p.set = e.targetSet(targets)
	p.set.policies++
	p.eachPeer(d, func(g *group, a policyv1.Action) {
		e.usePeer(p.set, g)
		if a != policyv1.Action_ACTION_ALLOW {
			g.awaited++
		}
	})
}

// detach undoes attach.
func (e *Engine) detach(p *policy) {
	compile(p.obj, &e.draft)
	p.eachPeer(&e.draft, func(g *group, a policyv1.Action) {
		e.dropPeer(p.set, g)
		if a != policyv1.Action_ACTION_ALLOW {
			g.awaited--
		}
	})
	if p.set.policies--; p.set.policies == 0 {
		e.touchSet(p.set)
	}
}

// eachPeer calls fn for every use of a group as an address group, with the
// action of the rule. The draft is the policy's.
func (p *policy) eachPeer(d *draft, fn func(*group, policyv1.Action)) {
	groups := p.groups[len(d.appliedTo):]
	for i := range d.rules {
		r := &d.rules[i]
		for j, g := range groups[:len(r.peers)+len(r.appliedTo)+len(r.named)] {
			if j < len(r.peers) || j >= len(r.peers)+len(r.appliedTo) {
				fn(g, r.action)
			}
		}
		groups = groups[len(r.peers)+len(r.appliedTo)+len(r.named):]
	}
}

// encodePolicy makes a policy's item, and the draft from which it is made. It
// changes nothing but the draft and the encoder that it is given.
func (e *Engine) encodePolicy(p *policy, d *draft, enc *encoder) []byte {
	compile(p.obj, d)
	if d.logsAsNamespace {
		ns := e.lookupNamespace(d.namespace)
		d.logIsolation = ns != nil && ns.logs()
		for i := range d.rules {
			d.rules[i].log = d.logIsolation
		}
	}
	return enc.policy(d, p.groups)
}

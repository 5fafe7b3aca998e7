package engine

import (
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/api"
)

// policy is a policy item, or was one when Flush ran last: a Kubernetes
// NetworkPolicy, or an ordered policy or a part of one.
type policy struct {
	obj     *api.NetworkPolicy // Nil: of an ordered policy.
	ordered *ordered           // Nil: a NetworkPolicy.
	draft   *draft             // Of an ordered policy.
	set     *targetSet         // Nil: it is gone.
	told    *targetSet         // In whose scope the store has its item. Nil: in none.
	groups  []*group           // One for each selection of its draft: appliedTo, and of each rule peers, appliedTo, named.
	hash    uint32
	touched bool
}

func (p *policy) sum() uint32 { return p.hash }

func (e *Engine) findPolicy(ns *namespace, name string) *policy {
	p, _ := ns.policies.find(hashString(e.seed, name), func(p *policy) bool { return p.obj.Name == name })
	return p
}

// applyPolicy puts a NetworkPolicy in the place of the former one.
func (e *Engine) applyPolicy(ref api.Ref, obj *api.NetworkPolicy) {
	if obj == nil {
		if ns := e.findNamespace(ref.Namespace); ns != nil {
			if p := e.findPolicy(ns, ref.Name); p != nil {
				e.withdraw(p)
			}
		}
		return
	}
	ns := e.namespace(ref.Namespace)
	p := e.findPolicy(ns, ref.Name)
	if p == nil {
		p = &policy{obj: obj, hash: hashString(e.seed, ref.Name)}
		ns.policies.add(p)
	}
	former := *p
	p.obj = obj
	e.replace(p, former)
}

// replace takes over what a policy is now. The new one is in before the former
// goes, so that nothing that both use is counted out and in again.
func (e *Engine) replace(p *policy, former policy) {
	e.attach(p)
	if former.set != nil {
		e.detach(&former)
	}
	e.touchPolicy(p)
}

// withdraw takes a policy out, if it is in.
func (e *Engine) withdraw(p *policy) {
	if p.set != nil {
		e.detach(p)
		p.set, p.groups = nil, nil
		e.touchPolicy(p)
	}
}

// draftOf is a policy's draft; scratch may be used for it.
func (p *policy) draftOf(scratch *draft) *draft {
	if p.draft != nil {
		return p.draft
	}
	scratch.reset()
	compileNetworkPolicy(p.obj, scratch)
	return scratch
}

func (e *Engine) touchPolicy(p *policy) {
	if !p.touched {
		p.touched = true
		e.pending.policies = append(e.pending.policies, p)
	}
}

func (e *Engine) attach(p *policy) {
	d := p.draftOf(&e.draft)
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
	p.eachPeer(p.draftOf(&e.draft), func(g *group, a policyv1.Action) {
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

// encodePolicy makes a policy's item, and returns the draft from which it is
// made. It changes nothing but the scratch and the encoder that it is given.
func (e *Engine) encodePolicy(p *policy, scratch *draft, enc *encoder) (*draft, []byte) {
	d := p.draftOf(scratch)
	if d.logsAsNamespace {
		ns := e.lookupNamespace(d.namespace)
		d.logIsolation = ns != nil && ns.logs()
		for i := range d.rules {
			d.rules[i].log = d.logIsolation
		}
	}
	return d, enc.policy(d, p.groups)
}

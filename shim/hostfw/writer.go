package hostfw

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/zeebo/xxh3"
	"sigs.k8s.io/knftables"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/hostpolicy"
)

// writer puts a plan into a transaction.
type writer struct {
	tx       *knftables.Transaction
	plan     *hostpolicy.Plan
	sets     map[string]bool // That there are to be.
	stand    map[string]bool // Of sets that there are: it holds what it did when it was written.
	counters map[string]bool // That there are to be.
	quiet    bool            // The kernel cannot log packets itself.
}

// chains makes the chains be there that are needed, and these and those that
// there are be empty. The base chains come last: the others are what they go to.
func (w *writer) chains(there []string) (wanted map[string]bool) {
	wanted = make(map[string]bool)
	for _, n := range []struct {
		is   bool
		list []string
	}{{len(w.plan.NodePorts) > 0, nodePortChains}, {len(w.plan.Ingress)+len(w.plan.Egress) > 0, hostChains}} {
		for _, name := range n.list {
			wanted[name] = n.is
		}
	}
	for _, name := range slices.Backward(policyChains) {
		if !wanted[name] && !slices.Contains(there, name) {
			continue
		}
		c := &knftables.Chain{Name: name}
		if hook, is := baseChains[name]; is {
			c.Type, c.Hook, c.Priority = knftables.PtrTo(knftables.FilterType), knftables.PtrTo(hook.hook), knftables.PtrTo(hook.priority)
		}
		w.tx.Add(c)
		w.tx.Flush(&knftables.Chain{Name: name})
	}
	return wanted
}

func (w *writer) rule(chain string, parts ...string) {
	w.tx.Add(&knftables.Rule{Chain: chain, Rule: strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), " ")})
}

func (w *writer) write() {
	if len(w.plan.NodePorts) > 0 {
		w.rule(chainNodePorts, `iifname "lo" accept`)
		w.rule(chainNodePorts, "ct state established,related accept")
		w.rule(chainNodePorts, "meta l4proto . th dport @"+w.ports(), "fib daddr type local goto", chainRules)
		w.ladder(hostpolicy.NodePorts, nodePortsLadder, func(*hostpolicy.Rule) bool { return true })
	}
	if len(w.plan.Ingress)+len(w.plan.Egress) > 0 {
		w.host(hostpolicy.Ingress, chainHostIn, "iifname")
		w.host(hostpolicy.Egress, chainHostOut, "oifname")
	}
}

// Neighbour discovery and the like, without which a host has no IPv6.
const neighbours = "icmpv6 type { mld-listener-query, mld-listener-report, mld-listener-done, nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert, mld2-listener-report } accept"

// host writes what is asked of the host's own packets in one direction.
func (w *writer) host(l hostpolicy.List, chain, device string) {
	w.rule(chain, device, `"lo" accept`)
	w.rule(chain, "ct state established,related accept")
	w.rule(chain, neighbours)
	if w.plan.Tunnel != 0 {
		w.rule(chain, "udp dport", fmt.Sprint(w.plan.Tunnel), "accept")
	}
	if w.control(l, chain) {
		w.ladder(l, ladderOf(chain+controlSuffix), func(r *hostpolicy.Rule) bool { return !r.Overruled() })
	}
	w.rule(chain, "goto", ladderOf(chain).rules)
	w.ladder(l, ladderOf(chain), func(*hostpolicy.Rule) bool { return true })
}

// control sends what steers the node to chains of its own. It is false where
// nothing is known that does.
func (w *writer) control(l hostpolicy.List, chain string) bool {
	k := &w.plan.Control
	then := "goto " + ladderOf(chain+controlSuffix).rules
	near, far := "daddr", "saddr" // Own end and the other.
	if l == hostpolicy.Egress {
		near, far = "saddr", "daddr"
	}
	for _, f := range []family{ipv4, ipv6} {
		kubelet := fmt.Sprintf("tcp dport %d", hostpolicy.Kubelet)
		if servers := f.of(single(hostpolicy.Hosts(k.Servers))); l == hostpolicy.Ingress && len(servers) > 0 {
			w.rule(chain, f.name, far, w.addresses(f, servers), kubelet, then)
		}
		if nodes := f.of(single(k.Nodes)); len(nodes) > 0 {
			for _, own := range f.sockets(k.Own) {
				if l == hostpolicy.Ingress {
					w.rule(chain, f.name, far, w.addresses(f, nodes), f.name, near, own.Addr().String(), "tcp dport", fmt.Sprint(own.Port()), then)
				}
			}
			if own := f.of(single(hostpolicy.Hosts(k.Own))); l == hostpolicy.Egress && len(own) > 0 {
				w.rule(chain, f.name, near, w.addresses(f, own), f.name, far, w.addresses(f, nodes), kubelet, then)
			}
		}
		if l == hostpolicy.Ingress {
			continue
		}
		for _, s := range f.sockets(k.Servers) {
			w.rule(chain, f.name, far, s.Addr().String(), "tcp dport", fmt.Sprint(s.Port()), then)
		}
	}
	return len(k.Servers) > 0
}

// ladder writes those rules of a list that are wanted into a ladder's chains.
func (w *writer) ladder(l hostpolicy.List, to ladder, wanted func(*hostpolicy.Rule) bool) {
	rules := w.plan.Rules(l)
	lastStaged := -1
	for i := range rules {
		if rules[i].Staged && wanted(&rules[i]) {
			lastStaged = i
		}
	}
	if lastStaged >= 0 {
		w.rule(to.rules, "jump", to.staged)
	}
	for i := range rules {
		if !wanted(&rules[i]) {
			continue
		}
		w.enforced(l, to, i)
		if i <= lastStaged {
			w.staged(l, to, i)
		}
	}
	w.rule(to.rules, "goto", to.baseline)
	w.rule(to.staged, "goto", to.stagedBaseline)
}

// ports is the set of all ports of nodes that rules are about.
func (w *writer) ports() string {
	var elements []string
	for _, p := range w.plan.Ports() {
		elements = append(elements, protocolName(p.Protocol)+" . "+portRange(p.First, p.Last))
	}
	return w.set("ports", "inet_proto . inet_service", elements)
}

// enforced puts a rule into the chain that acts.
func (w *writer) enforced(l hostpolicy.List, to ladder, i int) {
	r := w.plan.Rules(l)[i]
	if r.Staged {
		return
	}
	chain, log := to.rules, ""
	if r.Baseline {
		chain = to.baseline
	}
	if r.Log {
		log = logs(Report{Plan: w.plan.ID, List: l, Rule: i})
		if l != hostpolicy.NodePorts && !w.quiet {
			log = fmt.Sprintf("log prefix %q ", KernelPrefix(l, &r)) + log
		}
	}
	w.each(l, r, func(m match) {
		w.rule(chain, m.text, w.counter(l, &r), log, m.verdict(r.Action, l, to))
	})
}

// staged puts a rule into the chain that reports. Where a staged rule is the first
// to match, who reads the report works out the rest; where another decides
// before, the verdict is the enforced one.
func (w *writer) staged(l hostpolicy.List, to ladder, i int) {
	r := w.plan.Rules(l)[i]
	chain, then := to.staged, "return"
	switch {
	case r.Baseline:
		chain = to.stagedBaseline
	case !r.Staged && r.Action == policyv1.Action_ACTION_PASS:
		then = "goto " + to.stagedBaseline
	}
	if r.Staged {
		then = w.counter(l, &r) + " " + logs(Report{Plan: w.plan.ID, List: l, Rule: i, Staged: true}) + " " + then
	}
	w.each(l, r, func(m match) { w.rule(chain, m.text, then) })
}

func logs(r Report) string {
	return fmt.Sprintf("log prefix %q group %d snaplen %d", r.prefix(), LogGroup, snapLength)
}

// counter is the statement that counts for a rule.
func (w *writer) counter(l hostpolicy.List, r *hostpolicy.Rule) string {
	name := CounterName(l, r)
	if !w.counters[name] {
		w.counters[name] = true
		w.tx.Add(&knftables.Counter{Name: name}) // One that is there counts on.
	}
	return "counter name " + name
}

// addresses is how prefixes of a family are named in a rule.
func (w *writer) addresses(f family, prefixes []netip.Prefix) string {
	if len(prefixes) == 1 {
		return text(prefixes[0])
	}
	var elements []string
	for _, p := range prefixes {
		elements = append(elements, text(p))
	}
	return "@" + w.set(f.name, f.kind, elements)
}

// text is a prefix, or a single address, as it is in a rule.
func text(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

// set makes a set be there, by its content. Its elements are one statement: nft
// looks through an interval set anew for each.
func (w *writer) set(kind, typ string, elements []string) string {
	name := fmt.Sprintf("%s%s-%016x", setPrefix, kind, xxh3.HashString(strings.Join(elements, " ")))
	if w.sets[name] {
		return name
	}
	w.sets[name] = true
	if w.stand[name] {
		return name
	}
	w.tx.Add(&knftables.Set{Name: name, Type: typ, Flags: []knftables.SetFlag{knftables.IntervalFlag}})
	w.tx.Flush(&knftables.Set{Name: name})
	w.tx.Add(&knftables.Element{Set: name, Key: []string{strings.Join(elements, ", ")}})
	return name
}

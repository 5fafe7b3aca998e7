package hostfw

import (
	"cmp"
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
	tx    *knftables.Transaction
	plan  *hostpolicy.Plan
	sets  map[string]bool // That there are to be.
	stand map[string]bool // Of sets that there are: it holds what it did when it was written.
}

// chains makes all chains be there, and empty. The base chain comes last: the
// others are what it goes to.
func (w *writer) chains() {
	for _, name := range slices.Backward(policyChains) {
		c := &knftables.Chain{Name: name}
		if name == chainNodePorts {
			c.Type, c.Hook = knftables.PtrTo(knftables.FilterType), knftables.PtrTo(knftables.PreroutingHook)
			c.Priority = knftables.PtrTo(knftables.ManglePriority + " - 10")
		}
		w.tx.Add(c)
		w.tx.Flush(&knftables.Chain{Name: name})
	}
}

func (w *writer) rule(chain string, parts ...string) {
	w.tx.Add(&knftables.Rule{Chain: chain, Rule: strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), " ")})
}

func (w *writer) write() {
	w.rule(chainNodePorts, `iifname "lo" accept`)
	w.rule(chainNodePorts, "ct state established,related accept")
	w.rule(chainNodePorts, "meta l4proto . th dport @"+w.ports(), "fib daddr type local goto", chainRules)
	lastStaged := -1
	for i, r := range w.plan.NodePorts {
		if r.Staged {
			lastStaged = i
		}
	}
	if lastStaged >= 0 {
		w.rule(chainRules, "jump", chainStaged)
	}
	for i, r := range w.plan.NodePorts {
		w.enforced(i, r)
		if i <= lastStaged {
			w.staged(i, r)
		}
	}
	w.rule(chainRules, "goto", chainBaseline)
	w.rule(chainStaged, "goto", chainStagedBaseline)
}

// ports is the set of all ports that rules are about.
func (w *writer) ports() string {
	var elements []string
	for _, p := range w.plan.Ports() {
		elements = append(elements, protocolName(p.Protocol)+" . "+portRange(p.First, p.Last))
	}
	return w.set("ports", "inet_proto . inet_service", elements)
}

// enforced puts a rule into the chain that acts.
func (w *writer) enforced(i int, r hostpolicy.Rule) {
	if r.Staged {
		return
	}
	chain, log := chainRules, ""
	if r.Baseline {
		chain = chainBaseline
	}
	if r.Log {
		log = logs(Report{Plan: w.plan.ID, Rule: i})
	}
	w.each(r, func(protocol uint8, f family, match string) {
		w.rule(chain, match, "counter", log, verdict(r.Action, protocol, f))
	})
}

// staged puts a rule into the chain that reports. Where a staged rule is the first
// to match, who reads the report works out the rest; where another decides
// before, the verdict is the enforced one.
func (w *writer) staged(i int, r hostpolicy.Rule) {
	chain, then := chainStaged, "return"
	switch {
	case r.Baseline:
		chain = chainStagedBaseline
	case !r.Staged && r.Action == policyv1.Action_ACTION_PASS:
		then = "goto " + chainStagedBaseline
	}
	if r.Staged {
		then = "counter " + logs(Report{Plan: w.plan.ID, Rule: i, Staged: true}) + " " + then
	}
	w.each(r, func(_ uint8, _ family, match string) { w.rule(chain, match, then) })
}

func logs(r Report) string {
	return fmt.Sprintf("log prefix %q group %d snaplen %d", r.prefix(), LogGroup, snapLength)
}

// each calls fn for each protocol and family of a rule, with what matches it.
func (w *writer) each(r hostpolicy.Rule, fn func(protocol uint8, f family, match string)) {
	for _, group := range grouped(r.Ports) {
		families := []family{ipv4, ipv6}
		if r.AnyPeer && (r.Action != policyv1.Action_ACTION_REJECT || group[0].Protocol == hostpolicy.TCP) {
			families = []family{both}
		}
		for _, f := range families {
			source := ""
			switch prefixes := f.of(r.Peers); {
			case r.AnyPeer && f != both, len(prefixes) > 0 && prefixes[0].Bits() == 0:
				source = "meta nfproto " + f.proto
			case r.AnyPeer:
			case len(prefixes) == 0:
				continue
			default:
				source = f.name + " saddr " + w.addresses(f, prefixes)
			}
			fn(group[0].Protocol, f, strings.TrimSpace(source+" "+portMatch(group)))
		}
	}
}

// addresses is how prefixes of a family are named in a rule.
func (w *writer) addresses(f family, prefixes []netip.Prefix) string {
	if len(prefixes) == 1 {
		return prefixes[0].String()
	}
	var elements []string
	for _, p := range prefixes {
		elements = append(elements, p.String())
	}
	return "@" + w.set(f.name, f.kind, elements)
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

// grouped are ports that one match covers, together.
func grouped(list []hostpolicy.Ports) (groups [][]hostpolicy.Ports) {
	for _, p := range list {
		if n := len(groups); n > 0 {
			q := groups[n-1][0]
			if cmp.Or(cmp.Compare(p.Protocol, q.Protocol), cmp.Compare(p.SourceFirst, q.SourceFirst), cmp.Compare(p.SourceLast, q.SourceLast)) == 0 {
				groups[n-1] = append(groups[n-1], p)
				continue
			}
		}
		groups = append(groups, []hostpolicy.Ports{p})
	}
	return groups
}

func portMatch(group []hostpolicy.Ports) string {
	var ranges []string
	for _, p := range group {
		ranges = append(ranges, portRange(p.First, p.Last))
	}
	text := ranges[0]
	if len(ranges) > 1 {
		text = "{ " + strings.Join(ranges, ", ") + " }"
	}
	match := protocolName(group[0].Protocol) + " dport " + text
	if p := group[0]; p.SourceFirst != 0 {
		match += " " + protocolName(p.Protocol) + " sport " + portRange(p.SourceFirst, p.SourceLast)
	}
	return match
}

func portRange(first, last uint16) string {
	if first == last {
		return fmt.Sprint(first)
	}
	return fmt.Sprintf("%d-%d", first, last)
}

func protocolName(p uint8) string {
	switch p {
	case hostpolicy.TCP:
		return "tcp"
	case hostpolicy.UDP:
		return "udp"
	}
	return "sctp"
}

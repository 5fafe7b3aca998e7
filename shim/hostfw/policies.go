package hostfw

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"sigs.k8s.io/knftables"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/hostpolicy"
)

// LogGroup is the NFLOG group to which rules report.
const LogGroup = 9752

// snapLength is how much of a packet is reported: headers.
const snapLength = 128

// The chains of policies. Sets of theirs have names that begin with setPrefix.
const (
	chainNodePorts      = "node-ports"
	chainRules          = "node-ports-rules"
	chainBaseline       = "node-ports-baseline"
	chainStaged         = "node-ports-staged"
	chainStagedBaseline = "node-ports-staged-baseline"

	setPrefix = "np-"
)

var policyChains = []string{chainNodePorts, chainRules, chainBaseline, chainStaged, chainStagedBaseline}

// Policies are a host's policies in its firewall:
//
//	node-ports   between conntrack and any translation (hook prerouting, priority mangle - 10)
//	  from the host itself, or of a connection that is there: accept
//	  to a port that a rule names, at an address of the node: goto rules
//	rules        jump staged, the tiers' rules, goto baseline; a Pass goes there at once
//	staged       the same with the staged policies among them: it reports and comes back
//
// What it accepts goes on to the host's other chains, as anything does. A set of
// addresses bears the hash of its content, so that rules share it and one that
// stays is not touched. It belongs to one goroutine at a time.
type Policies struct {
	nft  knftables.Interface // Nil until there is nftables.
	read func() (*standing, error)
	left *standing // What was read after the last Apply; nil: not known.
}

// Apply makes the plan be in force, in one transaction.
func (p *Policies) Apply(ctx context.Context, plan *hostpolicy.Plan) error {
	left := p.left
	p.left = nil
	if err := p.open(); err != nil {
		if plan.IsEmpty() {
			return nil // Without nftables there is nothing to take back.
		}
		return err
	}
	there, err := p.read()
	if err != nil {
		return err
	}
	if plan.IsEmpty() && there.isEmpty() {
		p.left = there
		return nil
	}
	tx := p.nft.NewTransaction()
	tx.Add(&knftables.Table{Comment: knftables.PtrTo("what the host sends to its Pods, and policies for the host")})
	w := &writer{tx: tx, plan: plan, sets: make(map[string]bool), stand: make(map[string]bool)}
	for name, elements := range there.sets {
		w.stand[name] = left != nil && slices.Equal(left.sets[name], elements)
	}
	w.chains()
	if !plan.IsEmpty() {
		w.write()
	}
	for _, name := range slices.Sorted(maps.Keys(there.sets)) {
		if !w.sets[name] {
			tx.Delete(&knftables.Set{Name: name})
		}
	}
	if plan.IsEmpty() {
		for _, name := range policyChains {
			tx.Delete(&knftables.Chain{Name: name})
		}
	}
	if err := p.nft.Run(ctx, tx); err != nil {
		return fmt.Errorf("nftables: policies for the host: %w", err)
	}
	p.left, err = p.read()
	return err
}

// Intact says whether the table still has what the last Apply left there.
func (p *Policies) Intact() (bool, error) {
	if p.nft == nil {
		return true, nil
	}
	now, err := p.read()
	if err != nil {
		return false, err
	}
	return p.left != nil && slices.Equal(now.rules, p.left.rules) && maps.EqualFunc(now.sets, p.left.sets, slices.Equal), nil
}

func (p *Policies) open() (err error) {
	if p.nft == nil {
		if p.nft, err = knftables.New(knftables.InetFamily, table); err != nil {
			p.nft = nil
			return fmt.Errorf("nftables: %w", err)
		}
		p.read = readPolicies
	}
	return nil
}

// Report is what a rule's report says of where it comes from.
type Report struct {
	Plan   uint64 // Its ID.
	Rule   int    // Among the plan's rules.
	Staged bool   // It is of the world with the staged policies.
}

const prefixMark = "weir"

// prefix is how a rule's reports begin.
func (r Report) prefix() string {
	kind := "rule"
	if r.Staged {
		kind = "staged"
	}
	return fmt.Sprintf("%s:%016x:%s:%d", prefixMark, r.Plan, kind, r.Rule)
}

var errPrefix = errors.New("no report of ours")

// ParseReport reads the prefix of a report.
func ParseReport(prefix string) (r Report, err error) {
	parts := strings.Split(strings.TrimRight(prefix, "\x00"), ":")
	if len(parts) != 4 || parts[0] != prefixMark || (parts[2] != "rule" && parts[2] != "staged") {
		return r, errPrefix
	}
	if r.Plan, err = strconv.ParseUint(parts[1], 16, 64); err != nil {
		return r, errPrefix
	}
	if r.Rule, err = strconv.Atoi(parts[3]); err != nil || r.Rule < 0 {
		return r, errPrefix
	}
	r.Staged = parts[2] == "staged"
	return r, nil
}

// verdict is the nftables statement of an action, for a protocol and a family.
func verdict(a policyv1.Action, protocol uint8, f family) string {
	switch {
	case a == policyv1.Action_ACTION_ALLOW:
		return "accept"
	case a == policyv1.Action_ACTION_PASS:
		return "goto " + chainBaseline
	case a == policyv1.Action_ACTION_DROP:
		return "drop"
	case protocol == hostpolicy.TCP:
		return "reject with tcp reset"
	case f == ipv6:
		return "reject with icmpv6 type admin-prohibited"
	}
	return "reject with icmp type host-prohibited" // As rejected packets to Pods are answered.
}

// family is one of addresses.
type family struct {
	name  string // As nftables has it in ip saddr. Empty: both.
	proto string
	kind  string
}

var (
	both family
	ipv4 = family{"ip", "ipv4", "ipv4_addr"}
	ipv6 = family{"ip6", "ipv6", "ipv6_addr"}
)

func (f family) of(list []netip.Prefix) (out []netip.Prefix) {
	for _, p := range list {
		if p.Addr().Is6() == (f == ipv6) {
			out = append(out, p)
		}
	}
	return out
}

package hostfw

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/zeebo/xxh3"
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
	left *standing         // What was read after the last Apply. Nil: nothing was put, or what stands is not that.
	sums map[string]uint64 // Of the elements of sets, once they were read.
}

// NewPolicies are those of the network namespace in which they are applied.
func NewPolicies() *Policies { return &Policies{read: readPolicies} }

// Apply makes the plan be in force, in one transaction.
func (p *Policies) Apply(ctx context.Context, plan *hostpolicy.Plan) error {
	left := p.left
	p.left = nil
	there, err := p.read()
	switch {
	case err != nil && plan.IsEmpty() && p.open() != nil:
		return nil // Here is no nftables, and none is needed.
	case err != nil:
		return err
	case plan.IsEmpty() && there.isEmpty():
		return nil
	}
	if err := p.open(); err != nil {
		return err
	}
	tx := p.nft.NewTransaction()
	tx.Add(&knftables.Table{Comment: knftables.PtrTo("what the host sends to its Pods, and policies for the host")})
	w := &writer{tx: tx, plan: plan, sets: make(map[string]bool), stand: make(map[string]bool)}
	for _, name := range there.sets {
		w.stand[name] = left != nil && slices.Contains(left.sets, name)
	}
	w.chains()
	if !plan.IsEmpty() {
		w.write()
	}
	for _, name := range there.sets {
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
	if p.left, err = p.read(); err != nil {
		return err
	}
	former := p.sums
	p.sums = make(map[string]uint64)
	for name := range w.sets {
		if w.stand[name] {
			p.sums[name] = former[name]
		}
	}
	return nil
}

// Intact says whether the table still has what the last Apply put there. What a
// set holds it knows from its first look: to list a large one is slow.
func (p *Policies) Intact(ctx context.Context) (bool, error) {
	if p.left == nil {
		return true, nil
	}
	now, err := p.read()
	if err != nil {
		return false, err
	}
	intact := slices.Equal(now.rules, p.left.rules) && slices.Equal(now.sets, p.left.sets)
	for _, name := range now.sets {
		if !intact {
			break
		}
		elements, err := p.nft.ListElements(ctx, "set", name)
		if err != nil {
			return false, fmt.Errorf("nftables: list set %s: %w", name, err)
		}
		sum, known := sumOf(elements), p.sums[name]
		intact, p.sums[name] = known == 0 || known == sum, sum
	}
	if !intact {
		p.left = nil
	}
	return intact, nil
}

// sumOf is a hash of elements in any order, never zero.
func sumOf(elements []*knftables.Element) (sum uint64) {
	for _, e := range elements {
		sum += xxh3.HashString(strings.Join(e.Key, " . "))
	}
	return max(sum, 1)
}

func (p *Policies) open() (err error) {
	if p.nft == nil {
		if p.nft, err = knftables.New(knftables.InetFamily, table); err != nil {
			p.nft = nil
			return fmt.Errorf("nftables: %w", err)
		}
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

package hostfw

import (
	"context"
	"errors"
	"fmt"
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

// The chains of policies. Sets of theirs have names that begin with setPrefix, and
// counters ones that begin with counterPrefix.
const (
	chainNodePorts = "node-ports"
	chainHostIn    = "host-in"
	chainHostOut   = "host-out"

	controlSuffix = "-control"
	setPrefix     = "np-"
	counterPrefix = "rule-"
)

// base is where the kernel asks a base chain.
type base struct {
	hook     knftables.BaseChainHook
	priority knftables.BaseChainPriority
}

var baseChains = map[string]base{
	chainNodePorts: {knftables.PreroutingHook, knftables.ManglePriority + " - 10"},
	chainHostIn:    {knftables.InputHook, knftables.FilterPriority},
	chainHostOut:   {knftables.OutputHook, knftables.FilterPriority},
}

// ladder is the chains of a list of rules: the tiers' and the baseline, and both
// once more with the staged policies.
type ladder struct{ rules, baseline, staged, stagedBaseline string }

func ladderOf(name string) ladder {
	return ladder{name + "-rules", name + "-baseline", name + "-staged", name + "-staged-baseline"}
}

var nodePortsLadder = ladderOf(chainNodePorts)

// Names that tests know.
const (
	chainRules    = "node-ports-rules"
	chainBaseline = "node-ports-baseline"
)

func (l ladder) chains() []string {
	return []string{l.rules, l.staged, l.baseline, l.stagedBaseline}
}

var (
	nodePortChains = append([]string{chainNodePorts}, nodePortsLadder.chains()...)
	hostChains     = slices.Concat([]string{chainHostIn, chainHostOut}, ladderOf(chainHostIn+controlSuffix).chains(), ladderOf(chainHostIn).chains(),
		ladderOf(chainHostOut+controlSuffix).chains(), ladderOf(chainHostOut).chains())

	// policyChains are all of them, each before those that it goes to.
	policyChains = slices.Concat(nodePortChains, hostChains)
)

// Policies are a host's policies in its firewall:
//
//	node-ports   between conntrack and any translation (hook prerouting, priority mangle - 10)
//	  from the host itself, or of a connection that is there: accept
//	  to a port that a rule names, at an address of the node: goto rules
//	host-in, host-out   hooks input and output, behind any translation
//	  to itself, of a connection that is there, neighbours, the tunnel: accept
//	  what steers the node: goto control, the rules but for those that are overruled there
//	  goto rules
//	rules        jump staged, the tiers' rules, goto baseline; a Pass goes there at once
//	staged       the same with the staged policies among them: it reports and comes back
//
// Each of node-ports, host-in, host-in-control, host-out and host-out-control has
// the last two of its own. What they accept goes on to the host's other chains, as
// anything does. A set of addresses bears the hash of its content, so that rules
// share it and one that stays is not touched. A rule counts by a counter that bears
// its name, and counts on from plan to plan. It belongs to one goroutine at a time.
type Policies struct {
	nft   knftables.Interface // Nil until there is nftables.
	read  func() (*standing, error)
	left  *standing         // What was read after the last Apply. Nil: nothing was put, or what stands is not that.
	sums  map[string]uint64 // Of the elements of sets, once they were read.
	used  map[string]bool   // Counters of the last Apply's rules. Nil: there was none.
	quiet bool              // The kernel refuses to log packets itself.
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
	w, err := p.put(ctx, plan, there, left)
	if err != nil && !p.quiet && plan.Logs() {
		// A kernel that cannot log packets itself refuses rules that ask for it.
		p.quiet = true
		if w, err = p.put(ctx, plan, there, left); err != nil {
			p.quiet = false
		}
	}
	if err != nil {
		return fmt.Errorf("nftables: policies for the host: %w", err)
	}
	p.used = w.counters
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

// put makes the plan be in force, given what there is of ours.
func (p *Policies) put(ctx context.Context, plan *hostpolicy.Plan, there, left *standing) (*writer, error) {
	tx := p.nft.NewTransaction()
	tx.Add(&knftables.Table{Comment: knftables.PtrTo("what the host sends to its Pods, and policies for the host")})
	w := &writer{tx: tx, plan: plan, sets: make(map[string]bool), stand: make(map[string]bool), counters: make(map[string]bool), quiet: p.quiet}
	for _, name := range there.sets {
		w.stand[name] = left != nil && slices.Contains(left.sets, name)
	}
	wanted := w.chains(there.chains)
	w.write()
	for _, name := range there.sets {
		if !w.sets[name] {
			tx.Delete(&knftables.Set{Name: name})
		}
	}
	for _, name := range policyChains {
		if slices.Contains(there.chains, name) && !wanted[name] {
			tx.Delete(&knftables.Chain{Name: name})
		}
	}
	return w, p.nft.Run(ctx, tx)
}

// LogsItself says whether the kernel logs what rules have it log, as far as it
// was asked.
func (p *Policies) LogsItself() bool { return !p.quiet }

// Tally is what a rule's counter has counted.
type Tally struct{ Packets, Bytes uint64 }

// Count reads all counters of rules, by their names. Those that no rule has any
// more are gone once they were read: nothing counts by them.
func (p *Policies) Count(ctx context.Context) (map[string]Tally, error) {
	if p.nft == nil {
		return nil, nil
	}
	list, err := p.nft.ListCounters(ctx)
	if knftables.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("nftables: list counters: %w", err)
	}
	found := make(map[string]Tally)
	tx := p.nft.NewTransaction()
	for _, c := range list {
		if !strings.HasPrefix(c.Name, counterPrefix) || c.Packets == nil || c.Bytes == nil {
			continue
		}
		found[c.Name] = Tally{*c.Packets, *c.Bytes}
		if p.used != nil && !p.used[c.Name] {
			tx.Delete(&knftables.Counter{Name: c.Name})
		}
	}
	if tx.NumOperations() == 0 {
		return found, nil
	}
	if err := p.nft.Run(ctx, tx); err != nil {
		return nil, fmt.Errorf("nftables: remove counters that no rule has: %w", err)
	}
	return found, nil
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
	List   hostpolicy.List
	Rule   int  // Among the list's rules.
	Staged bool // It is of the world with the staged policies.
}

const prefixMark = "weir"

// prefix is how a rule's reports begin.
func (r Report) prefix() string {
	kind := "rule"
	if r.Staged {
		kind = "staged"
	}
	return fmt.Sprintf("%s:%016x:%s:%d:%d", prefixMark, r.Plan, kind, r.List, r.Rule)
}

var errPrefix = errors.New("no report of ours")

// ParseReport reads the prefix of a report.
func ParseReport(prefix string) (r Report, err error) {
	parts := strings.Split(strings.TrimRight(prefix, "\x00"), ":")
	if len(parts) != 5 || parts[0] != prefixMark || (parts[2] != "rule" && parts[2] != "staged") {
		return r, errPrefix
	}
	if r.Plan, err = strconv.ParseUint(parts[1], 16, 64); err != nil {
		return r, errPrefix
	}
	list, err := strconv.ParseUint(parts[3], 10, 8)
	if r.List = hostpolicy.List(list); err != nil || r.List > hostpolicy.Egress {
		return r, errPrefix
	}
	if r.Rule, err = strconv.Atoi(parts[4]); err != nil || r.Rule < 0 {
		return r, errPrefix
	}
	r.Staged = parts[2] == "staged"
	return r, nil
}

// labelLength is how much of a log label is in the kernel's log.
const labelLength = 12

var actionNames = map[policyv1.Action]string{policyv1.Action_ACTION_ALLOW: "Allow", policyv1.Action_ACTION_DROP: "Drop", policyv1.Action_ACTION_REJECT: "Reject", policyv1.Action_ACTION_PASS: "Pass"}

// KernelPrefix is how lines of the kernel's log begin that are about a rule, as
// Antrea has them: "Antrea:I:Reject:label:".
func KernelPrefix(l hostpolicy.List, r *hostpolicy.Rule) string {
	direction := "I"
	if l == hostpolicy.Egress {
		direction = "O"
	}
	prefix := fmt.Sprintf("Antrea:%s:%s:", direction, actionNames[r.Action])
	if label := r.LogLabel; label != "" {
		prefix += label[:min(len(label), labelLength)] + ":"
	}
	return prefix
}

// CounterName is the name of a rule's counter.
func CounterName(l hostpolicy.List, r *hostpolicy.Rule) string {
	id := fmt.Sprintf("%d %d %q %q %q %d", l, r.Policy.GetKind(), r.Policy.GetNamespace(), r.Policy.GetName(), r.UID, r.Index)
	return fmt.Sprintf("%s%016x", counterPrefix, xxh3.HashString(id))
}

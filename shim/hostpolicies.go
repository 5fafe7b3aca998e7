package shim

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/hostfw"
	"github.com/weirnet/weir/shim/hostpolicy"
	"github.com/weirnet/weir/shim/nflog"
	"github.com/weirnet/weir/shim/packetlog"
	"github.com/weirnet/weir/shim/pipeline"
	"github.com/weirnet/weir/storage"
)

// firewall is the host's, as far as policies are in it: hostfw.Policies.
type firewall interface {
	Apply(ctx context.Context, plan *hostpolicy.Plan) error
	Intact(ctx context.Context) (bool, error)
	LogsItself() bool
	Count(ctx context.Context) (map[string]hostfw.Tally, error)
}

// hostPolicies keeps the node's own firewall as policies for the host say. A cut
// is not answered before it is. It needs no bridge: with Open vSwitch away it
// goes on.
type hostPolicies struct {
	shim    *Shim
	logger  hclog.Logger
	opened  chan *nflog.Reader // One slot.
	records *hostRecords
	counts  *hostCounts

	mu       sync.Mutex // Guards what follows, and the firewall while it is spoken to.
	fw       firewall
	begun    bool // The state is whole, and known from here on.
	policies map[storage.ScopeID]map[string]*policyv1.Policy
	groups   map[storage.ScopeID]bool // Address groups whose members the policies name.
	known    hostpolicy.Known         // What is known of these.
	facts    *policyv1.NodeFacts
	servers  []netip.AddrPort // Policy services, as they were found last.
	sought   time.Time        // When they were looked for.
	plan     *hostpolicy.Plan // Nil: none yet.
	problems []hostpolicy.Problem
	lockouts map[string]bool // That were said.
	failed   error           // Why the plan is not in force; nil: it is.
	reader   *nflog.Reader
	said     string    // Why there is none, as it was logged.
	deaf     time.Time // Since when there is none though there should be. Zero: it is not so.
	mute     bool      // It was said that the kernel logs nothing itself.
	checked  time.Time
	took     time.Duration // The last check.
}

// errPending is why a plan is not in force that was not tried yet.
var errPending = errors.New("not in force yet")

func newHostPolicies(s *Shim) *hostPolicies {
	return &hostPolicies{shim: s, logger: s.logger.Named("host"), opened: make(chan *nflog.Reader, 1),
		fw: hostfw.NewPolicies(), policies: make(map[storage.ScopeID]map[string]*policyv1.Policy), records: newHostRecords(s),
		counts: openHostCounts(s.cfg.StateDir, s.logger.Named("counters"))}
}

// begin takes over what a checkpoint says, until there is better.
func (h *hostPolicies) begin(ctx context.Context, state *storage.Replica) { h.cut(ctx, state, nil) }

// cut puts what was touched in force, and returns the items that are not. It is
// called again with nothing touched for as long as there are any.
func (h *hostPolicies) cut(ctx context.Context, state *storage.Replica, touched storage.Touched) []*policyv1.ItemError {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.begun {
		h.begun, touched = true, pipeline.Whole(state)
	}
	changed := h.look(state, touched)
	if h.findServers(ctx, time.Now()) || changed || h.plan == nil {
		h.devise(state)
	}
	if h.failed != nil {
		h.enforce(ctx)
	}
	return h.errors()
}

// look takes over what was touched, and says whether any of it matters here.
func (h *hostPolicies) look(state *storage.Replica, touched storage.Touched) (changed bool) {
	for id, ts := range touched {
		kind, held := state.Kind(id)
		_, facts := ts.Keys["node"]
		if h.groups[id] {
			changed = true
			h.known.Forget(id[:])
		}
		switch {
		case !held || kind == storage.ScopePolicies && ts.All:
			changed = changed || len(h.policies[id]) > 0
			delete(h.policies, id)
			if held {
				state.Scope(id, func(key string, item *policyv1.Item) { changed = h.know(id, key, item) || changed })
			}
		case kind == storage.ScopePolicies:
			for key := range ts.Keys {
				changed = h.know(id, key, state.Item(id, key)) || changed
			}
		case kind == storage.ScopeNode && (facts || ts.All):
			h.facts, changed = state.Item(id, "node").GetNode(), true
		}
	}
	return changed
}

// know takes over an item of policies, or that it is gone.
func (h *hostPolicies) know(id storage.ScopeID, key string, item *policyv1.Item) (changed bool) {
	p := item.GetPolicy()
	_, had := h.policies[id][key]
	switch {
	case hostpolicy.Concerns(p):
		if h.policies[id] == nil {
			h.policies[id] = make(map[string]*policyv1.Policy)
		}
		h.policies[id][key] = p
		return true
	case had:
		delete(h.policies[id], key)
	}
	return had
}

func (h *hostPolicies) items() (items []hostpolicy.Item) {
	for id, policies := range h.policies {
		for key, p := range policies {
			items = append(items, hostpolicy.Item{Scope: id, Key: key, Policy: p})
		}
	}
	return items
}

// enforce makes the plan be in force, or keeps why it is not.
func (h *hostPolicies) enforce(ctx context.Context) {
	h.records.expect(h.plan)
	h.counts.expect(h.plan)
	h.listen()
	err := h.fw.Apply(ctx, h.plan)
	switch {
	case err == nil:
		h.logger.Debug("policies for the host are in force", "rules", h.plan.Count())
		h.shim.metrics.hostRules.Set(float64(h.plan.Count()))
		if mute := !h.fw.LogsItself(); mute != h.mute {
			h.mute = mute
			h.logger.Warn("the kernel does not log packets itself here; what rules of the node log is on record with the collector alone")
		}
	case h.failed == nil || h.failed.Error() != err.Error():
		h.logger.Error("policies for the host are not in force; trying on", "err", err)
	}
	h.failed = err
}

// errors are the items that are not realised.
func (h *hostPolicies) errors() (out []*policyv1.ItemError) {
	for _, p := range h.problems {
		out = append(out, &policyv1.ItemError{Scope: p.Scope[:], Key: p.Key, Error: p.Err.Error()})
	}
	if h.failed == nil {
		return out
	}
	for _, id := range slices.SortedFunc(maps.Keys(h.policies), func(a, b storage.ScopeID) int { return bytes.Compare(a[:], b[:]) }) {
		for _, key := range slices.Sorted(maps.Keys(h.policies[id])) {
			out = append(out, &policyv1.ItemError{Scope: id[:], Key: key, Error: h.failed.Error()})
		}
	}
	return out
}

// run keeps what is in force as it is, and reads what it reports.
func (h *hostPolicies) run(ctx context.Context) error {
	if h.shim.cfg.NodePolicies && !kernelLogs(allNetns) {
		h.logger.Warn("the node is in a network namespace of its own, whose packets the kernel logs only where the machine's net.netfilter.nf_log_all_netns is 1; else what rules of the node log is on record with the collector alone")
	}
	reconcile := time.NewTicker(h.shim.cfg.Reconcile)
	defer reconcile.Stop()
	count := time.NewTicker(h.shim.cfg.StatsInterval)
	defer count.Stop()
	second := time.NewTicker(time.Second)
	defer second.Stop()
	turn := time.NewTicker(packetlog.Window / 4)
	defer turn.Stop()
	var reader *nflog.Reader
	ended := make(chan error, 1)
	defer func() {
		if reader != nil {
			<-ended
			reader.Close()
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case reader = <-h.opened:
			go func() { ended <- reader.Run(ctx, h.records.report) }()
		case err := <-ended:
			reader.Close()
			reader = nil
			h.closed(ctx, err)
		case now := <-reconcile.C:
			h.mend(ctx, now)
		case now := <-count.C:
			h.count(ctx, now)
		case <-h.records.reports.Wake():
			h.records.take(time.Now())
		case now := <-turn.C:
			h.records.take(now)
		case now := <-second.C:
			h.records.countLosses(reader, now)
			h.retry(ctx)
		}
	}
}

// retry tries again what did not work: no cut may come that would.
func (h *hostPolicies) retry(ctx context.Context) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.plan == nil {
		return
	}
	if h.failed != nil {
		h.enforce(ctx)
		return
	}
	h.listen()
}

// count reads what rules matched.
func (h *hostPolicies) count(ctx context.Context, now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.plan == nil || h.failed != nil {
		return // What stands is not what is known.
	}
	found, err := h.fw.Count(ctx)
	if err != nil {
		h.logger.Error("what rules for the host matched cannot be read", "err", err)
		return
	}
	if since := h.counts.take(found, now); !since.IsZero() {
		h.shim.counts.lost(since)
	}
}

// mend puts right what others did to our rules. Reading takes longer with large
// sets, and is put off by a multiple of that.
func (h *hostPolicies) mend(ctx context.Context, now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.plan == nil || h.plan.IsEmpty() || h.failed != nil || now.Sub(h.checked) < readShare*h.took {
		return
	}
	intact, err := h.fw.Intact(ctx)
	h.checked, h.took = time.Now(), time.Since(now)
	switch {
	case err != nil:
		h.logger.Error("rules for the host cannot be read", "err", err)
	case !intact:
		h.logger.Warn("rules for the host were changed by others; they are put right")
		h.failed = errPending
		if h.enforce(ctx); h.failed == nil {
			h.shim.metrics.hostMended.Inc()
		}
	}
}

// listen has reports read, as soon as there is anything to report.
func (h *hostPolicies) listen() {
	if h.reader != nil || !h.plan.Logs() {
		return
	}
	r, err := nflog.Open(hostfw.LogGroup)
	if err != nil {
		if h.deaf.IsZero() {
			h.deaf = time.Now()
		}
		if err.Error() != h.said {
			h.said = err.Error()
			h.logger.Error("what rules for the host log cannot be read; trying on", "err", err)
		}
		return
	}
	if !h.deaf.IsZero() {
		h.records.missed(h.deaf, time.Now())
	}
	h.reader, h.said, h.deaf = r, "", time.Time{}
	h.opened <- r
}

// closed gives a reader up that failed; retry opens another.
func (h *hostPolicies) closed(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.logger.Error("what rules for the host log cannot be read any more; trying on", "err", err)
	h.reader, h.deaf = nil, time.Now()
}

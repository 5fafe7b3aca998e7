package audit

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/audit/record"
	"github.com/weirnet/weir/services/audit/trail"
	"github.com/weirnet/weir/storage/atomicfile"
	"github.com/weirnet/weir/storage/eventlog"
)

// Bounds of an overview.
const (
	maxRules         = 16384 // Beyond, packets and losses are counted in one row for all.
	maxRulesTold     = 4096
	overviewInterval = time.Minute // Between two looks at what is to be kept, and forgotten.
	overviewBatch    = 4096        // Records between two looks at the context.
)

// indexFormat is the file that keeps where changes lie: made anew from the log if
// it is not there, or damaged.
var indexFormat = atomicfile.Format{Magic: "WEIRAIDX", Version: 1}

// overview knows where in the log the changes lie, for which it reads those beside
// the sinks; and what came into the log of each rule, which is counted as it comes.
type overview struct {
	log    *eventlog.Log
	path   string // Of the file of the index. Empty: it is not kept.
	logger hclog.Logger

	mu      sync.RWMutex // Guards what follows.
	after   uint64       // All changes up to it are read.
	index   *trail.Index
	dropped bool // Retention took the last that the log told of an object that is there.
	waiters []waiter

	// counting guards rules. It is held for the counting alone: the log's writer waits
	// for it.
	counting sync.Mutex
	rules    map[ruleKey]*ruleCount
}

type ruleKey struct {
	policy    record.Policy
	rule      string
	direction policyv1.Direction
	reason    string
}

type ruleCount struct{ packets, lost uint64 }

// waiter waits until all up to a cursor is read.
type waiter struct {
	cursor uint64
	done   chan struct{}
}

// newOverview reads the file of the index.
func newOverview(log *eventlog.Log, path string, logger hclog.Logger) *overview {
	o := &overview{log: log, path: path, logger: logger, index: trail.NewIndex(0), rules: make(map[ruleKey]*ruleCount)}
	content, err := atomicfile.Read(path, indexFormat)
	if err == nil {
		err = errors.New("cut short")
		if len(content) >= 8 {
			err = o.index.Read(content[8:])
		}
	}
	switch _, newest := log.Range(); {
	case err == nil && binary.BigEndian.Uint64(content) <= newest:
		o.after = binary.BigEndian.Uint64(content)
	case err == nil: // Of another log.
		o.index = trail.NewIndex(0)
	case !errors.Is(err, fs.ErrNotExist):
		logger.Warn("the index of changes cannot be read; it is made from the log", "file", path, "err", err)
	}
	return o
}

// Run reads the log until the context ends.
func (o *overview) Run(ctx context.Context) error {
	wake, stop := o.log.Follow()
	defer stop()
	tick := time.NewTicker(overviewInterval)
	defer tick.Stop()
	reader, decoder := o.log.NewReader(o.after).Only(changesNode), record.NewDecoder()
	for {
		more, err := o.read(reader, decoder)
		if err != nil {
			o.logger.Error("cannot read the log; the overview is behind", "cursor", reader.After(), "err", err)
		}
		if more && ctx.Err() == nil {
			continue
		}
		select {
		case <-wake:
			continue
		case <-tick.C:
		case <-ctx.Done():
		}
		if err := o.keep(); err != nil {
			o.logger.Error("the index of changes cannot be kept; it will be made from the log", "err", err)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// read takes a run of records.
func (o *overview) read(reader *eventlog.Reader, decoder *record.Decoder) (more bool, err error) {
	defer func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.after = reader.After()
		o.waiters = slices.DeleteFunc(o.waiters, func(w waiter) bool {
			if w.cursor <= o.after {
				close(w.done)
			}
			return w.cursor <= o.after
		})
	}()
	var event record.Event
	for range overviewBatch {
		e, ok, err := reader.Next()
		if err != nil || !ok {
			return false, err
		}
		if err := decoder.DecodeInto(e.Data, &event); err != nil {
			continue // Of another version; the sinks tell.
		}
		if event.Kind == record.KindChange {
			o.mu.Lock()
			o.index.Add(e.Cursor, event.Change)
			o.mu.Unlock()
		}
	}
	return true, nil
}

// tally is what a batch has of each rule. A batch has few rules: a row is looked
// for among the latest, and may be there twice.
type tally []tallyRow

type tallyRow struct {
	key ruleKey
	ruleCount
}

const tallyLooks = 16

func (t *tally) add(e *record.Event) {
	var k ruleKey
	var c ruleCount
	switch e.Kind {
	case record.KindPacket:
		k, c = ruleOf(&e.Packet), ruleCount{packets: e.Packet.Count}
	case record.KindLoss:
		l := &e.Loss
		k, c = ruleKey{l.Policy, l.Rule, l.Direction, l.Reason}, ruleCount{lost: l.Count}
	default:
		return
	}
	rows := *t
	for i := len(rows) - 1; i >= max(0, len(rows)-tallyLooks); i-- {
		if rows[i].key == k {
			rows[i].packets += c.packets
			rows[i].lost += c.lost
			return
		}
	}
	*t = append(rows, tallyRow{k, c})
}

// count takes what came into the log.
func (o *overview) count(t tally) {
	o.counting.Lock()
	defer o.counting.Unlock()
	for i := range t {
		c := o.ruleLocked(t[i].key)
		c.packets += t[i].packets
		c.lost += t[i].lost
	}
}

// countSome takes the end of a batch, whose beginning the log had before.
func (o *overview) countSome(events []eventlog.Event) {
	var t tally
	var e record.Event
	decoder := record.NewDecoder()
	for i := range events {
		if decoder.DecodeInto(events[i].Data, &e) == nil { // It was read before.
			t.add(&e)
		}
	}
	o.count(t)
}

// ruleOf is the rule that a packet is counted for: of policies that isolate
// together, none.
func ruleOf(p *record.Packet) ruleKey {
	k := ruleKey{rule: p.Rule, direction: p.Direction, reason: p.Reason}
	if len(p.Policies) == 1 || len(p.Policies) > 1 && !p.Isolation {
		k.policy = p.Policies[0]
	}
	return k
}

func (o *overview) ruleLocked(k ruleKey) *ruleCount {
	c := o.rules[k]
	if c == nil {
		if len(o.rules) >= maxRules {
			k = ruleKey{}
			if c = o.rules[k]; c != nil {
				return c
			}
		}
		c = &ruleCount{}
		o.rules[k] = c
	}
	return c
}

// keep forgets what retention took, and keeps the index.
func (o *overview) keep() error {
	oldest, _ := o.log.Range()
	content := o.trim(oldest)
	if content == nil || o.path == "" {
		return nil
	}
	return atomicfile.Write(o.path, indexFormat, content)
}

// trim forgets what retention took, and encodes the index if it has changed.
func (o *overview) trim(oldest uint64) []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	live := len(o.index.Live(nil))
	o.index.Trim(oldest)
	o.dropped = o.dropped || len(o.index.Live(nil)) < live
	if !o.index.Changed() {
		return nil
	}
	return o.index.Append(binary.BigEndian.AppendUint64(nil, o.after))
}

// await returns when all that the log holds now is read.
func (o *overview) await(ctx context.Context) error {
	_, newest := o.log.Range()
	o.mu.Lock()
	if o.after >= newest {
		o.mu.Unlock()
		return nil
	}
	w := waiter{newest, make(chan struct{})}
	o.waiters = append(o.waiters, w)
	o.mu.Unlock()
	select {
	case <-w.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// last is the latest change of an object.
func (o *overview) last(k trail.Key) (trail.Entry, bool) {
	o.mu.RLock()
	defer o.mu.RUnlock()
	return o.index.Last(k)
}

// live are the latest changes of objects that are there, but for those told.
func (o *overview) live(told map[trail.Key]bool) []trail.Entry {
	o.mu.RLock()
	defer o.mu.RUnlock()
	return o.index.Live(told)
}

// forgot says, once, whether retention took what the log told of an object that is
// there.
func (o *overview) forgot() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	was := o.dropped
	o.dropped = false
	return was
}

// at is trail.Index.At.
func (o *overview) at(k trail.Key, at time.Time, v record.Version) (e trail.Entry, next *trail.Entry, ok bool) {
	o.mu.RLock()
	defer o.mu.RUnlock()
	e, next, ok = o.index.At(k, at, v)
	if next != nil {
		copied := *next
		next = &copied
	}
	return e, next, ok
}

// ruleEvents are the rules with most packets, lost ones too.
func (o *overview) ruleEvents() []*auditv1.RuleEvents {
	o.counting.Lock()
	defer o.counting.Unlock()
	out := make([]*auditv1.RuleEvents, 0, len(o.rules))
	for k, c := range o.rules {
		r := &auditv1.RuleEvents{Rule: k.rule, Direction: k.direction, Reason: k.reason, Packets: c.packets, Lost: c.lost}
		if k.policy.Name != "" {
			r.Policy = &policyv1.PolicyRef{Kind: k.policy.Kind, Namespace: k.policy.Namespace, Name: k.policy.Name}
		}
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b *auditv1.RuleEvents) int {
		return cmp.Or(cmp.Compare(b.Packets+b.Lost, a.Packets+a.Lost), cmp.Compare(ruleText(a), ruleText(b)))
	})
	return out[:min(len(out), maxRulesTold)]
}

func ruleText(r *auditv1.RuleEvents) string {
	p := r.GetPolicy()
	return fmt.Sprint(p.GetKind(), " ", p.GetNamespace(), "/", p.GetName(), " ", r.GetRule(), " ", r.GetDirection(), " ", r.GetReason())
}

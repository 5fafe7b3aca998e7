package audit

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/audit/facts"
	"github.com/weirnet/weir/services/audit/trail"
	"github.com/weirnet/weir/services/rpc"
	"github.com/weirnet/weir/storage/eventlog"
)

// changesNode is where changes come from, as the log names nodes.
const changesNode = "policyd.weir.dev"

// Pauses of a watcher.
const (
	watchMinBackoff = 200 * time.Millisecond
	watchMaxBackoff = 10 * time.Second
	retellInterval  = time.Hour
	othersWait      = 500 * time.Millisecond
)

// watcher follows the policy service: what it tells of addresses and versions goes
// into facts, and changes of policies, tiers and groups into the log. Without the
// policy service records go without names; what is known stays known.
type watcher struct {
	addresses []string // host:port of replicas; any of them.
	creds     credentials.TransportCredentials
	facts     *facts.Facts
	overview  *overview
	log       *eventlog.Log
	logger    hclog.Logger
	now       func() time.Time
	shared    bool          // Other collectors may write to the log.
	retell    time.Duration // At least so long between two snapshots for what retention took.

	connected atomic.Bool // All that there is has been told, and changes are.
	boot      string
	sequence  uint64 // Of the last event. Run's.
	told      time.Time
}

// Run follows until the context ends.
func (w *watcher) Run(ctx context.Context) error {
	boot := make([]byte, 8)
	if _, err := rand.Read(boot); err != nil {
		return fmt.Errorf("name a boot of the change trail: %w", err)
	}
	w.boot = hex.EncodeToString(boot)
	if err := w.overview.await(ctx); err != nil {
		return err
	}
	pause, failing := watchMinBackoff, false
	for i := mrand.N(len(w.addresses)); ; i++ {
		address := w.addresses[i%len(w.addresses)]
		err := w.watch(ctx, address)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if w.connected.Swap(false) {
			pause, failing = watchMinBackoff, false
		}
		if !failing && !errors.Is(err, errRetell) {
			failing = true
			w.logger.Warn("the policy service cannot be followed; what comes is named by what is known", "server", address, "err", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause/2 + mrand.N(pause/2+1)):
		}
		pause = min(2*pause, watchMaxBackoff)
	}
}

var errRetell = errors.New("objects are to be told again")

// watch follows one replica to the first error.
func (w *watcher) watch(ctx context.Context, address string) error {
	creds := w.creds
	if creds == nil {
		creds = insecure.NewCredentials()
	}
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(creds), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(rpc.MaxMessageBytes)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 20 * time.Second, Timeout: 10 * time.Second}))
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := policyv1.NewInspectionServiceClient(conn).WatchChanges(ctx, &policyv1.WatchChangesRequest{})
	if err != nil {
		return err
	}
	w.facts.Begin()
	told := make(map[trail.Key]bool)
	for {
		resp, err := stream.Recv()
		if err != nil {
			return err
		}
		if err := w.take(ctx, resp.GetChanges(), told); err != nil {
			return err
		}
		if resp.GetComplete() && told != nil {
			if err := w.complete(ctx, told); err != nil {
				return err
			}
			told = nil
			w.logger.Info("following the policy service", "server", address, "known", w.facts.Known())
		}
		if told == nil && w.now().Sub(w.told) > w.retell && w.overview.forgot() {
			return errRetell
		}
	}
}

// take takes a run of changes; of a snapshot, told notes whose they are.
func (w *watcher) take(ctx context.Context, changes []*policyv1.ObjectChange, told map[trail.Key]bool) error {
	var versions []*policyv1.ObjectChange
	for _, c := range changes {
		if w.facts.Apply(c); c.GetVersion() != nil {
			versions = append(versions, c)
		}
	}
	if len(versions) == 0 {
		return nil
	}
	if w.shared {
		if err := w.letOthers(ctx); err != nil {
			return err
		}
	}
	var events []*auditv1.ChangeEvent
	for _, c := range versions {
		v := c.GetVersion()
		k := trail.KeyOf(v)
		if told != nil && !c.GetRemoved() {
			told[k] = true
		}
		entry, known := w.overview.last(k)
		if known && !c.GetRemoved() && entry.Tells(v) {
			continue
		}
		var last *policyv1.ObjectVersion
		if known && !entry.Deleted {
			e, err := w.change(entry.Cursor)
			if err != nil {
				return err
			}
			last = e.GetObject()
		}
		if e := trail.Event(c, last, told != nil); e != nil {
			events = append(events, e)
		}
	}
	return w.append(ctx, events)
}

// letOthers waits for a while of random length, for collectors on the same log that
// are told the same: whoever is first stores it, and the others find it there.
func (w *watcher) letOthers(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(mrand.N(othersWait)):
	}
	return w.overview.await(ctx)
}

// complete ends a snapshot: what the log knows and was not told is gone.
func (w *watcher) complete(ctx context.Context, told map[trail.Key]bool) error {
	now := w.now()
	w.facts.Complete(now)
	var events []*auditv1.ChangeEvent
	for _, entry := range w.overview.live(told) {
		e, err := w.change(entry.Cursor)
		if err != nil {
			return err
		}
		events = append(events, &auditv1.ChangeEvent{Time: timestamppb.New(now), Kind: auditv1.ChangeKind_CHANGE_KIND_DELETED,
			Object: e.GetObject(), PodsBefore: e.GetPodsAfter()})
	}
	w.told = now
	w.connected.Store(true)
	return w.append(ctx, events)
}

// change is what the log has at a cursor.
func (w *watcher) change(cursor uint64) (*auditv1.ChangeEvent, error) {
	r, err := recordAt(w.log, cursor)
	if err != nil {
		return nil, err
	}
	if r.GetEvent().GetChange() == nil {
		return nil, fmt.Errorf("record %d is no change", cursor)
	}
	return r.GetEvent().GetChange(), nil
}

// recordAt is the record at a cursor. It is gone if retention took it.
func recordAt(log *eventlog.Log, cursor uint64) (*auditv1.Record, error) {
	if cursor == 0 {
		return nil, errNoRecord
	}
	e, ok, err := log.NewReader(cursor - 1).Next()
	if err != nil {
		return nil, err
	}
	if !ok || e.Cursor != cursor {
		return nil, errNoRecord
	}
	return toRecord(&e)
}

var errNoRecord = errors.New("the log has no record at this cursor, or none any more")

// toRecord is an entry as readers get it.
func toRecord(e *eventlog.Entry) (*auditv1.Record, error) {
	event := &auditv1.Event{}
	if err := proto.Unmarshal(e.Data, event); err != nil {
		return nil, fmt.Errorf("record %d: %w", e.Cursor, err)
	}
	return &auditv1.Record{Cursor: e.Cursor, Node: e.Node, Boot: e.Boot, Sequence: e.Sequence, Received: timestamppb.New(e.Received), Event: event}, nil
}

// Bounds of one batch of changes.
const (
	changeBatchEvents = 256
	changeBatchBytes  = 1 << 20
)

// append stores events, and returns when the overview knows them. While the log
// cannot be written it tries again: what changed in between comes as one change.
func (w *watcher) append(ctx context.Context, events []*auditv1.ChangeEvent) error {
	for len(events) > 0 {
		b := eventlog.Batch{Node: changesNode, Boot: w.boot, First: w.sequence + 1, Received: w.now()}
		size := 0
		for len(events) > 0 && len(b.Events) < changeBatchEvents && size < changeBatchBytes {
			data, err := proto.Marshal(&auditv1.Event{Kind: &auditv1.Event_Change{Change: events[0]}})
			if err != nil {
				return fmt.Errorf("encode a change of %s: %w", trail.KeyOf(events[0].GetObject()), err)
			}
			size += len(data)
			b.Events = append(b.Events, eventlog.Event{Data: data})
			events = events[1:]
		}
		for pause := watchMinBackoff; ; pause = min(2*pause, watchMaxBackoff) {
			if _, err := w.log.Append(ctx, b); err == nil {
				break
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(pause):
			}
		}
		w.sequence += uint64(len(b.Events))
		if err := w.overview.await(ctx); err != nil {
			return err
		}
	}
	return nil
}

package shim

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/bridge"
	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/shim/dns"
	"github.com/weirnet/weir/shim/packetlog"
	"github.com/weirnet/weir/shim/pipeline"
	"github.com/weirnet/weir/shim/veth"
	"github.com/weirnet/weir/storage"
	"github.com/weirnet/weir/storage/faultpoint"
)

// Switch is the bridge as the loop uses it. Apply is atomic; Read returns what
// was applied and what others did since. It is safe for concurrent use.
type Switch interface {
	Apply(ctx context.Context, c bridge.Change) error
	Read(ctx context.Context) (bridge.State, error)
	// ReadBut is Read without the flows of which except says so.
	ReadBut(ctx context.Context, except func(openflow.Flow) bool) (bridge.State, error)
	// ReadShared is Read of groups and meters alone.
	ReadShared(ctx context.Context) (bridge.Content, error)
	Ports(ctx context.Context) ([]bridge.Port, error)
	// Counters tells the flows of a filter with what they counted, one after the other,
	// from another goroutine.
	Counters(ctx context.Context, filter openflow.FlowFilter, read func(openflow.Flow)) error
	MeterCounters(ctx context.Context) ([]openflow.MeterStats, error)
	// MeterLimit is the highest id that a meter may have.
	MeterLimit(ctx context.Context) (uint32, error)
	// FlowCounts is how many flows each table holds that holds any.
	FlowCounts(ctx context.Context) (map[uint8]int, error)
	PacketInStats(id uint16) bridge.PacketInStats
	FlushConntrack(ctx context.Context, c bridge.Connections) error
	// PacketOut sends a packet, without waiting for the switch.
	PacketOut(ctx context.Context, p openflow.PacketOut) error
	// Settle returns when every packet meets the flows of the last Apply; the
	// touch flow is one of them.
	Settle(ctx context.Context, touch openflow.Flow) error
}

// Dataplane is a bridge as the Shim runs it.
type Dataplane interface {
	Switch
	// SetUp makes the bridge; Run, called after it, keeps it connected until
	// the context ends.
	SetUp(ctx context.Context) error
	Run(ctx context.Context) error
	// What the bridge tells of itself; the channels stay the same.
	PortsChanged() <-chan struct{}
	Reconnected() <-chan struct{}
	// Connected tells whether the switch can be reached, and how often it was.
	Connected() (bool, uint64)
	PacketIns(id uint16) <-chan openflow.PacketIn
	// Deliver has packet-ins of a controller id handed over in place of that; it is
	// called before Run.
	Deliver(id uint16, take func(openflow.PacketIn))
}

// Holder holds the node's state: the client. Both methods may be called while
// cuts arrive.
type Holder interface {
	// View lends the state, which does not change until fn returns. It is false,
	// and fn not called, while the state is known to be wrong.
	View(fn func(state *storage.Replica)) bool
	// Snapshot is the whole state; nil where there is none that is right.
	Snapshot() *policyv1.Cut
}

// loop is the state that the event loop's goroutine owns.
type loop struct {
	shim      *Shim
	sw        Switch
	compiler  *pipeline.Compiler // Nil until the bridge's own MAC is known.
	refused   error              // Why the last cut was not taken over; nil where it was.
	blocked   error              // Why the state held gives no compiler; nil where that is not what is missing.
	config    pipeline.Config
	former    pipeline.Assignment
	reporters map[uint32]policyv1.Action // What flows of a former life that report to the log do, by the id of a rule or an isolation. Nil: not read yet.
	holder    Holder
	complete  bool // The state is whole: orphans may be swept.
	ports     []pipeline.Port
	held      map[string]*hold             // Of Pods, by the keys of their endpoints.
	vacated   map[netip.Addr]struct{}      // Addresses whose old connections are still to be forgotten.
	unserved  map[pipeline.Served]struct{} // Endpoints whose connections by way of a Service are still to be forgotten.
	addresses pipeline.Addresses           // Of Pods by the checkpoint. Nil: what departed since is known.
	kept      owners                       // What is on disk of open, vacated and unserved.
	state     *os.File                     // Of the digest of the state in force: see noteState. Nil: not opened yet.
	unstored  string                       // Why a file of the state folder could not be written, as it was logged.
	haunted   map[string]bool              // Ports, by id, whose addresses may have a former owner's connections.
	open      map[netip.Addr]string        // Addresses of open ports, with the port's id. Nil: not known yet.
	hidden    map[string]bool              // Ports that the host ignores, by id; of a userspace datapath.
	problems  map[string]string            // Ports that cannot be used, by interface.
	unusable  []*policyv1.PortState        // The same, as they are told.
	opened    map[string]bool              // Ports that were told to be open, by id.
	peers     map[string]net.HardwareAddr  // Of ports whose rows name no MAC, by id.
	unread    bool                         // A MAC could not be read where the Pod has it.
	unmarked  bool                         // The host's own packets could not be marked.
	nobodys   []string                     // Ports that are no Pod's, the host's or its uplink.
	adopting  *adoption                    // Nil: the bridge is ours alone.
	until     time.Time                    // Older connections go on until then. Zero: none does.
	recovery  recovery

	// stale says that the bridge may not hold what the compiler wants, so that
	// it must be read back.
	stale       bool
	settled     bool              // It held that when it was last read back: what differs now, someone else changed.
	disturbed   bool              // Others may have changed something since.
	readAt      time.Time         // When it was last read back,
	readTook    time.Duration     // and for how long that kept the loop.
	unsettled   bool              // Packets may still go by what was there before the last bundle.
	revision    uint64            // That packets have met for a second and more: see forgetRevisions.
	cache       *dns.Cache        // What the names that rules write stand for.
	written     []string          // These names.
	untold      bool              // What they stand for is not what was told.
	leased      time.Time         // When the lease was renewed last: see names.go.
	roomless    string            // Names without room, as they were logged.
	services    map[string]string // Services that names stand for, as they were logged.
	unsaved     bool
	saved       time.Time
	savedAs     uint64      // Revision.
	holdTimer   *time.Timer // Fires when the first of held has waited long enough.
	logLosses   logLosses
	born        time.Duration    // This life, by the machine's monotonic clock.
	samplesLost uint64           // Samples, in our queue, in all.
	unanswered  packetlog.Losses // Of rejected packets.
	lastReport  string

	counts    *counting
	counted   bool                          // What this compiler's flows have counted is on the books, and what they count for.
	reading   bool                          // A reading of counters is under way.
	readings  chan readingDone              // One slot.
	orphans   map[uint32][]openflow.FlowKey // Counting flows that the compiler does not know, by id.
	uncounted string                        // Why counters could not be read, as it was logged.
	spoofs    spoofCounts
	casts     casts
}

func newLoop(s *Shim, sw Switch, h Holder) *loop {
	timer := time.NewTimer(0)
	timer.Stop()
	l := &loop{shim: s, sw: sw, holder: h, held: make(map[string]*hold), haunted: make(map[string]bool), vacated: make(map[netip.Addr]struct{}), unserved: make(map[pipeline.Served]struct{}), services: make(map[string]string), holdTimer: timer,
		unsettled: true, // A former shim may have ended right after a bundle.
		logLosses: newLogLosses(), born: s.counts.now().Up,
		counts: s.counts, readings: make(chan readingDone, 1), orphans: make(map[uint32][]openflow.FlowKey)}
	l.restoreOwners()
	return l
}

// applyRequest is a cut that the client wants in force.
type applyRequest struct {
	ctx     context.Context
	state   *storage.Replica
	touched storage.Touched
	done    chan applyResult
}

type applyResult struct {
	problems []*policyv1.ItemError
	err      error
}

const (
	checkpointInterval = time.Second
	retryInterval      = 200 * time.Millisecond
)

// run is the event loop.
func (l *loop) run(ctx context.Context) error {
	s := l.shim
	flush := time.NewTicker(packetlog.Window / 4)
	defer flush.Stop()
	second := time.NewTicker(time.Second)
	defer second.Stop()
	reconcile := time.NewTicker(s.cfg.Reconcile)
	defer reconcile.Stop()
	retry := time.NewTicker(retryInterval)
	defer retry.Stop()
	count := time.NewTicker(s.cfg.StatsInterval)
	defer count.Stop()
	defer l.holdTimer.Stop()
	for {
		select {
		case <-ctx.Done():
			l.lastReading(ctx)
			l.save(true)
			l.tellNames()
			return ctx.Err()
		case req := <-s.holds:
			l.hold(ctx, req)
		case now := <-l.holdTimer.C:
			l.endHolds(ctx, now)
		case req := <-s.applies:
			req.done <- l.apply(req.ctx, req.state, req.touched)
		case <-s.portsChanged:
			l.refreshPorts(ctx)
		case <-s.reconnected:
			l.stale = true
			l.refreshPorts(ctx)
			s.pods.kick()
		case do := <-s.turns:
			do(ctx)
		case req := <-s.checks:
			resp, err := l.check(ctx)
			req.done <- checkResult{resp, err}
		case <-s.reports.Wake():
			l.takeReports(time.Now())
		case <-s.samples.Wake():
			l.takeReports(time.Now())
		case p := <-s.spoofIns:
			l.spoofed(p)
		case p := <-s.recoveryIns:
			l.recover(ctx, &p)
		case now := <-flush.C:
			l.takeReports(now)
			s.log.Flush(now)
		case now := <-second.C:
			l.countLosses(ctx, now)
			l.countSpoofs(ctx)
			l.endEstablished(ctx, now)
			l.goOnRecovering(ctx, now)
			l.forgetRevisions()
			l.expireNames(ctx, now)
			l.save(false)
			if l.unread || l.unmarked {
				l.refreshPorts(ctx)
			}
		case <-count.C:
			l.readCounters(ctx)
		case r := <-l.readings:
			l.endReading(ctx, r)
		case now := <-reconcile.C:
			l.stale = l.stale || l.due(ctx, now)
		case <-s.disturbed:
			l.disturbed = true
		case now := <-retry.C:
			l.stale = l.stale || l.disturbed && now.Sub(l.readAt) >= disturbedShare*l.readTook
			l.retryHaunted(ctx)
			if err := l.forgetUnserved(ctx); err != nil {
				l.failed(err)
			}
			l.forgetVacated(ctx)
			if err := l.adopt(ctx); err != nil {
				l.failed(err)
			}
		}
		if l.stale {
			l.reconcile(ctx)
		}
	}
}

// apply puts a cut in force.
func (l *loop) apply(ctx context.Context, state *storage.Replica, touched storage.Touched) applyResult {
	if l.adopting != nil {
		l.adopting.begun = true
	}
	if l.compiler == nil {
		l.refreshPorts(ctx)
		switch {
		case l.blocked != nil:
			return refusal(l.blocked)
		case l.compiler == nil:
			return applyResult{err: errors.New("the bridge cannot be read yet")}
		}
	}
	if !l.complete {
		touched = pipeline.Whole(state)
	}
	l.sift(state)
	if l.stale || !l.complete { // The bridge is read back for them.
		l.compiler.Unlisted()
	}
	change, err := l.compiler.Update(state, touched, l.usable())
	if err != nil { // The bridge keeps what it has: nothing is swept for a state that is refused.
		l.unsaved = false // Nor is that state saved: a restart would begin from it.
		l.refused = err
		l.publish(nil)
		return refusal(err)
	}
	l.refused = nil
	l.noteState(state.Digest())
	if !l.complete {
		l.complete, l.stale = true, true // Orphans go, with what the cut brings, in one bundle.
	}
	if err := l.tell(ctx, change); err != nil {
		return applyResult{err: err}
	}
	l.unsaved = true
	l.setNames(ctx)
	if err := l.adopt(ctx); err != nil {
		return applyResult{err: err}
	}
	return applyResult{problems: itemErrors(l.compiler.Problems())}
}

// refusal is the answer to a cut that is not taken over, with the items that are
// to blame where that is known.
func refusal(err error) applyResult {
	var refused *pipeline.Refused
	if errors.As(err, &refused) {
		return applyResult{err: err, problems: itemErrors(refused.Problems)}
	}
	return applyResult{err: err}
}

// tell brings a change to the bridge.
func (l *loop) tell(ctx context.Context, change pipeline.Change) error {
	l.recount(ctx, change.Recounted)
	before := l.open
	l.lease(ctx, time.Now())
	if l.complete { // Else the compiler knows of no Pod, and what was open is.
		l.open = l.compiler.OpenAddresses()
	}
	if before == nil {
		before = l.open // The first look: what was open before is not known, and lives on.
	}
	// A new owner of an address must not inherit connections: they go before its
	// port opens. Those of one that went go with it.
	l.exorcise(ctx, before)
	for addr, port := range before {
		if l.open[addr] != port {
			l.vacated[addr] = struct{}{}
		}
	}
	if l.complete && l.addresses != nil { // The compiler began with this state, and that of the checkpoint may be another.
		change.Vacated = append(change.Vacated, l.compiler.Departed(l.addresses)...)
		l.addresses = nil
	}
	for _, addr := range change.Vacated {
		l.vacated[addr] = struct{}{}
	}
	for _, s := range change.Unserved {
		l.unserved[s] = struct{}{}
	}
	l.keepOwners()
	guard := l.stale || guardChanges(change)
	if guard {
		l.countSpoofs(ctx)
	}
	err := l.bring(ctx, change)
	if guard {
		l.guarded(change)
	}
	if err == nil {
		err = l.forgetPassedOn(ctx)
	}
	if err == nil {
		err = l.forgetUnserved(ctx)
	}
	l.publish(err)
	if err != nil {
		return err
	}
	l.forgetVacated(ctx)
	return nil
}

// bring applies a change to the bridge, by reading it back where it may not
// hold what was there before.
func (l *loop) bring(ctx context.Context, change pipeline.Change) error {
	if l.stale {
		l.settled = false
		return l.reconcile(ctx)
	}
	c := bridge.Change{Upsert: change.Upsert, Delete: change.Delete, PutGroups: change.PutGroups, DeleteGroups: change.DeleteGroups, PutMeters: change.PutMeters}
	if change.More != nil {
		c.More = change.More
	}
	if c.IsEmpty() {
		return nil
	}
	start := time.Now()
	if err := l.put(ctx, c); err != nil {
		l.stale, l.settled = true, false
		return fmt.Errorf("apply to bridge: %w", err)
	}
	l.shim.metrics.applied(c.Upserts()+len(c.Delete), time.Since(start))
	return nil
}

// put applies a change and returns when packets meet it.
func (l *loop) put(ctx context.Context, c bridge.Change) error {
	return l.putSteps(ctx, c, []bridge.Change{c})
}

// putSteps is put of a change in steps.
func (l *loop) putSteps(ctx context.Context, c bridge.Change, steps []bridge.Change) error {
	l.learn(c.EachUpsert)
	l.putMeters(c.PutMeters)
	faultpoint.Reach("shim.apply.learned")
	for _, step := range steps {
		if err := l.sw.Apply(ctx, step); err != nil {
			return err
		}
		l.unsettled = true
	}
	if err := l.settle(ctx); err != nil {
		return err
	}
	faultpoint.Reach("shim.apply.settled")
	return nil
}

// settle waits until packets meet the last change, if they may not yet.
func (l *loop) settle(ctx context.Context) error {
	if !l.unsettled {
		return nil
	}
	if err := l.sw.Settle(ctx, l.compiler.Touch()); err != nil {
		return err
	}
	l.unsettled = false
	return nil
}

// refreshPorts reads the bridge's ports and takes them over.
func (l *loop) refreshPorts(ctx context.Context) {
	var ports []bridge.Port
	err := within(ctx, func(ctx context.Context) (err error) { ports, err = l.sw.Ports(ctx); return err })
	if err != nil {
		l.failed(fmt.Errorf("list ports: %w", err))
		return
	}
	l.unusable, l.unread = nil, false
	problems, peers := make(map[string]string), make(map[string]net.HardwareAddr)
	sorted := sortPorts(ports, l.shim.cfg.Uplink, func(id, netns, device string) (mac net.HardwareAddr, err error) {
		if mac = l.peers[id]; mac == nil {
			mac, err = veth.Peer(netns, device)
		}
		peers[id], l.unread = mac, l.unread || err != nil
		return mac, err
	})
	for _, p := range sorted.unusable {
		problems[p.row.Name] = p.why
		l.unusable = append(l.unusable, portState(p.port, p.why))
		if l.problems[p.row.Name] != p.why && (p.row.Number != 0 || p.row.Error != "") { // Else it is being added.
			l.shim.logger.Warn("port stays closed", "interface", p.row.Name, "why", p.why)
		}
	}
	local, uplink := sorted.local, sorted.uplink
	l.ports, l.nobodys = sorted.pods, sorted.nobodys
	l.problems, l.peers = problems, peers
	if err := within(ctx, l.hidePorts); err != nil {
		l.failed(err)
		for _, p := range l.ports {
			l.unusable = append(l.unusable, portState(p, err.Error()))
		}
		l.ports = nil // No port is open that the host could answer past the bridge.
	}
	defer func() {
		if l.compiler == nil {
			l.publish(nil)
		}
	}()
	if local == [6]byte{} || l.waits() {
		return
	}
	own := l.markOwn(ctx, local)
	if l.compiler == nil || l.config.LocalMAC != local || l.config.Uplink != uplink || l.config.HostMAC != own {
		l.restart(ctx, local, uplink, own)
		return
	}
	l.openPorts(ctx)
}

// restart begins with a new compiler, for another MAC or uplink of the bridge or
// another MAC of the host's own packets, from the state and the assignment that
// there are.
func (l *loop) restart(ctx context.Context, local [6]byte, uplink uint32, own [6]byte) {
	if err := l.recall(ctx); err != nil {
		l.failed(err)
		return
	}
	var meters map[uint32]*pipeline.Subject // That are there, and that no assignment has; with whose they are.
	if l.compiler != nil {
		l.former, meters = l.compiler.Assignment(), make(map[uint32]*pipeline.Subject)
		for _, id := range l.compiler.RetiredMeters() {
			meters[id] = l.compiler.MeterSubject(id)
		}
	} else {
		l.countLosses(ctx, time.Now()) // From where the counters stand, before a flow of ours can report.
	}
	if l.compiler == nil { // A checkpoint may be older than the flows.
		former, next, err := l.formerFlows(ctx)
		if err != nil {
			l.failed(err)
			return
		}
		l.former.Next = max(l.former.Next, next)
		l.reporters, meters = reporters(former), l.standingMeters(former)
		if l.config.MeterLimit, err = l.sw.MeterLimit(ctx); err != nil {
			l.failed(err)
			return
		}
	}
	l.config.LocalMAC, l.config.Uplink, l.config.HostMAC = local, uplink, own
	compiler := pipeline.New(l.config, l.former)
	compiler.RetireMeters(meters)
	if l.lets(time.Now()) {
		compiler.LetEstablished(true)
	}
	l.shareBy(compiler)
	var change pipeline.Change
	err := errors.New("the state held is wrong; awaiting a repair")
	l.holder.View(func(state *storage.Replica) {
		compiler.SetNamed(named(l.cache.All()))
		compiler.Unlisted()
		change, err = compiler.Update(state, pipeline.Whole(state), l.usable())
	})
	l.blocked = err
	if err != nil {
		l.compiler, l.stale = nil, true // Tried again; the bridge stays as it is.
		l.unsaved = false
		l.failed(err)
		return
	}
	l.compiler, l.stale, l.counted = compiler, true, false
	if err := l.tell(ctx, change); err != nil {
		l.failed(err)
	}
}

// formerFlows are the flows of the bridge that report to the log, with the meters, and
// an id above those that the bridge's flows have, and those that the accounts know:
// connections carry them.
func (l *loop) formerFlows(ctx context.Context) (reporting bridge.State, next uint32, err error) {
	next = l.counts.next()
	reporting, err = l.sw.ReadBut(ctx, func(f openflow.Flow) bool {
		next = max(next, pipeline.CarriedID(f.Cookie)+1)
		_, reports := pipeline.ReporterOf(f)
		return !reports
	})
	if err != nil {
		return bridge.State{}, 0, fmt.Errorf("read bridge back: %w", err)
	}
	return reporting, next, nil
}

func itemErrors(problems []pipeline.Problem) []*policyv1.ItemError {
	var out []*policyv1.ItemError
	for _, p := range problems {
		out = append(out, &policyv1.ItemError{Scope: p.Scope[:], Key: p.Key, Error: p.Err.Error()})
	}
	return out
}

package shim

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/bridge"
	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/shim/pipeline"
	"github.com/weirnet/weir/shim/veth"
	"github.com/weirnet/weir/storage"
)

// checkRequest asks the loop to compare the bridge with what it is to hold.
type checkRequest struct{ done chan checkResult }

type checkResult struct {
	resp *policyv1.CheckResponse
	err  error
}

// checkTimeout is how long the bridge may take to be read.
const checkTimeout = 10 * time.Second

// maxDifferences is how many differences are listed.
const maxDifferences = 1000

var (
	errNoState  = errors.New("no state of the policy service has been in force yet: what the bridge ought to hold is not known")
	errNoBridge = errors.New("the bridge cannot be read yet")
)

// check compares the bridge with what the compiler wants. The loop calls it
// between changes, so that none is half there.
func (l *loop) check(ctx context.Context) (*policyv1.CheckResponse, error) {
	switch {
	case l.blocked != nil:
		return nil, l.blocked
	case !l.complete:
		return nil, errNoState
	case l.compiler == nil:
		return nil, errNoBridge
	}
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	comparison, actual, err := compared(ctx, l.sw, l.compiler, func(openflow.Flow) {})
	if err != nil {
		return nil, fmt.Errorf("read bridge back: %w", err)
	}
	var notes []string
	if l.refused != nil {
		notes = append(notes, "The newest state is refused, and the former one is compared: "+l.refused.Error())
	}
	if l.stale && l.lastReport != "" {
		notes = append(notes, "The shim cannot bring the bridge to hold its state: "+l.lastReport)
	}
	if l.sharing() {
		notes = append(notes, "The bridge is being adopted: flows of others are left out.")
		actual.Foreign, actual.Groups, actual.Meters = nil, nil, ours(actual.Meters)
	}
	resp := compare(l.compiler, comparison, actual)
	resp.Notes = notes
	return resp, nil
}

// ours are those of the meters that have ids of ours.
func ours(meters map[uint32]openflow.Meter) map[uint32]openflow.Meter {
	out := make(map[uint32]openflow.Meter)
	for id, m := range meters {
		if pipeline.OwnsMeter(id) {
			out[id] = m
		}
	}
	return out
}

// wantedShared are the groups and meters that a bridge is to hold.
func wantedShared(c *pipeline.Compiler) bridge.Content {
	want := bridge.NewContent()
	for _, g := range c.Groups() {
		want.Groups[g.ID] = g
	}
	for _, m := range c.Meters() {
		want.Meters[m.ID] = m
	}
	return want
}

// compare says how what a bridge holds differs from what a compiler wants, by what
// is compared.
func compare(c *pipeline.Compiler, by *pipeline.Comparison, actual bridge.State) *policyv1.CheckResponse {
	leavePassing(actual)
	want, change := wantedShared(c), amends(c, by, actual)
	resp := &policyv1.CheckResponse{Flows: uint32(c.FlowCount()), Groups: uint32(len(want.Groups)), Meters: uint32(len(want.Meters))}
	add := func(d *policyv1.Difference) {
		switch {
		case d.GetInstalled() == "":
			d.Kind = policyv1.DifferenceKind_DIFFERENCE_KIND_MISSING
			resp.Missing++
		case d.GetIntended() == "":
			d.Kind = policyv1.DifferenceKind_DIFFERENCE_KIND_UNEXPECTED
			resp.Unexpected++
		default:
			d.Kind = policyv1.DifferenceKind_DIFFERENCE_KIND_CHANGED
			resp.Changed++
		}
		resp.Differences = append(resp.Differences, d)
	}
	for f := range change.EachUpsert {
		have, there := actual.Flows[f.Key()]
		if !there {
			have, there = actual.Foreign[f.Key()]
		}
		d := flowDifference(c, f)
		if d.Intended = content(f); there {
			d.Installed = content(have)
		}
		add(d)
	}
	for _, key := range change.Delete {
		have, there := actual.Flows[key]
		if !there {
			have = actual.Foreign[key]
		}
		if n, counts := pipeline.CountOf(have); there && counts && c.Subjects(n.ID) == nil {
			continue // Of a rule that is gone: it counts on, and decides nothing.
		}
		d := flowDifference(c, have)
		d.Installed = content(have)
		add(d)
	}
	for _, g := range change.PutGroups {
		have, there := actual.Groups[g.ID]
		add(&policyv1.Difference{Object: "group", Id: g.ID, Intended: g.String(), Installed: textIf(there, have)})
	}
	for _, id := range change.DeleteGroups {
		add(&policyv1.Difference{Object: "group", Id: id, Installed: actual.Groups[id].String()})
	}
	for _, m := range change.PutMeters {
		have, there := actual.Meters[m.ID]
		add(&policyv1.Difference{Object: "meter", Id: m.ID, Intended: m.String(), Installed: textIf(there, have)})
	}
	for _, id := range change.DeleteMeters {
		add(&policyv1.Difference{Object: "meter", Id: id, Installed: actual.Meters[id].String()})
	}
	slices.SortStableFunc(resp.Differences, compareDifferences)
	if len(resp.Differences) > maxDifferences {
		resp.Differences = resp.Differences[:maxDifferences]
	}
	return resp
}

func textIf(there bool, what fmt.Stringer) string {
	if !there {
		return ""
	}
	return what.String()
}

// content is what a flow is, but for its key.
func content(f openflow.Flow) string {
	text := fmt.Sprintf("cookie=0x%x", f.Cookie)
	if f.IdleTimeout != 0 {
		text += fmt.Sprintf(",idle_timeout=%d", f.IdleTimeout)
	}
	if f.HardTimeout != 0 {
		text += fmt.Sprintf(",hard_timeout=%d", f.HardTimeout)
	}
	return text + " actions=" + f.Actions.String()
}

func flowDifference(c *pipeline.Compiler, f openflow.Flow) *policyv1.Difference {
	return &policyv1.Difference{Object: "flow", Table: uint32(f.Table), TableName: pipeline.TableName(f.Table), Priority: uint32(f.Priority),
		Match: f.Match.String(), Meaning: c.Describe(f)}
}

// compareDifferences orders flows by table, priority and match, then groups,
// then meters.
func compareDifferences(a, b *policyv1.Difference) int {
	return cmp.Or(cmp.Compare(a.GetObject(), b.GetObject()), cmp.Compare(a.GetTable(), b.GetTable()), cmp.Compare(b.GetPriority(), a.GetPriority()),
		cmp.Compare(a.GetMatch(), b.GetMatch()), cmp.Compare(a.GetId(), b.GetId()))
}

// addDigest puts the digest of a state in, and whether it is not what its items
// add up to. No state is one whose digest is known not to be the service's.
func addDigest(resp *policyv1.CheckResponse, state *policyv1.Cut) {
	if state == nil {
		resp.DigestDiffers = true
		return
	}
	var built storage.Replica
	_, _, err := built.Apply(state)
	resp.Digest = state.GetDigest()
	resp.DigestDiffers = err != nil || !slices.Equal(built.Digest().Bytes(), state.GetDigest())
}

// Check implements NodeService.
func (n *nodeServer) Check(ctx context.Context, _ *policyv1.CheckRequest) (*policyv1.CheckResponse, error) {
	req := checkRequest{done: make(chan checkResult, 1)}
	select {
	case n.shim.checks <- req:
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	r := <-req.done // The loop has it, and does not wait for anybody.
	if r.err != nil {
		return nil, status.Error(codes.Unavailable, r.err.Error())
	}
	addDigest(r.resp, n.shim.loop.holder.Snapshot())
	return r.resp, nil
}

// leaveMembers leaves out what forwards to members of multicast groups.
func leaveMembers(actual bridge.State) {
	maps.DeleteFunc(actual.Flows, func(_ openflow.FlowKey, f openflow.Flow) bool { return pipeline.Forwards(f) })
	maps.DeleteFunc(actual.Groups, func(_ uint32, g openflow.Group) bool { return g.Type == openflow.GroupAll })
}

// leaveRetired leaves out meters of the log that limit nothing any more: a shim was
// about to take them out.
func leaveRetired(c *pipeline.Compiler, actual bridge.State) {
	want := wantedShared(c).Meters
	maps.DeleteFunc(actual.Meters, func(id uint32, _ openflow.Meter) bool {
		_, is := want[id]
		return !is && pipeline.IsLogMeter(id)
	})
}

// Check compares a bridge with what the checkpoint says that it ought to hold,
// with no shim to ask. What only a shim knows is not told: which ports are held
// until other nodes know of them.
func Check(ctx context.Context, cfg Config) (*policyv1.CheckResponse, error) {
	replica, assignment, err := readCheckpoint(&cfg)
	if err != nil {
		return nil, fmt.Errorf("check: no checkpoint of node %s in %s: %w", cfg.Node, cfg.StateDir, err)
	}
	b, err := newBridge(&cfg, nil)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, withdrawTime)
	done := make(chan struct{})
	go func() { defer close(done); _ = b.Run(ctx) }()
	defer func() { cancel(); <-done }()
	if err := b.WaitConnected(ctx); err != nil {
		return nil, err
	}
	list, err := b.ReadPorts(ctx)
	if err != nil {
		return nil, err
	}
	ports := sortPorts(list, cfg.Uplink, func(_, netns, device string) (net.HardwareAddr, error) { return veth.Peer(netns, device) })
	config := cfg.compiler()
	config.LocalMAC, config.Uplink = ports.local, ports.uplink
	if cfg.MarkOwnTraffic {
		config.HostMAC = hostMAC(ports.local)
	}
	if config.MeterLimit, err = b.MeterLimit(ctx); err != nil {
		return nil, err
	}
	compiler := pipeline.New(config, assignment)
	compiler.SetNamed(named(restoreNames(&cfg).All()))
	if _, err := compiler.Update(replica, pipeline.Whole(replica), ports.pods); err != nil {
		return nil, fmt.Errorf("check: %w", err)
	}
	comparison, actual, err := compared(ctx, b, compiler, func(openflow.Flow) {})
	if err != nil {
		return nil, err
	}
	leaveMembers(actual)
	leaveRetired(compiler, actual)
	resp := compare(compiler, comparison, actual)
	resp.Checkpoint = true
	resp.Notes = []string{"No shim answers: the bridge is compared with the checkpoint, which is up to a second behind, and as if no port were held. Members of multicast groups, whom only a shim knows, are left out."}
	addDigest(resp, replica.Snapshot())
	return resp, nil
}

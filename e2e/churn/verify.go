package churn

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"time"

	"google.golang.org/grpc"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/bridge"
	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/shim/pipeline"
	"github.com/weirnet/weir/storage"
	"github.com/weirnet/weir/storage/checkpoint"
)

// settle waits until every node holds, and has in force, what each replica and
// a service that was given nothing but the present objects say it must.
func (r *run) settle(ctx context.Context) error {
	want, err := r.want(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, settleTimeout, fmt.Errorf("not within %s", settleTimeout))
	defer cancel()
	for missing := ""; ; {
		now, err := r.differs(ctx, want)
		switch {
		case ctx.Err() != nil || err != nil && missing != "":
			return errors.Join(fmt.Errorf("%s: %w", missing, context.Cause(ctx)), err)
		case err != nil || now == "":
			return err
		}
		missing = now
		select {
		case <-time.After(settleInterval):
		case <-ctx.Done(): // Said above.
		}
	}
}

// want is what a fresh service says of the nodes.
func (r *run) want(ctx context.Context) (map[string]*policyv1.NodeSummary, error) {
	fresh, err := startService(r.record.final(), r.cfg.Logf)
	if err != nil {
		return nil, err
	}
	nodes, err := fresh.nodes(ctx)
	return nodes, errors.Join(err, fresh.stop())
}

// A shim may pause for 10 s and wait for a position for 5 s before it is
// served; a machine may be busy.
const (
	settleTimeout  = 2 * time.Minute
	settleInterval = 20 * time.Millisecond
)

// differs says what is not as it must be; empty where all is.
func (r *run) differs(ctx context.Context, want map[string]*policyv1.NodeSummary) (string, error) {
	inForce := map[string]bool{}
	for _, replica := range r.replicas {
		says, err := replica.nodes(ctx)
		if err != nil {
			return "", fmt.Errorf("replica %s: %w", replica.address, err)
		}
		for _, n := range r.nodes {
			if got, must := says[n.name].GetDigest(), digestOf(want[n.name]); !bytes.Equal(zero(got), must) {
				return fmt.Sprintf("replica %s says %x of %s, which must hold %x", replica.address, got, n.name, must), nil
			}
			inForce[n.name] = inForce[n.name] || says[n.name].GetInSync()
		}
	}
	for _, n := range r.nodes {
		if got, right := n.digest(); !right || !bytes.Equal(got.Bytes(), digestOf(want[n.name])) {
			return fmt.Sprintf("%s holds %s and must hold %x", n.name, got, digestOf(want[n.name])), nil
		}
		if !inForce[n.name] {
			return fmt.Sprintf("%s has not acknowledged what it holds", n.name), nil
		}
		if why := n.closed(); why != "" {
			return fmt.Sprintf("%s keeps a port closed: %s", n.name, why), nil
		}
	}
	return "", nil
}

// digestOf is that of a node, which where nobody knows the node is zero.
func digestOf(n *policyv1.NodeSummary) []byte { return zero(n.GetDigest()) }

func zero(digest []byte) []byte {
	if len(digest) == 0 {
		return storage.Digest{}.Bytes()
	}
	return digest
}

// verify stops the shims and compares what they left: every checkpoint holds
// the state that a fresh service says, and the bridges of a sample hold exactly
// the flows that a fresh compiler makes of that state. It returns how many.
func (r *run) verify(ctx context.Context) (flows int, err error) {
	for _, n := range r.nodes {
		if err := n.stop(); err != nil {
			return 0, fmt.Errorf("%s: %w", n.name, err)
		}
	}
	fresh, err := startService(r.record.final(), r.cfg.Logf)
	if err != nil {
		return 0, err
	}
	defer fresh.stop()
	err = fresh.connect(ctx, func(conn *grpc.ClientConn) error {
		sample := rand.New(rand.NewPCG(r.cfg.Seed, 0x73616d706c65)).Perm(len(r.nodes))
		for _, i := range sample[:min(r.cfg.Sample, len(r.nodes))] {
			n := r.nodes[i]
			compared, err := n.compare(ctx, conn)
			if err != nil {
				return fmt.Errorf("%s: %w", n.name, err)
			}
			flows += compared
		}
		return nil
	})
	return flows, err
}

// compare holds what a stopped shim left to what a service says.
func (n *node) compare(ctx context.Context, conn *grpc.ClientConn) (flows int, err error) {
	state, err := snapshot(ctx, conn, n.name)
	if err != nil {
		return 0, err
	}
	kept, err := checkpoint.Load(filepath.Join(n.cfg.StateDir, "checkpoint"), n.name)
	if err != nil {
		return 0, err
	}
	if got := kept.State.GetDigest(); !bytes.Equal(got, state.Digest().Bytes()) {
		return 0, fmt.Errorf("the checkpoint is of %x, not of %s", got, state.Digest())
	}
	former, err := pipeline.DecodeAssignment(kept.Assignment)
	if err != nil {
		return 0, err
	}
	local, ports, err := n.ports(ctx)
	if err != nil {
		return 0, err
	}
	compiler := pipeline.New(pipeline.Config{LocalMAC: local, RuleLogRate: logRate / 5, RuleLogBurst: logRate / 5, MeterLimit: 1 << 18, RejectRate: n.cfg.RejectRate}, former)
	if _, err := compiler.Update(state, pipeline.Whole(state), ports); err != nil {
		return 0, err
	}
	want := bridge.NewContent()
	for _, f := range compiler.Desired() {
		want.Flows[f.Key()] = f
	}
	for _, m := range compiler.Meters() {
		want.Meters[m.ID] = m
	}
	actual, err := n.bridge.Read(ctx)
	if err != nil {
		return 0, err
	}
	for id := range actual.Meters { // Nor is one taken out at once that a rule had which has gone.
		if _, is := want.Meters[id]; !is && pipeline.IsLogMeter(id) {
			delete(actual.Meters, id)
		}
	}
	for key, f := range actual.Flows { // What counted for rules that have gone stays until it is read.
		if count, counts := pipeline.CountOf(f); counts && compiler.Subjects(count.ID) == nil {
			delete(actual.Flows, key)
		}
	}
	if diff := bridge.Diff(want, actual); !diff.IsEmpty() || len(actual.Foreign) > 0 {
		return 0, fmt.Errorf("the bridge holds %d flows, %d foreign; of %d that it must hold %d are missing or differ, and %d are too many: %s",
			len(actual.Flows), len(actual.Foreign), len(want.Flows), len(diff.Upsert), len(diff.Delete), describe(diff, actual))
	}
	return len(want.Flows), nil
}

// describe shows one flow of a difference.
func describe(diff bridge.Change, actual bridge.State) string {
	if len(diff.Upsert) > 0 {
		f := diff.Upsert[0]
		return fmt.Sprintf("wants %s, has %s", f.String(), flowOf(actual, f.Key()))
	}
	if len(diff.Delete) > 0 {
		return fmt.Sprintf("has %s", flowOf(actual, diff.Delete[0]))
	}
	return fmt.Sprint(len(actual.Meters), " meters")
}

func flowOf(actual bridge.State, key openflow.FlowKey) string {
	f, ok := actual.Flows[key]
	if !ok {
		return "none"
	}
	return f.String()
}

// ports are the Pods' ports of the bridge, as a shim reads them, and the
// bridge's own address.
func (n *node) ports(ctx context.Context) (local [6]byte, ports []pipeline.Port, err error) {
	list, err := n.bridge.Ports(ctx)
	if err != nil {
		return local, nil, err
	}
	for _, p := range list {
		if p.Local() {
			local = p.MAC
			continue
		}
		port := pipeline.Port{OFPort: p.Number, ID: p.ID, Interface: p.Name, Namespace: p.ExternalIDs["pod-namespace"], Name: p.ExternalIDs["pod-name"]}
		if _, err := fmt.Sscanf(p.ExternalIDs["attached-mac"], "%02x:%02x:%02x:%02x:%02x:%02x",
			&port.MAC[0], &port.MAC[1], &port.MAC[2], &port.MAC[3], &port.MAC[4], &port.MAC[5]); err != nil {
			return local, nil, fmt.Errorf("port %s: %w", p.Name, err)
		}
		ports = append(ports, port)
	}
	return local, ports, nil
}

// snapshot is what a service sends a node that holds nothing.
func snapshot(ctx context.Context, conn *grpc.ClientConn, name string) (*storage.Replica, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := policyv1.NewPolicyServiceClient(conn).Subscribe(ctx)
	if err != nil {
		return nil, err
	}
	hello := &policyv1.SubscribeRequest{Message: &policyv1.SubscribeRequest_Hello{Hello: &policyv1.Hello{Node: name}}}
	if err := stream.Send(hello); err != nil {
		return nil, err
	}
	state := &storage.Replica{}
	for {
		frame, err := stream.Recv()
		if err != nil {
			return nil, err
		}
		_, done, err := state.Apply(frame.GetCut())
		if err != nil {
			return nil, err
		}
		if done {
			return state, nil
		}
	}
}

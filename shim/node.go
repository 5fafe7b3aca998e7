package shim

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/pipeline"
)

// node is what the loop tells of the node's ports, for whoever asks.
type node struct {
	told   chan struct{} // One slot: the ports changed.
	margin time.Duration // How long before a call's deadline it is answered.

	mu      sync.Mutex               // Guards what follows.
	states  []*policyv1.PortState    // Never changed once they are here.
	changed chan struct{}            // Closed with the next change.
	spoofed map[pipeline.Pod]uint64  // Packets. Nobody is told when they grow.
	named   []*policyv1.NamedAddress // Some, as they were a second ago.
	known   uint32                   // How many there are.
}

func newNode() *node {
	return &node{told: make(chan struct{}, 1), margin: awaitMargin, changed: make(chan struct{}), spoofed: make(map[pipeline.Pod]uint64)}
}

// setPorts puts the ports in the place of the former ones.
func (n *node) setPorts(states []*policyv1.PortState) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if slices.EqualFunc(n.states, states, func(a, b *policyv1.PortState) bool { return proto.Equal(a, b) }) {
		return
	}
	n.states = states
	close(n.changed)
	n.changed = make(chan struct{})
	select {
	case n.told <- struct{}{}:
	default:
	}
}

// setNames takes over what names stand for.
func (n *node) setNames(named []*policyv1.NamedAddress, total int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.named, n.known = named, uint32(total)
}

// names are what setNames said last.
func (n *node) names() ([]*policyv1.NamedAddress, uint32) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.named, n.known
}

// ports are the ports as they are now.
func (n *node) ports() []*policyv1.PortState {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := slices.Clone(n.states)
	for i, p := range out {
		if count := n.spoofed[pipeline.Pod{Namespace: p.GetNamespace(), Name: p.GetName()}]; count > 0 {
			p = proto.Clone(p).(*policyv1.PortState)
			p.Spoofed = count
			out[i] = p
		}
	}
	return out
}

// addSpoofed counts packets that a Pod sent in another's name.
func (n *node) addSpoofed(pod pipeline.Pod, packets uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.spoofed[pod] += packets
}

// port is an interface's, nil where there is none, and what is closed when it
// may be another.
func (n *node) port(iface string) (*policyv1.PortState, <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, p := range n.states {
		if p.GetInterface() == iface {
			return p, n.changed
		}
	}
	return nil, n.changed
}

// nodeServer is the gRPC face of a Shim on its node.
type nodeServer struct {
	policyv1.UnimplementedNodeServiceServer
	shim *Shim
}

const awaitMargin = 100 * time.Millisecond

// unready says why no Pod can be added; empty where one can.
func (s *Shim) unready() string {
	if up, _ := s.bridge.Connected(); !up {
		return "the switch cannot be reached"
	}
	if !s.client.Synced() {
		return "no state of the policy service has been in force since the shim's start"
	}
	return ""
}

// Status implements NodeService.
func (n *nodeServer) Status(context.Context, *policyv1.NodeServiceStatusRequest) (*policyv1.NodeServiceStatusResponse, error) {
	s := n.shim
	why := s.unready()
	return &policyv1.NodeServiceStatusResponse{Node: s.cfg.Node, Version: Version, Ready: why == "", Reason: why,
		Connected: s.client.Connected(), Ports: s.node.ports()}, nil
}

// AwaitPort implements NodeService.
func (n *nodeServer) AwaitPort(ctx context.Context, req *policyv1.AwaitPortRequest) (*policyv1.AwaitPortResponse, error) {
	if req.GetInterface() == "" {
		return nil, status.Error(codes.InvalidArgument, "no interface named")
	}
	wait := ctx
	if deadline, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		wait, cancel = context.WithDeadline(ctx, deadline.Add(-n.shim.node.margin))
		defer cancel()
	}
	for {
		p, changed := n.shim.node.port(req.GetInterface())
		if p.GetOpen() {
			return &policyv1.AwaitPortResponse{Port: p}, nil
		}
		select {
		case <-changed:
		case <-wait.Done():
			if err := ctx.Err(); err != nil {
				return nil, status.FromContextError(err).Err()
			}
			return &policyv1.AwaitPortResponse{Port: p}, nil
		}
	}
}

// listenUnix listens on a socket that its owner alone may open, in the place of
// one that a former process left.
func listenUnix(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	made := fmt.Sprintf("%s.%d", path, os.Getpid()) // Nobody knows it before it is closed to others.
	_ = os.Remove(made)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: made, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	l.SetUnlinkOnClose(false) // By then it may be a successor's.
	err = os.Chmod(made, 0o600)
	if err == nil {
		err = os.Rename(made, path)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("socket: %w", err), l.Close(), os.Remove(made))
	}
	return l, nil
}

// serveNode serves NodeService until the context ends.
func (s *Shim) serveNode(ctx context.Context) error {
	g := grpc.NewServer()
	policyv1.RegisterNodeServiceServer(g, &nodeServer{shim: s})
	healthv1.RegisterHealthServer(g, health.NewServer())
	reflection.Register(g)
	stop := context.AfterFunc(ctx, g.Stop)
	defer stop()
	if err := g.Serve(s.socket); err != nil && ctx.Err() == nil {
		return fmt.Errorf("serve socket: %w", err)
	}
	return ctx.Err()
}

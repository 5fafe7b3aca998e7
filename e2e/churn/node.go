package churn

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim"
	"github.com/weirnet/weir/shim/bridge"
	"github.com/weirnet/weir/shim/pipeline"
	"github.com/weirnet/weir/storage"
)

// dataplane is a Fake as a shim runs it: it is there, and stays connected.
type dataplane struct{ *bridge.Fake }

// SetUp implements shim.Dataplane.
func (dataplane) SetUp(context.Context) error { return nil }

// Run implements shim.Dataplane.
func (dataplane) Run(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

// node is one node: a bridge, which stays, and a shim, which may start anew.
type node struct {
	name   string
	cfg    shim.Config
	bridge *bridge.Fake

	mu     sync.Mutex // Guards what follows.
	shim   *shim.Shim // Nil: stopped.
	cancel context.CancelFunc
	done   chan error
	totals counts // Of the shims that ended.
	starts int
}

// logRate is every shim's.
const logRate = 100

func newNode(i int, name, dir string, replicas []*replica, n *network) *node {
	cfg := shim.Defaults()
	cfg.Node, cfg.StateDir, cfg.Logger = name, filepath.Join(dir, name), hclog.NewNullLogger()
	cfg.LogRate, cfg.MarkOwnTraffic, cfg.MetricsListen, cfg.Dial = logRate, false, "", n.dial
	// A thousand of them share the machine, and are not to do it all at once:
	// what is read back would be most of the heap.
	cfg.Reconcile = time.Minute + time.Duration(i%60)*time.Second
	for _, r := range replicas {
		cfg.PolicyServers = append(cfg.PolicyServers, r.address)
	}
	fake := bridge.NewFake(bridge.Config{Name: cfg.Bridge,
		Mark:        bridge.Mark{Value: pipeline.CookieMark, Mask: pipeline.CookieMask},
		Controllers: []bridge.Controller{{ID: pipeline.LogController}, {ID: pipeline.RejectController}}})
	cfg.Dataplane = dataplane{fake}
	return &node{name: name, cfg: cfg, bridge: fake, totals: counts{}}
}

func (n *node) start() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	s, err := shim.New(n.cfg)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	n.shim, n.cancel, n.done = s, cancel, done
	n.starts++
	return nil
}

// stop ends the shim. The bridge and the checkpoint stay.
func (n *node) stop() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.shim == nil {
		return nil
	}
	n.cancel()
	err := <-n.done
	n.totals.add(n.shim.Metrics())
	n.shim = nil
	return err
}

// restart ends the shim and begins another.
func (n *node) restart() error { return errors.Join(n.stop(), n.start()) }

// closed says why a port is closed for now, of a Pod that the node's state has;
// empty where all are open.
func (n *node) closed() (why string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	known := make(map[string]bool)
	n.shim.View(func(state *storage.Replica) {
		state.Items(storage.ScopeNode, func(_ storage.ScopeID, item *policyv1.Item) {
			known[storage.PodKey(item.GetEndpoint().GetNamespace(), item.GetEndpoint().GetName())] = true
		})
	})
	for _, p := range n.shim.Stats().GetPorts() {
		if !p.GetOpen() && known[storage.PodKey(p.GetNamespace(), p.GetName())] {
			why = p.GetInterface() + ": " + p.GetReason()
		}
	}
	return why
}

// digest is that of the state held; false while that is known to be wrong.
func (n *node) digest() (d storage.Digest, ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	ok = n.shim.View(func(state *storage.Replica) { d = state.Digest() })
	return d, ok
}

// counted adds the counters of all the node's shims to c, and returns how
// often one was started.
func (n *node) counted(c counts) (starts int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for name, v := range n.totals {
		c[name] += v
	}
	if n.shim != nil {
		c.add(n.shim.Metrics())
	}
	return n.starts
}

// do changes the ports of the bridge as a CNI plugin does.
func (n *node) do(p portChange) error {
	if p.gone {
		return n.bridge.RemovePort(context.Background(), p.name)
	}
	return n.bridge.AddPort(context.Background(), p.name, map[string]string{
		"pod-namespace": p.namespace, "pod-name": p.pod, "attached-mac": p.mac})
}

package shim

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/errgroup"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/cni"
	"github.com/weirnet/weir/shim/hostfw"
	"github.com/weirnet/weir/shim/podnet"
	"github.com/weirnet/weir/storage"
)

// pods is what a shim does for the node's Pods beside the bridge's flows, where
// it is asked to: it makes the Pod network, and tells the container runtime of
// it once Pods can be added, which is what makes a node ready. The file stays
// when the shim ends.
type pods struct {
	shim    *Shim
	network *podnet.Network // Nil: somebody else sees to it.
	logger  hclog.Logger

	clusters chan podnet.Cluster // One slot: the newest that look saw.
	made     chan podnet.Made    // The same of what is there.
}

func newPods(s *Shim) (*pods, error) {
	cfg := &s.cfg
	on := cfg.PodNetwork != "" && cfg.PodNetwork != string(podnet.Off)
	if !on && cfg.CNIConfDir == "" && cfg.CNIBinDir == "" {
		return nil, nil
	}
	p := &pods{shim: s, logger: s.logger.Named("pods"), clusters: make(chan podnet.Cluster, 1), made: make(chan podnet.Made, 1)}
	if !on {
		return p, nil
	}
	var err error
	p.network, err = podnet.New(podnet.Config{Mode: podnet.Mode(cfg.PodNetwork), Bridge: cfg.Bridge, VXLANID: cfg.VXLANID, VXLANPort: cfg.VXLANPort,
		Masquerade: cfg.Masquerade, Interval: cfg.Reconcile, Logger: p.logger,
		Masquerader: func(ctx context.Context, pods, cluster []netip.Prefix, nodes []netip.Addr) error {
			return hostfw.Masquerade(ctx, cfg.Bridge, pods, cluster, nodes)
		}}, func(m podnet.Made) { newest(p.made, m) })
	return p, err
}

// newest puts a value in the place of one that nobody took yet. There is one
// sender.
func newest[T any](c chan T, v T) {
	select {
	case <-c:
	default:
	}
	c <- v
}

// touchesPods says whether a cut may have changed where Pods are, or the node's
// gateways.
func touchesPods(state *storage.Replica, touched storage.Touched) bool {
	for id, ts := range touched {
		_, facts := ts.Keys["node"]
		switch kind, held := state.Kind(id); {
		case !held, kind == storage.ScopeRoutes, kind == storage.ScopeNode && (facts || ts.All):
			return true
		}
	}
	return false
}

// look reads where the Pods of all nodes are.
func (p *pods) look(state *storage.Replica) {
	c := podnet.Cluster{Own: p.shim.cfg.Node}
	state.Items(storage.ScopeRoutes, func(_ storage.ScopeID, item *policyv1.Item) {
		r := item.GetRoute()
		if r == nil {
			return
		}
		n := podnet.Node{Name: r.GetName(), Addresses: addresses(r.GetAddresses())}
		for _, w := range r.GetPodCidrs() {
			if prefix, err := storage.PrefixFromWire(w); err == nil {
				n.PodCIDRs = append(n.PodCIDRs, prefix)
			}
		}
		c.Nodes = append(c.Nodes, n)
	})
	c.Sort()
	state.Items(storage.ScopeNode, func(_ storage.ScopeID, item *policyv1.Item) {
		if facts := item.GetNode(); facts != nil {
			c.Gateways = addresses(facts.GetGateways())
		}
	})
	newest(p.clusters, c)
}

func addresses(wire [][]byte) []netip.Addr {
	var out []netip.Addr
	for _, b := range wire {
		if a, ok := netip.AddrFromSlice(b); ok {
			out = append(out, a.Unmap())
		}
	}
	return out
}

// run makes what is asked for until the context ends.
func (p *pods) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	if p.network != nil {
		g.Go(func() error { return p.network.Run(ctx) })
	}
	g.Go(func() error { return p.follow(ctx) })
	return g.Wait()
}

// follow hands on what look saw, and keeps the runtime's configuration.
func (p *pods) follow(ctx context.Context) error {
	p.install()
	second := time.NewTicker(time.Second)
	defer second.Stop()
	var now *podnet.Made
	for said := ""; ; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case c := <-p.clusters:
			if p.network != nil {
				p.network.Set(c)
			} else if own, ok := c.OwnNode(); ok {
				now = &podnet.Made{Cluster: c, Own: own}
			}
		case m := <-p.made:
			now = &m
		case <-second.C: // Until the shim is in sync; and somebody may remove the file.
		}
		if now == nil || p.shim.cfg.CNIConfDir == "" || p.shim.unready() != "" {
			continue
		}
		changed, err := cni.WriteConflist(p.shim.cfg.CNIConfDir, p.describe(*now))
		switch {
		case err != nil && err.Error() != said:
			said = err.Error()
			p.logger.Error("the container runtime cannot be told of the network; trying on", "err", err)
		case changed:
			said = ""
			p.logger.Info("the container runtime is told of the network", "file", filepath.Join(p.shim.cfg.CNIConfDir, cni.ConflistName))
		}
	}
}

// describe is the network as the container runtime is told of it.
func (p *pods) describe(m podnet.Made) cni.Network {
	cfg := &p.shim.cfg
	n := cni.Network{Bridge: cfg.Bridge, MTU: m.MTU, Socket: cfg.Socket, OVSRunDir: cfg.RunDir}
	for _, cidr := range m.Own.PodCIDRs {
		r := cni.Range{Prefix: cidr}
		if gw := m.Cluster.Gateway(cidr); gw != cidr.Masked().Addr().Next() {
			r.Gateway = gw
		}
		n.Ranges = append(n.Ranges, r)
	}
	return n
}

// kick has the Pod network looked at: the bridge's device may be another.
func (p *pods) kick() {
	if p != nil && p.network != nil {
		p.network.Kick()
	}
}

// install puts the plugins where the container runtime looks for them.
func (p *pods) install() {
	if p.shim.cfg.CNIBinDir == "" {
		return
	}
	exe, err := os.Executable()
	var installed []string
	if err == nil {
		installed, err = cni.Install(filepath.Dir(exe), p.shim.cfg.CNIBinDir, "weir-cni", "host-local")
	}
	if err != nil {
		p.logger.Error("CNI plugins are not installed", "err", err)
	}
	if len(installed) > 0 {
		p.logger.Info("CNI plugins installed", "folder", p.shim.cfg.CNIBinDir, "plugins", installed)
	}
}

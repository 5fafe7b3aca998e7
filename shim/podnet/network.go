package podnet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// Config of a Network.
type Config struct {
	Mode       Mode   // Routed or VXLAN.
	Bridge     string // Name of the bridge's device.
	VXLANID    int
	VXLANPort  int
	Masquerade bool // What Pods send out of the cluster bears the node's address.
	// Interval is how often the kernel's state is looked at. Zero: 10 s.
	Interval time.Duration
	// Masquerader makes exactly the traffic from these Pods to anything but them,
	// all Pods and all nodes be masqueraded; of no Pods, nothing.
	Masquerader func(ctx context.Context, pods, cluster []netip.Prefix, nodes []netip.Addr) error
	Logger      hclog.Logger
}

// Network is a node's Pod network.
type Network struct {
	cfg  Config
	wake chan struct{} // One slot.

	mu      sync.Mutex // Guards what follows.
	cluster *Cluster   // Nil: not known yet.
	made    *Made
	changed func(Made)

	// Run's own.
	said  string
	masks *plan // Of the last masquerading that worked, and when it was set.
	since time.Time
}

// Made is what is there for Pods.
type Made struct {
	Cluster Cluster
	Own     Node
	MTU     int // Of Pods' links; zero: the bridge's.
}

// New returns a network; Run makes it. The function is told what is there, by
// Run, after it was made the first time and whenever it is another.
func New(cfg Config, changed func(Made)) (*Network, error) {
	if cfg.Mode != Routed && cfg.Mode != VXLAN {
		return nil, fmt.Errorf("pod network: %q is neither routed nor vxlan", cfg.Mode)
	}
	if cfg.VXLANID < 1 || cfg.VXLANID >= 1<<24 || cfg.VXLANPort < 1 || cfg.VXLANPort > 65535 {
		return nil, errors.New("pod network: VXLAN id or port out of range")
	}
	if cfg.Interval == 0 {
		cfg.Interval = 10 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	return &Network{cfg: cfg, wake: make(chan struct{}, 1), changed: changed}, nil
}

// Set says where the Pods of all nodes are.
func (n *Network) Set(c Cluster) {
	n.mu.Lock()
	same := n.cluster != nil && reflect.DeepEqual(*n.cluster, c)
	n.cluster = &c
	n.mu.Unlock()
	if !same {
		n.Kick()
	}
}

// Kick has the kernel's state looked at now.
func (n *Network) Kick() {
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// renewMasks is how often masquerading is set again though nothing changed:
// firewalls are flushed by their owners, and nobody tells of it.
const renewMasks = time.Minute

// Run keeps the network as it is to be until the context ends; it stays then.
func (n *Network) Run(ctx context.Context) error {
	ticker := time.NewTicker(n.cfg.Interval)
	defer ticker.Stop()
	for {
		if err := n.make(ctx); err != nil && err.Error() != n.said && ctx.Err() == nil {
			n.said = err.Error() // Once, for as long as it lasts.
			n.cfg.Logger.Warn("the Pod network is not whole; trying on", "err", err)
		} else if err == nil {
			n.said = ""
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-n.wake:
		case <-ticker.C:
		}
	}
}

// make brings the kernel to where it is to be.
func (n *Network) make(ctx context.Context) error {
	n.mu.Lock()
	c := n.cluster
	n.mu.Unlock()
	if c == nil {
		return nil
	}
	p, problems := makePlan(&n.cfg, *c, findPath)
	if p == nil {
		return fmt.Errorf("the policy service says of no Pod prefixes of node %s", c.Own)
	}
	k := kernel{cfg: &n.cfg}
	err := k.apply(p)
	if whole := k.base; whole && (n.made == nil || n.made.MTU != p.mtu || !reflect.DeepEqual(n.made.Cluster, *c)) {
		own, _ := c.OwnNode()
		n.made = &Made{Cluster: *c, Own: own, MTU: p.mtu}
		if n.changed != nil {
			n.changed(*n.made)
		}
	}
	if masks := (&plan{pods: p.pods, cluster: p.cluster, nodes: p.nodes}); n.cfg.Masquerader != nil && (time.Since(n.since) > renewMasks || !reflect.DeepEqual(masks, n.masks)) {
		pods := p.pods
		if !n.cfg.Masquerade {
			pods = nil
		}
		if failed := n.cfg.Masquerader(ctx, pods, p.cluster, p.nodes); failed != nil {
			err = errors.Join(err, failed)
		} else {
			n.masks, n.since = masks, time.Now()
		}
	}
	if len(problems) > 0 {
		err = errors.Join(err, errors.New(strings.Join(problems, "; ")))
	}
	return err
}

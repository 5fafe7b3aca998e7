package shim

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/hostpolicy"
	"github.com/weirnet/weir/shim/podnet"
	"github.com/weirnet/weir/storage"
)

// devise makes the plan anew.
func (h *hostPolicies) devise(state *storage.Replica) {
	s := hostpolicy.State{Items: h.items(), Facts: h.facts, Servers: h.servers, WithoutHost: !h.shim.cfg.NodePolicies,
		Members: func(group []byte, fn func(*policyv1.Member)) {
			if id, ok := storage.ScopeIDFromBytes(group); ok {
				state.Scope(id, func(_ string, item *policyv1.Item) { fn(item.GetMember()) })
			}
		}}
	if h.shim.cfg.PodNetwork == string(podnet.VXLAN) {
		s.Tunnel = uint16(h.shim.cfg.VXLANPort)
	}
	h.groups = make(map[storage.ScopeID]bool)
	for _, it := range s.Items {
		hostpolicy.Groups(it.Policy, func(group []byte) {
			if id, ok := storage.ScopeIDFromBytes(group); ok {
				h.groups[id] = true
			}
		})
	}
	plan, problems := hostpolicy.New(s)
	h.problems = problems
	h.warn(plan)
	if h.plan == nil || plan.ID != h.plan.ID {
		h.plan, h.failed = plan, errPending
	}
}

// warn says which policies would have cut the node off, each once. The policy
// service says it too of those servers that it knows.
func (h *hostPolicies) warn(plan *hostpolicy.Plan) {
	said := h.lockouts
	h.lockouts = make(map[string]bool)
	for _, p := range plan.Lockouts {
		text := p.Key + ": " + p.Err.Error()
		if !said[text] && !h.lockouts[text] {
			h.logger.Warn("a policy for the node is overruled where it would have cut it off", "policy", p.Key, "err", p.Err)
		}
		h.lockouts[text] = true
	}
	h.shim.metrics.hostLockouts.Set(float64(len(h.lockouts)))
}

const (
	resolveTimeout = time.Second // For names of policy services: what was found before is good enough.
	serversFor     = time.Minute // How long is believed what was found.
)

// findServers looks up where policy services are, and says whether that is not
// where they were. Without a policy for the host itself nobody asks.
func (h *hostPolicies) findServers(ctx context.Context, now time.Time) (moved bool) {
	if now.Sub(h.sought) < serversFor || !h.guarded() {
		return false
	}
	h.sought = now
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	var found []netip.AddrPort
	for _, address := range h.shim.cfg.PolicyServers {
		list, err := resolve(ctx, address)
		if err != nil {
			h.logger.Warn("the policy service is not found; policies for the node may cut it off", "address", address, "err", err)
			return false
		}
		found = append(found, list...)
	}
	slices.SortFunc(found, netip.AddrPort.Compare)
	if found = slices.Compact(found); slices.Equal(found, h.servers) {
		return false
	}
	h.servers = found
	return true
}

// guarded says whether a policy is for the host itself.
func (h *hostPolicies) guarded() bool {
	for _, policies := range h.policies {
		for _, p := range policies {
			if slices.ContainsFunc(p.GetRules(), (*policyv1.Rule).GetHost) {
				return true
			}
		}
	}
	return false
}

// resolve finds the addresses behind host:port.
func resolve(ctx context.Context, address string) (list []netip.AddrPort, err error) {
	if literal, err := netip.ParseAddrPort(address); err == nil {
		return []netip.AddrPort{netip.AddrPortFrom(literal.Addr().Unmap(), literal.Port())}, nil
	}
	host, service, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	port, err := net.DefaultResolver.LookupPort(ctx, "tcp", service)
	if err != nil {
		return nil, err
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	for _, a := range addrs {
		list = append(list, netip.AddrPortFrom(a.Unmap(), uint16(port)))
	}
	return list, err
}

// allNetns is a setting of the machine, and of the network namespace alone that
// the machine began with: that of others has no such file.
const allNetns = "/proc/sys/net/netfilter/nf_log_all_netns"

// kernelLogs says whether the kernel logs what rules of this network namespace
// have it log, as far as can be told: in others than the first it does so only
// where the machine's setting is 1.
func kernelLogs(setting string) bool {
	_, err := os.Stat(setting)
	return !errors.Is(err, fs.ErrNotExist)
}

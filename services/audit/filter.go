package audit

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/audit/record"
)

// matcher is a RecordFilter made ready. Of losses it judges node and time; the
// other fields say nothing about them, and losses asked for are shown.
type matcher struct {
	all          bool
	f            *auditv1.RecordFilter
	prefix       netip.Prefix
	since, until time.Time // Zero: open.
}

func newMatcher(f *auditv1.RecordFilter) (*matcher, error) {
	if f == nil {
		return &matcher{all: true}, nil
	}
	m := &matcher{f: f}
	if _, ok := policyv1.Action_name[int32(f.GetAction())]; !ok {
		return nil, fmt.Errorf("filter: action: %d is none", f.GetAction())
	}
	if _, ok := policyv1.Direction_name[int32(f.GetDirection())]; !ok {
		return nil, fmt.Errorf("filter: direction: %d is none", f.GetDirection())
	}
	if f.GetPort() > 65535 {
		return nil, fmt.Errorf("filter: port: %d is out of range", f.GetPort())
	}
	if s := f.GetPrefix(); s != "" {
		var err error
		if m.prefix, err = parsePrefix(s); err != nil {
			return nil, fmt.Errorf("filter: prefix %.80q: not a CIDR or address", s)
		}
	}
	if s := f.GetPod(); s != "" && strings.Count(s, "/") != 1 {
		return nil, fmt.Errorf("filter: pod %.80q: write NAMESPACE/NAME", s)
	}
	var err error
	if m.since, err = moment("since", f.GetSince()); err != nil {
		return nil, err
	}
	m.until, err = moment("until", f.GetUntil())
	return m, err
}

func parsePrefix(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		a = a.Unmap().WithZone("")
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	return netip.ParsePrefix(s)
}

func moment(name string, t *timestamppb.Timestamp) (time.Time, error) {
	if t == nil {
		return time.Time{}, nil
	}
	if err := t.CheckValid(); err != nil {
		return time.Time{}, fmt.Errorf("filter: %s: not a time", name)
	}
	return t.AsTime(), nil
}

func (m *matcher) matches(node string, e *record.Event) bool {
	if m.all {
		return true
	}
	f := m.f
	if f.GetNode() != "" && f.GetNode() != node {
		return false
	}
	if e.Kind == record.KindLoss {
		return f.GetLosses() && !f.GetStaged() && m.within(e.Loss.To)
	}
	p := &e.Packet
	switch {
	case !m.within(p.First),
		f.GetAction() != 0 && f.GetAction() != p.Action,
		f.GetDirection() != 0 && f.GetDirection() != p.Direction,
		f.GetNamespace() != "" && !inNamespace(p.AppliedTo, f.GetNamespace()) && !inNamespace(p.Peer, f.GetNamespace()),
		f.GetPod() != "" && p.AppliedTo != f.GetPod() && p.Peer != f.GetPod(),
		m.prefix.IsValid() && !m.prefix.Contains(p.Source) && !m.prefix.Contains(p.Destination),
		f.GetPort() != 0 && (!p.DestPort.Set || p.DestPort.Value != f.GetPort()),
		f.GetStaged() && p.Staged == nil,
		f.GetPolicy() != "" && !names(p.Policies, f.GetPolicy()) && !staged(p, f.GetPolicy()):
		return false
	}
	return true
}

func (m *matcher) within(t time.Time) bool {
	return (m.since.IsZero() || !t.Before(m.since)) && (m.until.IsZero() || t.Before(m.until))
}

// inNamespace reads "NAMESPACE/POD".
func inNamespace(pod, namespace string) bool {
	ns, _, ok := strings.Cut(pod, "/")
	return ok && ns == namespace
}

// staged says whether a staged outcome names a policy.
func staged(p *record.Packet, want string) bool {
	return p.Staged != nil && (names([]record.Policy{p.Staged.Policy}, want) || names(p.Staged.Policies, want))
}

// names reads "NAMESPACE/NAME", or "NAME" of any Namespace or none.
func names(refs []record.Policy, want string) bool {
	ns, name, namespaced := strings.Cut(want, "/")
	for _, r := range refs {
		if namespaced && r.Namespace == ns && r.Name == name || !namespaced && r.Name == want {
			return true
		}
	}
	return false
}

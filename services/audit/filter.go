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

// newFilter checks a RecordFilter. Nil: everything.
func newFilter(f *auditv1.RecordFilter) (*record.Filter, error) {
	if f == nil {
		return nil, nil
	}
	out := &record.Filter{Nodes: given(f.GetNode()), Namespaces: given(f.GetNamespace()), Pods: given(f.GetPod()), Policies: given(f.GetPolicy()),
		Actions: given(f.GetAction()), Directions: given(f.GetDirection()), Ports: given(f.GetPort()), Staged: f.GetStaged(), Losses: f.GetLosses(), Changes: f.GetChanges()}
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
		prefix, err := record.ParsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("filter: prefix %.80q: not a CIDR or address", s)
		}
		out.Prefixes = []netip.Prefix{prefix}
	}
	if s := f.GetPod(); s != "" && strings.Count(s, "/") != 1 {
		return nil, fmt.Errorf("filter: pod %.80q: write NAMESPACE/NAME", s)
	}
	var err error
	if out.Since, err = moment("since", f.GetSince()); err != nil {
		return nil, err
	}
	if out.Until, err = moment("until", f.GetUntil()); err != nil {
		return nil, err
	}
	return out, nil
}

// given is a list of one, or of nothing where it is zero.
func given[T comparable](v T) []T {
	var zero T
	if v == zero {
		return nil
	}
	return []T{v}
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

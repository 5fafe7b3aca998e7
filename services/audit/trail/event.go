package trail

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

// Event is what the log is to tell of a change. Last is the object as the log has
// it; nil if it has none, or told that it is gone. A nil event: nothing that the
// log does not have. An object that is told while all there is is being told was
// not created now: it is present.
func Event(c *policyv1.ObjectChange, last *policyv1.ObjectVersion, snapshot bool) *auditv1.ChangeEvent {
	now := c.GetVersion()
	e := &auditv1.ChangeEvent{Time: timestamppb.New(time.Unix(0, c.GetTimeUnixNano())), Object: now, PodsBefore: c.GetPodsBefore(), PodsAfter: c.GetPodsAfter()}
	recreated := last != nil && last.GetUid() != now.GetUid()
	switch {
	case c.GetRemoved():
		if last == nil {
			return nil
		}
		e.Kind = auditv1.ChangeKind_CHANGE_KIND_DELETED
		if now.GetUid() == "" && len(now.GetManifest()) == 0 { // What it was last is for the log to say.
			e.Object = last
		}
		e.PodsAfter = 0
	case last == nil && snapshot:
		e.Kind = auditv1.ChangeKind_CHANGE_KIND_PRESENT
		e.PodsBefore = e.PodsAfter
	case last == nil, recreated:
		e.Kind = auditv1.ChangeKind_CHANGE_KIND_CREATED
	case last.GetGeneration() == now.GetGeneration() && bytes.Equal(last.GetManifest(), now.GetManifest()):
		return nil
	default:
		e.Kind = auditv1.ChangeKind_CHANGE_KIND_UPDATED
		e.Fields = Fields(last.GetManifest(), now.GetManifest())
	}
	return e
}

// Bounds of Fields.
const (
	maxFields     = 64
	maxFieldDepth = 4
)

// Fields are the paths at which two JSON objects differ, such as "spec.ingress",
// in order. A list is one field. Nil where one of them is no object, or there are
// no differences.
func Fields(before, after []byte) []string {
	var a, b map[string]any
	if json.Unmarshal(before, &a) != nil || json.Unmarshal(after, &b) != nil {
		return nil
	}
	var out []string
	compare(a, b, nil, &out)
	slices.Sort(out)
	return out[:min(len(out), maxFields)]
}

func compare(a, b map[string]any, path []string, out *[]string) {
	names := make(map[string]bool)
	for name := range a {
		names[name] = true
	}
	for name := range b {
		names[name] = true
	}
	for name := range names {
		path := append(slices.Clip(path), name)
		x, xMap := a[name].(map[string]any)
		y, yMap := b[name].(map[string]any)
		if xMap && yMap && len(path) < maxFieldDepth {
			compare(x, y, path, out)
			continue
		}
		was, errA := json.Marshal(a[name])
		is, errB := json.Marshal(b[name])
		_, had := a[name]
		_, has := b[name]
		if had != has || errA != nil || errB != nil || !bytes.Equal(was, is) {
			*out = append(*out, strings.Join(path, "."))
		}
	}
}

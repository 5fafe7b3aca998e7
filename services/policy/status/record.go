package status

import (
	"cmp"
	"encoding/json"
	"slices"
	"time"

	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/services/policy/api/antreav1beta1"
)

// Limits of writing.
const (
	writeInterval   = time.Second     // Of one object.
	numbersInterval = 5 * time.Second // Of one object, where no truth has changed.
	maxWrites       = 100             // A look, and so about a second, of all objects.
	maxRetry        = time.Minute
)

// record is what the API server has of one object's status, as far as the holder
// knows.
type record struct {
	uid     string
	policy  *antreav1beta1.PolicyStatus
	group   *antreav1beta1.GroupStatus
	next    time.Time     // Before this nothing is written.
	numbers time.Time     // Nor are mere numbers before this.
	retry   time.Duration // After the last failure; zero: there was none.
}

// records are those of all objects whose kind has a status.
type records map[api.Ref]*record

// of is the record of an object; one of another UID is a new one.
func (rs records) of(ref api.Ref, uid string) *record {
	r := rs[ref]
	if r == nil || r.uid != uid {
		r = &record{uid: uid}
		rs[ref] = r
	}
	return r
}

// write is one that is to be made.
type write struct {
	ref    api.Ref
	record *record
	policy *antreav1beta1.PolicyStatus // One of the two.
	group  *antreav1beta1.GroupStatus
	urgent urgency
}

// plan says what is to be written now, the most urgent first, and forgets what is
// not there any more.
func (rs records) plan(policies []Policy, groups []Group, now time.Time) (out []write) {
	there := make(map[api.Ref]struct{}, len(policies)+len(groups))
	for i := range policies {
		p := &policies[i]
		if p.UID == "" || resourceOf(p.Ref.Kind).Resource == "" {
			continue
		}
		there[p.Ref] = struct{}{}
		r := rs.of(p.Ref, p.UID)
		if next, urgent := p.next(r.policy, now); r.due(urgent, now) {
			out = append(out, write{ref: p.Ref, record: r, policy: next, urgent: urgent})
		}
	}
	for i := range groups {
		g := &groups[i]
		if g.UID == "" {
			continue
		}
		there[g.Ref] = struct{}{}
		r := rs.of(g.Ref, g.UID)
		if next, urgent := g.next(r.group, now); r.due(urgent, now) {
			out = append(out, write{ref: g.Ref, record: r, group: next, urgent: urgent})
		}
	}
	for ref := range rs {
		if _, is := there[ref]; !is {
			delete(rs, ref)
		}
	}
	slices.SortStableFunc(out, func(a, b write) int {
		return cmp.Or(cmp.Compare(b.urgent, a.urgent), a.record.next.Compare(b.record.next))
	})
	return out[:min(len(out), maxWrites)]
}

func (r *record) due(urgent urgency, now time.Time) bool {
	return urgent != nothing && !now.Before(r.next) && (urgent == truths || !now.Before(r.numbers))
}

// written says that a write is done.
func (w *write) written(now time.Time) {
	r := w.record
	r.policy, r.group, r.retry = w.policy, w.group, 0
	r.next, r.numbers = now.Add(writeInterval), now.Add(numbersInterval)
}

// failed says that it is not.
func (w *write) failed(now time.Time) {
	r := w.record
	r.retry = min(max(2*r.retry, writeInterval), maxRetry)
	r.next = now.Add(r.retry)
}

const uidPath = "/metadata/uid"

// patch makes the status the object's, unless that has gone and another has its name.
func (w *write) patch() ([]byte, error) {
	type operation struct {
		Op    string `json:"op"`
		Path  string `json:"path"`
		Value any    `json:"value"`
	}
	set := operation{"add", "/status", w.policy} // Which replaces one that is there.
	if w.group != nil {
		set.Value = w.group
	}
	return json.Marshal([]operation{{"test", uidPath, w.record.uid}, set})
}

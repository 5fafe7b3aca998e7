package trail

import (
	"cmp"
	"encoding/binary"
	"errors"
	"hash/fnv"
	"slices"
	"strings"
	"time"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/audit/record"
)

// DefaultMaxChanges that an Index holds.
const DefaultMaxChanges = 1 << 20

// Key names an object, whatever version of its API it is told in.
type Key struct{ Group, Kind, Namespace, Name string }

// KeyOf is the key of an object.
func KeyOf(o *policyv1.ObjectVersion) Key {
	group, _, _ := strings.Cut(o.GetApiVersion(), "/")
	return Key{group, o.GetKind(), o.GetNamespace(), o.GetName()}
}

// KeyOfPolicy is the key of a policy.
func KeyOfPolicy(p record.Policy) (Key, bool) {
	g, ok := groups[p.Kind]
	return Key{g.group, g.kind, p.Namespace, p.Name}, ok
}

// PolicyOf is the policy that an object is. It is false for tiers and groups.
func PolicyOf(o *policyv1.ObjectVersion) (record.Policy, bool) {
	k := KeyOf(o)
	for kind, g := range groups {
		if g.group == k.Group && g.kind == k.Kind {
			return record.Policy{Kind: kind, Namespace: k.Namespace, Name: k.Name}, true
		}
	}
	return record.Policy{}, false
}

// groups are the API groups and kinds of policies.
var groups = map[policyv1.PolicyKind]struct{ group, kind string }{
	policyv1.PolicyKind_POLICY_KIND_K8S_NETWORK_POLICY:            {"networking.k8s.io", "NetworkPolicy"},
	policyv1.PolicyKind_POLICY_KIND_ANTREA_CLUSTER_NETWORK_POLICY: {"crd.antrea.io", "ClusterNetworkPolicy"},
	policyv1.PolicyKind_POLICY_KIND_ANTREA_NETWORK_POLICY:         {"crd.antrea.io", "NetworkPolicy"},
	policyv1.PolicyKind_POLICY_KIND_ADMIN_NETWORK_POLICY:          {"policy.networking.k8s.io", "AdminNetworkPolicy"},
	policyv1.PolicyKind_POLICY_KIND_BASELINE_ADMIN_NETWORK_POLICY: {"policy.networking.k8s.io", "BaselineAdminNetworkPolicy"},
	policyv1.PolicyKind_POLICY_KIND_CLUSTER_NETWORK_POLICY:        {"policy.networking.k8s.io", "ClusterNetworkPolicy"},
}

// Entry is where a change lies, and what tells it from the object's others.
type Entry struct {
	Cursor     uint64
	Time       time.Time // Of the change.
	Generation int64     // Zero: not known.
	Deleted    bool
	object     uint64 // Of Key, hashed.
	uid        uint64 // The same.
	content    uint64 // Of the manifest, the same.
}

// Tells says whether a change is that to a version of its object.
func (e *Entry) Tells(v *policyv1.ObjectVersion) bool {
	return !e.Deleted && e.Generation == v.GetGeneration() && e.uid == hash(v.GetUid()) && e.content == hash(string(v.GetManifest()))
}

// Index is where in a log the changes lie. It is for one goroutine, or behind a
// lock. Objects are told apart by 64 bits of a hash: whoever reads the change at a
// cursor sees whose it is.
type Index struct {
	max     int
	entries map[uint64][]Entry // By object, in the order of the log.
	count   int
	changed bool
}

// NewIndex returns an empty one, of so many changes at most; zero:
// DefaultMaxChanges. Beyond, the oldest half is forgotten.
func NewIndex(most int) *Index {
	if most == 0 {
		most = DefaultMaxChanges
	}
	return &Index{max: most, entries: make(map[uint64][]Entry)}
}

func hash(parts ...string) uint64 {
	h := fnv.New64a()
	for _, p := range parts {
		h.Write(binary.AppendUvarint(nil, uint64(len(p))))
		h.Write([]byte(p))
	}
	return h.Sum64()
}

func (k Key) hash() uint64 { return hash(k.Group, k.Kind, k.Namespace, k.Name) }

// Add takes a change that the log has at a cursor, which ascend.
func (x *Index) Add(cursor uint64, c *record.Change) {
	o := KeyOf(c.Object).hash()
	x.entries[o] = append(x.entries[o], Entry{Cursor: cursor, Time: c.Time, Generation: c.Object.GetGeneration(),
		Deleted: c.Kind == auditv1.ChangeKind_CHANGE_KIND_DELETED, object: o, uid: hash(c.Object.GetUid()), content: hash(string(c.Object.GetManifest()))})
	x.count++
	x.changed = true
	if x.count > x.max {
		all := x.all()
		x.Trim(all[len(all)/2].Cursor)
	}
}

// Last is the latest change of an object.
func (x *Index) Last(k Key) (Entry, bool) {
	list := x.entries[k.hash()]
	if len(list) == 0 {
		return Entry{}, false
	}
	return list[len(list)-1], true
}

// At is the change that made an object what it was at a time; or, where its
// version is known, of that version. Next is the change after it, if there was one.
func (x *Index) At(k Key, at time.Time, v record.Version) (e Entry, next *Entry, ok bool) {
	list := x.entries[k.hash()]
	best := -1
	for i, e := range list {
		if !e.Time.After(at) {
			best = i
		}
	}
	if v.UID != "" {
		for i, e := range list { // The last that tells it: what is told again is the same.
			if e.uid == hash(v.UID) && e.Generation == v.Generation && !e.Deleted {
				best = i
			}
		}
	}
	if best < 0 {
		return Entry{}, nil, false
	}
	if best+1 < len(list) {
		next = &list[best+1]
	}
	return list[best], next, true
}

// Live are the latest changes of objects that are there, as far as the index
// knows, but for those that are told.
func (x *Index) Live(told map[Key]bool) []Entry {
	hashes := make(map[uint64]bool, len(told))
	for k := range told {
		hashes[k.hash()] = true
	}
	var out []Entry
	for o, list := range x.entries {
		if e := list[len(list)-1]; !e.Deleted && !hashes[o] {
			out = append(out, e)
		}
	}
	slices.SortFunc(out, byCursor)
	return out
}

func byCursor(a, b Entry) int { return cmp.Compare(a.Cursor, b.Cursor) }

// Trim forgets what lies below a cursor: the log has it no more.
func (x *Index) Trim(oldest uint64) {
	for o, list := range x.entries {
		n := 0
		for n < len(list) && list[n].Cursor < oldest {
			n++
		}
		if n == 0 {
			continue
		}
		x.count -= n
		x.changed = true
		if x.entries[o] = slices.Delete(list, 0, n); n == len(list) {
			delete(x.entries, o)
		}
	}
}

func (x *Index) all() []Entry {
	out := make([]Entry, 0, x.count)
	for _, list := range x.entries {
		out = append(out, list...)
	}
	slices.SortFunc(out, byCursor)
	return out
}

// Len is how many changes there are.
func (x *Index) Len() int { return x.count }

// Changed says whether anything changed since Append was called last.
func (x *Index) Changed() bool { return x.changed }

const (
	indexVersion = 1
	entryBytes   = 49
)

// Append encodes the index.
func (x *Index) Append(b []byte) []byte {
	b = append(b, indexVersion)
	for _, e := range x.all() {
		for _, v := range [...]uint64{e.Cursor, uint64(e.Time.UnixNano()), uint64(e.Generation), e.object, e.uid, e.content} {
			b = binary.BigEndian.AppendUint64(b, v)
		}
		deleted := byte(0)
		if e.Deleted {
			deleted = 1
		}
		b = append(b, deleted)
	}
	x.changed = false
	return b
}

// Read replaces what an index holds by what was encoded.
func (x *Index) Read(b []byte) error {
	if len(b) == 0 || b[0] != indexVersion || (len(b)-1)%entryBytes != 0 {
		return errors.New("not an index of changes")
	}
	x.entries, x.count = make(map[uint64][]Entry), 0
	for b = b[1:]; len(b) > 0; b = b[entryBytes:] {
		at := func(i int) uint64 { return binary.BigEndian.Uint64(b[8*i:]) }
		e := Entry{Cursor: at(0), Time: time.Unix(0, int64(at(1))), Generation: int64(at(2)), object: at(3), uid: at(4), content: at(5), Deleted: b[48] == 1}
		x.entries[e.object] = append(x.entries[e.object], e)
		x.count++
	}
	x.changed = false
	return nil
}

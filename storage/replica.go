package storage

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"

	"google.golang.org/protobuf/proto"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

// Replica is a node's copy of its state, built from cuts. It is the other end
// of Subscriber. The zero Replica is empty and ready.
//
// A Replica belongs to one goroutine.
type Replica struct {
	epoch    string
	revision uint64
	position *policyv1.Position
	scopes   map[ScopeID]*replicaScope
	digest   Digest

	arriving *arriving // A cut whose last frame has not come. Nil: none is.
}

type replicaScope struct {
	kind  ScopeKind
	items map[string]replicaItem
	sum   Digest
}

// replicaItem is an item as Encode has it: decoded, it is several times as large.
type replicaItem string

func (i replicaItem) decode() *policyv1.Item {
	item := &policyv1.Item{}
	if err := proto.Unmarshal([]byte(i), item); err != nil {
		panic("storage: decode what was encoded: " + err.Error())
	}
	return item
}

// stale is the keys that a cut forgets, by scope, unless it brings them again.
type stale map[ScopeID]map[string]struct{}

// Touched names the items that a cut changed, by scope; All means that any item of
// the scope may have changed, whatever the keys.
type Touched map[ScopeID]*TouchedScope

// TouchedScope is what a cut touched in one scope.
type TouchedScope struct {
	All  bool // The scope is new or gone.
	Keys map[string]struct{}
}

// Apply takes the next frame of a stream. Done is false until the last frame
// of a cut is in; then the cut is applied as a whole and touched says where. A
// malformed frame is an error and leaves the state as it was.
//
// The digest that the cut carries is not compared here: see Digest.
func (r *Replica) Apply(frame *policyv1.Cut) (touched Touched, done bool, err error) {
	scopes := make([]arrivingScope, 0, len(frame.GetScopes()))
	for _, sd := range frame.GetScopes() {
		s, err := arrivingOf(sd)
		for _, item := range sd.GetUpserts() {
			if err == nil {
				err = s.upsert(item)
			}
		}
		if err != nil {
			r.arriving = nil
			return nil, false, fmt.Errorf("cut %d: %w", frame.GetRevision(), err)
		}
		scopes = append(scopes, s)
	}
	return r.apply(frame, scopes)
}

// ApplyEncoded is Apply of a frame that is encoded. It decodes one item at a time.
func (r *Replica) ApplyEncoded(frame []byte) (touched Touched, done bool, err error) {
	head, scopes, err := decodeFrame(frame)
	if err != nil {
		r.arriving = nil
		return nil, false, err
	}
	return r.apply(head, scopes)
}

// apply takes a frame, and its scopes apart.
func (r *Replica) apply(frame *policyv1.Cut, scopes []arrivingScope) (touched Touched, done bool, err error) {
	if err := r.check(frame); err != nil {
		r.arriving = nil
		return nil, false, err
	}
	if r.arriving == nil {
		r.arriving = &arriving{epoch: frame.GetEpoch(), revision: frame.GetRevision(), snapshot: frame.GetSnapshot()}
	}
	r.arriving.scopes = append(r.arriving.scopes, scopes...)
	if frame.GetMore() {
		return nil, false, nil
	}
	scopes = r.arriving.scopes
	r.arriving = nil
	touched = make(Touched)
	if frame.GetSnapshot() {
		r.dropAllBut(scopes, touched)
	}
	old := make(stale)
	for i := range scopes {
		r.upserts(&scopes[i], old, touched)
	}
	for i := range scopes {
		for _, key := range scopes[i].delta.GetRemovals() {
			r.remove(scopes[i].id, key, touched)
		}
	}
	for id, keys := range old {
		for key := range keys {
			r.remove(id, key, touched)
		}
	}
	r.arrive(frame)
	return touched, true, nil
}

// arrive takes over how far the last frame of a cut leads. What it leaves out
// is as it was.
func (r *Replica) arrive(frame *policyv1.Cut) {
	r.revision = frame.GetRevision()
	if frame.GetEpoch() != "" {
		r.epoch, r.position = frame.GetEpoch(), frame.GetPosition()
	} else if frame.GetPosition() != nil {
		r.position = frame.GetPosition()
	} else if len(frame.GetMoved()) > 0 {
		moved, _ := Position(r.position.GetSources()).move(frame.GetMoved()) // Checked.
		r.position = &policyv1.Position{Sources: moved}
	}
}

// Begin forgets the frames of a cut whose last has not come: a new stream
// begins.
func (r *Replica) Begin() { r.arriving = nil }

func (r *Replica) check(frame *policyv1.Cut) error {
	if frame.GetRevision() == 0 || frame.GetEpoch() == "" && r.epoch == "" {
		return fmt.Errorf("cut without revision or, on a new stream, epoch")
	}
	if a := r.arriving; a != nil && (a.revision != frame.GetRevision() || a.epoch != frame.GetEpoch() || a.snapshot != frame.GetSnapshot()) {
		return fmt.Errorf("frame of revision %d of epoch %q among the frames of revision %d of epoch %q",
			frame.GetRevision(), frame.GetEpoch(), a.revision, a.epoch)
	}
	if len(frame.GetMoved()) > 0 {
		if _, err := Position(r.position.GetSources()).move(frame.GetMoved()); err != nil || frame.GetEpoch() != "" {
			return fmt.Errorf("cut %d: %w", frame.GetRevision(), cmp.Or(err, errors.New("moves of a position on a new stream")))
		}
	}
	if !frame.GetMore() {
		if _, ok := DigestFromBytes(frame.GetDigest()); !ok {
			return fmt.Errorf("cut %d with a digest of %d bytes", frame.GetRevision(), len(frame.GetDigest()))
		}
	}
	return nil
}

func (r *Replica) dropAllBut(scopes []arrivingScope, touched Touched) {
	keep := make(map[ScopeID]struct{})
	for i := range scopes {
		keep[scopes[i].id] = struct{}{}
	}
	for id := range r.scopes {
		if _, ok := keep[id]; !ok {
			r.drop(id, touched)
		}
	}
}

func (r *Replica) drop(id ScopeID, touched Touched) {
	if sc := r.scopes[id]; sc != nil {
		r.digest = r.digest.Minus(sc.sum)
		delete(r.scopes, id)
		touched.scope(id).All = true
	}
}

// upserts takes in the items of one scope. Those that are held already are not
// touched, be they forgotten and brought again.
func (r *Replica) upserts(arrived *arrivingScope, old stale, touched Touched) {
	id, sd := arrived.id, arrived.delta
	if sd.GetGone() {
		r.drop(id, touched)
		return
	}
	sc := r.scopes[id]
	if sc == nil {
		sc = &replicaScope{kind: sd.GetKind(), items: make(map[string]replicaItem), sum: scopeHash(id)}
		if r.scopes == nil {
			r.scopes = make(map[ScopeID]*replicaScope)
		}
		r.scopes[id] = sc
		r.digest = r.digest.Plus(sc.sum)
		touched.scope(id).All = true
	}
	if sd.GetReset_() || len(sd.GetResetBuckets()) > 0 {
		old[id] = sc.forgotten(sd)
	}
	for _, e := range arrived.upserts {
		delete(old[id], e.Key)
		was, held := sc.items[e.Key]
		if held && string(was) == e.Body {
			continue
		}
		delta := itemHash(id, e.Body)
		if held {
			delta = delta.Minus(itemHash(id, string(was)))
		}
		sc.items[e.Key] = replicaItem(e.Body)
		sc.sum, r.digest = sc.sum.Plus(delta), r.digest.Plus(delta)
		touched.item(id, e.Key)
	}
}

// forgotten is the keys of the items that a reset, of all or of some buckets,
// forgets.
func (sc *replicaScope) forgotten(sd *policyv1.ScopeDelta) map[string]struct{} {
	buckets := make(map[int]struct{}, len(sd.GetResetBuckets()))
	for _, i := range sd.GetResetBuckets() {
		buckets[int(i)] = struct{}{}
	}
	keys := make(map[string]struct{})
	for key := range sc.items {
		in := sd.GetReset_()
		if !in {
			_, in = buckets[bucketOf(key, int(sd.GetBuckets()))]
		}
		if in {
			keys[key] = struct{}{}
		}
	}
	return keys
}

func (r *Replica) remove(id ScopeID, key string, touched Touched) {
	sc := r.scopes[id]
	if sc == nil {
		return
	}
	item, held := sc.items[key]
	if !held {
		return
	}
	delete(sc.items, key)
	hash := itemHash(id, string(item))
	sc.sum, r.digest = sc.sum.Minus(hash), r.digest.Minus(hash)
	touched.item(id, key)
}

func (t Touched) scope(id ScopeID) *TouchedScope {
	ts := t[id]
	if ts == nil {
		ts = &TouchedScope{Keys: make(map[string]struct{})}
		t[id] = ts
	}
	return ts
}

// item touches one item, unless that goes without saying.
func (t Touched) item(id ScopeID, key string) {
	if ts := t.scope(id); !ts.All {
		ts.Keys[key] = struct{}{}
	}
}

// Epoch, Revision and Position are those of the last cut applied: zero values
// before the first.
func (r *Replica) Epoch() string                { return r.epoch }
func (r *Replica) Revision() uint64             { return r.revision }
func (r *Replica) Position() *policyv1.Position { return r.position }

// Digest is that of the whole state held.
func (r *Replica) Digest() Digest { return r.digest }

// InSync takes over the server's epoch, revision and position, where it said
// that the state held is the present one. A later position than the server's
// stays: the state is that of both, and nobody is to go back behind it.
func (r *Replica) InSync(m *policyv1.InSync) {
	former := r.position.GetSources()
	r.epoch, r.revision, r.position = m.GetEpoch(), m.GetRevision(), m.GetPosition()
	if r.position != nil {
		r.position = &policyv1.Position{Sources: Position(r.position.GetSources()).latest(former)}
	}
}

// Items calls fn for every item of a scope kind, in the order of scope ids and
// keys.
func (r *Replica) Items(kind ScopeKind, fn func(ScopeID, *policyv1.Item)) {
	for _, id := range r.ids(kind) {
		sc := r.scopes[id]
		for _, key := range slices.Sorted(maps.Keys(sc.items)) {
			fn(id, sc.items[key].decode())
		}
	}
}

// Scopes calls fn for every scope that the node is in, in no order.
func (r *Replica) Scopes(fn func(ScopeID)) {
	for id := range r.scopes {
		fn(id)
	}
}

// Scope calls fn for every item of one scope, in no order; false where the
// node is not in it.
func (r *Replica) Scope(id ScopeID, fn func(key string, item *policyv1.Item)) bool {
	sc := r.scopes[id]
	if sc == nil {
		return false
	}
	for key, item := range sc.items {
		fn(key, item.decode())
	}
	return true
}

// Keys calls fn for the key of every item of one scope, in no order.
func (r *Replica) Keys(id ScopeID, fn func(key string)) {
	if sc := r.scopes[id]; sc != nil {
		for key := range sc.items {
			fn(key)
		}
	}
}

// Item is one item; nil where it is not held.
func (r *Replica) Item(id ScopeID, key string) *policyv1.Item {
	if sc := r.scopes[id]; sc != nil {
		if item, held := sc.items[key]; held {
			return item.decode()
		}
	}
	return nil
}

// Kind is the kind of a scope; false where the node is not in it.
func (r *Replica) Kind(id ScopeID) (ScopeKind, bool) {
	if sc := r.scopes[id]; sc != nil {
		return sc.kind, true
	}
	return 0, false
}

func (r *Replica) ids(kind ScopeKind) []ScopeID {
	var ids []ScopeID
	for id, sc := range r.scopes {
		if sc.kind == kind {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, func(a, b ScopeID) int { return slices.Compare(a[:], b[:]) })
	return ids
}

// Snapshot is the whole state as one cut.
func (r *Replica) Snapshot() *policyv1.Cut {
	cut := &policyv1.Cut{}
	if err := proto.Unmarshal(r.EncodedSnapshot(), cut); err != nil {
		panic("storage: decode a snapshot: " + err.Error())
	}
	return cut
}

// EncodedSnapshot is Snapshot, encoded, for a checkpoint. It decodes no item.
func (r *Replica) EncodedSnapshot() []byte {
	cut := Cut{Epoch: r.epoch, Revision: r.revision, Position: r.position.GetSources(), Digest: r.digest, Snapshot: true}
	kinds := make(map[ScopeKind]struct{}) // Those of a later service too.
	for _, sc := range r.scopes {
		kinds[sc.kind] = struct{}{}
	}
	for _, kind := range slices.Sorted(maps.Keys(kinds)) {
		for _, id := range r.ids(kind) {
			items := r.scopes[id].items
			change := ScopeChange{ID: id, Kind: kind, Reset: true, Upserts: make([]string, 0, len(items))}
			for _, key := range slices.Sorted(maps.Keys(items)) {
				change.Upserts = append(change.Upserts, string(items[key]))
			}
			cut.Scopes = append(cut.Scopes, change)
		}
	}
	return cut.Frames(math.MaxInt)[0]
}

package storage

import (
	"google.golang.org/protobuf/encoding/protowire"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

// Op is what a Change does.
type Op uint8

// The operations. Scopes begin with their first mention and end, with their
// items, by OpDrop.
const (
	OpUpsert Op = iota + 1 // Item goes into Scope in place of the item of its key.
	OpRemove               // The item of that key leaves Scope.
	OpJoin                 // Node joins Scope.
	OpLeave                // Node leaves Scope.
	OpDrop                 // Scope ends.
)

// Change is one step of a Commit.
type Change struct {
	Op    Op
	Scope ScopeID
	Kind  ScopeKind // Of the scope; required but for OpDrop.
	Item  Encoded   // OpUpsert; OpRemove looks at its key alone.
	Node  string    // OpJoin, OpLeave.
}

// Cut is a consistent set of changes for one node, as wire bytes.
type Cut struct {
	Epoch    string // Empty: that of the cut before.
	Revision uint64
	Position Position // Nil: as in the cut before, but for Moved.
	Moved    []uint64 // See policyv1.Cut.
	Digest   Digest   // Of the node's whole state after the cut.
	Snapshot bool     // From nothing.
	Scopes   []ScopeChange
	Oldest   uint64   // Revision of the oldest change that it brings; zero for a snapshot, a repair, and where scopes ended alone.
	Held     []string // Keys of endpoint items, for whoever sends the cut to say.
}

// BucketReset has the receiver forget its former items of some buckets.
type BucketReset struct {
	Of      int // How many buckets there are: a power of two.
	Numbers []int
}

// ScopeChange is what a cut changes in one scope.
type ScopeChange struct {
	ID       ScopeID
	Kind     ScopeKind
	Reset    bool // The receiver forgets the scope's former items first.
	Buckets  *BucketReset
	Gone     bool
	Upserts  []string // Bodies of Encoded.
	Removals []string // Keys.
}

// Numbers of the fields that Frames writes, from state.proto.
const (
	cutEpoch, cutRevision, cutPosition, cutDigest, cutSnapshot, cutMore, cutScopes, cutHeld, cutMoved = 1, 2, 3, 4, 5, 6, 7, 8, 9

	scopeIDField, scopeKindField, scopeReset, scopeGone, scopeUpserts, scopeRemovals, scopeBuckets, scopeResetBuckets = 1, 2, 3, 4, 5, 6, 7, 8
)

// Frames encodes the cut as policyv1.Cut messages of about limit bytes at the
// most (one item may be larger), without decoding or encoding an item again.
// There is always at least one frame.
func (c *Cut) Frames(limit int) [][]byte {
	var frames [][]byte
	room := c.room(limit)
	var scratch [512]byte // Most scopes of most cuts are a few items.
	body := scratch[:0]
	begin := func() []byte {
		b := make([]byte, 0, room)
		if c.Epoch != "" {
			b = appendString(b, cutEpoch, c.Epoch)
		}
		b = protowire.AppendTag(b, cutRevision, protowire.VarintType)
		b = protowire.AppendVarint(b, c.Revision)
		return appendTrue(b, cutSnapshot, c.Snapshot)
	}
	frame := begin()
	for i := range c.Scopes {
		s := &c.Scopes[i]
		body = s.begin(body[:0], true)
		for _, item := range s.Upserts {
			if len(frame)+len(body)+len(item) > limit && len(frame)+len(body) > 64 {
				frame = appendBytes(frame, cutScopes, body)
				frames = append(frames, appendTrue(frame, cutMore, true))
				frame, body = begin(), s.begin(body[:0], false)
			}
			body = appendString(body, scopeUpserts, item)
		}
		for _, key := range s.Removals {
			if len(frame)+len(body)+len(key) > limit && len(frame)+len(body) > 64 {
				frame = appendBytes(frame, cutScopes, body)
				frames = append(frames, appendTrue(frame, cutMore, true))
				frame, body = begin(), s.begin(body[:0], false)
			}
			body = appendString(body, scopeRemovals, key)
		}
		if len(frame)+len(body) > limit && len(frame) > 64 {
			frames = append(frames, appendTrue(frame, cutMore, true))
			frame = begin()
		}
		frame = appendBytes(frame, cutScopes, body)
	}
	if len(c.Position) > 0 {
		position, err := canonical.Marshal(&policyv1.Position{Sources: c.Position})
		if err != nil {
			panic("storage: encode position: " + err.Error())
		}
		frame = appendBytes(frame, cutPosition, position)
	}
	if len(c.Moved) > 0 {
		body = body[:0]
		for _, n := range c.Moved {
			body = protowire.AppendVarint(body, n)
		}
		frame = appendBytes(frame, cutMoved, body)
	}
	digest := c.Digest.array()
	frame = appendBytes(frame, cutDigest, digest[:])
	for _, key := range c.Held {
		frame = appendString(frame, cutHeld, key)
	}
	return append(frames, frame)
}

// room is a guess at the bytes of a frame.
func (c *Cut) room(limit int) int {
	n := 64
	for i := range c.Scopes {
		s := &c.Scopes[i]
		n += 32
		for _, item := range s.Upserts {
			n += 4 + len(item)
		}
		for _, key := range s.Removals {
			n += 4 + len(key)
		}
		if n > limit {
			return limit
		}
	}
	return n
}

// begin is the head of a scope's message; the first says what is to be forgotten.
func (s *ScopeChange) begin(b []byte, first bool) []byte {
	b = appendBytes(b, scopeIDField, s.ID[:])
	if s.Gone {
		return appendTrue(b, scopeGone, true)
	}
	b = protowire.AppendTag(b, scopeKindField, protowire.VarintType)
	b = protowire.AppendVarint(b, uint64(s.Kind))
	if !first {
		return b
	}
	if s.Buckets != nil {
		b = protowire.AppendTag(b, scopeBuckets, protowire.VarintType)
		b = protowire.AppendVarint(b, uint64(s.Buckets.Of))
		var packed []byte
		for _, i := range s.Buckets.Numbers {
			packed = protowire.AppendVarint(packed, uint64(i))
		}
		b = appendBytes(b, scopeResetBuckets, packed)
	}
	return appendTrue(b, scopeReset, s.Reset)
}

func appendBytes(b []byte, field protowire.Number, v []byte) []byte {
	b = protowire.AppendTag(b, field, protowire.BytesType)
	return protowire.AppendBytes(b, v)
}

func appendString(b []byte, field protowire.Number, v string) []byte {
	b = protowire.AppendTag(b, field, protowire.BytesType)
	return protowire.AppendString(b, v)
}

func appendTrue(b []byte, field protowire.Number, v bool) []byte {
	if !v {
		return b
	}
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), 1)
}

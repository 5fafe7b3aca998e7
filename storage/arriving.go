package storage

import (
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

// arriving is what is kept of a cut's frames until the last is in. Items are
// encoded, as they will be held: a first cut is most of what a node ever holds.
type arriving struct {
	epoch    string
	revision uint64
	snapshot bool
	scopes   []arrivingScope
}

// arrivingScope is what a frame says of a scope. The delta is without upserts.
type arrivingScope struct {
	id      ScopeID
	delta   *policyv1.ScopeDelta
	upserts []Encoded
}

// arrivingOf is what a frame says of a scope, but for its upserts.
func arrivingOf(sd *policyv1.ScopeDelta) (arrivingScope, error) {
	id, ok := ScopeIDFromBytes(sd.GetId())
	if !ok {
		return arrivingScope{}, fmt.Errorf("a scope id of %d bytes", len(sd.GetId()))
	}
	if !sd.GetGone() && sd.GetKind() == 0 {
		return arrivingScope{}, fmt.Errorf("scope %s has no kind", id)
	}
	if n := sd.GetBuckets(); len(sd.GetResetBuckets()) > 0 && (n == 0 || n&(n-1) != 0) {
		return arrivingScope{}, fmt.Errorf("scope %s resets %d buckets of %d", id, len(sd.GetResetBuckets()), n)
	}
	return arrivingScope{id: id, upserts: make([]Encoded, 0, len(sd.GetUpserts())), delta: &policyv1.ScopeDelta{
		Kind: sd.GetKind(), Gone: sd.GetGone(), Reset_: sd.GetReset_(), ResetBuckets: sd.GetResetBuckets(), Buckets: sd.GetBuckets(), Removals: sd.GetRemovals()}}, nil
}

// upsert adds an item.
func (s *arrivingScope) upsert(item *policyv1.Item) error {
	if _, err := KeyOf(item); err != nil {
		return fmt.Errorf("scope %s: %w", s.id, err)
	}
	s.upserts = append(s.upserts, Encode(item))
	return nil
}

// decodeFrame decodes a frame and its scopes apart.
func decodeFrame(frame []byte) (head *policyv1.Cut, scopes []arrivingScope, err error) {
	rest, err := fields(frame, cutScopes, func(scope []byte) error {
		s, err := decodeScope(scope)
		scopes = append(scopes, s)
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	head = &policyv1.Cut{}
	if err := proto.Unmarshal(rest, head); err != nil {
		return nil, nil, fmt.Errorf("cut: %w", err)
	}
	return head, scopes, nil
}

func decodeScope(scope []byte) (arrivingScope, error) {
	var items [][]byte
	rest, err := fields(scope, scopeUpserts, func(item []byte) error { items = append(items, item); return nil })
	if err != nil {
		return arrivingScope{}, err
	}
	sd := &policyv1.ScopeDelta{}
	if err := proto.Unmarshal(rest, sd); err != nil {
		return arrivingScope{}, fmt.Errorf("scope: %w", err)
	}
	s, err := arrivingOf(sd)
	if err != nil {
		return arrivingScope{}, err
	}
	s.upserts = make([]Encoded, 0, len(items))
	for _, encoded := range items {
		item := &policyv1.Item{}
		if err := proto.Unmarshal(encoded, item); err != nil {
			return arrivingScope{}, fmt.Errorf("scope %s: item: %w", s.id, err)
		}
		if err := s.upsert(item); err != nil {
			return arrivingScope{}, err
		}
	}
	return s, nil
}

// fields calls visit for the content of every field of a number, and returns the
// other fields of the message.
func fields(message []byte, number protowire.Number, visit func([]byte) error) (rest []byte, err error) {
	for len(message) > 0 {
		n, t, tag := protowire.ConsumeTag(message)
		if tag < 0 {
			return nil, fmt.Errorf("field: %w", protowire.ParseError(tag))
		}
		length := protowire.ConsumeFieldValue(n, t, message[tag:])
		if length < 0 {
			return nil, fmt.Errorf("field %d: %w", n, protowire.ParseError(length))
		}
		field := message[:tag+length]
		message = message[tag+length:]
		if n != number || t != protowire.BytesType {
			rest = append(rest, field...)
			continue
		}
		content, _ := protowire.ConsumeBytes(field[tag:])
		if err := visit(content); err != nil {
			return nil, err
		}
	}
	return rest, nil
}

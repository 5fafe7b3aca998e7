package eventlog

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

const (
	streamRetainTimeout = 30 * time.Second
	retainRounds        = 8 // By size: what is to go is estimated.
)

// retain implements backend. Any of the collectors may remove what is old, and
// all of them at once.
func (s *stream) retain(now time.Time) {
	if s.cfg.RetentionAge == 0 && s.cfg.RetentionBytes == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), streamRetainTimeout)
	defer cancel()
	if err := s.remove(ctx, now); err != nil {
		s.cfg.Logger.Error("cannot remove old records", "err", err)
	}
}

func (s *stream) remove(ctx context.Context, now time.Time) error {
	if age := s.cfg.RetentionAge; age > 0 {
		keep, err := s.firstSince(ctx, now.Add(-age))
		if err == nil {
			err = s.removeBelow(ctx, keep)
		}
		if err != nil {
			return err
		}
	}
	for round := 0; s.cfg.RetentionBytes > 0 && round < retainRounds; round++ {
		info, err := s.str.Info(ctx)
		if err != nil {
			return err
		}
		st := info.State
		if st.Bytes <= s.cfg.RetentionBytes || st.Msgs <= 1 {
			break
		}
		excess := float64(st.Bytes-s.cfg.RetentionBytes) / float64(st.Bytes)
		if err := s.removeBelow(ctx, st.FirstSeq+max(1, uint64(float64(st.Msgs)*excess))); err != nil {
			return err
		}
	}
	return s.findOldest(ctx)
}

// removeBelow removes the messages below a sequence. The state of a node whose
// messages all go is published again first.
func (s *stream) removeBelow(ctx context.Context, keep uint64) error {
	if _, err := s.catchUp(ctx); err != nil {
		return err
	}
	s.mu.RLock()
	keep = min(keep, s.seen.seq+1) // Of what is later, there may be nodes that are not known yet.
	before := s.seen
	old := make(map[string]*streamNode)
	for name, n := range s.nodes {
		if n.seq < keep {
			old[name] = n
		}
	}
	s.mu.RUnlock()
	info, err := s.str.Info(ctx)
	if err != nil || keep <= info.State.FirstSeq || info.State.Msgs == uint64(len(old)) && keep > info.State.LastSeq {
		return err // There is nothing, or it is states that would only be published again.
	}
	for name, n := range old {
		m := &message{node: name, state: n.state, before: before}
		if err := s.publish(ctx, m, n.seq); err != nil && !conflict(err) {
			return fmt.Errorf("keep the state of node %s: %w", name, err)
		}
	}
	if err := s.str.Purge(ctx, jetstream.WithPurgeSequence(keep)); err != nil {
		return err
	}
	s.cfg.Logger.Info("old records removed", "messages", keep-info.State.FirstSeq, "oldest", firstCursor(keep))
	return nil
}

// findOldest looks up the first record.
func (s *stream) findOldest(ctx context.Context) error {
	s.mu.RLock()
	before, oldest := s.last, uint64(0)
	s.mu.RUnlock()
	for seq := uint64(1); oldest == 0; {
		found, err := s.page(ctx, seq)
		if err != nil {
			return err
		}
		if len(found) == 0 {
			break
		}
		for _, m := range found {
			if m.records > 0 {
				oldest = firstCursor(m.seq)
				break
			}
			seq = m.seq + 1
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if oldest == 0 && s.positions.newest>>cursorIndexBits > before {
		return nil // It came meanwhile.
	}
	s.oldest = oldest
	return nil
}

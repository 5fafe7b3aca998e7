package eventlog

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sort"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
)

const (
	pageMessages   = 4096
	codeNoMessage  = 10037
	statusNotFound = "404"
	statusEnd      = "204"
)

// getRequest is of STREAM.MSG.GET, which the stream's leader answers, and of
// DIRECT.GET, which any replica does.
type getRequest struct {
	Seq      uint64 `json:"seq,omitempty"`
	NextFor  string `json:"next_by_subj,omitempty"`
	LastFor  string `json:"last_by_subj,omitempty"`
	Batch    int    `json:"batch,omitempty"`
	MaxBytes int    `json:"max_bytes,omitempty"`
}

// ask gets one message of the leader; nil if there is none.
func (s *stream) ask(ctx context.Context, req getRequest) (*message, error) {
	body, err := json.Marshal(req)
	if err != nil {
		return nil, err
	}
	msg, err := s.nc.RequestWithContext(ctx, "$JS.API.STREAM.MSG.GET."+s.cfg.NATS.Stream, body)
	if err != nil {
		return nil, fmt.Errorf("get a message of the stream: %w", err)
	}
	var resp struct {
		Error *struct {
			Code        int    `json:"err_code"`
			Description string `json:"description"`
		} `json:"error"`
		Message struct {
			Seq  uint64    `json:"seq"`
			Hdrs []byte    `json:"hdrs"`
			Data []byte    `json:"data"`
			Time time.Time `json:"time"`
		} `json:"message"`
	}
	if err := json.Unmarshal(msg.Data, &resp); err != nil {
		return nil, fmt.Errorf("get a message of the stream: %w", err)
	}
	if resp.Error != nil {
		if resp.Error.Code == codeNoMessage {
			return nil, nil
		}
		return nil, fmt.Errorf("get a message of the stream: %s", resp.Error.Description)
	}
	h, err := nats.DecodeHeadersMsg(resp.Message.Hdrs)
	if err != nil {
		return nil, fmt.Errorf("message %d: %w", resp.Message.Seq, err)
	}
	m, err := decodeMessage(resp.Message.Seq, resp.Message.Time, h, resp.Message.Data)
	if err != nil {
		return nil, err
	}
	return m, m.decodeState(h)
}

// next is the first message at or after a sequence; nil if there is none.
func (s *stream) next(ctx context.Context, seq uint64) (*message, error) {
	return s.ask(ctx, getRequest{Seq: max(seq, 1), NextFor: s.subjects()})
}

// page is about a megabyte of messages that follow each other without a gap, from
// the first at or after a sequence; none if there is none.
//
// Any replica may answer, and one that has fallen behind may lack what is there.
// So where something seems to be missing the leader is asked.
func (s *stream) page(ctx context.Context, seq uint64) ([]*message, error) {
	seq = max(seq, 1)
	found, err := s.direct(ctx, seq)
	if err != nil {
		return nil, err
	}
	if len(found) > 0 && found[0].seq == seq {
		return found, nil
	}
	m, err := s.next(ctx, seq)
	if err != nil || m == nil {
		return nil, err
	}
	if len(found) > 0 && found[0].seq == m.seq {
		return found, nil
	}
	return []*message{m}, nil
}

// direct gets messages of any replica, up to the first gap.
func (s *stream) direct(ctx context.Context, seq uint64) ([]*message, error) {
	body, err := json.Marshal(getRequest{Seq: seq, Batch: pageMessages, MaxBytes: DefaultChunkBytes})
	if err != nil {
		return nil, err
	}
	inbox := s.nc.NewRespInbox()
	sub, err := s.nc.SubscribeSync(inbox)
	if err != nil {
		return nil, err
	}
	defer func() { _ = sub.Unsubscribe() }() // It fails only with the connection.
	if err := s.nc.PublishRequest("$JS.API.DIRECT.GET."+s.cfg.NATS.Stream, inbox, body); err != nil {
		return nil, err
	}
	var out []*message
	for {
		msg, err := sub.NextMsgWithContext(ctx)
		if err != nil {
			return nil, fmt.Errorf("read the stream from message %d: %w", seq, err)
		}
		switch status := msg.Header.Get("Status"); status {
		case "":
		case statusNotFound, statusEnd:
			return out, nil
		default:
			return nil, fmt.Errorf("read the stream from message %d: %s %s", seq, status, msg.Header.Get("Description"))
		}
		at, err := strconv.ParseUint(msg.Header.Get("Nats-Sequence"), 10, 64)
		if err != nil {
			return nil, fmt.Errorf("read the stream from message %d: its sequence: %w", seq, err)
		}
		if len(out) > 0 && at != out[len(out)-1].seq+1 {
			return out, nil
		}
		stored, err := time.Parse(time.RFC3339Nano, msg.Header.Get("Nats-Time-Stamp"))
		if err != nil {
			return nil, fmt.Errorf("message %d: %w", at, err)
		}
		m, err := decodeMessage(at, stored, msg.Header, msg.Data)
		if err != nil {
			return nil, err
		}
		out = append(out, m)
	}
}

// below is how many records are below a message.
func (s *stream) below(ctx context.Context, m *message) (uint64, error) {
	s.mu.RLock()
	noted, ok := s.starts.below[m.seq]
	s.mu.RUnlock()
	if ok {
		return noted.below, nil
	}
	below := m.before.records
	for seq := m.before.seq + 1; seq < m.seq; {
		found, err := s.page(ctx, seq)
		if err != nil {
			return 0, err
		}
		for _, b := range found {
			if b.seq >= m.seq {
				seq = m.seq
				break
			}
			below += b.records
			seq = b.seq + 1
		}
		if len(found) == 0 {
			return 0, fmt.Errorf("message %d is not there yet", seq)
		}
	}
	s.noteBelow(m, below)
	return below, nil
}

func (s *stream) noteBelow(m *message, below uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.starts.add(m, below)
}

// place is where a reader is in a stream.
type place struct {
	next    uint64 // Sequence of the message to read next. Zero: not begun.
	total   uint64 // Records below it,
	known   bool   // if that is known.
	skipped uint64 // Records that are gone before the next block.
}

// fill implements backend.
func (s *stream) fill(r *Reader) error {
	s.mu.RLock()
	last, totalAfter, loaded := s.last, s.loaded[r.after], false
	_, loaded = s.loaded[r.after]
	s.mu.RUnlock()
	ctx, cancel := context.WithTimeout(context.Background(), streamReadTimeout)
	defer cancel()
	at := &r.at
	want := at.next
	if want == 0 {
		want = max(1, r.after>>cursorIndexBits)
		at.total, at.known = totalAfter, loaded || r.after == 0
	}
	for ; len(r.blocks) == 0 && want <= last; want = at.next {
		found, err := s.page(ctx, want)
		if err != nil {
			return err
		}
		if len(found) == 0 {
			return fmt.Errorf("message %d is not there yet", want)
		}
		if first := found[0]; at.next == 0 || first.seq != want {
			below, err := s.below(ctx, first)
			if err != nil {
				return err
			}
			if first.seq != want && at.known {
				at.skipped += below - min(below, at.total)
			}
			at.total, at.known = below, true
		}
		for _, m := range found {
			s.noteBelow(m, at.total)
			if err := m.each(func(cursor uint64, value []byte) {
				r.add(cursor, value, at.skipped)
				at.skipped = 0
			}); err != nil {
				return err
			}
			at.total += m.records
			at.next = m.seq + 1
		}
	}
	return nil
}

// totalAt is how many records there are up to a cursor, if that can be told;
// otherwise how many below the first that follows.
func (s *stream) totalAt(ctx context.Context, cursor uint64) (uint64, bool, error) {
	seq, index := cursor>>cursorIndexBits, cursor&(maxMessageRecords-1)
	s.mu.RLock()
	noted, ok := s.starts.below[seq]
	s.mu.RUnlock()
	if ok {
		return noted.below + min(index+1, noted.records), true, nil
	}
	m, err := s.next(ctx, seq)
	if err != nil || m == nil {
		return 0, false, err
	}
	below, err := s.below(ctx, m)
	if err != nil {
		return 0, false, err
	}
	if m.seq != seq {
		return below, false, nil
	}
	return below + min(index+1, m.records), true, nil
}

// catchUp is the total at the newest message that is known, which may not have
// been followed yet.
func (s *stream) catchUp(ctx context.Context) (total, error) {
	s.mu.RLock()
	all, last := s.seen, s.last
	s.mu.RUnlock()
	for all.seq < last {
		found, err := s.page(ctx, all.seq+1)
		if err != nil {
			return total{}, err
		}
		if len(found) == 0 {
			return total{}, fmt.Errorf("message %d is not there yet", all.seq+1)
		}
		for _, m := range found {
			all = total{m.seq, all.records + m.records}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if all.seq > s.seen.seq {
		s.seen = all
	}
	return all, nil
}

// behind implements backend.
func (s *stream) behind(cursor uint64) (uint64, error) {
	s.mu.RLock()
	newest := s.positions.newest
	s.mu.RUnlock()
	if cursor >= newest {
		return 0, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), streamReadTimeout)
	defer cancel()
	all, err := s.catchUp(ctx)
	if err != nil {
		return 0, err
	}
	// Of a cursor whose message is gone, it is the records below the first that is left.
	done, _, err := s.totalAt(ctx, cursor)
	return all.records - min(all.records, done), err
}

// afterTime implements backend.
func (s *stream) afterTime(t time.Time) (uint64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), streamReadTimeout)
	defer cancel()
	seq, err := s.firstSince(ctx, t)
	return firstCursor(seq) - 1, err
}

// firstSince is the sequence of the first message that arrived at a time or
// later; one behind the last if none did.
func (s *stream) firstSince(ctx context.Context, t time.Time) (uint64, error) {
	info, err := s.str.Info(ctx)
	if err != nil {
		return 0, err
	}
	first := max(1, info.State.FirstSeq)
	var failed error
	n := sort.Search(int(info.State.LastSeq+1-min(first, info.State.LastSeq+1)), func(i int) bool {
		m, err := s.next(ctx, first+uint64(i))
		if err != nil || m == nil {
			failed = errors.Join(failed, err)
			return true
		}
		arrived, err := m.arrived()
		failed = errors.Join(failed, err)
		return !arrived.Before(t)
	})
	return first + uint64(n), failed
}

package eventlog

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"
)

const (
	retryPause     = 50 * time.Millisecond
	parallelNodes  = 64
	blockOverheads = 512 // What a block is larger than its events, at most, but for its names.
)

// store implements backend. Nodes are written side by side, the messages of each
// one after the other.
func (s *stream) store(group []*pending) error {
	if s.Health() != nil {
		if err := s.ready(time.Now()); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), streamStoreTimeout)
	defer cancel()
	byNode := make(map[string][]*pending)
	for _, p := range group {
		p.result = Result{}
		byNode[p.batch.Node] = append(byNode[p.batch.Node], p)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallelNodes)
	for node, batches := range byNode {
		g.Go(func() error {
			if err := s.storeNode(ctx, node, batches); err != nil {
				return fmt.Errorf("node %s: %w", node, err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	duplicates := uint64(0)
	for _, p := range group {
		duplicates += uint64(p.result.Repeated)
	}
	s.mu.Lock()
	s.positions.duplicates += duplicates
	s.mu.Unlock()
	return nil
}

// piece is a batch, or a part of one, that fits into a message.
type piece struct {
	of    *pending
	batch Batch
	size  int
}

// cut makes pieces of batches.
func (s *stream) cut(batches []*pending) ([]piece, error) {
	var out []piece
	for _, p := range batches {
		rest := p.batch
		for len(rest.Events) > 0 {
			size, n := blockOverheads+len(rest.Node)+len(rest.Boot), 0
			size *= 2 // The block that states what is missing.
			for n < len(rest.Events) && n < maxMessageRecords-1 {
				more := len(rest.Events[n].Data) + 10
				if size+more > s.maxBytes {
					break
				}
				size += more
				n++
			}
			if n == 0 {
				return nil, fmt.Errorf("event %d has %d bytes, which max_payload of the NATS servers does not allow", rest.First, len(rest.Events[0].Data))
			}
			part := rest
			part.Events = rest.Events[:n]
			out = append(out, piece{p, part, size})
			rest.Events, rest.First = rest.Events[n:], rest.First+uint64(n)
		}
	}
	return out, nil
}

// storeNode stores the batches of one node. What fails is tried again until the
// context ends, since the stream is away for some seconds when its leader is lost;
// where nothing was heard of a message, it is looked whether it was stored.
func (s *stream) storeNode(ctx context.Context, node string, batches []*pending) error {
	pieces, err := s.cut(batches)
	if err != nil {
		return err
	}
	for len(pieces) > 0 {
		results, err := s.storeFirst(ctx, node, pieces)
		if conflict(err) {
			continue // The other has got on, so it ends.
		}
		if err != nil {
			select {
			case <-ctx.Done():
				return err
			case <-time.After(retryPause):
				continue
			}
		}
		for i, r := range results {
			sum := &pieces[i].of.result
			*sum = Result{High: r.High, Stored: sum.Stored + r.Stored, Repeated: sum.Repeated + r.Repeated, Missing: sum.Missing + r.Missing}
		}
		pieces = pieces[len(results):]
	}
	return nil
}

// storeFirst stores as many of the first pieces as fit into a message.
func (s *stream) storeFirst(ctx context.Context, node string, pieces []piece) ([]Result, error) {
	ctx, cancel := context.WithTimeout(ctx, streamAskTimeout)
	defer cancel()
	known, err := s.lastOf(ctx, node)
	if err != nil {
		return nil, err
	}
	m, results, err := s.compose(node, known, pieces)
	if err == nil && m.records > 0 {
		err = s.publish(ctx, m, known.seq)
	}
	return results, err
}

// compose makes a message of the first pieces, behind the node's last one.
func (s *stream) compose(node string, known *streamNode, pieces []piece) (*message, []Result, error) {
	s.mu.RLock()
	m := &message{node: node, state: known.state.clone(), before: s.seen}
	s.mu.RUnlock()
	var results []Result
	size, records := 0, 0
	for i := range pieces {
		p := &pieces[i]
		size += p.size
		records += len(p.batch.Events) + 1
		if len(results) > 0 && (size > s.maxBytes || records > maxMessageRecords) {
			break
		}
		high, last := m.state.high(p.batch.Boot)
		r, err := p.batch.place(high, last, m.put)
		if err != nil {
			return nil, nil, err
		}
		results = append(results, r)
	}
	return m, results, nil
}

// publish stores a message durably if that of a sequence is still its subject's
// last. After an error the node's last message is looked up anew.
func (s *stream) publish(ctx context.Context, m *message, last uint64) error {
	ack, err := s.js.PublishMsg(ctx, m.encode(s.subject(m.node)), jetstream.WithExpectLastSequencePerSubject(last), jetstream.WithExpectStream(s.cfg.NATS.Stream))
	if err != nil {
		s.mu.Lock()
		if n := s.nodes[m.node]; n != nil {
			s.nodes[m.node] = &streamNode{seq: n.seq, state: n.state, stale: true}
		}
		s.mu.Unlock()
		return err
	}
	m.seq = ack.Sequence
	s.take(m)
	return nil
}

// conflict says whether another collector has stored something of the node first.
func conflict(err error) bool {
	var api *jetstream.APIError
	return errors.As(err, &api) && (api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence || api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant)
}

// lastOf is the last message of a node, as it is known here or else to the
// stream's leader. It may be out of date, and publishing then fails.
func (s *stream) lastOf(ctx context.Context, node string) (*streamNode, error) {
	s.mu.RLock()
	n := s.nodes[node]
	s.mu.RUnlock()
	if n != nil && !n.stale {
		return n, nil
	}
	m, err := s.ask(ctx, getRequest{LastFor: s.subject(node)})
	if err != nil {
		return nil, err
	}
	if m == nil {
		return &streamNode{state: newNodeState()}, nil
	}
	s.mu.Lock()
	if n := s.nodes[node]; n != nil && n.stale && n.seq == m.seq {
		n = &streamNode{seq: m.seq, state: m.state}
		s.nodes[node] = n
	}
	s.mu.Unlock()
	s.take(m)
	return &streamNode{seq: m.seq, state: m.state}, nil
}

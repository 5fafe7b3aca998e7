package server

import (
	"crypto/tls"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/storage"
)

// fleetNode is one node of a fleet: a connection and a replica. Every cut is
// applied and acknowledged with the digest that came out.
type fleetNode struct {
	name    string
	address string
	config  *tls.Config
	failed  chan<- error

	wire    *wire         // Nil before the first dial.
	leaving atomic.Bool   // The end of the connection is no failure.
	ended   chan struct{} // Closed when the connection's reader has returned.

	// What follows is guarded by the mutex of the wire, under which messages come.
	replica storage.Replica
	report  nodeReport
	begun   chan struct{} // Closed at the stream's first acknowledgement; then nil.
}

// dial drops the connection and makes a new one.
func (n *fleetNode) dial() error {
	if n.wire != nil {
		n.leaving.Store(true)
		n.wire.conn.Close()
		<-n.ended
	}
	w, err := dialWire(n.address, n.config, n.message)
	if err != nil {
		return fmt.Errorf("%s: %w", n.name, err)
	}
	n.wire, n.ended = w, make(chan struct{})
	n.leaving.Store(false)
	go func() {
		defer close(n.ended)
		if err := w.run(); !n.leaving.Load() {
			select {
			case n.failed <- fmt.Errorf("%s: %w", n.name, err):
			default: // One is enough.
			}
		}
	}()
	return nil
}

// subscribe begins a stream, in place of the one before, and returns when its
// first cut, or in-sync, has been acknowledged.
func (n *fleetNode) subscribe() error {
	begun := make(chan struct{})
	err := n.wire.open(n.address, func() ([]byte, error) {
		n.begun = begun
		n.replica.Begin()
		h := &policyv1.Hello{Node: n.name, Version: "bench"}
		if n.replica.Revision() != 0 {
			h.Digest, h.Position = n.replica.Digest().Bytes(), n.replica.Position()
		}
		return n.encode(&policyv1.SubscribeRequest{Message: &policyv1.SubscribeRequest_Hello{Hello: h}})
	})
	if err != nil {
		return fmt.Errorf("%s: %w", n.name, err)
	}
	select {
	case <-begun:
		return nil
	case <-n.ended:
		return fmt.Errorf("%s: the connection ended", n.name)
	}
}

// encode is a message that is going to be sent.
func (n *fleetNode) encode(m *policyv1.SubscribeRequest) ([]byte, error) {
	b, err := proto.Marshal(m)
	n.report.Payload += int64(len(b))
	return b, err
}

// message takes what the server says, and answers.
func (n *fleetNode) message(b []byte) error {
	resp := &policyv1.SubscribeResponse{}
	if err := proto.Unmarshal(b, resp); err != nil {
		return err
	}
	n.report.Payload += int64(len(b))
	ack, err := n.take(resp)
	if ack == nil || err != nil {
		return err
	}
	answer, err := n.encode(&policyv1.SubscribeRequest{Message: &policyv1.SubscribeRequest_Ack{Ack: ack}})
	if err != nil {
		return err
	}
	if err := n.wire.send(answer); err != nil {
		return err
	}
	if n.begun != nil {
		close(n.begun)
		n.begun = nil
	}
	return nil
}

// take applies a message; the acknowledgement is nil before a cut's last frame.
func (n *fleetNode) take(resp *policyv1.SubscribeResponse) (*policyv1.Ack, error) {
	start := time.Now()
	switch m := resp.GetMessage().(type) {
	case *policyv1.SubscribeResponse_InSync:
		n.replica.InSync(m.InSync)
		n.report.InSyncs++
	case *policyv1.SubscribeResponse_Cut:
		n.count(m.Cut)
		_, done, err := n.replica.Apply(m.Cut)
		if err != nil || !done {
			return nil, err
		}
		n.report.Cuts++
		if want, _ := storage.DigestFromBytes(m.Cut.GetDigest()); want != n.replica.Digest() {
			return nil, fmt.Errorf("digest %s after cut %d, want %s", n.replica.Digest(), m.Cut.GetRevision(), want)
		}
	default:
		return nil, errors.New("a message that is no cut and no in-sync")
	}
	return &policyv1.Ack{Revision: n.replica.Revision(), ApplyMicros: uint64(time.Since(start).Microseconds())}, nil // The digest is the cut's.
}

func (n *fleetNode) count(frame *policyv1.Cut) {
	if frame.GetSnapshot() {
		if !frame.GetMore() {
			n.report.Snapshots++
		}
		return
	}
	for _, sd := range frame.GetScopes() {
		n.report.Upserts += len(sd.GetUpserts())
		n.report.Others += len(sd.GetRemovals())
		if sd.GetReset_() || sd.GetGone() || len(sd.GetResetBuckets()) > 0 {
			n.report.Others++
		}
	}
}

func (n *fleetNode) tell() nodeReport {
	n.wire.mu.Lock()
	defer n.wire.mu.Unlock()
	r := n.report
	r.Digest = n.replica.Digest().Bytes()
	return r
}

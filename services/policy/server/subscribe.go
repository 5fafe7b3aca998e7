package server

import (
	"cmp"
	"errors"
	"io"
	"strconv"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/engine"
	"github.com/weirnet/weir/storage"
)

// SpreadHeader is the response header that says over how many milliseconds the
// nodes should spread their reconnects, should this stream end.
const SpreadHeader = "weir-reconnect-spread-ms"

// spreadPerNode makes a replica's nodes come back at a rate that two cores
// carry: a handshake with mutual TLS costs both ends about 1.5 ms.
const spreadPerNode = time.Millisecond

type subscribeStream = grpc.BidiStreamingServer[policyv1.SubscribeRequest, policyv1.SubscribeResponse]

// serving is one Subscribe call on its way.
type serving struct {
	server   *Server
	call     subscribeStream
	session  *session
	stream   *stream
	sub      *storage.Subscriber
	received chan error // How receiving ended.
	repairs  int
	log      hclog.Logger
}

// Subscribe implements PolicyService.
func (s *Server) Subscribe(call subscribeStream) error {
	hello, held, err := s.hello(call)
	if err != nil {
		return err
	}
	if !s.cfg.Synced() {
		return status.Error(codes.Unavailable, "sources have not been read yet; try again shortly")
	}
	se := s.sessions.get(hello.GetNode())
	if !se.enter() {
		return status.Errorf(codes.ResourceExhausted, "node %q has %d streams already", hello.GetNode(), maxCalls)
	}
	defer se.leave()
	spread := spreadPerNode * time.Duration(s.cfg.Store.NodeCount())
	if err := call.SetHeader(metadata.Pairs(SpreadHeader, strconv.FormatInt(spread.Milliseconds(), 10))); err != nil {
		return cmp.Or(status.FromContextError(call.Context().Err()).Err(), err) // That of a caller who has gone reads like our fault.
	}
	v := &serving{
		server: s, call: call, session: se, log: s.cfg.Logger.With("node", hello.GetNode()),
		stream:   &stream{replaced: make(chan struct{}), acks: make(chan struct{}, 1), inventories: make(chan *policyv1.Inventory, 1)},
		received: make(chan error, 1),
	}
	if se.begin(v.stream, hello) {
		v.log.Warn("a newer stream of the node replaces the older")
	}
	defer func() {
		if se.end(v.stream, s.cfg.Ports) {
			s.barriers.left(se.node)
		}
	}()
	s.streams.Inc()
	defer s.streams.Dec()
	s.pace.streams.Add(1)
	defer s.pace.streams.Add(-1)
	v.sub = s.cfg.Store.Subscribe(hello.GetNode())
	defer func() { v.sub.Close() }()
	go func() { v.received <- s.receive(call, se, v.stream, v.log) }()
	if held != nil {
		if err := v.resume(*held, hello.GetPosition().GetSources()); err != nil {
			return err
		}
	}
	return v.follow()
}

// resume goes on from what the node holds, and sends only what differs. A node
// that was told of later changes than this replica has read is not sent what
// lies between: it would be taken back.
func (v *serving) resume(held storage.Digest, position storage.Position) error {
	done, err := v.inSync(held)
	if err != nil {
		return err
	}
	reached, err := v.await(position)
	if done || err != nil {
		return err
	}
	if !reached {
		_, own := v.server.cfg.Store.Revision()
		v.server.rollbacks.Inc()
		v.log.Warn("the node has been told of a later position than this replica has read; it is served all the same",
			"node_position", position, "position", own)
	}
	if done, err := v.settle(held, reached); done || err != nil {
		return err
	}
	return v.repair()
}

// settle waits until the node's digest is right after all, for Config.Settle at
// the most: where the position is reached, this replica may not have read every
// kind as far.
func (v *serving) settle(held storage.Digest, reached bool) (done bool, err error) {
	var timeout <-chan time.Time
	if settle := v.server.cfg.Settle; settle > 0 && reached {
		timer := time.NewTimer(settle)
		defer timer.Stop()
		timeout = timer.C
	}
	for {
		advanced := v.server.cfg.Store.Advanced() // Taken first, so that nothing is missed between.
		if done, err := v.inSync(held); done || err != nil || timeout == nil {
			return done, err
		}
		select {
		case <-advanced:
		case <-timeout:
			timeout = nil // One last look.
		case err := <-v.received:
			return false, cmp.Or(err, errEnded)
		case <-v.stream.replaced:
			return false, errReplaced
		case <-v.server.stopping:
			return false, errStopping
		}
	}
}

func (v *serving) inSync(held storage.Digest) (bool, error) {
	rev, pos, ok := v.sub.Resume(held)
	if !ok {
		return false, nil
	}
	v.log.Debug("node is in sync", "revision", rev)
	v.session.told(v.stream, sentCut{revision: rev, digest: held, since: time.Now()})
	m := &policyv1.InSync{Epoch: v.server.cfg.Store.Epoch(), Revision: rev, Position: &policyv1.Position{Sources: pos}}
	return true, v.call.Send(&policyv1.SubscribeResponse{Message: &policyv1.SubscribeResponse_InSync{InSync: m}})
}

// await waits until this replica has read as far as what the node was told of,
// but not for ever: a restored cluster has gone back.
func (v *serving) await(position storage.Position) (reached bool, err error) {
	timeout := time.NewTimer(positionTimeout)
	defer timeout.Stop()
	for {
		moved := v.server.cfg.Store.Reached(position)
		if moved == nil {
			return true, nil
		}
		select {
		case <-moved:
		case <-timeout.C:
			return false, nil
		case err := <-v.received:
			return false, cmp.Or(err, errEnded)
		case <-v.stream.replaced:
			return false, errReplaced
		case <-v.server.stopping:
			return false, errStopping
		}
	}
}

var (
	errReplaced = status.Error(codes.Aborted, "replaced by a newer stream of this node")
	errEnded    = status.Error(codes.Canceled, "the node ended the stream")
	errStopping = status.Error(codes.Unavailable, "this replica stops; connect to another")
)

// follow sends cuts until the stream ends.
func (v *serving) follow() error {
	for woken := true; ; {
		if released := v.session.takeReleased(v.stream); len(released) > 0 {
			m := &policyv1.SubscribeResponse{Message: &policyv1.SubscribeResponse_Release{Release: &policyv1.Release{Endpoints: released}}}
			if err := v.call.Send(m); err != nil {
				return err
			}
		}
		for _, p := range v.session.takeProbes(v.stream) {
			if err := v.call.Send(&policyv1.SubscribeResponse{Message: &policyv1.SubscribeResponse_Probe{Probe: p}}); err != nil {
				return err
			}
		}
		room, differs := v.session.mayCut(v.stream)
		if differs {
			if err := v.mend(); err != nil {
				return err
			}
			continue
		}
		if room && woken {
			woken = false // What comes after Next leaves a token in Wake.
			if cut := v.sub.Next(); cut != nil {
				v.server.pace.taken()
				if err := v.send(cut); err != nil {
					return err
				}
				continue
			}
		}
		var wake <-chan struct{}
		if room {
			wake = v.sub.Wake()
		}
		select {
		case <-wake:
			woken = true
		case <-v.stream.acks:
		case err := <-v.received:
			return err
		case <-v.stream.replaced:
			return errReplaced
		case <-v.server.stopping:
			return errStopping
		}
	}
}

// mend answers a digest that is not the cut's: by a repair, and if that did
// not help, by a snapshot.
func (v *serving) mend() error {
	if v.repairs++; v.repairs > 1 {
		v.sub.Close()
		v.sub = v.server.cfg.Store.Subscribe(v.session.node)
		return v.send(v.sub.Next())
	}
	return v.repair()
}

// repair asks the node what it holds, and sends what differs.
func (v *serving) repair() error {
	held := storage.Inventory{}
	for asked := (&policyv1.InventoryRequest{}); asked != nil; asked = v.sub.Compare(held) {
		m := &policyv1.SubscribeResponse{Message: &policyv1.SubscribeResponse_InventoryRequest{InventoryRequest: asked}}
		if err := v.call.Send(m); err != nil {
			return err
		}
		answer, err := v.inventory()
		if err != nil {
			return err
		}
		if err := held.Add(answer, asked); err != nil {
			return status.Error(codes.InvalidArgument, err.Error())
		}
	}
	return v.send(v.sub.Repair(held))
}

func (v *serving) inventory() (*policyv1.Inventory, error) {
	timeout := time.NewTimer(inventoryTimeout)
	defer timeout.Stop()
	select {
	case m := <-v.stream.inventories:
		return m, nil
	case <-timeout.C:
		return nil, status.Error(codes.DeadlineExceeded, "no inventory within 10 s")
	case err := <-v.received:
		return nil, cmp.Or(err, errEnded)
	case <-v.stream.replaced:
		return nil, errReplaced
	case <-v.server.stopping:
		return nil, errStopping
	}
}

func (v *serving) send(cut *storage.Cut) error {
	since, known := v.server.commits.at(cut.Oldest)
	v.session.told(v.stream, sentCut{cut.Revision, cut.Digest, since, known})
	cut.Held = v.server.barriers.held(v.session.node)
	frames := cut.Frames(frameBytes)
	for _, f := range frames {
		if err := v.call.SendMsg(frame(f)); err != nil {
			return err
		}
	}
	if v.log.IsDebug() {
		v.log.Debug("cut sent", "revision", cut.Revision, "snapshot", cut.Snapshot, "scopes", len(cut.Scopes), "frames", len(frames))
	}
	return nil
}

// hello receives the first message and checks it against who is calling.
func (s *Server) hello(call subscribeStream) (*policyv1.Hello, *storage.Digest, error) {
	type result struct {
		req *policyv1.SubscribeRequest
		err error
	}
	first := make(chan result, 1)
	go func() {
		req, err := call.Recv()
		first <- result{req, err}
	}()
	var r result
	select {
	case r = <-first:
	case <-time.After(helloTimeout):
		return nil, nil, status.Error(codes.InvalidArgument, "no hello within 10 s")
	}
	if r.err != nil {
		return nil, nil, r.err
	}
	hello := r.req.GetHello()
	if hello == nil {
		return nil, nil, status.Error(codes.InvalidArgument, "the first message must be a hello")
	}
	if hello.GetNode() == "" {
		return nil, nil, status.Error(codes.InvalidArgument, "hello.node is empty")
	}
	node, err := s.cfg.NodeOf(call.Context())
	if err != nil {
		return nil, nil, status.Errorf(codes.PermissionDenied, "caller is no node: %v", err)
	}
	if node != "" && node != hello.GetNode() {
		return nil, nil, status.Errorf(codes.PermissionDenied, "hello.node is %q, the certificate is that of %q", hello.GetNode(), node)
	}
	if len(hello.GetDigest()) == 0 {
		return hello, nil, nil
	}
	held, ok := storage.DigestFromBytes(hello.GetDigest())
	if !ok {
		return nil, nil, status.Errorf(codes.InvalidArgument, "hello.digest has %d bytes, not 16", len(hello.GetDigest()))
	}
	return hello, &held, nil
}

// receive takes acks, nacks and stats until the stream ends.
func (s *Server) receive(call subscribeStream, se *session, st *stream, log hclog.Logger) error {
	for {
		req, err := call.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		switch m := req.GetMessage().(type) {
		case *policyv1.SubscribeRequest_Ack:
			s.applySec.Observe(float64(m.Ack.GetApplyMicros()) / 1e6)
			err = s.answer(se, st, nodeAnswer{revision: m.Ack.GetRevision(), micros: m.Ack.GetApplyMicros(), inForce: true}, m.Ack.GetDigest(), log)
		case *policyv1.SubscribeRequest_Nack:
			msg := m.Nack.GetError()
			if msg == "" {
				return status.Error(codes.InvalidArgument, "nack.error is empty")
			}
			log.Warn("node could not apply a cut", "revision", m.Nack.GetRevision(), "err", msg, "items", len(m.Nack.GetItems()))
			items, inForce := m.Nack.GetItems(), len(m.Nack.GetItems()) > 0
			if !inForce {
				items = m.Nack.GetCauses()
			}
			err = s.answer(se, st, nodeAnswer{revision: m.Nack.GetRevision(), err: msg, failed: places(items), inForce: inForce}, m.Nack.GetDigest(), log)
		case *policyv1.SubscribeRequest_Stats:
			s.tallies.report(se.node, se.report(st, m.Stats, s.cfg.Ports), true, time.Now())
		case *policyv1.SubscribeRequest_Probe:
			se.probed(m.Probe)
		case *policyv1.SubscribeRequest_Inventory:
			select {
			case st.inventories <- m.Inventory:
			default:
				return status.Error(codes.InvalidArgument, "an inventory that was not asked for")
			}
		case *policyv1.SubscribeRequest_Hello:
			return status.Error(codes.InvalidArgument, "a second hello")
		default:
			return status.Error(codes.InvalidArgument, "an empty message")
		}
		if err != nil {
			return err
		}
	}
}

// answer takes an ack or a nack, with the digest that it brings, if any.
func (s *Server) answer(se *session, st *stream, a nodeAnswer, digest []byte, log hclog.Logger) error {
	if len(digest) > 0 {
		d, ok := storage.DigestFromBytes(digest)
		if !ok {
			return status.Errorf(codes.InvalidArgument, "digest of revision %d has %d bytes, not 16", a.revision, len(digest))
		}
		a.held = &d
	}
	known, differs, committed := se.answered(st, a)
	if !known {
		return status.Errorf(codes.InvalidArgument, "revision %d was never sent", a.revision)
	}
	switch {
	case differs:
		s.repairs.Inc()
		log.Warn("the node's state differs from what it was sent: repairing it", "revision", a.revision)
	case a.inForce:
		s.barriers.applied(se.node, a.revision)
		if !committed.IsZero() {
			s.ackedSec.Observe(time.Since(committed).Seconds())
		}
	}
	return nil
}

// places are items with what a node says of them. One that names no scope is
// left out: the nack's message has to do.
func places(items []*policyv1.ItemError) map[engine.ItemPlace]string {
	out := make(map[engine.ItemPlace]string, len(items))
	for _, i := range items {
		if scope, ok := storage.ScopeIDFromBytes(i.GetScope()); ok {
			out[engine.ItemPlace{Scope: scope, Key: i.GetKey()}] = i.GetError()
		}
	}
	return out
}

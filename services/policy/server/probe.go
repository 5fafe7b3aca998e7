package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

// End is an end of a connection: a Pod in the Pod network with the node that it
// is on, or an address alone.
type End struct {
	Namespace, Pod string
	Node           string
	Addr           netip.Addr
}

// probes bounds how many are under way.
type probes struct{ slots chan struct{} }

// Limits of probes.
const (
	maxProbes    = 8 // On this replica at a time, and on one node.
	defaultWatch = 2 * time.Second
	maxWatch     = 5 * time.Second
	// probeSlack is how long all may take that is not watching.
	probeSlack = 8 * time.Second
	// probeFirst is the first of the source ports that are chosen: Linux gives its
	// own connections those below.
	probeFirst = 61000
)

// Probe implements InspectionService.
func (s *Server) Probe(ctx context.Context, req *policyv1.InspectionServiceProbeRequest) (*policyv1.InspectionServiceProbeResponse, error) {
	if err := s.admit(ctx); err != nil {
		return nil, err
	}
	select {
	case s.probes.slots <- struct{}{}:
		defer func() { <-s.probes.slots }()
	default:
		return nil, status.Errorf(codes.ResourceExhausted, "%d probes are under way", maxProbes)
	}
	p, err := s.newProbe(req)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	ctx, cancel := context.WithTimeout(ctx, p.limit+probeSlack)
	defer cancel()
	resp := &policyv1.InspectionServiceProbeResponse{SourceIp: p.wire.SourceIp, DestinationIp: p.wire.DestinationIp, SourcePort: p.wire.SourcePort,
		Expected: p.expected, SourceNode: p.from.Node}
	var watched probeResults
	if p.to.Pod != "" && p.to.Node != p.from.Node {
		resp.DestinationNode = p.to.Node
		if watched, err = s.probeNode(ctx, p.to.Node, p.request(policyv1.ProbeRole_PROBE_ROLE_WATCH, p.to, p.limit+answerTime)); err != nil {
			return nil, err
		}
		if armed, err := watched.next(ctx, p.to.Node); err != nil {
			return nil, err
		} else if !armed.GetArmed() {
			return nil, status.Errorf(codes.FailedPrecondition, "node %s: %s", p.to.Node, armed.GetError())
		}
	}
	sent, err := s.probeNode(ctx, p.from.Node, p.request(policyv1.ProbeRole_PROBE_ROLE_SEND, p.from, p.limit))
	if err != nil {
		return nil, err
	}
	if resp.Source, err = sent.whole(ctx, p.from.Node); err != nil {
		return nil, err
	}
	if watched != nil {
		if resp.Destination, err = watched.whole(ctx, p.to.Node); err != nil {
			return nil, err
		}
	}
	resp.Seen = verdictSeen(resp, p.to)
	expected := p.expected.GetVerdict()
	resp.Agrees = resp.Seen == expected || expected == policyv1.Verdict_VERDICT_REJECT && resp.Seen == policyv1.Verdict_VERDICT_DROP
	return resp, nil
}

// answerTime is how much longer the destination watches than the source: the
// packet is sent after the watch has begun.
const answerTime = time.Second

// probe is one that is to be made.
type probe struct {
	from, to End
	limit    time.Duration
	expected *policyv1.ExplainResponse
	wire     *policyv1.ProbeRequest // But for role, Pod and limit.
}

// newProbe reads a request; an error names the field.
func (s *Server) newProbe(req *policyv1.InspectionServiceProbeRequest) (*probe, error) {
	explain := &policyv1.ExplainRequest{From: req.GetFrom(), To: req.GetTo(), Protocol: req.GetProtocol(), Port: req.GetPort(), SourcePort: req.GetSourcePort()}
	if explain.SourcePort == 0 {
		explain.SourcePort = probeFirst + rand.Uint32N(65536-probeFirst)
	}
	p := &probe{limit: time.Duration(req.GetLimitMillis()) * time.Millisecond}
	if p.limit == 0 {
		p.limit = defaultWatch
	}
	p.limit = min(p.limit, maxWatch)
	var err error
	if p.from, p.to, err = s.cfg.Model.Ends(explain); err != nil {
		return nil, err
	}
	if p.from.Pod == "" {
		return nil, errors.New("from: a packet is sent from a Pod in the Pod network: write NAMESPACE/POD")
	}
	number := map[policyv1.Protocol]uint32{policyv1.Protocol_PROTOCOL_UNSPECIFIED: 6, policyv1.Protocol_PROTOCOL_TCP: 6, policyv1.Protocol_PROTOCOL_UDP: 17,
		policyv1.Protocol_PROTOCOL_SCTP: 132, policyv1.Protocol_PROTOCOL_ICMP: 1}[req.GetProtocol()]
	if number == 1 && p.from.Addr.Is6() {
		number = 58
	}
	if number == 0 {
		return nil, fmt.Errorf("protocol: %v cannot be probed", req.GetProtocol())
	}
	p.wire = &policyv1.ProbeRequest{SourceIp: p.from.Addr.AsSlice(), DestinationIp: p.to.Addr.AsSlice(), Protocol: number, SourcePort: explain.SourcePort, DestinationPort: req.GetPort()}
	if number == 1 || number == 58 {
		p.wire.DestinationPort, explain.SourcePort = 0, 0
	}
	p.expected, err = s.cfg.Model.Explain(explain, nil)
	return p, err
}

// request is a node's part in the probe.
func (p *probe) request(role policyv1.ProbeRole, of End, limit time.Duration) *policyv1.ProbeRequest {
	w := p.wire
	return &policyv1.ProbeRequest{Id: rand.Uint64() | 1, Role: role, Pod: of.Namespace + "/" + of.Pod, SourceIp: w.SourceIp, DestinationIp: w.DestinationIp,
		Protocol: w.Protocol, SourcePort: w.SourcePort, DestinationPort: w.DestinationPort, LimitMillis: uint32(min(limit, maxWatch).Milliseconds())}
}

// verdictSeen is what was seen of a probe: a Pod has it, or where it is for none
// the node let it out; or somebody answered in the destination's place.
func verdictSeen(resp *policyv1.InspectionServiceProbeResponse, to End) policyv1.Verdict {
	rejected := false
	for _, r := range []*policyv1.ProbeResult{resp.GetSource(), resp.GetDestination()} {
		for _, sight := range r.GetSights() {
			switch sight.GetEvent() {
			case policyv1.ProbeEvent_PROBE_EVENT_DELIVERED:
				return policyv1.Verdict_VERDICT_ALLOW
			case policyv1.ProbeEvent_PROBE_EVENT_LEFT:
				if to.Pod == "" {
					return policyv1.Verdict_VERDICT_ALLOW
				}
			case policyv1.ProbeEvent_PROBE_EVENT_ANSWERED:
				rejected = true
			}
		}
	}
	if rejected {
		return policyv1.Verdict_VERDICT_REJECT
	}
	return policyv1.Verdict_VERDICT_DROP
}

// probeResults gives a node's answers, one after the other.
type probeResults func(ctx context.Context) (*policyv1.ProbeResult, error)

// next is the next answer, or why there is none.
func (r probeResults) next(ctx context.Context, node string) (*policyv1.ProbeResult, error) {
	result, err := r(ctx)
	switch {
	case err == nil:
		return result, nil
	case ctx.Err() != nil:
		return nil, status.Errorf(codes.DeadlineExceeded, "node %s has not answered in time", node)
	case status.Code(err) != codes.Unknown:
		return nil, err
	}
	return nil, status.Errorf(codes.Unavailable, "node %s: %v", node, err)
}

// whole is an answer that is not an error.
func (r probeResults) whole(ctx context.Context, node string) (*policyv1.ProbeResult, error) {
	result, err := r.next(ctx, node)
	if err == nil && result.GetError() != "" {
		return nil, status.Errorf(codes.FailedPrecondition, "node %s: %s", node, result.GetError())
	}
	return result, err
}

// probeNode hands a probe to a node, by whichever replica it is connected to.
func (s *Server) probeNode(ctx context.Context, node string, req *policyv1.ProbeRequest) (probeResults, error) {
	local, err := s.probeLocal(ctx, node, req)
	if err == nil || status.Code(err) != codes.NotFound {
		return local, err
	}
	if r := s.barriers.replicas; r != nil {
		for _, conn := range r.others() {
			stream, err := policyv1.NewReplicaServiceClient(conn).ProbeNode(ctx, &policyv1.ProbeNodeRequest{Node: node, Probe: req})
			if err == nil {
				_, err = stream.Recv()
			}
			switch status.Code(err) {
			case codes.OK:
				return func(context.Context) (*policyv1.ProbeResult, error) {
					resp, err := stream.Recv()
					return resp.GetResult(), err
				}, nil
			case codes.NotFound, codes.Unavailable, codes.Unimplemented:
			default:
				return nil, err
			}
		}
	}
	return nil, status.Errorf(codes.Unavailable, "node %s is not connected to any replica", node)
}

// probeLocal hands a probe to a node that is connected to this replica.
func (s *Server) probeLocal(ctx context.Context, node string, req *policyv1.ProbeRequest) (probeResults, error) {
	se := s.sessions.find(node)
	if se == nil {
		return nil, status.Errorf(codes.NotFound, "node %s is not connected here", node)
	}
	results, err := se.probe(req)
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, func() { se.forgetProbe(req.GetId()) })
	return func(ctx context.Context) (*policyv1.ProbeResult, error) {
		select {
		case r, more := <-results:
			if !more {
				return nil, errors.New("its stream ended")
			}
			return r, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}, nil
}

// ProbeNode implements ReplicaService.
func (s *Server) ProbeNode(req *policyv1.ProbeNodeRequest, answer grpc.ServerStreamingServer[policyv1.ProbeNodeResponse]) error {
	ctx := answer.Context()
	if err := s.cfg.MayReplicate(ctx); err != nil {
		return status.Errorf(codes.PermissionDenied, "caller is no policy service: %v", err)
	}
	ctx, cancel := context.WithTimeout(ctx, maxWatch+probeSlack)
	defer cancel()
	results, err := s.probeLocal(ctx, req.GetNode(), req.GetProbe())
	if err != nil {
		return err
	}
	if err := answer.Send(&policyv1.ProbeNodeResponse{}); err != nil {
		return err
	}
	for {
		r, err := results.next(ctx, req.GetNode())
		if err != nil {
			return err
		}
		if err := answer.Send(&policyv1.ProbeNodeResponse{Result: r}); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if !r.GetArmed() {
			return nil
		}
	}
}

// probe has the node's stream carry a probe; the channel is closed when the
// stream ends.
func (se *session) probe(req *policyv1.ProbeRequest) (<-chan *policyv1.ProbeResult, error) {
	se.mu.Lock()
	defer se.mu.Unlock()
	switch {
	case se.stream == nil:
		return nil, status.Errorf(codes.NotFound, "node %s is not connected here", se.node)
	case !se.stream.probes:
		return nil, status.Errorf(codes.FailedPrecondition, "node %s: its shim (version %s) knows no probes", se.node, se.version)
	case len(se.probing) >= maxProbes:
		return nil, status.Errorf(codes.ResourceExhausted, "%d probes of node %s are under way", maxProbes, se.node)
	}
	results := make(chan *policyv1.ProbeResult, 2) // Armed, and the end.
	if se.probing == nil {
		se.probing = make(map[uint64]chan *policyv1.ProbeResult)
	}
	se.probing[req.GetId()] = results
	se.stream.unsent = append(se.stream.unsent, req)
	select {
	case se.stream.acks <- struct{}{}:
	default:
	}
	return results, nil
}

// takeProbes are those that the stream has not sent yet.
func (se *session) takeProbes(st *stream) []*policyv1.ProbeRequest {
	se.mu.Lock()
	defer se.mu.Unlock()
	unsent := st.unsent
	st.unsent = nil
	return unsent
}

// probed takes an answer. One that nobody waits for, or is one too many, is left.
func (se *session) probed(r *policyv1.ProbeResult) {
	se.mu.Lock()
	defer se.mu.Unlock()
	select {
	case se.probing[r.GetId()] <- r:
	default:
	}
}

// forgetProbe says that nobody waits for a probe any more.
func (se *session) forgetProbe(id uint64) {
	se.mu.Lock()
	defer se.mu.Unlock()
	delete(se.probing, id)
}

// endProbesLocked closes what waits for a stream's answers.
func (se *session) endProbesLocked() {
	for id, results := range se.probing {
		close(results)
		delete(se.probing, id)
	}
}

package shim

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/bridge"
	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/shim/pipeline"
)

// prober is a Dataplane that can send a packet and say what it would do with one.
type prober interface {
	PacketOut(ctx context.Context, p openflow.PacketOut) error
	Trace(ctx context.Context, packet string, options ...string) (string, error)
}

// Limits of probes.
const (
	maxProbes      = 4               // At a time.
	maxProbeLimit  = 5 * time.Second // Of a request.
	probeStepLimit = 5 * time.Second // Of all steps but watching.
	// answerGrace is how long an answer to a packet that was delivered is waited for.
	answerGrace = 500 * time.Millisecond
	// resetGrace is how long the sender's kernel may take to refuse a connection
	// that it did not begin. What it says after the connection was forgotten would
	// begin it anew.
	resetGrace = 200 * time.Millisecond
)

// probes are those under way.
type probes struct {
	slots chan struct{}

	mu    sync.Mutex // Guards what follows.
	next  uint32
	going map[uint32]chan seenPacket
}

// seenPacket is a copy of a packet, where it left the bridge.
type seenPacket struct {
	at     time.Time
	packet bridge.Packet
	output uint32
}

func newProbes() *probes {
	return &probes{slots: make(chan struct{}, maxProbes), going: make(map[uint32]chan seenPacket)}
}

// run hands copies to the probes that they are of, until the context ends.
func (p *probes) run(ctx context.Context, copies <-chan openflow.PacketIn) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case in := <-copies:
			id, ok := pipeline.Watches(in.Cookie)
			packet, err := bridge.ParseFrame(in.Packet)
			if !ok || err != nil {
				continue
			}
			p.mu.Lock()
			to := p.going[id]
			p.mu.Unlock()
			select {
			case to <- seenPacket{time.Now(), packet, in.Metadata.Reg(1)}:
			default: // Over, or it has seen enough.
			}
		}
	}
}

// begin is a new probe, and where its copies come.
func (p *probes) begin() (id uint32, copies <-chan seenPacket) {
	c := make(chan seenPacket, 64)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.next++
	p.going[p.next] = c
	return p.next, c
}

func (p *probes) end(id uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.going, id)
}

// turn has the loop do something between changes.
func (s *Shim) turn(ctx context.Context, do func(context.Context) error) error {
	done := make(chan error, 1)
	select {
	case s.turns <- func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, probeStepLimit)
		defer cancel()
		done <- do(ctx)
	}:
		return <-done
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Probe implements client.Handler.
func (s *Shim) Probe(ctx context.Context, req *policyv1.ProbeRequest, answer func(*policyv1.ProbeResult)) {
	select {
	case s.probes.slots <- struct{}{}:
	default:
		go answer(&policyv1.ProbeResult{Id: req.GetId(), Error: fmt.Sprintf("%d probes are under way on the node", maxProbes)})
		return
	}
	go func() {
		defer func() { <-s.probes.slots }()
		r, err := s.probe(ctx, req, answer)
		if err != nil {
			r = &policyv1.ProbeResult{Error: err.Error()}
		}
		r.Id = req.GetId()
		answer(r)
	}()
}

// probing is a probe as this node knows its part in it.
type probing struct {
	pipeline.Probe
	sends   bool
	pod     pipeline.Pod // Whose port it is sent from, or arrives at.
	port    pipeline.Port
	gateway [6]byte
	// deliver is the port by which the destination is reached on this node. Zero:
	// it is not on this node.
	deliver uint32
}

func newProbing(req *policyv1.ProbeRequest) (*probing, error) {
	p := &probing{sends: req.GetRole() == policyv1.ProbeRole_PROBE_ROLE_SEND}
	if !p.sends && req.GetRole() != policyv1.ProbeRole_PROBE_ROLE_WATCH {
		return nil, fmt.Errorf("role %v is not known", req.GetRole())
	}
	var ok1, ok2 bool
	p.Src, ok1 = netip.AddrFromSlice(req.GetSourceIp())
	p.Dst, ok2 = netip.AddrFromSlice(req.GetDestinationIp())
	if !ok1 || !ok2 || p.Src.BitLen() != p.Dst.BitLen() {
		return nil, errors.New("its addresses are not of one family")
	}
	if req.GetSourcePort() > 65535 || req.GetDestinationPort() > 65535 || req.GetSourcePort() == 0 {
		return nil, errors.New("its ports are out of range")
	}
	switch req.GetProtocol() {
	case openflow.ProtoTCP, openflow.ProtoUDP, openflow.ProtoSCTP, openflow.ProtoICMP, openflow.ProtoICMPv6:
	default:
		return nil, fmt.Errorf("protocol %d cannot be probed", req.GetProtocol())
	}
	p.Proto, p.SrcPort, p.DstPort = uint8(req.GetProtocol()), uint16(req.GetSourcePort()), uint16(req.GetDestinationPort())
	if p.Proto == openflow.ProtoICMP && !p.Src.Is4() || p.Proto == openflow.ProtoICMPv6 && p.Src.Is4() {
		return nil, errors.New("its protocol is of the other family")
	}
	p.pod.Namespace, p.pod.Name, _ = strings.Cut(req.GetPod(), "/")
	return p, nil
}

// packet is the probe as it comes to the bridge.
func (p *probing) packet() bridge.Packet {
	out := bridge.Packet{EthType: openflow.EtherIPv4, IPSrc: p.Src, IPDst: p.Dst, IPProto: p.Proto, TTL: 64, SrcPort: p.SrcPort, DstPort: p.DstPort}
	if p.Src.Is6() {
		out.EthType = openflow.EtherIPv6
	}
	if p.sends {
		out.InPort, out.EthSrc, out.EthDst = p.port.OFPort, p.port.MAC, p.gateway
	} else { // From the host, which forwards it.
		out.InPort, out.EthSrc, out.EthDst = openflow.PortLocal, p.gateway, p.port.MAC
	}
	if p.Proto == openflow.ProtoTCP {
		out.TCPFlags = bridge.TCPSyn
	}
	if echo := pipeline.EchoRequest(p.Proto); echo != 0 {
		out.ICMPType, out.ICMPID, out.SrcPort, out.DstPort = echo, p.SrcPort, 0, 0
	}
	return out
}

// probe does this node's part. What is put on the bridge for it is gone when it
// returns, or goes by itself.
func (s *Shim) probe(ctx context.Context, req *policyv1.ProbeRequest, answer func(*policyv1.ProbeResult)) (*policyv1.ProbeResult, error) {
	sw, ok := s.bridge.(prober)
	if !ok {
		return nil, errors.New("the bridge cannot send packets for probes")
	}
	p, err := newProbing(req)
	if err != nil {
		return nil, fmt.Errorf("malformed probe: %w", err)
	}
	limit := min(time.Duration(req.GetLimitMillis())*time.Millisecond, maxProbeLimit)
	id, copies := s.probes.begin()
	defer s.probes.end(id)
	p.ID = id
	if err := s.turn(ctx, func(ctx context.Context) error { return s.loop.watch(ctx, p) }); err != nil {
		return nil, err
	}
	defer func() { // Also where whoever asked has gone.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), probeStepLimit)
		defer cancel()
		err := s.turn(ctx, func(ctx context.Context) error { return s.loop.unwatch(ctx, p) })
		if err != nil {
			s.logger.Warn("what a probe left is still on the bridge; it goes within seconds", "err", err)
		}
	}()
	start := time.Now()
	if !p.sends {
		answer(&policyv1.ProbeResult{Id: req.GetId(), Armed: true})
	}
	packet := p.packet()
	account, err := sw.Trace(ctx, packet.String())
	if err != nil {
		return nil, err
	}
	if p.sends {
		start = time.Now()
		out := openflow.PacketOut{InPort: p.port.OFPort, Actions: openflow.NewActions(openflow.OutputPort(openflow.PortTable)), Packet: packet.Frame()}
		if err := sw.PacketOut(ctx, out); err != nil {
			return nil, fmt.Errorf("send the probe: %w", err)
		}
	}
	seen := p.await(ctx, copies, limit)
	result := &policyv1.ProbeResult{}
	err = s.turn(ctx, func(context.Context) (err error) {
		if result.Trace, err = s.loop.traced(account, p); err == nil {
			result.Sights = s.loop.sights(seen, p, start)
		}
		return err
	})
	return result, err
}

// await takes the copies of a probe and its answers until there is no more to
// come, or the limit is over.
func (p *probing) await(ctx context.Context, copies <-chan seenPacket, limit time.Duration) (seen []seenPacket) {
	end := time.NewTimer(limit)
	defer end.Stop()
	for {
		select {
		case <-ctx.Done():
			return seen
		case <-end.C:
			return seen
		case c := <-copies:
			seen = append(seen, c)
			switch answer := p.answer(&c.packet); {
			case p.isProbe(&c.packet) && c.output == p.deliver:
				end.Reset(min(limit, answerGrace))
			case answer == synAck:
				end.Reset(resetGrace)
			case answer != "", c.packet.IPSrc == p.Src && c.packet.TCPFlags&bridge.TCPRst != 0:
				return seen
			}
		}
	}
}

// isProbe says whether a packet is the one that was sent.
func (p *probing) isProbe(c *bridge.Packet) bool {
	want := p.packet()
	return c.IPSrc == p.Src && c.IPDst == p.Dst && c.IPProto == p.Proto && c.SrcPort == want.SrcPort && c.DstPort == want.DstPort &&
		c.TCPFlags == want.TCPFlags && c.ICMPType == want.ICMPType && c.ICMPID == want.ICMPID
}

const synAck = "SYN-ACK"

// answer is what a packet says in answer to the probe; empty where it is none.
func (p *probing) answer(c *bridge.Packet) string {
	if c.IPDst != p.Src {
		return ""
	}
	if in := c.Inner; in != nil {
		echo := pipeline.EchoRequest(p.Proto) != 0
		if in.IPSrc != p.Src || in.IPDst != p.Dst || in.IPProto != p.Proto || echo && in.ICMPID != p.SrcPort || !echo && (in.SrcPort != p.SrcPort || in.DstPort != p.DstPort) {
			return ""
		}
		return fmt.Sprintf("ICMP type %d code %d", c.ICMPType, c.ICMPCode)
	}
	if c.IPSrc != p.Dst || c.IPProto != p.Proto {
		return ""
	}
	switch p.Proto {
	case openflow.ProtoICMP, openflow.ProtoICMPv6:
		if c.ICMPType == pipeline.EchoReply(p.Proto) && c.ICMPID == p.SrcPort {
			return "echo reply"
		}
		return ""
	}
	if c.SrcPort != p.DstPort || c.DstPort != p.SrcPort {
		return ""
	}
	switch {
	case p.Proto == openflow.ProtoUDP:
		return "UDP"
	case p.Proto == openflow.ProtoSCTP:
		return "SCTP"
	case c.TCPFlags&bridge.TCPRst != 0:
		return "RST"
	case c.TCPFlags&(bridge.TCPSyn|bridge.TCPAck) == bridge.TCPSyn|bridge.TCPAck:
		return synAck
	}
	return ""
}

// watch finds the port of a probe and puts its flows in.
func (l *loop) watch(ctx context.Context, p *probing) error {
	switch {
	case l.compiler == nil || !l.complete:
		return errNoState
	case l.adopting != nil:
		return errors.New("the bridge is being adopted")
	}
	port, ips, ok := l.compiler.OpenPort(p.pod)
	own := p.Dst
	if p.sends {
		own = p.Src
	}
	switch {
	case !ok:
		return fmt.Errorf("there is no open port of Pod %s/%s on this node", p.pod.Namespace, p.pod.Name)
	case !slices.Contains(ips, own):
		return fmt.Errorf("%s is no address of Pod %s/%s on this node", own, p.pod.Namespace, p.pod.Name)
	}
	p.port, p.gateway, p.deliver = port, l.compiler.Gateway(), l.compiler.PortOf(p.Dst)
	return l.put(ctx, bridge.Change{Upsert: pipeline.WatchFlows(p.Probe)})
}

// unwatch takes a probe's flows out and has its connection forgotten.
func (l *loop) unwatch(ctx context.Context, p *probing) error {
	var change bridge.Change
	for _, f := range pipeline.WatchFlows(p.Probe) {
		change.Delete = append(change.Delete, f.Key())
	}
	of := bridge.Connections{Addr: p.Src, Peer: p.Dst, Proto: p.Proto, SrcPort: p.SrcPort, DstPort: p.DstPort, Zone: pipeline.Zone}
	if p.Proto == openflow.ProtoSCTP {
		of.Zone = p.DstPort // Each server port has a zone.
	}
	return errors.Join(l.sw.Apply(ctx, change), l.sw.FlushConntrack(ctx, of))
}

// leavePassing takes flows that watch probes, or that were learned, out of what
// was read back: they are to be there, and go by themselves.
func leavePassing(actual bridge.State) {
	maps.DeleteFunc(actual.Flows, func(_ openflow.FlowKey, f openflow.Flow) bool { return pipeline.Passing(f.Cookie) })
}

// traced is what the switch's account of the probe says.
func (l *loop) traced(account string, p *probing) (*policyv1.ProbeTrace, error) {
	outcome, err := bridge.ParseTrace(account)
	if err != nil {
		return nil, err
	}
	if l.compiler == nil {
		return nil, errNoState
	}
	t := &policyv1.ProbeTrace{Passes: !outcome.Dropped()}
	if t.Passes {
		if t.Output = l.outputName(outcome.Outputs[0]); t.Output == "" {
			t.Output = "port " + outcome.Outputs[0]
		}
	}
	trail := make([]pipeline.Step, 0, len(outcome.Tables))
	for i, table := range outcome.Tables {
		trail = append(trail, pipeline.Step{Table: table, Cookie: outcome.Cookies[i]})
	}
	packet := p.packet()
	h := pipeline.Hit{InPort: packet.InPort, OutPort: p.deliver, Src: p.Src, Dst: p.Dst, Proto: p.Proto, SrcPort: packet.SrcPort, DstPort: packet.DstPort, ICMPType: packet.ICMPType}
	t.Decisions = l.compiler.Decisions(trail, h, t.Passes)
	return t, nil
}

// outputName says what a port of a trace leads to; empty where it is not known.
func (l *loop) outputName(port string) string {
	if port == "LOCAL" {
		return "host"
	}
	n, err := strconv.ParseUint(port, 10, 32)
	if err != nil {
		return ""
	}
	if pod, ok := l.compiler.Owners()[uint32(n)]; ok {
		return pod.Namespace + "/" + pod.Name
	}
	if uint32(n) == l.config.Uplink {
		return "uplink"
	}
	return ""
}

// sights are what copies of a probe say.
func (l *loop) sights(seen []seenPacket, p *probing, start time.Time) (out []*policyv1.ProbeSight) {
	owners := l.compiler.Owners()
	for _, c := range seen {
		s := &policyv1.ProbeSight{AfterMicros: uint32(max(0, c.at.Sub(start)).Microseconds())}
		if pod, ok := owners[c.output]; ok {
			s.Pod = pod.Namespace + "/" + pod.Name
		}
		switch answer := p.answer(&c.packet); {
		case answer != "":
			s.Event, s.Answer = policyv1.ProbeEvent_PROBE_EVENT_ANSWERED, answer
		case !p.isProbe(&c.packet):
			continue // The sender's own end of what it did not begin.
		case s.GetPod() != "":
			s.Event = policyv1.ProbeEvent_PROBE_EVENT_DELIVERED
		default:
			s.Event = policyv1.ProbeEvent_PROBE_EVENT_LEFT
		}
		out = append(out, s)
	}
	slices.SortStableFunc(out, func(a, b *policyv1.ProbeSight) int { return cmp.Compare(a.GetAfterMicros(), b.GetAfterMicros()) })
	return out
}

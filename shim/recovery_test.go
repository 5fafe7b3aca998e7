package shim

import (
	"context"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/shim/bridge"
	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/shim/pipeline"
)

// keptTap is a bridge whose row keeps the end of a recovery.
type keptTap struct {
	*tap
	until time.Time
}

func (k *keptTap) KeepRecovery(_ context.Context, until time.Time) error {
	k.until = until
	return nil
}

// segment is one of a connection that client (1) has with a port of web (2), from its
// side or from web's.
func segment(from byte, flags uint16, port uint16) bridge.Packet {
	p := syn(from, 3-from)
	p.TCPFlags = flags
	if p.DstPort = port; from == 2 {
		p.SrcPort, p.DstPort = port, 40000
	}
	return p
}

// recoveries is a loop whose bridge had its state, with web and client isolated in both
// directions: web takes what client begins to ports 80 and 82, client may begin what is to
// ports 80 and 83 of web, and nothing else passes.
func recoveries(t *testing.T) (*keptTap, *loop) {
	t.Helper()
	sw, w, objects := twoPods(t)
	k := &keptTap{tap: sw}
	s := newShim(t, sw, w, t.TempDir())
	s.loop.sw = k
	both := func(p *api.NetworkPolicy) *api.NetworkPolicy {
		p.PolicyTypes = []api.PolicyType{api.PolicyTypeIngress, api.PolicyTypeEgress}
		return p
	}
	rule := func(app string, more uint16) []api.NetworkPolicyRule {
		return []api.NetworkPolicyRule{{Ports: []api.NetworkPolicyPort{{Protocol: api.ProtocolTCP, Port: 80}, {Protocol: api.ProtocolTCP, Port: more}}, Peers: []api.NetworkPolicyPeer{{PodSelector: &api.Selector{MatchLabels: labels(app)}}}}}
	}
	web, client := both(deny("web", "web")), both(deny("client", "client"))
	web.Ingress, client.Egress = rule("client", 82), rule("web", 83)
	ctx := context.Background()
	s.loop.refreshPorts(ctx)
	if r := s.loop.apply(ctx, w.replica, w.cut(append(objects, web, client)...)); r.err != nil {
		t.Fatal(r.err)
	}
	must(t, s.loop.reconcile(ctx))
	return k, s.loop
}

// send says whether a packet arrives at the other Pod, with the help of the loop.
func (k *keptTap) send(t *testing.T, l *loop, p bridge.Packet) (arrives, asked bool) {
	t.Helper()
	to := uint32(p.IPDst.As4()[3])
	if slices.Contains(k.Send(p).Ports(), to) {
		return true, false
	}
	select {
	case in := <-l.shim.recoveryIns:
		l.recover(context.Background(), &in)
		sent := k.Sent()
		return slices.Contains(sent[len(sent)-1].Walk.Ports(), to), true
	default:
		return false, false
	}
}

// After a restart of the switch a connection goes on by what its server says first,
// and nothing is begun that the rules deny.
func TestAnswersRecoverConnections(t *testing.T) {
	t.Parallel()
	const ack, syn = bridge.TCPAck | bridge.TCPPsh, bridge.TCPSyn
	k, l := recoveries(t)
	ctx := context.Background()
	expect := func(what string, p bridge.Packet, arrives, asked bool) {
		t.Helper()
		if a, b := k.send(t, l, p); a != arrives || b != asked {
			t.Errorf("%s: arrives: %v, asked: %v", what, a, b)
		}
	}
	expect("an answer of no connection", segment(2, ack, 80), false, false)
	if !k.until.IsZero() {
		t.Error("a first start is a recovery")
	}

	k.Restart()
	l.stale = true
	must(t, l.reconcile(ctx))
	if left := time.Until(k.until); left < 50*time.Second || left > time.Minute {
		t.Errorf("%s are kept", left)
	}
	for _, p := range []bridge.Packet{segment(2, syn, 80), segment(1, syn, 81), segment(2, syn|bridge.TCPAck, 80)} {
		expect("a SYN that is denied", p, false, false)
	}
	expect("what nobody may have asked for", segment(2, ack, 81), false, true)
	expect("what its server may not have been asked", segment(2, ack, 83), false, true)
	expect("what its client may not have asked", segment(2, ack, 82), false, true)
	expect("what is from a client by its ports, and denied", segment(1, ack, 81), false, false)
	expect("an answer", segment(2, ack, 80), true, true)
	expect("a second answer", segment(2, ack, 80), true, false)
	expect("what the client says", segment(1, ack, 80), true, false)
	expect("a SYN of the server by the recovered connection", segment(2, syn, 80), false, false)
	if l.recovery.recovered != 1 {
		t.Errorf("%d recovered", l.recovery.recovered)
	}
	forged := segment(2, ack, 80)
	forged.IPSrc = netip.MustParseAddr("10.0.0.9")
	expect("an answer in another's name", forged, false, false)
	other := func(port uint16) bridge.Packet {
		p := segment(2, ack, 80)
		p.DstPort = port
		return p
	}

	// The lease is renewed as long as the time lasts.
	k.PassTime(2 * time.Second)
	l.goOnRecovering(ctx, time.Now())
	k.PassTime(2 * time.Second)
	expect("an answer, later", other(40001), true, true)
	l.goOnRecovering(ctx, k.until.Add(time.Millisecond))
	expect("an answer after the time", other(40002), false, false)
	expect("a recovered connection after the time", segment(2, ack, 80), true, false)
	expect("a SYN of the server by it", segment(2, syn, 80), false, false)
	if !k.until.IsZero() {
		t.Error("the end of the recovery is kept on")
	}
	comparison, state, err := compared(ctx, k, l.compiler, func(openflow.Flow) {})
	must(t, err)
	if d := amends(l.compiler, comparison, state); !d.IsEmpty() {
		t.Errorf("left: %v", d)
	}
}

// With nobody there to renew them the flows go by themselves, and a packet of an
// unknown connection is judged as any.
func TestRecoveryIsALease(t *testing.T) {
	t.Parallel()
	k, l := recoveries(t)
	k.Restart()
	l.stale = true
	must(t, l.reconcile(context.Background()))
	client := segment(1, bridge.TCPAck, 80)
	client.SrcPort = 1000
	if walk := k.Send(client); len(walk.Ports()) > 0 {
		t.Errorf("it goes on by %v and is not judged as an answer first", walk.Ports())
	}
	k.PassTime(pipeline.RecoveryLease)
	if walk := k.Send(client); !slices.Contains(walk.Ports(), 2) {
		t.Errorf("what is allowed goes on by %v", walk.Ports())
	}
	if walk := k.Send(segment(2, bridge.TCPAck, 80)); len(walk.Ports()) > 0 {
		t.Errorf("what is denied goes on by %v", walk.Ports())
	}
}

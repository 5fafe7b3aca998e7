package server

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

// twoPods is a model in which Pod x/a of node-a may reach x/b of node-b, if allowed
// says so.
type twoPods struct {
	noModel
	verdict policyv1.Verdict
}

func (m twoPods) Explain(*policyv1.ExplainRequest, func(string) bool) (*policyv1.ExplainResponse, error) {
	return &policyv1.ExplainResponse{Verdict: m.verdict}, nil
}

func (twoPods) Ends(*policyv1.ExplainRequest) (from, to End, err error) {
	return End{"x", "a", "node-a", netip.MustParseAddr("10.0.0.1")}, End{"x", "b", "node-b", netip.MustParseAddr("10.0.0.2")}, nil
}

// probeable is a node's stream that takes probes.
func (f *fixture) probeable(node string) *client {
	f.t.Helper()
	c := f.subscribe(&policyv1.Hello{Node: node, Probes: true})
	cut := c.cut()
	c.ack(cut.GetRevision(), cut.GetDigest())
	return c
}

// probe receives the next probe.
func (c *client) probe() *policyv1.ProbeRequest {
	c.t.Helper()
	for {
		resp, err := c.stream.Recv()
		if err != nil {
			c.t.Error(err)
			return nil
		}
		if p := resp.GetProbe(); p != nil {
			return p
		}
	}
}

func (c *client) probed(r *policyv1.ProbeResult) {
	c.send(&policyv1.SubscribeRequest{Message: &policyv1.SubscribeRequest_Probe{Probe: r}})
}

var sawDelivered = []*policyv1.ProbeSight{{Event: policyv1.ProbeEvent_PROBE_EVENT_DELIVERED, Pod: "x/b"}}

// pair is two replicas that know of each other.
func pair(t *testing.T) (a, b *fixture) {
	t.Helper()
	var listeners []net.Listener
	var addresses []string
	for range 2 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		listeners, addresses = append(listeners, l), append(addresses, l.Addr().String())
	}
	a = newReplica(t, "a", listeners[0], addresses, addresses[0])
	b = newReplica(t, "b", listeners[1], addresses, addresses[1])
	deadline, tick := time.After(10*time.Second), time.Tick(time.Millisecond)
	for len(a.server.barriers.replicas.others()) < 2 || len(b.server.barriers.replicas.others()) < 2 {
		select {
		case <-tick:
		case <-deadline:
			t.Fatal("the replicas do not find each other")
		}
	}
	return a, b
}

// A probe goes to the nodes of both ends, whichever replicas they are connected
// to; the destination watches before the source sends. What they saw is compared
// with what is expected.
func TestProbeReachesNodesOfOtherReplicas(t *testing.T) {
	for name, tc := range map[string]struct {
		expected policyv1.Verdict
		sights   []*policyv1.ProbeSight
		agrees   bool
	}{
		"delivered":                   {policyv1.Verdict_VERDICT_ALLOW, sawDelivered, true},
		"not delivered":               {policyv1.Verdict_VERDICT_ALLOW, nil, false},
		"delivered against the rules": {policyv1.Verdict_VERDICT_DROP, sawDelivered, false},
		"denied":                      {policyv1.Verdict_VERDICT_DROP, nil, true},
		"rejected without an answer":  {policyv1.Verdict_VERDICT_REJECT, nil, true},
		"rejected":                    {policyv1.Verdict_VERDICT_REJECT, []*policyv1.ProbeSight{{Event: policyv1.ProbeEvent_PROBE_EVENT_ANSWERED, Answer: "RST"}}, true},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := pair(t)
			a.server.cfg.Model = twoPods{verdict: tc.expected}
			source, destination := b.probeable("node-a"), a.probeable("node-b")
			armed := make(chan struct{})
			go func() {
				p := destination.probe()
				if p.GetRole() != policyv1.ProbeRole_PROBE_ROLE_WATCH || p.GetPod() != "x/b" || p.GetSourcePort() < probeFirst {
					t.Errorf("the destination is asked for %v", p)
				}
				close(armed)
				destination.probed(&policyv1.ProbeResult{Id: p.GetId(), Armed: true})
				destination.probed(&policyv1.ProbeResult{Id: p.GetId() + 1}) // Which nobody asked for.
				destination.probed(&policyv1.ProbeResult{Id: p.GetId(), Sights: tc.sights})
			}()
			go func() {
				p := source.probe()
				select {
				case <-armed:
				default:
					t.Error("the source is asked before the destination watches")
				}
				if p.GetRole() != policyv1.ProbeRole_PROBE_ROLE_SEND || p.GetPod() != "x/a" || p.GetProtocol() != 6 || p.GetDestinationPort() != 80 {
					t.Errorf("the source is asked for %v", p)
				}
				source.probed(&policyv1.ProbeResult{Id: p.GetId(), Trace: &policyv1.ProbeTrace{Passes: true, Output: "host"}})
			}()
			resp, err := policyv1.NewInspectionServiceClient(a.conn).Probe(context.Background(), &policyv1.InspectionServiceProbeRequest{From: "x/a", To: "x/b", Port: 80})
			if err != nil {
				t.Fatal(err)
			}
			if resp.GetAgrees() != tc.agrees || resp.GetSourceNode() != "node-a" || resp.GetDestinationNode() != "node-b" || resp.GetSource().GetTrace().GetOutput() != "host" ||
				len(resp.GetDestination().GetSights()) != len(tc.sights) {
				t.Errorf("got %v", resp)
			}
		})
	}
}

// Nodes that cannot be asked, and what they say against it, are named.
func TestProbeFailsByName(t *testing.T) {
	f := newFixture(t)
	f.server.cfg.Model = twoPods{verdict: policyv1.Verdict_VERDICT_ALLOW}
	ask := func(want codes.Code, text string) {
		t.Helper()
		_, err := policyv1.NewInspectionServiceClient(f.conn).Probe(context.Background(), &policyv1.InspectionServiceProbeRequest{From: "x/a", To: "x/b", Port: 80})
		if status.Code(err) != want || !strings.Contains(err.Error(), text) {
			t.Errorf("got %v, want %v: %s", err, want, text)
		}
	}
	ask(codes.Unavailable, "node node-b is not connected to any replica")
	old := f.subscribe(&policyv1.Hello{Node: "node-b", Version: "v0"})
	old.cut()
	ask(codes.FailedPrecondition, "node node-b: its shim (version v0) knows no probes")
	node := f.probeable("node-b")
	go func() {
		node.probed(&policyv1.ProbeResult{Id: node.probe().GetId(), Error: "Pod x/b has no open port on this node"})
	}()
	ask(codes.FailedPrecondition, "node node-b: Pod x/b has no open port on this node")
	go func() {
		node.probe()
		node.stream.CloseSend()
	}()
	ask(codes.Unavailable, "node node-b: its stream ended")
	for range maxProbes {
		f.server.probes.slots <- struct{}{}
	}
	ask(codes.ResourceExhausted, "probes are under way")
}

package policy

import (
	"context"
	"fmt"
	"net/netip"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/services/policy/status"
	"github.com/weirnet/weir/storage"
)

const statusPolicies, statusNodes = 1000, 1000

// told is a source that says what it is given.
type told chan Batch

// Run implements Source.
func (told) Run(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }

// Next implements Source.
func (s told) Next(ctx context.Context) (Batch, error) {
	select {
	case b := <-s:
		return b, nil
	case <-ctx.Done():
		return Batch{}, ctx.Err()
	}
}

func statusPod(name, app string, node, generation int) *api.Pod {
	return &api.Pod{Namespace: "ns", Name: name, UID: name, Node: fmt.Sprintf("worker-%04d", node), Labels: api.Labels{{Key: "app", Value: app}},
		IPs: []netip.Addr{netip.AddrFrom4([4]byte{10, byte(generation), byte(node >> 8), byte(node)})}}
}

// statusCluster is 1,000 policies, each of which applies to a Pod of each of 1,000
// nodes and names one group of 100 that all name and one of its own.
func statusCluster() (events []api.Event) {
	add := func(o api.Object) { events = append(events, api.Event{Ref: o.Ref(), Object: o}) }
	add(&api.Namespace{Name: "ns"})
	for i := range statusNodes {
		add(statusPod(fmt.Sprintf("web-%d", i), "web", i, 1))
	}
	for i := range 100 {
		add(statusPod(fmt.Sprintf("peer-%d", i), "peer", i, 2))
	}
	selector := func(v string) *api.Selector { return &api.Selector{MatchLabels: api.Labels{{Key: "app", Value: v}}} }
	for i := range statusPolicies {
		add(&api.OrderedPolicy{Kind: api.KindAntreaNetworkPolicy, Namespace: "ns", Name: fmt.Sprintf("policy-%04d", i), UID: fmt.Sprint(i), Generation: 1,
			Tier: "application", Priority: float64(i + 1), AppliedTo: []api.Target{{PodSelector: selector("web")}},
			Ingress: []api.OrderedRule{{Name: "in", Action: api.ActionDrop, Peers: []api.Peer{{PodSelector: selector("peer")}, {PodSelector: selector(fmt.Sprintf("own-%d", i))}}}}})
	}
	return events
}

// BenchmarkStatus is what a look at 1,000 policies that all reach 1,000 nodes costs a
// replica, one a second at the most: while nothing changes; while a member of a group
// that all name comes or moves each time; and while a policy changes each time. All
// nodes acknowledge what they are sent, and the look is timed once they have, so that
// what nodes and streams cost is no part of it (cpu-ms/look). What is then written is
// for BenchmarkPlan of package status.
func BenchmarkStatus(b *testing.B) {
	source := make(told)
	s, err := New(Config{Source: source, Listen: "127.0.0.1:0", Logger: hclog.NewNullLogger()})
	if err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	b.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			b.Error(err)
		}
	})
	source <- Batch{Events: statusCluster(), Synced: true, Position: storage.Position{"told": 1}}
	<-s.read // Before that, nodes are turned away.
	for range statusNodes / 50 {
		conn, err := grpc.NewClient(s.Addr(), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { conn.Close() })
		for range 50 {
			go acknowledge(ctx, conn, int(nextStatusNode.Add(1)-1)%statusNodes)
		}
	}
	model := known{s}
	inForce := func() []status.Policy {
		for deadline := time.Now().Add(2 * time.Minute); ; {
			policies := model.Policies(ctx)
			n := 0
			for i := range policies {
				if policies[i].Realized == statusNodes && policies[i].Waiting == 0 {
					n++
				}
			}
			if n == statusPolicies {
				return policies
			}
			if time.Now().After(deadline) {
				b.Fatalf("%d policies are in force", n)
			}
			time.Sleep(20 * time.Millisecond) // The nodes need the cores.
		}
	}
	inForce()
	generation, revision := 1, uint64(1)
	for _, load := range []struct {
		name   string
		change func(i int) api.Object
	}{
		{"quiet", nil},
		{"members", func(i int) api.Object { return statusPod("coming", "peer", i%statusNodes, 3+i%200) }},
		{"policies", func(i int) api.Object {
			generation++
			p := statusCluster()[1+statusNodes+100+i%statusPolicies].Object.(*api.OrderedPolicy)
			p.Generation, p.Priority = int64(generation), float64(2000+generation)
			return p
		}},
	} {
		b.Run(load.name, func(b *testing.B) {
			var cpu time.Duration
			for i := range b.N {
				if load.change != nil {
					o := load.change(i)
					revision++
					source <- Batch{Events: []api.Event{{Ref: o.Ref(), Object: o}}, Position: storage.Position{"told": revision}}
					inForce()
				}
				before := cpuTime()
				if n := len(model.Policies(ctx)); n != statusPolicies {
					b.Fatalf("%d policies", n)
				}
				cpu += cpuTime() - before
			}
			b.ReportMetric(float64(cpu.Microseconds())/1000/float64(b.N), "cpu-ms/look")
		})
	}
}

var nextStatusNode atomic.Int64

// acknowledge stands for a node: it says that it holds what it is sent.
func acknowledge(ctx context.Context, conn *grpc.ClientConn, node int) {
	stream, err := policyv1.NewPolicyServiceClient(conn).Subscribe(ctx)
	if err != nil {
		return
	}
	for m := (&policyv1.SubscribeRequest{Message: &policyv1.SubscribeRequest_Hello{Hello: &policyv1.Hello{Node: fmt.Sprintf("worker-%04d", node)}}}); ; {
		if stream.Send(m) != nil {
			return
		}
		for {
			resp, err := stream.Recv()
			if err != nil {
				return
			}
			if cut := resp.GetCut(); cut != nil && !cut.GetMore() {
				m = &policyv1.SubscribeRequest{Message: &policyv1.SubscribeRequest_Ack{Ack: &policyv1.Ack{Revision: cut.GetRevision()}}}
				break
			}
		}
	}
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

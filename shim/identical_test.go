package shim

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/shim/pipeline"
)

// The workload of ten thousand policies that say the same: they let the Pods of
// a Namespace in to each other, of which a hundred are here.
const (
	identicalPolicies = 10000
	identicalPods     = 10000
	identicalHere     = 100
)

// identical tells the policy service of the Pods, and returns the policies.
func (n *benchNode) identical() (policies []api.Object) {
	objects := peers("same", 0, identicalPods-identicalHere)
	for _, p := range n.pods {
		same := *p
		same.Labels = labels("same")
		objects = append(objects, &same)
	}
	for _, o := range objects {
		n.engine.Apply(api.Event{Ref: o.Ref(), Object: o})
	}
	for i := range identicalPolicies {
		policies = append(policies, lets(fmt.Sprint("policy-", i), "same", "same"))
	}
	return policies
}

// identicalCost is how many flows the policies may have: one for each peer; of each
// target, that of the rule and that of its isolation; and some for all of them.
const identicalCost = identicalPods + 2*identicalHere + 20

// Ten thousand identical policies cost the flows of one, and act: who is in the
// group comes in, and nobody else. One more or less of them touches what says
// by which policies the targets are isolated, and not the peers.
func TestIdenticalPoliciesAreOne(t *testing.T) {
	n := newBenchNode(t, identicalHere)
	policies := n.identical()
	before := n.flowCount()
	n.bring(n.frames(policies...))
	if got := n.flowCount() - before; got < identicalPods || got > identicalCost {
		t.Fatalf("%d flows came with %d identical policies, want between %d and %d", got, identicalPolicies, identicalPods, identicalCost)
	}
	const port, pod = 80, 7
	local, err := n.sw.Local(context.Background())
	must(t, err)
	out, in := n.newWire(benchBridge, port, func([]byte) {}), n.newWire(fmt.Sprint("eth", pod), port, func([]byte) {})
	serial := uint16(20000)
	send := func(source [4]byte) {
		serial++
		must(t, out.send(frame([6]byte{2, 0xaa}, local.MAC, source, benchAddr(pod).As4(), serial, port)))
	}
	member, last, stranger := peerAddr(0).As4(), peerAddr(identicalPods-identicalHere-1).As4(), [4]byte{192, 0, 2, 9}
	for _, tc := range []struct {
		name   string
		frames func() [][]byte
	}{
		{"all of them", nil},
		{"one more", func() [][]byte { return n.frames(lets("one-more", "same", "same")) }},
		{"one less", func() [][]byte { return n.without(policies[0]) }},
	} {
		n.sw.take()
		if tc.frames != nil {
			n.bring(tc.frames())
		}
		for _, c := range n.sw.take() {
			if got := len(c.Upsert) + len(c.Delete); got > identicalHere+20 {
				t.Errorf("%s: %d flows were touched, for %d targets", tc.name, got, identicalHere)
			}
		}
		was := in.received.Load()
		send(last)
		send(stranger)
		send(member) // Behind the stranger's: what has not come by then does not come.
		must(t, in.await(was+2))
		if came := in.received.Load() - was; came != 2 {
			t.Errorf("%s: %d packets came, want those of the two members", tc.name, came)
		}
	}
}

// BenchmarkIdenticalPolicies brings that workload to a node and takes it away:
// s/op is from a cut's frames to where it would be acknowledged. Beside it:
// one-more-ms for one more such policy or one less, member-ms for a member that
// comes or goes (medians), and cpu-us/packet of ovs-vswitchd for the first packet
// of a member.
func BenchmarkIdenticalPolicies(b *testing.B) {
	n := newBenchNode(b, identicalHere)
	policies := n.identical()
	base := n.flowCount()
	var took, oneMore, member []time.Duration
	came := 0
	for b.Loop() {
		b.StopTimer()
		frames := n.frames(policies...)
		b.StartTimer()
		took = append(took, n.bring(frames))
		b.StopTimer()
		if came = n.flowCount() - base; came < identicalPods || came > identicalCost {
			b.Fatalf("%d flows came, want between %d and %d", came, identicalPods, identicalCost)
		}
		for i := range 10 {
			more, one := lets("one-more", "same", "same"), peers("same", identicalPods+i, 1)[0]
			oneMore = append(oneMore, n.bring(n.frames(more)), n.bring(n.without(more)))
			member = append(member, n.bring(n.frames(one)), n.bring(n.without(one)))
		}
		n.bring(n.without(policies...))
		if got := n.flowCount(); got != base {
			b.Fatalf("%d flows are left, want %d", got, base)
		}
		b.StartTimer()
	}
	b.StopTimer()
	n.bring(n.frames(policies...))
	b.ReportMetric(float64(n.firstPackets().Nanoseconds())/1000, "cpu-us/packet")
	b.ReportMetric(quantile(0.5, took).Seconds(), "s/op")
	b.ReportMetric(float64(came), "flows")
	b.ReportMetric(ms(quantile(0.5, oneMore)), "one-more-ms")
	b.ReportMetric(ms(quantile(0.5, member)), "member-ms")
}

// firstPackets is the CPU time of ovs-vswitchd for a packet of each member that
// is not here, of whom its datapath knows nothing.
func (n *benchNode) firstPackets() time.Duration {
	n.t.Helper()
	const port = 80
	local, err := n.sw.Local(context.Background())
	must(n.t, err)
	out, in := n.newWire(benchBridge, port, func([]byte) {}), n.newWire("eth0", port, func([]byte) {})
	must(n.t, n.sw.Settle(context.Background(), new(pipeline.Compiler).Touch()))
	const packets = identicalPods - identicalHere
	known, start := n.upcalls(), n.switchCPU()
	for i := range int64(packets) {
		must(n.t, in.await(i-32)) // So many may be under way.
		must(n.t, out.send(frame([6]byte{2, 0xaa}, local.MAC, peerAddr(int(i)).As4(), benchAddr(0).As4(), 20000, port)))
	}
	must(n.t, in.await(packets))
	took := n.switchCPU() - start
	if met := n.upcalls() - known; met < packets {
		n.t.Fatalf("%d first packets made the switch look through the tables %d times", packets, met)
	}
	return took / packets
}

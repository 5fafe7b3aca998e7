package shim

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/hostfw"
	"github.com/weirnet/weir/shim/hostfw/fwtest"
	"github.com/weirnet/weir/shim/hostpolicy"
)

func hostPlanOf(policies ...*policyv1.Policy) *hostpolicy.Plan {
	s := hostpolicy.State{Facts: &policyv1.NodeFacts{Groups: [][]byte{serviceGroup}}}
	for _, p := range policies {
		s.Items = append(s.Items, hostpolicy.Item{Policy: p})
	}
	plan, _ := hostpolicy.New(s)
	return plan
}

// Accounts count on through cuts, restarts and counters that begin anew, and each
// reading tells of what changed.
func TestHostCounts(t *testing.T) {
	dir := t.TempDir()
	p, q := ofHost("p", ingress, dropAction, 22), ofHost("q", egress, dropAction, 22)
	plan := hostPlanOf(p, q)
	in, out := hostfw.CounterName(hostpolicy.Ingress, &plan.Ingress[0]), hostfw.CounterName(hostpolicy.Egress, &plan.Egress[0])
	c := openHostCounts(dir, hclog.NewNullLogger())
	c.expect(plan)
	now := time.Unix(1000, 0)
	reading := uint64(10)
	take := func(lost bool, found map[string]hostfw.Tally) {
		t.Helper()
		now = now.Add(10 * time.Second)
		if since := c.take(found, now); since.IsZero() == lost {
			t.Errorf("lost since %v", since)
		}
	}
	told := func(after uint64, want string) {
		t.Helper()
		reading++
		var got []string
		for _, l := range c.changedAfter(after, reading) {
			got = append(got, fmt.Sprintf("%s %s %d/%d/%d", l.Subject.Name, strings.ToLower(strings.TrimPrefix(l.Subject.Direction.String(), "DIRECTION_")), l.Tally.Sessions, l.Tally.Packets, l.Tally.Bytes))
		}
		if text := strings.Join(got, ", "); text != want {
			t.Errorf("reading %d tells %q, not %q", reading, text, want)
		}
	}
	tally := func(packets uint64) hostfw.Tally { return hostfw.Tally{Packets: packets, Bytes: 60 * packets} }
	take(false, map[string]hostfw.Tally{in: tally(3), out: tally(0), "others": tally(9)})
	told(0, "p ingress 3/3/180, q egress 0/0/0")
	told(reading, "")
	take(false, map[string]hostfw.Tally{in: tally(5), out: tally(1)})
	told(reading, "p ingress 5/5/300, q egress 1/1/60")
	take(false, map[string]hostfw.Tally{in: tally(5), out: tally(2)})
	told(reading, "q egress 2/2/120")

	c = openHostCounts(dir, hclog.NewNullLogger())
	c.expect(hostPlanOf(p))
	take(false, map[string]hostfw.Tally{in: tally(6)}) // The other has gone with its rule.
	told(0, "p ingress 6/6/360, q egress 2/2/120")
	take(false, map[string]hostfw.Tally{in: tally(6), out: tally(1)}) // And is back.
	told(reading, "q egress 3/3/180")
	take(true, map[string]hostfw.Tally{in: tally(2), out: tally(1)}) // Somebody removed the table.
	told(reading, "p ingress 8/8/480")
	now = now.Add(keepHostAccount)
	take(false, map[string]hostfw.Tally{in: tally(2)})
	now = now.Add(keepHostAccount)
	take(false, map[string]hostfw.Tally{in: tally(2)})
	told(0, "p ingress 8/8/480")
}

// TestHostCountsArePackets has the kernel count packets to the host.
func TestHostCountsArePackets(t *testing.T) {
	n := fwtest.New(t)
	n.ServeHost(8080)
	h := hosting(func(c *Config) { c.StateDir = t.TempDir() })
	state := &hostState{t: t}
	ctx := context.Background()
	dropped, allowed := ofHost("shut", ingress, dropAction, 8081), ofHost("open", ingress, policyv1.Action_ACTION_ALLOW, 8080)
	if problems := h.cut(ctx, &state.replica, state.cut(facts(serviceGroup), policies(dropped, allowed))); len(problems) > 0 {
		t.Fatal(problems)
	}
	c, err := n.Dial("udp", fwtest.Client[0], fwtest.Host[0], 8081)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const sent = 7
	send := func() {
		for range sent {
			if _, err := c.Write([]byte("four")); err != nil {
				t.Fatal(err)
			}
		}
	}
	reading := uint64(1)
	told := func(want string) {
		t.Helper()
		h.count(ctx, time.Now())
		var got []string
		reading++
		for _, l := range h.counts.changedAfter(0, reading) {
			got = append(got, fmt.Sprintf("%s %d/%d", l.Subject.Name, l.Tally.Packets, l.Tally.Bytes))
		}
		if text := strings.Join(got, ", "); text != want {
			t.Errorf("counted %q, not %q", text, want)
		}
	}
	send()
	told(fmt.Sprintf("open 0/0, shut %d/%d", sent, sent*32)) // 20 of IP, 8 of UDP.
	h.cut(ctx, &state.replica, state.cut(policies(ofHost("other", egress, dropAction, 1))))
	send()
	told(fmt.Sprintf("open 0/0, other 0/0, shut %d/%d", 2*sent, 2*sent*32))
	conn, err := n.Dial("tcp", fwtest.Client[0], fwtest.Host[0], 8080)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := fwtest.Echo(conn); err != nil {
		t.Fatal(err)
	}
	told(fmt.Sprintf("open 1/60, other 0/0, shut %d/%d", 2*sent, 2*sent*32)) // The packet that begins it.
	send()
	h.cut(ctx, &state.replica, state.cut(removal(dropped))) // Counts what it did until then.
	told(fmt.Sprintf("open 1/60, other 0/0, shut %d/%d", 3*sent, 3*sent*32))
	told(fmt.Sprintf("open 1/60, other 0/0, shut %d/%d", 3*sent, 3*sent*32))
}

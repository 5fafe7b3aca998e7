package facts

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/audit/record"
)

// second is a time so many seconds after the beginning.
func second(n float64) time.Time { return time.Unix(1_700_000_000, 0).Add(time.Duration(n * 1e9)) }

func ips(addresses ...string) (out [][]byte) {
	for _, a := range addresses {
		out = append(out, netip.MustParseAddr(a).AsSlice())
	}
	return out
}

func endpoint(at float64, pod, workload string, addresses ...string) *policyv1.ObjectChange {
	return &policyv1.ObjectChange{TimeUnixNano: second(at).UnixNano(), Object: &policyv1.ObjectChange_Endpoint{
		Endpoint: &policyv1.EndpointFact{Namespace: "shop", Name: pod, Node: "n1", Workload: workload, Ips: ips(addresses...)}}}
}

func gone(at float64, c *policyv1.ObjectChange) *policyv1.ObjectChange {
	c = proto.CloneOf(c)
	c.TimeUnixNano, c.Removed = second(at).UnixNano(), true
	return c
}

func service(at float64, name, address string) *policyv1.ObjectChange {
	return &policyv1.ObjectChange{TimeUnixNano: second(at).UnixNano(), Object: &policyv1.ObjectChange_Service{
		Service: &policyv1.ServiceFact{Namespace: "shop", Name: name, Ips: ips(address)}}}
}

func version(at float64, name string, generation int64) *policyv1.ObjectChange {
	return &policyv1.ObjectChange{TimeUnixNano: second(at).UnixNano(), Object: &policyv1.ObjectChange_Version{
		Version: &policyv1.ObjectVersion{ApiVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy", Namespace: "shop", Name: name, Uid: "u-" + name, Generation: generation}}}
}

// told is what is known of a packet at a time: "SOURCE > DESTINATION (SERVICE) POLICIES".
func told(t *testing.T, f *Facts, at float64, source, destination string, policies ...string) string {
	t.Helper()
	p := record.Packet{First: second(at), Source: netip.MustParseAddr(source), Destination: netip.MustParseAddr(destination)}
	for _, name := range policies {
		p.Policies = append(p.Policies, record.Policy{Kind: policyv1.PolicyKind_POLICY_KIND_K8S_NETWORK_POLICY, Namespace: "shop", Name: name})
	}
	e := &auditv1.Event{}
	if err := proto.Unmarshal(f.AppendContext(nil, &p), e); err != nil {
		t.Fatal(err)
	}
	c := e.GetContext()
	if c == nil {
		return "nothing"
	}
	end := func(e *auditv1.PacketEnd) string {
		switch {
		case e == nil:
			return "?"
		case e.GetPod() == "":
			return "node " + e.GetNode()
		}
		return e.GetPod() + " of " + e.GetWorkload()
	}
	text := end(c.GetSource()) + " > " + end(c.GetDestination())
	if c.GetService() != "" {
		text += " (" + c.GetService() + ")"
	}
	for _, v := range c.GetPolicies() {
		text += fmt.Sprintf(" %s@%d", v.GetUid(), v.GetGeneration())
	}
	return text
}

func TestAsOfThePacketsTime(t *testing.T) {
	f := New(Config{})
	f.Begin()
	web := endpoint(10, "web-1", "Deployment/web", "10.0.0.1", "fd00::1")
	for _, c := range []*policyv1.ObjectChange{web, service(10, "db", "10.96.0.1"), version(10, "deny", 3),
		{TimeUnixNano: second(10).UnixNano(), Object: &policyv1.ObjectChange_Endpoint{Endpoint: &policyv1.EndpointFact{Name: "n2", Ips: ips("192.168.0.2")}}}} {
		f.Apply(c)
	}
	f.Complete(second(11))
	f.Apply(gone(100, web))
	f.Apply(endpoint(200, "job-7", "Job/job", "10.0.0.1")) // Has the address now.
	f.Apply(version(150, "deny", 4))
	for _, c := range []struct {
		at                  float64
		source, destination string
		policies            []string
		want                string
	}{
		{50, "10.0.0.1", "192.168.0.2", []string{"deny"}, "web-1 of Deployment/web > node n2 u-deny@3"},
		{99, "fd00::1", "fd00::2", nil, "web-1 of Deployment/web > ?"},
		{101, "10.0.0.1", "192.168.0.2", nil, "web-1 of Deployment/web > node n2"}, // Clocks differ.
		{150, "10.0.0.1", "8.8.8.8", nil, "nothing"},                               // Nobody's then.
		{199, "10.0.0.1", "8.8.8.8", nil, "job-7 of Job/job > ?"},                  // Clocks differ.
		{201, "10.0.0.1", "10.96.0.1", []string{"other", "deny"}, "job-7 of Job/job > ? (shop/db) @0 u-deny@4"},
		{7, "10.0.0.1", "192.168.0.2", nil, "nothing"}, // Before anything is known.
		{9, "10.0.0.1", "192.168.0.2", nil, "web-1 of Deployment/web > node n2"},
		{300, "10.9.9.9", "10.9.9.8", []string{"other"}, "nothing"},
	} {
		if got := told(t, f, c.at, c.source, c.destination, c.policies...); got != c.want {
			t.Errorf("at %v, %s to %s: %s, want %s", c.at, c.source, c.destination, got, c.want)
		}
	}
}

// TestAddressChangesHands: the new owner may be told before the old one is gone.
func TestAddressChangesHands(t *testing.T) {
	f := New(Config{})
	a, b := endpoint(1, "a", "", "10.0.0.1"), endpoint(20, "b", "", "10.0.0.1")
	f.Apply(a)
	f.Apply(b)
	f.Apply(gone(21, a))
	if got := told(t, f, 30, "10.0.0.1", "10.9.9.9"); got != "b of  > ?" {
		t.Error(got)
	}
	f.Apply(endpoint(40, "b", "", "10.0.0.2")) // And another address for it.
	if got := told(t, f, 50, "10.0.0.1", "10.0.0.2"); got != "? > b of " {
		t.Error(got)
	}
}

// TestSnapshotEndsWhatItLeavesOut: what a new stream does not tell is gone; what it
// tells again was never away.
func TestSnapshotEndsWhatItLeavesOut(t *testing.T) {
	f := New(Config{})
	f.Apply(endpoint(1, "a", "", "10.0.0.1"))
	f.Apply(endpoint(1, "b", "", "10.0.0.2"))
	f.Begin()
	f.Apply(endpoint(50, "a", "", "10.0.0.1"))
	if got := told(t, f, 45, "10.0.0.1", "10.0.0.2"); got != "a of  > b of " {
		t.Errorf("in between: %s", got)
	}
	f.Complete(second(60))
	if got := told(t, f, 45, "10.0.0.1", "10.0.0.2"); got != "a of  > b of " {
		t.Errorf("then: %s", got)
	}
	if got := told(t, f, 70, "10.0.0.1", "10.0.0.2"); got != "a of  > ?" || f.Known() != 1 {
		t.Errorf("later: %s", got)
	}
}

// TestBounded: spans that ended are forgotten in time, and sooner where there are
// too many; what lasts stays.
func TestBounded(t *testing.T) {
	f := New(Config{Keep: time.Minute, MaxSpans: 1000})
	f.Apply(endpoint(0, "stays", "", "10.1.0.1"))
	for i := range 20_000 {
		c := endpoint(float64(i)/100, fmt.Sprint("p", i), "", fmt.Sprintf("10.0.%d.%d", i/250%250, i%250))
		f.Apply(c)
		f.Apply(gone(float64(i)/100+0.01, c))
		if f.spans > 1100 {
			t.Fatalf("%d spans after %d Pods", f.spans, i)
		}
	}
	if got := told(t, f, 200, "10.1.0.1", "10.9.9.9"); got != "stays of  > ?" {
		t.Error(got)
	}
	f.Apply(endpoint(500, "late", "", "10.1.0.2"))
	n := 0
	for _, h := range f.ends {
		n += len(h.spans)
	}
	if n != f.spans || n != 2 || len(f.ends) != 2 {
		t.Errorf("%d spans of %d addresses, %d counted", n, len(f.ends), f.spans)
	}
}

// TestModel: against a list of all that was told, for any order of owners of few
// addresses, with times that ascend.
func TestModel(t *testing.T) {
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 1))
		f := New(Config{Slack: 1})
		owners := make(map[string][]string) // By address, the Pod at each second.
		pods := make(map[string]string)
		for now := range 60 {
			pod, address := fmt.Sprint("p", r.IntN(4)), fmt.Sprintf("10.0.0.%d", r.IntN(3))
			held := false // By another Pod: it is never told so.
			for p, a := range pods {
				held = held || a == address && p != pod
			}
			switch {
			case r.IntN(3) == 0:
				f.Apply(gone(float64(now), endpoint(0, pod, "", "10.0.0.9")))
				delete(pods, pod)
			case !held:
				f.Apply(endpoint(float64(now), pod, "", address))
				pods[pod] = address
			}
			for i := range 3 {
				address, owner := fmt.Sprintf("10.0.0.%d", i), ""
				for p, a := range pods {
					if a == address {
						owner = p
					}
				}
				owners[address] = append(owners[address], owner)
			}
		}
		for address, list := range owners {
			for at, owner := range list {
				want := "nothing"
				if owner != "" {
					want = owner + " of  > ?"
				}
				if got := told(t, f, float64(at)+0.5, address, "10.9.9.9"); got != want {
					t.Fatalf("seed %d: %s at %d: %s, want %s", seed, address, at, got, want)
				}
			}
		}
	}
}

func BenchmarkAppendContext(b *testing.B) {
	f := New(Config{})
	for i := range 100_000 {
		f.Apply(endpoint(1, fmt.Sprint("web-", i), "Deployment/web", fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255)))
	}
	f.Apply(version(1, "deny", 3))
	p := record.Packet{First: second(5), Policies: []record.Policy{{Kind: policyv1.PolicyKind_POLICY_KIND_K8S_NETWORK_POLICY, Namespace: "shop", Name: "deny"}}}
	buf := make([]byte, 0, 4096)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		p.Source = netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
		p.Destination = netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})
		if got := f.AppendContext(buf[:0], &p); len(got) < 40 {
			b.Fatalf("%d bytes", len(got))
		}
	}
}

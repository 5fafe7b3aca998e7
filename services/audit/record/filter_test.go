package record

import (
	"testing"
	"time"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

// TestFilterKinds: what a filter says of each kind of event. Package audit tests
// the fields of packets over gRPC.
func TestFilterKinds(t *testing.T) {
	at := time.Unix(1_700_000_000, 0)
	packet := Event{Packet: isolation(), Context: &Context{Source: End{Namespace: "shop", Pod: "web-1", Node: "n1"}, Destination: End{Node: "n2"}}}
	packet.Packet.First = at
	loss := Event{Kind: KindLoss, Loss: Loss{From: at, To: at}}
	change := Event{Kind: KindChange, Change: &Change{Time: at, Object: &policyv1.ObjectVersion{Kind: "NetworkPolicy", Namespace: "shop", Name: "deny"}}}
	test := Event{Kind: KindTest, Test: &Test{Sink: "s", ID: "1", Time: at}}
	for name, c := range map[string]struct {
		filter *Filter
		want   [4]bool // Packet, loss, change, test.
	}{
		"none":              {nil, [4]bool{true, true, true, true}},
		"empty":             {&Filter{}, [4]bool{true, false, false, false}},
		"all kinds":         {&Filter{Losses: true, Changes: true}, [4]bool{true, true, true, false}},
		"before":            {&Filter{Losses: true, Changes: true, Until: at}, [4]bool{}},
		"staged":            {&Filter{Losses: true, Changes: true, Staged: true}, [4]bool{}},
		"Namespace":         {&Filter{Changes: true, Namespaces: []string{"shop"}}, [4]bool{true, false, true, false}},
		"another Namespace": {&Filter{Changes: true, Namespaces: []string{"bank"}}, [4]bool{}},
		"Pod by context":    {&Filter{Pods: []string{"shop/web-1"}}, [4]bool{true, false, false, false}},
		"policy":            {&Filter{Changes: true, Policies: []string{"shop/deny"}}, [4]bool{false, false, true, false}},
		"another policy":    {&Filter{Changes: true, Policies: []string{"bank/deny"}}, [4]bool{}},
	} {
		for i, e := range []*Event{&packet, &loss, &change, &test} {
			if got := c.filter.Matches("n1", e); got != c.want[i] {
				t.Errorf("%s, kind %d: %v", name, i, got)
			}
		}
	}
}

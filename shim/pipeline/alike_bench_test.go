package pipeline

import (
	"fmt"
	"net/netip"
	"testing"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/storage"
)

// alikeWorld is a node with a hundred Pods out of ten thousand, and as many
// policies that isolate all of them and let all of them in.
func alikeWorld(b *testing.B, policies int) *tierWorld {
	n := &node{pods: make(map[string]*testPod), policies: make(map[string]*policyv1.Policy)}
	for i := range 10000 {
		name := fmt.Sprint("pod-", i)
		p := &testPod{name: name, ips: []netip.Addr{netip.AddrFrom4([4]byte{10, 1, byte(i / 250), byte(i%250 + 1)})}, groups: map[string]bool{"a": true, "b": true}}
		if i < 100 {
			p.port = uint32(i + 1)
		}
		n.pods[name] = p
	}
	w := &tierWorld{feed: newFeed(b, "node-1"), node: n}
	for i := range policies {
		w.add(alikePolicy(i))
	}
	w.touched()
	return w
}

func alikePolicy(i int) *policyv1.Policy {
	p := allowing(fmt.Sprint("policy-", i))
	p.IsolatesIngress, p.IsolatesEgress = true, true
	return p
}

// BenchmarkAlike compiles 10,000 policies that say the same from nothing.
func BenchmarkAlike(b *testing.B) {
	w := alikeWorld(b, 10000)
	flows := 0
	b.ResetTimer()
	for b.Loop() {
		flows = len(w.update(New(config, Assignment{}), Whole(w.replica), w.localPorts()).Upsert)
	}
	if flows > 20000 {
		b.Fatalf("%d flows", flows)
	}
	b.ReportMetric(float64(flows), "flows/op")
}

// BenchmarkAlikeInsert puts one more in and takes it out again.
func BenchmarkAlikeInsert(b *testing.B) {
	w := alikeWorld(b, 10000)
	c := New(config, Assignment{})
	w.update(c, Whole(w.replica), w.localPorts())
	extra := alikePolicy(10000)
	item := storage.Encode(&policyv1.Item{Body: &policyv1.Item_Policy{Policy: extra}})
	change := storage.Change{Op: storage.OpUpsert, Scope: storage.NewScopeID(storage.ScopePolicies, extra.GetRef().GetKind().String()), Kind: storage.ScopePolicies, Item: item}
	flows := 0
	for b.Loop() {
		for _, op := range []storage.Op{storage.OpUpsert, storage.OpRemove} {
			change.Op = op
			w.store.Commit([]storage.Change{change}, nil)
			ch := w.update(c, w.sync(), w.localPorts())
			flows = len(ch.Upsert) + len(ch.Delete) + len(c.Drop(c.Retired()).Delete)
		}
	}
	b.ReportMetric(float64(flows), "flows/op")
}

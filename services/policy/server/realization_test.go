package server

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/engine"
	"github.com/weirnet/weir/storage"
)

// spanned is a store in which one policy reaches some nodes.
func spanned(nodes ...string) *reach {
	store := storage.New("own")
	scope := storage.NewScopeID(storage.ScopePolicies, "p")
	ref := &policyv1.PolicyRef{Kind: policyv1.PolicyKind_POLICY_KIND_ANTREA_CLUSTER_NETWORK_POLICY, Name: "p"}
	item := storage.Encode(&policyv1.Item{Body: &policyv1.Item_Policy{Policy: &policyv1.Policy{Ref: ref}}})
	changes := []storage.Change{{Op: storage.OpUpsert, Scope: scope, Kind: storage.ScopePolicies, Item: item}}
	for _, n := range nodes {
		changes = append(changes, storage.Change{Op: storage.OpJoin, Scope: scope, Kind: storage.ScopePolicies, Node: n})
	}
	store.Commit(changes, nil)
	return newReach(store, []engine.PolicyInfo{{Wire: &policyv1.Policy{Ref: ref, Uid: "u", Generation: 1}, Items: []engine.ItemPlace{{Scope: scope, Key: item.Key}}}})
}

// A policy is in force where the replica that had the node last says so, as far as
// that has read the same; and who is not heard is given time.
func TestWhatReplicasKnowBecomesOne(t *testing.T) {
	type node = policyv1.NodeRealization
	const content, other = "0123456789abcdef", "fedcba9876543210"
	report := func(epoch, content string, still uint64, nodes ...*node) *policyv1.RealizationResponse {
		return &policyv1.RealizationResponse{Epoch: epoch, Nodes: nodes, Policies: []*policyv1.PolicyContent{
			{Ref: &policyv1.PolicyRef{Kind: policyv1.PolicyKind_POLICY_KIND_ANTREA_CLUSTER_NETWORK_POLICY, Name: "p"}, Uid: "u", Generation: 1, Content: []byte(content), StillMs: still}}}
	}
	has := func(name string, since uint64) *node { return &node{Name: name, Connected: true, SinceMs: since} }
	lacks := func(name string, since, behind uint64) *node {
		return &node{Name: name, Connected: true, SinceMs: since, BehindMs: behind, Lacking: []uint32{0}}
	}
	gone := func(n *node, ago uint64) *node { n.Connected, n.GoneMs = false, ago; return n }
	refuses := func(n *node) *node { n.Refused = []*policyv1.Refusal{{Policy: 0, Error: "no room"}}; return n }
	for name, tc := range map[string]struct {
		own, others []*node
		content     string // Of the other replica; empty: the same.
		still       uint64 // Of that.
		apart       time.Duration
		old, lost   bool // The policy has changed some time ago; a replica has just gone.
		want        string
	}{
		"each has one":                            {own: []*node{has("a", 9)}, others: []*node{has("b", 9)}, want: "2 of 2"},
		"who had it last counts":                  {own: []*node{lacks("a", 900, 9000), has("b", 9)}, others: []*node{has("a", 9)}, want: "2 of 2"},
		"and where that is bad":                   {own: []*node{has("a", 900), has("b", 9)}, others: []*node{lacks("a", 9, 9000)}, want: "1 of 2 [a is late]"},
		"a node needs a moment":                   {own: []*node{lacks("a", 9, 10), has("b", 9)}, want: "1 of 2, 1 waiting"},
		"members change all the time":             {own: []*node{lacks("a", 9, 10), has("b", 9)}, old: true, want: "2 of 2"},
		"a node is late":                          {own: []*node{lacks("a", 9, 6000), has("b", 9)}, old: true, want: "1 of 2 [a is late]"},
		"it went and had all":                     {own: []*node{gone(has("a", 9e6), 8e6), has("b", 9)}, old: true, want: "2 of 2"},
		"it went a moment ago":                    {own: []*node{gone(lacks("a", 9e6, 100), 100), has("b", 9)}, want: "1 of 2, 1 waiting"},
		"it went some time ago":                   {own: []*node{gone(lacks("a", 9e6, 8e6), 8e6), has("b", 9)}, want: "1 of 2 [a is not connected]"},
		"it may be at a replica that went":        {own: []*node{gone(lacks("a", 9e6, 8e6), 8e6), has("b", 9)}, lost: true, want: "1 of 2, 1 unknown"},
		"it never came":                           {own: []*node{has("b", 9)}, want: "1 of 2 [a has not come]"},
		"nobody has heard of it yet":              {own: []*node{has("b", 9)}, lost: true, want: "1 of 2, 1 unknown"},
		"refused":                                 {own: []*node{refuses(has("a", 9))}, others: []*node{has("b", 9)}, want: "1 of 2 a: no room"},
		"refused elsewhere, late as well":         {own: []*node{has("a", 9)}, others: []*node{refuses(lacks("b", 9, 9000))}, want: "1 of 2 b: no room"},
		"another has just not read as far":        {own: []*node{has("a", 9)}, others: []*node{has("b", 9)}, content: other, still: 1e6, want: "1 of 2, 1 waiting"},
		"another follows a group without rest":    {own: []*node{has("a", 9)}, others: []*node{has("b", 9)}, content: other, still: 10, old: true, want: "2 of 2"},
		"but the policy itself is new":            {own: []*node{has("a", 9)}, others: []*node{has("b", 9)}, content: other, still: 10, want: "1 of 2, 1 waiting"},
		"and a node of it is late":                {own: []*node{has("a", 9)}, others: []*node{lacks("b", 9, 9000)}, content: other, still: 10, old: true, want: "1 of 2, 1 waiting"},
		"another reads no more":                   {own: []*node{has("a", 9)}, others: []*node{has("b", 9)}, content: other, still: 1e6, apart: time.Minute, want: "1 of 2 [b is connected to a replica that is late]"},
		"another reads no more and has no node":   {own: []*node{has("a", 9), has("b", 9)}, content: other, still: 1e6, apart: time.Minute, want: "2 of 2"},
		"what another has not is no word for it":  {own: []*node{lacks("a", 9, 9000), has("b", 9)}, others: []*node{gone(has("a", 900), 800)}, want: "1 of 2 [a is late]"},
		"a node that is in no span says nothing":  {own: []*node{has("a", 9), has("b", 9), has("stranger", 9)}, want: "2 of 2"},
		"two think that they have it: the former": {own: []*node{has("a", 9), has("b", 9)}, others: []*node{lacks("b", 500, 400)}, want: "2 of 2"},
	} {
		r := spanned("a", "b")
		now := time.Now()
		changed := now.Add(-time.Second)
		if tc.old {
			changed = now.Add(-time.Minute)
		}
		theirs := tc.content
		if theirs == "" {
			theirs = content
		}
		g := gathering{reach: r, own: report("own", content, 1e6, tc.own...), others: []*policyv1.RealizationResponse{report("other", theirs, tc.still, tc.others...)},
			now: now, changed: []time.Time{changed}, names: []string{"a", "b"}, lost: tc.lost, apart: func(apartKey) time.Duration { return tc.apart }}
		p := g.merge()[0]
		got := fmt.Sprintf("%d of %d", p.Realized(), p.Nodes)
		for what, n := range map[string]int{"waiting": p.Waiting, "unknown": p.Unknown} {
			if n > 0 {
				got += fmt.Sprintf(", %d %s", n, what)
			}
		}
		if len(p.Lacking) > 0 {
			got += fmt.Sprint(" ", p.Lacking)
		}
		for _, n := range p.Refused {
			got += " " + n.Node + ": " + n.Error
		}
		if got != tc.want {
			t.Errorf("%s: %s, want %s", name, got, tc.want)
		}
	}
}

// What a node lacks of a policy are its item, members of its groups, and the node's
// own Pods that it applies to; and no more.
func TestWhatANodeLacksConcernsItsPolicies(t *testing.T) {
	store := storage.New("own")
	target, peer := storage.NewScopeID(storage.ScopeAddressGroup, "target"), storage.NewScopeID(storage.ScopeAddressGroup, "peer")
	var infos []engine.PolicyInfo
	commit := func(changes ...storage.Change) uint64 { return store.Commit(changes, nil) }
	upsert := func(id storage.ScopeID, kind storage.ScopeKind, item *policyv1.Item) storage.Change {
		return storage.Change{Op: storage.OpUpsert, Scope: id, Kind: kind, Item: storage.Encode(item)}
	}
	policy := func(name string, created int64) *policyv1.Item {
		return &policyv1.Item{Body: &policyv1.Item_Policy{Policy: &policyv1.Policy{Ref: &policyv1.PolicyRef{Kind: policyv1.PolicyKind_POLICY_KIND_ANTREA_CLUSTER_NETWORK_POLICY, Name: name}, Created: created}}}
	}
	endpoint := func(name string, groups ...storage.ScopeID) *policyv1.Item {
		e := &policyv1.Endpoint{Namespace: "ns", Name: name, Ips: [][]byte{{10, 0, 0, 1}}}
		for _, g := range groups {
			e.Groups = append(e.Groups, g[:])
		}
		return &policyv1.Item{Body: &policyv1.Item_Endpoint{Endpoint: e}}
	}
	for _, name := range []string{"guards", "other", "far"} {
		scope := storage.NewScopeID(storage.ScopePolicies, name)
		info := engine.PolicyInfo{Wire: &policyv1.Policy{Ref: &policyv1.PolicyRef{Name: name}}, Items: []engine.ItemPlace{{Scope: scope, Key: storage.Encode(policy(name, 1)).Key}}}
		node := "n"
		if name != "other" {
			info.Peers = []storage.ScopeID{peer}
		}
		if name == "guards" {
			info.AppliedTo = []storage.ScopeID{target}
		}
		if name == "far" {
			node = "elsewhere"
		}
		commit(storage.Change{Op: storage.OpJoin, Scope: scope, Kind: storage.ScopePolicies, Node: node}, upsert(scope, storage.ScopePolicies, policy(name, 1)),
			storage.Change{Op: storage.OpJoin, Scope: peer, Kind: storage.ScopeAddressGroup, Node: node})
		infos = append(infos, info)
	}
	acked := commit(storage.Change{Op: storage.OpJoin, Scope: nodeScope("n"), Kind: storage.ScopeNode, Node: "n"}, upsert(nodeScope("n"), storage.ScopeNode, endpoint("a")))
	r := newReach(store, infos)
	member := &policyv1.Item{Body: &policyv1.Item_Member{Member: &policyv1.Member{Subject: &policyv1.Member_Pod{Pod: &policyv1.PodRef{Namespace: "ns", Name: "m"}}, Ips: [][]byte{{10, 0, 0, 2}}}}}
	for _, step := range []struct {
		name   string
		change storage.Change
		want   string
	}{
		{"nothing", storage.Change{}, ""},
		{"a member comes", upsert(peer, storage.ScopeAddressGroup, member), "guards"},
		{"and goes", storage.Change{Op: storage.OpRemove, Scope: peer, Item: storage.Encoded{Key: storage.PodKey("ns", "m")}}, "guards"},
		{"a Pod that a policy applies to comes", upsert(nodeScope("n"), storage.ScopeNode, endpoint("b", target)), "guards"},
		{"one that none applies to", upsert(nodeScope("n"), storage.ScopeNode, endpoint("c")), ""},
		{"a policy changes", upsert(infos[1].Items[0].Scope, storage.ScopePolicies, policy("other", 2)), "other"},
		{"one of another node", upsert(infos[2].Items[0].Scope, storage.ScopePolicies, policy("far", 2)), ""},
	} {
		before := r.content(0)
		if step.change.Op != 0 {
			commit(step.change)
		}
		var got []string
		for _, p := range r.lacking("n", store.Missing("n", acked)) {
			got = append(got, infos[p].Wire.Ref.Name)
		}
		if strings.Join(got, " ") != step.want {
			t.Errorf("%s: it lacks %q, want %q", step.name, got, step.want)
		}
		if differs := !slices.Equal(before, r.content(0)); differs != (step.change.Scope == peer) {
			t.Errorf("%s: that the content differs is %t", step.name, differs)
		}
		acked, _ = store.Revision()
	}
	if all := r.lacking("n", store.Missing("n", 0)); len(all) != 2 {
		t.Errorf("a node that has nothing lacks %v", all)
	}
}

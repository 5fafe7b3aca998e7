package storage

import (
	"testing"
)

// What a node lacks is what changed in its scopes, or what it joined, after the
// revision that it acknowledged.
func TestMissing(t *testing.T) {
	s := New("epoch")
	policies, group, own := NewScopeID(ScopePolicies, "p"), NewScopeID(ScopeAddressGroup, "g"), NewScopeID(ScopeNode, "n")
	upsert := func(id ScopeID, kind ScopeKind, key, body string) Change {
		return Change{Op: OpUpsert, Scope: id, Kind: kind, Item: Encoded{Key: key, Body: body}}
	}
	join := func(id ScopeID, kind ScopeKind, node string) Change {
		return Change{Op: OpJoin, Scope: id, Kind: kind, Node: node}
	}
	first := s.Commit([]Change{join(policies, ScopePolicies, "n"), join(own, ScopeNode, "n"),
		upsert(policies, ScopePolicies, "a", "1"), upsert(policies, ScopePolicies, "b", "1"), upsert(own, ScopeNode, "pod/x/y", "1")}, nil)
	if got := s.Missing("n", first); got != nil {
		t.Errorf("a node that has all lacks %v", got)
	}
	if got := s.Missing("n", 0); len(got) != 2 || !got[0].Whole || !got[1].Whole {
		t.Errorf("a node that has nothing lacks %v", got)
	}
	before := s.Content(policies)
	second := s.Commit([]Change{upsert(policies, ScopePolicies, "b", "2"), upsert(own, ScopeNode, "pod/x/y", "2")}, nil)
	got := s.Missing("n", first)
	if len(got) != 2 || got[0].Whole || len(got[0].Keys) != 1 || got[0].Keys[0] != "b" || got[1].Kind != ScopeNode || got[1].Bodies[0] != "2" {
		t.Errorf("of two changed items it lacks %v", got)
	}
	if s.Content(policies) == before || s.Content(policies, "b") == s.Content(policies, "a") || s.Content(policies, "a", "b") != s.Content(policies, "a").Plus(s.Content(policies, "b")) {
		t.Error("the content of a scope does not tell its items")
	}
	third := s.Commit([]Change{upsert(group, ScopeAddressGroup, "m", "1"), join(group, ScopeAddressGroup, "n"), join(group, ScopeAddressGroup, "o")}, nil)
	if got = s.Missing("n", second); len(got) != 1 || !got[0].Whole || got[0].Scope != group {
		t.Errorf("of a scope that it joined it lacks %v", got)
	}
	s.Commit([]Change{{Op: OpRemove, Scope: group, Item: Encoded{Key: "m"}}}, nil)
	if got = s.Missing("n", third); len(got) != 1 || got[0].Whole || got[0].Scope != group {
		t.Errorf("of a scope that lost a member it lacks %v", got)
	}
	if !s.InSpan(group, "o") || s.InSpan(policies, "o") || s.InSpan(group, "nobody") || s.Missing("nobody", 0) != nil || s.Content(NewScopeID(ScopeNode, "o")) != (Digest{}) {
		t.Error("what is not there is told of")
	}
}

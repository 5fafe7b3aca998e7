package trail

import (
	"fmt"
	"slices"
	"testing"
	"time"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/audit/record"
)

func second(n int) time.Time { return time.Unix(1_700_000_000+int64(n), 0) }

func version(generation int64, manifest string) *policyv1.ObjectVersion {
	return &policyv1.ObjectVersion{ApiVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy", Namespace: "shop", Name: "deny", Uid: "u1", Generation: generation, Manifest: []byte(manifest)}
}

func TestEvent(t *testing.T) {
	change := func(v *policyv1.ObjectVersion, removed bool) *policyv1.ObjectChange {
		return &policyv1.ObjectChange{TimeUnixNano: second(1).UnixNano(), Removed: removed, PodsBefore: 2, PodsAfter: 3, Object: &policyv1.ObjectChange_Version{Version: v}}
	}
	first, second, again := version(1, `{"spec":{"ingress":[],"podSelector":{}}}`), version(2, `{"spec":{"ingress":[{}],"podSelector":{}}}`), version(1, `{"spec":{}}`)
	again.Uid = "u2"
	bare := &policyv1.ObjectVersion{ApiVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy", Namespace: "shop", Name: "deny"}
	for name, c := range map[string]struct {
		change   *policyv1.ObjectChange
		last     *policyv1.ObjectVersion
		snapshot bool
		want     string // KIND FIELDS BEFORE→AFTER GENERATION; empty: no event.
	}{
		"created":                {change(first, false), nil, false, "CREATED [] 2→3 1"},
		"present":                {change(first, false), nil, true, "PRESENT [] 3→3 1"},
		"known":                  {change(first, false), first, true, ""},
		"told again":             {change(first, false), first, false, ""},
		"updated":                {change(second, false), first, false, "UPDATED [spec.ingress] 2→3 2"},
		"updated while away":     {change(second, false), first, true, "UPDATED [spec.ingress] 2→3 2"},
		"recreated":              {change(again, false), first, false, "CREATED [] 2→3 1"},
		"deleted":                {change(second, true), second, false, "DELETED [] 2→0 2"},
		"deleted, as told by id": {change(bare, true), second, false, "DELETED [] 2→0 2"},
		"gone already":           {change(second, true), nil, false, ""},
	} {
		got := ""
		if e := Event(c.change, c.last, c.snapshot); e != nil {
			got = fmt.Sprint(e.GetKind().String()[len("CHANGE_KIND_"):], " ", e.GetFields(), " ", e.GetPodsBefore(), "→", e.GetPodsAfter(), " ", e.GetObject().GetGeneration())
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestFields(t *testing.T) {
	for _, c := range []struct {
		before, after string
		want          []string
	}{
		{`{"a":1}`, `{"a":1}`, nil},
		{`{"a":1}`, `{"a":2,"b":null}`, []string{"a", "b"}},
		{`{"spec":{"x":{"y":1},"z":[1,2]}}`, `{"spec":{"x":{"y":2},"z":[2,1]}}`, []string{"spec.x.y", "spec.z"}},
		{`{"a":{"b":{"c":{"d":{"e":1}}}}}`, `{"a":{"b":{"c":{"d":{"e":2}}}}}`, []string{"a.b.c.d"}},
		{`{"a":{"b":1}}`, `{"a":7}`, []string{"a"}},
		{``, `{"a":7}`, nil},
	} {
		if got := Fields([]byte(c.before), []byte(c.after)); !slices.Equal(got, c.want) {
			t.Errorf("%s, %s: %v, want %v", c.before, c.after, got, c.want)
		}
	}
}

func TestIndex(t *testing.T) {
	x := NewIndex(0)
	add := func(cursor uint64, at int, kind auditv1.ChangeKind, v *policyv1.ObjectVersion) {
		x.Add(cursor, &record.Change{Time: second(at), Kind: kind, Object: v})
	}
	other := version(9, "")
	other.Name = "other"
	add(5, 10, auditv1.ChangeKind_CHANGE_KIND_CREATED, version(1, ""))
	add(6, 10, auditv1.ChangeKind_CHANGE_KIND_CREATED, other)
	add(8, 20, auditv1.ChangeKind_CHANGE_KIND_UPDATED, version(2, ""))
	add(9, 30, auditv1.ChangeKind_CHANGE_KIND_DELETED, version(2, ""))
	key := KeyOf(version(0, ""))
	check := func(name string, at int, v record.Version, want string) {
		t.Helper()
		got := "none"
		if e, next, ok := x.At(key, second(at), v); ok {
			got = fmt.Sprint(e.Cursor)
			if next != nil {
				got += fmt.Sprint(" then ", next.Cursor)
			}
		}
		if got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	checkAll := func() {
		t.Helper()
		check("before", 9, record.Version{}, "none")
		check("first", 19, record.Version{}, "5 then 8")
		check("second", 20, record.Version{}, "8 then 9")
		check("deleted", 31, record.Version{}, "9")
		check("by version", 31, record.Version{UID: "u1", Generation: 1}, "5 then 8")
		check("by a version that is not known", 31, record.Version{UID: "u1", Generation: 7}, "9")
	}
	checkAll()
	encoded := x.Append(nil)
	if x.Changed() {
		t.Error("changed after it was encoded")
	}
	x = NewIndex(0)
	if err := x.Read(encoded); err != nil || x.Len() != 4 {
		t.Fatal(err, x.Len())
	}
	checkAll()
	if e, _, ok := x.At(key, second(25), record.Version{}); !ok || !e.Tells(version(2, "")) || e.Tells(version(2, "{}")) || e.Tells(version(1, "")) {
		t.Errorf("%+v", e)
	}
	if live := x.Live(map[Key]bool{key: true}); len(live) != 1 || live[0].Cursor != 6 {
		t.Errorf("live are %v", live)
	}
	if live := x.Live(map[Key]bool{KeyOf(other): true}); len(live) != 0 {
		t.Errorf("live are %v", live)
	}
	for n := range encoded {
		if err := NewIndex(0).Read(encoded[:n]); err == nil && (n-1)%entryBytes != 0 {
			t.Errorf("%d bytes are taken", n)
		}
	}
	x.Trim(8)
	check("trimmed", 19, record.Version{}, "none")
	check("what is left", 25, record.Version{}, "8 then 9")
	if _, ok := x.Last(KeyOf(other)); ok || x.Len() != 2 || !x.Changed() {
		t.Errorf("%d changes are left", x.Len())
	}
	if e, ok := x.Last(key); !ok || !e.Deleted {
		t.Error("the last is no deletion")
	}
}

// TestIndexIsBounded: the oldest are forgotten.
func TestIndexIsBounded(t *testing.T) {
	x := NewIndex(100)
	for i := range 10_000 {
		v := version(int64(i), "")
		v.Name = fmt.Sprint("p", i%7)
		x.Add(uint64(i+1), &record.Change{Time: second(i), Kind: auditv1.ChangeKind_CHANGE_KIND_UPDATED, Object: v})
		if e, ok := x.Last(KeyOf(v)); x.Len() > 100 || !ok || e.Cursor != uint64(i+1) {
			t.Fatalf("%d changes after %d", x.Len(), i)
		}
	}
}

func TestPolicies(t *testing.T) {
	for kind := range policyv1.PolicyKind_name {
		p := record.Policy{Kind: policyv1.PolicyKind(kind), Namespace: "shop", Name: "p"}
		k, ok := KeyOfPolicy(p)
		if ok != (kind != 0) {
			t.Errorf("%v has a key: %v", p.Kind, ok)
		}
		if got, known := PolicyOf(&policyv1.ObjectVersion{ApiVersion: k.Group + "/v1", Kind: k.Kind, Namespace: "shop", Name: "p"}); known != ok || ok && got != p {
			t.Errorf("%v is %v", k, got)
		}
	}
}

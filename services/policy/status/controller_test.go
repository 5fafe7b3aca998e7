package status

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/services/policy/api/antreav1beta1"
)

// fakeServer is as much of an API server as a Controller asks for: a Lease, one
// ClusterNetworkPolicy, and Events.
type fakeServer struct {
	*httptest.Server

	mu       sync.Mutex // Guards what follows.
	lease    map[string]any
	version  int
	uid      string
	status   json.RawMessage
	statuses []antreav1beta1.PolicyStatus // That were written.
	at       []time.Time                  // When.
	misses   int                          // Writes to another object of the name.
	events   []string
}

func newFakeServer(t *testing.T) *fakeServer {
	f := &fakeServer{uid: "u", lease: map[string]any{"apiVersion": "coordination.k8s.io/v1", "kind": "Lease"}}
	f.Server = httptest.NewServer(f)
	t.Cleanup(f.Close)
	return f
}

// ServeHTTP implements http.Handler.
func (f *fakeServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	body, _ := io.ReadAll(r.Body)
	w.Header().Set("Content-Type", "application/json")
	refuse := func(code int, message string) {
		w.WriteHeader(code)
		fmt.Fprintf(w, `{"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": %d, "reason": %q, "message": %q}`, code, map[int]string{404: "NotFound", 409: "Conflict", 422: "Invalid"}[code], message)
	}
	metadata := map[string]any{"name": "p", "uid": f.uid}
	switch {
	case strings.HasSuffix(r.URL.Path, "/leases/weir-policyd"):
		if r.Method == http.MethodPut {
			var put map[string]any
			_ = json.Unmarshal(body, &put)
			if put["metadata"].(map[string]any)["resourceVersion"] != fmt.Sprint(f.version) {
				refuse(http.StatusConflict, "the Lease has changed")
				return
			}
			f.lease, f.version = put, f.version+1
		}
		f.lease["metadata"] = map[string]any{"name": "weir-policyd", "namespace": "weir-system", "resourceVersion": fmt.Sprint(f.version)}
		_ = json.NewEncoder(w).Encode(f.lease)
	case strings.HasSuffix(r.URL.Path, "/clusternetworkpolicies"):
		o := map[string]any{"apiVersion": antreav1beta1.APIVersion, "kind": "ClusterNetworkPolicy", "metadata": metadata}
		if f.status != nil {
			o["status"] = f.status
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"apiVersion": antreav1beta1.APIVersion, "kind": "ClusterNetworkPolicyList", "metadata": map[string]any{}, "items": []any{o}})
	case strings.HasSuffix(r.URL.Path, "/clusternetworkpolicies/p/status") && r.Method == http.MethodPatch:
		var ops []struct {
			Op, Path string
			Value    json.RawMessage
		}
		if err := json.Unmarshal(body, &ops); err != nil || len(ops) != 2 || ops[0].Op != "test" || ops[1].Path != "/status" {
			refuse(http.StatusUnprocessableEntity, "patch: "+string(body))
			return
		}
		if string(ops[0].Value) != `"`+f.uid+`"` {
			f.misses++
			refuse(http.StatusUnprocessableEntity, "testing value /metadata/uid failed: test failed")
			return
		}
		var s antreav1beta1.PolicyStatus
		_ = json.Unmarshal(ops[1].Value, &s)
		f.status, f.statuses, f.at = ops[1].Value, append(f.statuses, s), append(f.at, time.Now())
		_ = json.NewEncoder(w).Encode(map[string]any{"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": metadata})
	case strings.HasSuffix(r.URL.Path, "/events"):
		var e struct{ Reason, Type, Message string }
		_ = json.Unmarshal(body, &e)
		f.events = append(f.events, e.Type+" "+e.Reason+" "+e.Message)
		_, _ = w.Write(body)
	default: // Kinds that are not served.
		refuse(http.StatusNotFound, "the server could not find the requested resource")
	}
}

// written is how many statuses were, and the last.
func (f *fakeServer) written() (n int, last antreav1beta1.PolicyStatus) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n = len(f.statuses); n > 0 {
		last = f.statuses[n-1]
	}
	return n, last
}

// fakeModel says what it is told to.
type fakeModel struct {
	mu      sync.Mutex // Guards what follows.
	change  func(*Policy)
	looks   int
	changed chan struct{}
}

func (m *fakeModel) set(change func(*Policy)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.change, m.looks = change, 0
	select {
	case m.changed <- struct{}{}:
	default:
	}
}

func (m *fakeModel) looked(n int) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.looks >= n
}

// Policies implements Model: an Antrea policy and a Kubernetes one that fare alike.
func (m *fakeModel) Policies(context.Context) []Policy {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.looks++
	antrea, kubernetes := policy(m.change), policy(m.change)
	antrea.Ref = api.Ref{Kind: api.KindAntreaClusterNetworkPolicy, Name: "p"}
	kubernetes.Ref = api.Ref{Kind: api.KindNetworkPolicy, Namespace: "ns", Name: "k"}
	return []Policy{*antrea, *kubernetes}
}

// Groups implements Model.
func (m *fakeModel) Groups() []Group { return nil }

// Problems implements Model.
func (m *fakeModel) Problems() map[api.Ref]Problem { return nil }

// Changed implements Model.
func (m *fakeModel) Changed() <-chan struct{} { return m.changed }

// A holder of the Lease goes on where the former ended: it writes nothing as long as
// it knows nothing, and what differs once it does.
func TestAHolderGoesOnWhereTheFormerEnded(t *testing.T) {
	f, m := newFakeServer(t), &fakeModel{changed: make(chan struct{}, 1)}
	start := func(identity string) (stop func()) {
		c, err := New(Config{Rest: &rest.Config{Host: f.URL, ContentConfig: rest.ContentConfig{ContentType: "application/json", AcceptContentTypes: "application/json"}},
			Namespace: "weir-system", Identity: identity, Model: m, Logger: hclog.NewNullLogger()})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { defer close(done); _ = c.Run(ctx) }()
		return func() { cancel(); <-done }
	}
	until := func(what string, yes func() bool) {
		t.Helper()
		for deadline := time.Now().Add(60 * time.Second); !yes(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: it did not come about", what)
			}
		}
	}
	stop := start("a")
	until("a first status", func() bool { n, last := f.written(); return n == 1 && last.Phase == PhaseRealized })
	stop()
	m.set(unknown(10))
	defer start("b")()
	until("the second holder looks", func() bool { return m.looked(3) })
	if n, _ := f.written(); n != 1 {
		t.Fatalf("a holder that knows nothing has written %d times", n-1)
	}
	_, before := f.written()
	m.set(late(1))
	until("a node is late", func() bool { n, _ := f.written(); return n == 2 })
	_, last := f.written()
	if status, since := realizedOf(&last); status != "False" || since.Before(before.Conditions[1].LastTransitionTime.Time) {
		t.Errorf("%s since %v", status, since)
	}
	m.set(nil)
	until("in force again", func() bool { n, last := f.written(); return n == 3 && last.Phase == PhaseRealized })
	f.mu.Lock()
	for i := 1; i < len(f.at); i++ {
		if gap := f.at[i].Sub(f.at[i-1]); gap < 950*time.Millisecond {
			t.Errorf("two writes within %v", gap)
		}
	}
	if len(f.events) == 0 || f.events[0] != "Warning N not on some" {
		t.Errorf("events are %q", f.events)
	}
	f.uid = "another" // It was deleted and made anew; the model does not know yet.
	f.mu.Unlock()
	m.set(late(2))
	until("another object has the name", func() bool { f.mu.Lock(); defer f.mu.Unlock(); return f.misses > 0 })
	if n, _ := f.written(); n != 3 {
		t.Error("another object of the name was written")
	}
}

// A NetworkPolicy that is in force when a holder of the Lease looks first is told of
// only where it came since this replica can tell: else a former holder has told it.
func TestWhatComesBetweenHoldersIsTold(t *testing.T) {
	now := time.Now()
	for _, tt := range []struct {
		changed time.Time
		begins  bool // When it is looked at first, no node has to do with it yet.
		told    int
	}{{now.Add(-time.Minute), false, 0}, {time.Time{}, false, 0}, {now.Add(-time.Second), false, 1}, {time.Time{}, true, 0}, {now.Add(-time.Second), true, 1}} {
		f := newFakeServer(t)
		client, err := kubernetes.NewForConfig(&rest.Config{Host: f.URL, ContentConfig: rest.ContentConfig{ContentType: "application/json", AcceptContentTypes: "application/json"}})
		if err != nil {
			t.Fatal(err)
		}
		e := newEvents(client, now.Add(-10*time.Second), newMetrics(), hclog.NewNullLogger())
		p := policy(func(p *Policy) { p.Changed = tt.changed })
		p.Ref = api.Ref{Kind: api.KindNetworkPolicy, Namespace: "ns", Name: "k"}
		if tt.begins {
			begun := *p
			begun.Nodes, begun.Realized, begun.Changed = 0, 0, time.Time{}
			e.tell(t.Context(), []Policy{begun}, nil, now)
		}
		for range 2 {
			e.tell(t.Context(), []Policy{*p}, nil, now)
		}
		f.mu.Lock()
		if len(f.events) != tt.told {
			t.Errorf("changed %v before: events %q, want %d", now.Sub(tt.changed), f.events, tt.told)
		}
		f.mu.Unlock()
	}
}

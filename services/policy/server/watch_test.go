package server

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/api"
)

// world is a model that holds objects, and tells a server what changes as the
// service does.
type world struct {
	noModel
	server *Server

	mu      sync.RWMutex
	objects map[api.Ref]Object
}

func newWorld(t *testing.T) *world {
	w := &world{objects: make(map[api.Ref]Object)}
	f := newFixture(t)
	f.server.cfg.Model = w
	w.server = f.server
	return w
}

func (w *world) Names(begin func()) []api.Ref {
	w.mu.RLock()
	defer w.mu.RUnlock()
	begin()
	var names []api.Ref
	for ref := range w.objects {
		names = append(names, ref)
	}
	return names
}

func (w *world) Objects(names []api.Ref) []Object {
	w.mu.RLock()
	defer w.mu.RUnlock()
	out := make([]Object, len(names))
	for i, ref := range names {
		out[i] = w.objects[ref]
	}
	return out
}

// set puts an object in place; the zero Object takes it away.
func (w *world) set(at int64, ref api.Ref, o Object) {
	w.mu.Lock()
	defer w.mu.Unlock()
	watched, was := w.server.Watched(), w.objects[ref]
	if w.objects[ref] = o; o == (Object{}) {
		delete(w.objects, ref)
	}
	if watched {
		w.server.Tell([]Change{{Ref: ref, Was: was, Is: o}}, time.Unix(0, at))
	}
}

func podRef(i int) api.Ref {
	return api.Ref{Kind: api.KindPod, Namespace: "x", Name: fmt.Sprintf("p%d", i)}
}

// podAt is a Pod whose last byte of the address is given.
func podAt(i int, last byte) Object {
	return Object{Addressed: &api.Pod{Namespace: "x", Name: podRef(i).Name, Node: "n1", Workload: "Deployment/d", IPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, last})}}}
}

var policyRef = api.Ref{Kind: api.KindNetworkPolicy, Namespace: "x", Name: "p"}

func policyAt(t *testing.T, generation int64, note string) Object {
	t.Helper()
	v, err := api.RecordVersion(&networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: "p", UID: "u", Generation: generation,
		Annotations: map[string]string{"note": note}}}, nil, time.Unix(0, 1000+generation))
	if err != nil {
		t.Fatal(err)
	}
	return Object{Version: v, Pods: int(generation) * 10}
}

// line is a change in short.
func line(c *policyv1.ObjectChange) string {
	text := fmt.Sprintf("%d ", c.GetTimeUnixNano())
	if c.GetRemoved() {
		text += "-"
	}
	var ips []string
	for _, ip := range slices.Concat(c.GetEndpoint().GetIps(), c.GetService().GetIps()) {
		a, _ := netip.AddrFromSlice(ip)
		ips = append(ips, a.String())
	}
	switch {
	case c.GetEndpoint() != nil:
		e := c.GetEndpoint()
		return strings.TrimSpace(text + fmt.Sprintf("%s/%s on %s of %s: %s", e.GetNamespace(), e.GetName(), e.GetNode(), e.GetWorkload(), strings.Join(ips, " ")))
	case c.GetService() != nil:
		return strings.TrimSpace(text + fmt.Sprintf("service %s/%s: %s", c.GetService().GetNamespace(), c.GetService().GetName(), strings.Join(ips, " ")))
	}
	v := c.GetVersion()
	return text + fmt.Sprintf("%s %s %s/%s %s generation %d, %d to %d Pods", v.GetApiVersion(), v.GetKind(), v.GetNamespace(), v.GetName(), v.GetUid(), v.GetGeneration(), c.GetPodsBefore(), c.GetPodsAfter())
}

// sink is a watcher's end of the stream in this process, which takes a message when
// the test receives it.
type sink struct {
	grpc.ServerStream
	ctx      context.Context
	messages chan *policyv1.WatchChangesResponse
}

func (s *sink) Context() context.Context { return s.ctx }
func (s *sink) Send(m *policyv1.WatchChangesResponse) error {
	select {
	case s.messages <- m:
		return nil
	case <-s.ctx.Done():
		return s.ctx.Err()
	}
}

// watch opens a stream that is read by hand, and waits until it is open.
func (w *world) watch(t *testing.T) *sink {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	s := &sink{ctx: ctx, messages: make(chan *policyv1.WatchChangesResponse)}
	done := make(chan error, 1)
	before := w.server.watchers.n.Load()
	go func() { done <- w.server.WatchChanges(&policyv1.WatchChangesRequest{}, s) }()
	t.Cleanup(func() { cancel(); <-done })
	waitFor(t, func() bool { return w.server.watchers.n.Load() > before })
	return s
}

func (s *sink) receive(t *testing.T) *policyv1.WatchChangesResponse {
	t.Helper()
	select {
	case m := <-s.messages:
		return m
	case <-s.ctx.Done():
		t.Fatal("nothing comes")
		return nil
	}
}

// expect receives one message, which has these changes.
func (s *sink) expect(t *testing.T, want ...string) {
	t.Helper()
	var got []string
	for _, c := range s.receive(t).GetChanges() {
		got = append(got, line(c))
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s, want\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// all receives what there is at first, in so many messages.
func (s *sink) all(t *testing.T) (changes []*policyv1.ObjectChange, messages int) {
	t.Helper()
	for {
		m := s.receive(t)
		messages++
		changes = append(changes, m.GetChanges()...)
		if m.GetComplete() {
			return changes, messages
		}
	}
}

func TestAWatcherIsToldEverythingAndThenEachChange(t *testing.T) {
	w := newWorld(t)
	service := api.Ref{Kind: api.KindService, Namespace: "x", Name: "s"}
	w.set(1, service, Object{Addressed: &api.Service{Namespace: "x", Name: "s", ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.1")}, ExternalIPs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}})
	w.set(1, api.Ref{Kind: api.KindNode, Name: "n1"}, Object{Addressed: &api.Node{Name: "n1", Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.9")},
		Gateways: []netip.Addr{netip.MustParseAddr("10.0.0.1")}, Transport: []netip.Addr{netip.MustParseAddr("192.0.2.9")}}})
	w.set(1, policyRef, policyAt(t, 1, ""))
	w.set(1, podRef(1), podAt(1, 7))
	host := podAt(2, 9)
	host.Addressed.(*api.Pod).HostNetwork = true
	w.set(1, podRef(2), host)

	s := w.watch(t)
	var got []string
	first, _ := s.all(t)
	for _, c := range first {
		if c.GetVersion() == nil {
			if time.Since(time.Unix(0, c.GetTimeUnixNano())) > time.Minute {
				t.Errorf("read at %d", c.GetTimeUnixNano())
			}
			c.TimeUnixNano = 0
		}
		got = append(got, line(c))
	}
	want := []string{"0 /n1 on  of : 192.0.2.9 10.0.0.1", "0 x/p1 on n1 of Deployment/d: 10.0.0.7", "0 service x/s: 10.96.0.1 192.0.2.1",
		"1001 networking.k8s.io/v1 NetworkPolicy x/p u generation 1, 10 to 10 Pods"}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s, want\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}

	w.set(2, podRef(1), podAt(1, 8))
	s.expect(t, "2 x/p1 on n1 of Deployment/d: 10.0.0.8")
	labelled := podAt(1, 8)
	labelled.Addressed.(*api.Pod).Labels = api.Labels{{Key: "a", Value: "b"}}
	w.set(3, podRef(1), labelled) // Says nothing of addresses.
	w.set(4, policyRef, policyAt(t, 2, ""))
	s.expect(t, "1002 networking.k8s.io/v1 NetworkPolicy x/p u generation 2, 10 to 20 Pods")
	w.set(5, podRef(1), Object{})
	s.expect(t, "5 -x/p1 on  of :")
	w.set(6, service, Object{})
	s.expect(t, "6 -service x/s:")
	w.set(7, policyRef, Object{})
	s.expect(t, "7 -networking.k8s.io/v1 NetworkPolicy x/p u generation 2, 20 to 0 Pods")
}

func TestRunsAreBounded(t *testing.T) {
	w := newWorld(t)
	empty := w.watch(t)
	if m := empty.receive(t); !m.GetComplete() || len(m.GetChanges()) > 0 {
		t.Errorf("of nothing: %v", m)
	}
	for i := range 2*runChanges + 1 {
		w.set(1, podRef(i), podAt(i, 7))
	}
	if changes, messages := w.watch(t).all(t); len(changes) != 2*runChanges+1 || messages != 3 {
		t.Errorf("%d changes in %d messages", len(changes), messages)
	}
	for i := range 8 {
		w.set(1, api.Ref{Kind: api.KindTier, Name: fmt.Sprint(i)}, policyAt(t, 1, strings.Repeat("x", 100<<10)))
	}
	if changes, messages := w.watch(t).all(t); len(changes) != 2*runChanges+9 || messages < 5 {
		t.Errorf("%d changes in %d messages", len(changes), messages)
	}
}

// A watcher that reads nothing costs what there is and was told, whatever
// happens, and then gets the newest of each.
func TestASlowWatcherGetsTheNewest(t *testing.T) {
	w := newWorld(t)
	w.set(1, policyRef, policyAt(t, 1, ""))
	for i := range 10 {
		w.set(1, podRef(i), podAt(i, 1))
	}
	s := w.watch(t)
	s.all(t)
	w.set(2, podRef(0), podAt(0, 2))
	waitFor(t, func() bool { return w.onlyWatcher().onItsWay() == 1 }) // It is stuck with that.
	for step := range 1000 {
		w.set(int64(3+step), podRef(step%10), podAt(step%10, byte(step%200)))
		w.set(int64(3+step), podRef(100+step), podAt(100+step, 9))
		w.set(int64(3+step), podRef(100+step), Object{})
	}
	w.set(2000, policyRef, policyAt(t, 5, ""))
	w.set(2001, policyRef, policyAt(t, 7, ""))
	w.set(2002, podRef(3), Object{})
	if n := w.onlyWatcher().waiting(); n != 11 {
		t.Errorf("%d objects wait to be told, want 11", n)
	}
	s.expect(t, "2 x/p0 on n1 of Deployment/d: 10.0.0.2")
	want := []string{}
	for i := range 10 {
		if i != 3 {
			want = append(want, fmt.Sprintf("%d x/p%d on n1 of Deployment/d: 10.0.0.%d", 993+i, i, 190+i))
		}
	}
	s.expect(t, append(want, "1007 networking.k8s.io/v1 NetworkPolicy x/p u generation 7, 10 to 70 Pods", "2002 -x/p3 on  of :")...)
}

func (w *world) onlyWatcher() *watcher {
	w.server.watchers.mu.Lock()
	defer w.server.watchers.mu.Unlock()
	for one := range w.server.watchers.open {
		return one
	}
	return nil
}

func (w *watcher) onItsWay() int { w.mu.Lock(); defer w.mu.Unlock(); return len(w.sending) }
func (w *watcher) waiting() int  { w.mu.Lock(); defer w.mu.Unlock(); return len(w.dirty) }

// Of two at one time, what goes is told first: its address may be the other's.
func TestWhatGoesIsToldFirst(t *testing.T) {
	w := newWorld(t)
	w.set(1, podRef(2), podAt(2, 5))
	s := w.watch(t)
	s.all(t)
	w.mu.Lock()
	was := w.objects[podRef(2)]
	delete(w.objects, podRef(2))
	w.objects[podRef(1)] = podAt(1, 5)
	w.mu.Unlock()
	w.server.Tell([]Change{{Ref: podRef(1), Is: podAt(1, 5)}, {Ref: podRef(2), Was: was}}, time.Unix(0, 4))
	s.expect(t, "4 -x/p2 on  of :", "4 x/p1 on n1 of Deployment/d: 10.0.0.5")
}

// Whatever happens in whatever order, beside whatever is being sent, a watcher ends with what
// there is, and so does one that comes later.
func TestWatchersEndWithWhatThereIs(t *testing.T) {
	for seed := range uint64(20) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 1))
			w := newWorld(t)
			change := func(n int) {
				for at := range n {
					if i := random.IntN(6); random.IntN(2) == 0 {
						w.set(int64(at), podRef(i), podAt(i, byte(random.IntN(3))))
					} else {
						w.set(int64(at), podRef(i), Object{})
					}
				}
			}
			change(10)
			s := w.watch(t)
			held := map[string]string{}
			go func() {
				change(400)
				w.set(1<<40, podRef(99), podAt(99, 9))
			}()
			for held["x/p99"] == "" {
				for _, c := range s.receive(t).GetChanges() {
					name := c.GetEndpoint().GetNamespace() + "/" + c.GetEndpoint().GetName()
					if c.GetRemoved() {
						delete(held, name)
					} else {
						held[name] = fmt.Sprint(c.GetEndpoint().GetIps())
					}
				}
			}
			want := map[string]string{}
			for ref, o := range w.objects {
				want[ref.Namespace+"/"+ref.Name] = fmt.Sprint(fact(o.Addressed).GetEndpoint().GetIps())
			}
			if fmt.Sprint(held) != fmt.Sprint(want) {
				t.Errorf("holds %v, want %v", held, want)
			}
			if later, _ := w.watch(t).all(t); len(later) != len(want) {
				t.Errorf("a later one is told of %d, want %d", len(later), len(want))
			}
		})
	}
}

func TestWhoMayWatch(t *testing.T) {
	f := newFixture(t)
	open := func() (policyv1.InspectionService_WatchChangesClient, error) {
		stream, err := policyv1.NewInspectionServiceClient(f.conn).WatchChanges(t.Context(), &policyv1.WatchChangesRequest{})
		if err != nil {
			t.Fatal(err)
		}
		_, err = stream.Recv()
		return stream, err
	}
	expect := func(what string, err error, want codes.Code) {
		t.Helper()
		if status.Code(err) != want {
			t.Errorf("%s: %v, want %s", what, err, want)
		}
	}
	f.synced = false
	_, err := open()
	expect("before the sources have been read", err, codes.Unavailable)
	f.synced = true
	var last policyv1.InspectionService_WatchChangesClient
	for range maxWatchers {
		last, err = open()
		expect("a watcher", err, codes.OK)
	}
	_, err = open()
	expect("one too many", err, codes.ResourceExhausted)
	f.stop()
	_, err = last.Recv()
	expect("when the replica stops", err, codes.Unavailable)
	waitFor(t, func() bool { return !f.server.Watched() })
}

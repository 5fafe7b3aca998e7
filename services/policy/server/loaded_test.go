package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/identity"
	"github.com/weirnet/weir/services/policy/engine"
	"github.com/weirnet/weir/services/rpc"
	"github.com/weirnet/weir/storage"
)

// loaded is the real server, on TCP with mutual TLS, with all nodes of a fleet
// connected. Every node holds one wide address group and a scope of its own.
type loaded struct {
	b       *testing.B
	nodes   int
	store   *storage.Store
	server  *Server
	acks    *ackWatch
	fleet   *fleet
	changes int
	idleRSS int // Bytes before the first connection.
}

// stalled is when a benchmark gives up on an acknowledgement.
const stalled = 60 * time.Second

func newLoaded(b *testing.B, nodes int) *loaded {
	b.Helper()
	needDescriptors(b, nodes)
	dir := filepath.Join(b.TempDir(), "pki")
	names := make([]string, nodes)
	for i := range names {
		names[i] = nodeName(i)
	}
	if _, err := identity.Init(identity.InitConfig{Dir: dir, Nodes: names, Now: time.Now()}); err != nil {
		b.Fatal(err)
	}
	l := &loaded{b: b, nodes: nodes, store: storage.New("0123456789abcdef"), acks: &ackWatch{done: make(chan struct{}, 1)}}
	l.populate()
	address := l.serve(identity.Files{CA: filepath.Join(dir, "ca.crt"), Cert: filepath.Join(dir, "policyd.crt"), Key: filepath.Join(dir, "policyd.key")})
	l.fleet = startFleet(b)
	l.idleRSS = rss(b)
	revision, _ := l.store.Revision()
	l.acks.await(revision, nodes)
	l.fleet.do(order{Do: orderConnect, Address: address, PKI: dir, Nodes: nodes})
	l.wait()
	return l
}

// serve is the composition of the policy service, less its sources.
func (l *loaded) serve(files identity.Files) (address string) {
	b := l.b
	registry := prometheus.NewRegistry()
	logger := hclog.New(&hclog.LoggerOptions{Level: hclog.Info, Output: io.Discard})
	var err error
	l.server, err = New(Config{Store: l.store, Model: noModel{}, NodeOf: CertifiedNode, MayInspect: CertifiedInspector, MayReplicate: CertifiedReplica,
		Synced: func() bool { return true }, Registry: registry, Logger: logger})
	if err != nil {
		b.Fatal(err)
	}
	cfg := rpc.Config{Listen: "127.0.0.1:0", Registry: registry, Logger: logger, MaxConnectionAge: 30 * time.Minute,
		Options: []grpc.ServerOption{grpc.ChainStreamInterceptor(l.acks.intercept)}}
	if cfg.TLS, err = identity.ServerTLS(files); err != nil {
		b.Fatal(err)
	}
	transport, err := l.server.Transport(cfg)
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	go func() { ended <- l.server.Run(ctx) }()
	go func() { ended <- transport.Run(ctx) }()
	b.Cleanup(func() {
		cancel()
		for range 2 {
			if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
				b.Error(err)
			}
		}
	})
	return transport.Addr().String()
}

var wideID = storage.NewScopeID(storage.ScopeAddressGroup, "wide")

func ownID(node int) storage.ScopeID {
	return storage.NewScopeID(storage.ScopeNode, nodeName(node))
}

func (l *loaded) populate() {
	var changes []storage.Change
	for i := range l.nodes {
		facts := storage.Encode(&policyv1.Item{Body: &policyv1.Item_Node{Node: &policyv1.NodeFacts{Name: nodeName(i), Addresses: [][]byte{{192, 168, byte(i >> 8), byte(i)}}}}})
		changes = append(changes,
			storage.Change{Op: storage.OpJoin, Scope: wideID, Kind: storage.ScopeAddressGroup, Node: nodeName(i)},
			storage.Change{Op: storage.OpJoin, Scope: ownID(i), Kind: storage.ScopeNode, Node: nodeName(i)},
			storage.Change{Op: storage.OpUpsert, Scope: ownID(i), Kind: storage.ScopeNode, Item: facts})
	}
	for range 20 {
		changes = append(changes, l.wideChange())
	}
	l.store.Commit(changes, position())
}

// position is as that of a folder of manifests.
func position() storage.Position {
	return storage.Position{"manifests": uint64(time.Now().UnixNano())}
}

func (l *loaded) pod() (*policyv1.PodRef, []byte) {
	l.changes++
	i := l.changes
	return &policyv1.PodRef{Namespace: "payments", Name: fmt.Sprintf("checkout-6d5f8c7b9d-%05d", i%100_000)}, []byte{10, byte(i >> 16), byte(i >> 8), byte(i)}
}

// wideChange is one Pod more in the group that every node holds.
func (l *loaded) wideChange() storage.Change {
	ref, ip := l.pod()
	return storage.Change{Op: storage.OpUpsert, Scope: wideID, Kind: storage.ScopeAddressGroup, Item: storage.Encode(&policyv1.Item{Body: &policyv1.Item_Member{
		Member: &policyv1.Member{Subject: &policyv1.Member_Pod{Pod: ref}, Ips: [][]byte{ip}}}})}
}

// narrowChange is one Pod more on one node.
func (l *loaded) narrowChange(node int) storage.Change {
	ref, ip := l.pod()
	return storage.Change{Op: storage.OpUpsert, Scope: ownID(node), Kind: storage.ScopeNode, Item: storage.Encode(&policyv1.Item{Body: &policyv1.Item_Endpoint{
		Endpoint: &policyv1.Endpoint{Namespace: ref.Namespace, Name: ref.Name, Ips: [][]byte{ip}, Groups: [][]byte{wideID[:]}}}})}
}

// commit makes one change, waits until so many nodes have acknowledged it, and
// returns how long each took, in the order in which they answered. The slice is
// valid until the next call.
func (l *loaded) commit(c storage.Change, nodes int) []time.Duration {
	revision, _ := l.store.Revision()
	pos := position()
	l.acks.await(revision+1, nodes)
	if got := l.server.Commit([]storage.Change{c}, pos, engine.Moves{}); got != revision+1 {
		l.b.Fatalf("revision %d after %d: the change changed nothing", got, revision)
	}
	return l.wait()
}

// wait returns when the acknowledgements that are awaited have come.
func (l *loaded) wait() []time.Duration {
	timeout := time.NewTimer(stalled)
	defer timeout.Stop()
	select {
	case <-l.acks.done:
	case a, ok := <-l.fleet.answers:
		l.fleet.must(a, ok)
		l.b.Fatalf("the nodes' process answers what it was not asked: %v", a)
	case <-timeout.C:
		l.b.Fatalf("%d acknowledgements after %s", l.acks.came.Load(), stalled)
	}
	return l.acks.took
}

// verify holds every node to what it must have received since an earlier
// report: exactly so many cuts of one item each, and so many streams that were
// in sync; and to the state that the store says, on both ends. It returns the
// bytes of the messages, and the CPU time of the nodes' process, since then.
func (l *loaded) verify(before answer, cuts func(node int) int, inSyncs int) (payload int64, nodesCPU time.Duration) {
	l.b.Helper()
	after := l.report()
	for i, r := range after.Nodes {
		was := before.Nodes[i]
		if n := cuts(i); r.Cuts-was.Cuts != n || r.Upserts-was.Upserts != n || r.Others != 0 || r.Snapshots != 1 || r.InSyncs-was.InSyncs != inSyncs {
			l.b.Fatalf("%s: %+v after %+v, want %d cuts of one item and %d streams in sync", nodeName(i), r, was, n, inSyncs)
		}
		want := l.store.Node(nodeName(i))
		if held, _ := storage.DigestFromBytes(r.Digest); held != want.Digest {
			l.b.Fatalf("%s holds %s, want %s", nodeName(i), held, want.Digest)
		}
		if s := l.server.nodeSummary(nodeName(i), time.Now()); !s.GetInSync() || s.GetLastError() != "" {
			l.b.Fatalf("the server says of %s: %v", nodeName(i), s)
		}
		payload += r.Payload - was.Payload
	}
	if n := l.acks.stray.Load(); n != 0 {
		l.b.Fatalf("%d acknowledgements that were not awaited", n)
	}
	return payload, after.CPU - before.CPU
}

func (l *loaded) report() answer {
	l.b.Helper()
	r := l.fleet.do(order{Do: orderReport})
	if len(r.Nodes) != l.nodes {
		l.b.Fatalf("%d nodes report, want %d", len(r.Nodes), l.nodes)
	}
	return r
}

// ackWatch tells when the server has taken the acknowledgements of a revision.
// It stands between the server's handler and its stream: when the handler asks
// for the next message, it is done with the one before.
type ackWatch struct {
	revision atomic.Uint64
	began    time.Time // Written before revision.
	took     []time.Duration
	came     atomic.Int64
	stray    atomic.Int64  // Acknowledgements of other revisions, or too many.
	done     chan struct{} // One slot.
}

func (w *ackWatch) await(revision uint64, acks int) {
	w.took = slices.Grow(w.took[:0], acks)[:acks]
	w.came.Store(0)
	w.began = time.Now()
	w.revision.Store(revision)
}

func (w *ackWatch) acked(revision uint64) {
	if revision != w.revision.Load() {
		w.stray.Add(1)
		return
	}
	n := int(w.came.Add(1))
	if n > len(w.took) {
		w.stray.Add(1)
		return
	}
	w.took[n-1] = time.Since(w.began)
	if n == len(w.took) {
		w.done <- struct{}{}
	}
}

func (w *ackWatch) intercept(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	return next(srv, &watchedStream{ServerStream: stream, watch: w})
}

type watchedStream struct {
	grpc.ServerStream
	watch *ackWatch
	acked uint64 // Revision that the handler was given last; zero for none.
}

func (s *watchedStream) RecvMsg(m any) error {
	if s.acked != 0 {
		s.watch.acked(s.acked)
		s.acked = 0
	}
	err := s.ServerStream.RecvMsg(m)
	if req, ok := m.(*policyv1.SubscribeRequest); ok && err == nil {
		s.acked = req.GetAck().GetRevision()
	}
	return err
}

// needDescriptors raises the limit of open files to what so many connections
// need, which the fleet's process inherits.
func needDescriptors(b *testing.B, nodes int) {
	b.Helper()
	need := uint64(nodes + 256)
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		b.Fatal(err)
	}
	if limit.Cur >= need {
		return
	}
	limit.Cur, limit.Max = need, max(need, limit.Max)
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		b.Fatalf("%d nodes need %d open files (ulimit -n), and that cannot be had: %v", nodes, need, err)
	}
}

// rss is the resident memory of this process after its garbage was collected
// and given back.
func rss(b *testing.B) int {
	b.Helper()
	debug.FreeOSMemory()
	debug.FreeOSMemory() // Pools let go what they hold at the second collection.
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		b.Fatal(err)
	}
	pages, err := strconv.Atoi(strings.Fields(string(text))[1])
	if err != nil {
		b.Fatal(err)
	}
	return pages * os.Getpagesize()
}

// cpu is the CPU time that this process has taken.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err) // Not for these arguments.
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// quantile is the smallest value that at least that part of the values do not
// exceed. It sorts them.
func quantile(values []time.Duration, part float64) time.Duration {
	slices.Sort(values)
	return values[max(0, int(math.Ceil(part*float64(len(values))))-1)]
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

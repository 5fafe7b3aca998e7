package eventlog

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

const natsEnv = "WEIR_EVENTLOG_NATS_SERVER"

// natsMember is a server of a cluster, a process of its own.
type natsMember struct {
	Name, Dir         string
	Port, ClusterPort int
	Routes            []string

	cmd *exec.Cmd
}

func TestMain(m *testing.M) {
	if text := os.Getenv(natsEnv); text != "" {
		serveNATS(text)
		return
	}
	os.Exit(m.Run())
}

// serveNATS is a server that syncs every write, until it is killed.
func serveNATS(text string) {
	var m natsMember
	if err := json.Unmarshal([]byte(text), &m); err != nil {
		panic(err)
	}
	opts := &server.Options{ServerName: m.Name, Host: "127.0.0.1", Port: m.Port, JetStream: true, StoreDir: m.Dir, SyncAlways: true, NoLog: true,
		Cluster: server.ClusterOpts{Name: "weir", Host: "127.0.0.1", Port: m.ClusterPort}}
	for _, r := range m.Routes {
		u, err := url.Parse(r)
		if err != nil {
			panic(err)
		}
		opts.Routes = append(opts.Routes, u)
	}
	s, err := server.NewServer(opts)
	if err != nil {
		panic(err)
	}
	go func() { // It ends with the test, however that does.
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(1)
	}()
	s.Start()
	s.WaitForShutdown()
}

// natsCluster is three servers.
func natsCluster(t *testing.T) (members []*natsMember, urls []string) {
	t.Helper()
	ports := freePorts(t, 6)
	var routes []string
	for _, p := range ports[3:] {
		routes = append(routes, fmt.Sprintf("nats://127.0.0.1:%d", p))
	}
	for i := range 3 {
		m := &natsMember{Name: fmt.Sprint("s", i), Dir: t.TempDir(), Port: ports[i], ClusterPort: ports[i+3], Routes: routes}
		members = append(members, m)
		urls = append(urls, fmt.Sprintf("nats://127.0.0.1:%d", m.Port))
		m.start(t)
		t.Cleanup(m.kill)
	}
	return members, urls
}

// freePorts are ports that were free a moment ago.
func freePorts(t *testing.T, n int) []int {
	t.Helper()
	var ports []int
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports
}

func (m *natsMember) start(t *testing.T) {
	t.Helper()
	text, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	m.cmd = exec.Command(os.Args[0])
	m.cmd.Env = append(os.Environ(), natsEnv+"="+string(text))
	m.cmd.Stderr = os.Stderr
	if _, err := m.cmd.StdinPipe(); err != nil { // Closed when we end.
		t.Fatal(err)
	}
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
}

// kill is kill -9.
func (m *natsMember) kill() {
	if m.cmd != nil {
		_ = m.cmd.Process.Kill()
		_ = m.cmd.Wait()
		m.cmd = nil
	}
}

// openEventually opens a collector's log once the cluster serves.
func openEventually(t *testing.T, urls []string, collector string) *Log {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); ; {
		l, err := Open(Config{NATS: &NATSConfig{Servers: urls, Stream: "weir-audit", Collector: collector}})
		if err == nil {
			return l
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// clusterLoad writes from some nodes to two collectors, each batch to the one or
// the other, as nodes do that connect anew; some batches to both at once.
type clusterLoad struct {
	logs     []*Log
	acked    [4]atomic.Uint64
	failures atomic.Int64
	stop     chan struct{}
	wg       sync.WaitGroup
}

func (c *clusterLoad) run(t *testing.T) {
	c.stop = make(chan struct{})
	for n := range c.acked {
		c.wg.Go(func() { c.node(t, n) })
	}
}

func (c *clusterLoad) node(t *testing.T, n int) {
	node := fmt.Sprint("n", n)
	for i := 0; ; i++ {
		select {
		case <-c.stop:
			return
		default:
		}
		acked := c.acked[n].Load()
		b := Batch{Node: node, Boot: "b1", First: max(acked, 3) - 2, Received: time.Now()} // Some are sent twice.
		for s := b.First; s <= acked+20; s++ {
			b.Events = append(b.Events, Event{Data: []byte(crashData(node, s))})
		}
		to := c.logs[i%2 : i%2+1]
		if i%3 == 0 {
			to = c.logs
		}
		var wg sync.WaitGroup
		for _, l := range to {
			wg.Go(func() {
				r, err := l.Append(context.Background(), b)
				switch {
				case err != nil:
					c.failures.Add(1)
					if !strings.Contains(err.Error(), "append to event log weir-audit in NATS: ") {
						t.Errorf("%v", err)
					}
				case r.High != acked+20 || r.Missing != 0:
					t.Errorf("node %s from %d: %+v", node, b.First, r)
				default:
					c.acked[n].Store(r.High)
				}
			})
		}
		wg.Wait()
	}
}

// waitFor waits for something outside of this process.
func waitFor(t *testing.T, what string, so func() bool) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); !so(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in a minute: %s", what)
		}
	}
}

func (c *clusterLoad) total() (n uint64) {
	for i := range c.acked {
		n += c.acked[i].Load()
	}
	return n
}

// grows waits until so many more events are acknowledged of every node.
func (c *clusterLoad) grows(t *testing.T, by uint64) {
	t.Helper()
	for i := range c.acked {
		from := c.acked[i].Load()
		waitFor(t, fmt.Sprintf("%d more events of node n%d acknowledged", by, i), func() bool { return c.acked[i].Load() >= from+by })
	}
}

// TestCluster kills members of a real cluster of three in the middle of writing.
// Nothing that was acknowledged is lost, nothing is there twice.
func TestCluster(t *testing.T) {
	t.Parallel()
	members, urls := natsCluster(t)
	load := &clusterLoad{}
	for _, name := range []string{"c1", "c2"} {
		l := openEventually(t, urls, name)
		run(t, l)
		load.logs = append(load.logs, l)
	}
	begun := time.Now()
	step := func(what string) {
		t.Logf("%6.1f s: %s; %d events acknowledged, %d appends failed", time.Since(begun).Seconds(), what, load.total(), load.failures.Load())
	}
	load.run(t)
	load.grows(t, 400)
	step("begun")

	for i, m := range members { // One after the other: the leader is among them.
		m.kill()
		load.grows(t, 200)
		step(fmt.Sprintf("went on without member %d", i))
		m.start(t)
		waitFor(t, "all replicas current", func() bool { return replicasCurrent(t, load.logs[0]) })
		step("it is back")
	}

	// Without a majority nothing is acknowledged, and it is said why.
	members[0].kill()
	members[1].kill()
	for i, l := range load.logs {
		waitFor(t, fmt.Sprintf("log %d says that it does not work", i), func() bool { return l.Health() != nil })
	}
	step("no majority: " + load.logs[0].Health().Error())
	failed, acked := load.failures.Load(), load.total()
	waitFor(t, "appends fail", func() bool { return load.failures.Load() > failed+2 })
	if after := load.total(); after != acked {
		t.Errorf("%d events were acknowledged by one of three", after-acked)
	}
	members[0].start(t)
	members[1].start(t)
	load.grows(t, 200)
	for _, l := range load.logs {
		waitFor(t, "health", func() bool { return l.Health() == nil })
	}
	step("they are back")
	close(load.stop)
	load.wg.Wait()

	third := openEventually(t, urls, "c3") // All is in the stream.
	run(t, third)
	for i, l := range append(load.logs, third) {
		load.check(t, i, l)
	}
	step("checked")
}

// replicasCurrent says whether all members have all there is.
func replicasCurrent(t *testing.T, l *Log) bool {
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	info, err := l.store.(*stream).str.Info(ctx)
	if err != nil || info.Cluster == nil || len(info.Cluster.Replicas) != 2 {
		return false
	}
	for _, r := range info.Cluster.Replicas {
		if !r.Current || r.Offline {
			return false
		}
	}
	return true
}

// check reads all of a log: every event once, in order.
func (c *clusterLoad) check(t *testing.T, i int, l *Log) {
	t.Helper()
	next := make(map[string]uint64)
	for _, e := range entries(t, l, 0) {
		if next[e.Node]++; e.Sequence != next[e.Node] || string(e.Data) != crashData(e.Node, e.Sequence) {
			t.Fatalf("log %d, node %s: %d %q follows %d", i, e.Node, e.Sequence, e.Data, next[e.Node]-1)
		}
	}
	for n := range c.acked {
		node := fmt.Sprint("n", n)
		if acked := c.acked[n].Load(); next[node] < acked {
			t.Errorf("log %d, node %s: %d acknowledged, %d stored", i, node, acked, next[node])
		}
		waitFor(t, "it is known what the other collector stored", func() bool { return l.High(node, "b1") == next[node] })
	}
}

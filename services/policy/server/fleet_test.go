package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weirnet/weir/services/identity"
)

// A fleet is the nodes of a benchmark, in a process of their own, so that the
// memory and the CPU time of this process are the server's. It is this test's
// binary, started again with fleetEnv set; orders go to its standard input, and
// each is answered on its standard output.
const fleetEnv = "WEIR_BENCH_FLEET"

func TestMain(m *testing.M) {
	if os.Getenv(fleetEnv) == "" {
		os.Exit(m.Run())
	}
	if err := obey(os.Stdin, json.NewEncoder(os.Stdout)); err != nil {
		fmt.Fprintln(os.Stderr, "fleet:", err)
		os.Exit(1)
	}
}

// order is what a fleet is told to do.
type order struct {
	Do      string // One of the orders below.
	Address string // Of the server; for orderConnect.
	PKI     string // Folder of the certificates; for orderConnect.
	Nodes   int    // For orderConnect.
}

// The orders. Each but orderReport is answered when every node has acknowledged
// the first message of its new stream.
const (
	orderConnect     = "connect"
	orderReconnect   = "reconnect"   // Drop the connections, make new ones.
	orderResubscribe = "resubscribe" // New streams on the same connections.
	orderReport      = "report"
)

// answer to an order. One with an error may come unasked: the benchmark is over.
type answer struct {
	Error string
	Nodes []nodeReport  // Of orderReport.
	CPU   time.Duration // Of the fleet's process; of orderReport.
}

// nodeReport is what one node holds, and counts of what came to it and went
// from it since it began.
type nodeReport struct {
	Digest    []byte
	Cuts      int
	Snapshots int // Of the cuts.
	Upserts   int // Of the cuts that are no snapshots.
	Others    int // Scopes that ended or were sent anew, and items removed, by cuts that are no snapshots.
	InSyncs   int
	Payload   int64 // Bytes of messages, both ways, without what gRPC and TLS add.
}

// nodeName is what the i-th node of every fleet is called.
func nodeName(i int) string { return fmt.Sprintf("worker-%04d", i) }

// connectsAtOnce bounds the handshakes that are under way, which have a time limit.
const connectsAtOnce = 32

// obey is the fleet's own main. It ends with its input.
func obey(orders io.Reader, answers *json.Encoder) error {
	debug.SetGCPercent(800) // The nodes stand for machines of their own: what they cost here is in the server's way.
	failed := make(chan error, 1)
	results := make(chan answer)
	go func() {
		defer close(results)
		var nodes []*fleetNode
		for in := json.NewDecoder(orders); ; {
			var o order
			if err := in.Decode(&o); err != nil {
				return
			}
			var err error
			if o.Do == orderConnect {
				if nodes, err = muster(o, failed); err != nil {
					results <- answer{Error: err.Error()}
					continue
				}
			}
			results <- carryOut(o, nodes)
		}
	}()
	for {
		select {
		case a, ok := <-results:
			if !ok {
				return nil
			}
			if err := answers.Encode(a); err != nil {
				return err
			}
		case err := <-failed:
			return errors.Join(err, answers.Encode(answer{Error: err.Error()}))
		}
	}
}

func muster(o order, failed chan<- error) ([]*fleetNode, error) {
	nodes := make([]*fleetNode, o.Nodes)
	for i := range nodes {
		path := func(name string) string { return filepath.Join(o.PKI, name) }
		config, err := identity.ClientTLS(identity.Files{CA: path("ca.crt"), Cert: path("node-" + nodeName(i) + ".crt"), Key: path("node-" + nodeName(i) + ".key")})
		if err != nil {
			return nil, err
		}
		nodes[i] = &fleetNode{name: nodeName(i), address: o.Address, config: config, failed: failed}
	}
	return nodes, nil
}

func carryOut(o order, nodes []*fleetNode) answer {
	if o.Do == orderReport {
		a := answer{CPU: cpu()}
		for _, n := range nodes {
			a.Nodes = append(a.Nodes, n.tell())
		}
		return a
	}
	var g errgroup.Group
	g.SetLimit(connectsAtOnce)
	for _, n := range nodes {
		g.Go(func() error {
			if o.Do != orderResubscribe {
				if err := n.dial(); err != nil {
					return err
				}
			}
			return n.subscribe()
		})
	}
	if err := g.Wait(); err != nil {
		return answer{Error: err.Error()}
	}
	return answer{}
}

// fleet is the benchmark's end of it.
type fleet struct {
	b       *testing.B
	in      *json.Encoder
	answers chan answer // Closed when the process has closed its output.
}

func startFleet(b *testing.B) *fleet {
	b.Helper()
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), fleetEnv+"="+strconv.Itoa(os.Getpid()))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	f := &fleet{b: b, in: json.NewEncoder(in), answers: make(chan answer, 2)}
	go func() {
		defer close(f.answers)
		for dec := json.NewDecoder(out); ; {
			var a answer
			if dec.Decode(&a) != nil {
				return
			}
			f.answers <- a
		}
	}()
	b.Cleanup(func() {
		in.Close()
		if b.Failed() { // An order may be under way that never ends.
			_ = cmd.Process.Kill()
		}
		for range f.answers { // Until it ends.
		}
		if err := cmd.Wait(); err != nil && !b.Failed() {
			b.Errorf("the nodes' process: %v", err)
		}
	})
	return f
}

// do gives an order and waits for the answer.
func (f *fleet) do(o order) answer {
	f.b.Helper()
	if err := f.in.Encode(o); err != nil {
		f.b.Fatal(err)
	}
	a, ok := <-f.answers
	f.must(a, ok)
	return a
}

// must ends the benchmark where the fleet has failed: what it said, and whether
// it said anything.
func (f *fleet) must(a answer, ok bool) {
	f.b.Helper()
	if !ok {
		f.b.Fatal("the nodes' process has ended")
	}
	if a.Error != "" {
		f.b.Fatalf("the nodes: %s", a.Error)
	}
}

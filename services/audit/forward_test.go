package audit

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/identity"
	"github.com/weirnet/weir/shim/packetlog"
	"github.com/weirnet/weir/storage/eventlog"
)

// pkiFiles makes an authority with certificates, and says where they are.
func pkiFiles(t *testing.T, nodes ...string) func(name string) identity.Files {
	t.Helper()
	dir := t.TempDir()
	if _, err := identity.Init(identity.InitConfig{Dir: dir, Nodes: nodes, Now: time.Now()}); err != nil {
		t.Fatal(err)
	}
	return func(name string) identity.Files {
		return identity.Files{CA: filepath.Join(dir, "ca.crt"), Cert: filepath.Join(dir, name+".crt"), Key: filepath.Join(dir, name+".key")}
	}
}

// records are "node/boot#sequence what" of all that a collector holds.
func records(t *testing.T, addr string, creds credentials.TransportCredentials) (out []string) {
	t.Helper()
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(creds))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	call, err := auditv1.NewAuditServiceClient(conn).Tail(t.Context(), &auditv1.TailRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for {
		r, err := call.Recv()
		if err == io.EOF {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		_, what, _ := strings.Cut(show(r.GetRecord()), "#")
		out = append(out, fmt.Sprintf("%s/%s#%s", r.GetRecord().GetNode(), r.GetRecord().GetBoot(), what))
	}
}

func clientCreds(t *testing.T, f identity.Files) credentials.TransportCredentials {
	t.Helper()
	config, err := identity.ClientTLS(f)
	if err != nil {
		t.Fatal(err)
	}
	return credentials.NewTLS(config)
}

// A collector beside a shim takes its events over loopback in plain text, and
// sends them on as the node, over TLS. The other one holds the same: nodes,
// boots and sequences, what the node has lost, and what never came, once.
func TestForward(t *testing.T) {
	files := pkiFiles(t, "n1", "n2")
	centre := start(t, func(c *Config) { c.TLS = files("auditd") })
	local := start(t, func(c *Config) {
		c.Node, c.NPLog, c.NPLogDir = "n1", filepath.Join(filepath.Dir(c.JSONFile), "np.log"), ""
		c.Forward, c.ForwardTLS = []string{centre.Addr()}, files("node-n1")
	})
	s := local.report("n1", "b1")
	s.acked(0)
	s.batch(1, drop(1), allow(2))
	s.batch(5, lossEvent(9), drop(5))
	s.acked(6)
	s = local.report("n1", "b2")
	s.acked(0)
	s.batch(1, drop(7))
	s.acked(1)
	local.report("n2", "b1").ends(codes.PermissionDenied, "events of node n1 alone")

	want := []string{"n1/b1#1 DROP 1", "n1/b1#2 ALLOW 2", "n1/b1#0 TRANSPORT 2", "n1/b1#5 METER 9", "n1/b1#6 DROP 5", "n1/b2#1 DROP 7"}
	operator := clientCreds(t, files("operator"))
	eventually(t, "all at the centre", func() bool { return len(records(t, centre.Addr(), operator)) == len(want) })
	for name, got := range map[string][]string{"local": records(t, local.Addr(), insecure.NewCredentials()), "centre": records(t, centre.Addr(), operator)} {
		if strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Errorf("%s holds\n%s\nwant\n%s", name, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
	// How far the forwarder is, is told like that of any sink.
	eventually(t, "no lag", func() bool {
		st, err := auditv1.NewAuditServiceClient(local.dial(nil)).Stats(t.Context(), &auditv1.StatsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range st.GetSinks() {
			if k.GetName() == "forward" {
				return k.GetCursor() == 6 && k.GetLag() == 0 && k.GetLines() == 5 && k.GetLastError() == ""
			}
		}
		return false
	})
	// After a clean stop, nothing is sent again.
	local.stop()
	centre.stop()
	read := func(path string) string {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	if own, other := read(filepath.Join(local.dir, "np.log")), read(filepath.Join(centre.dir, "np/n1/np.log")); own != other || strings.Count(own, "\n") != 4 {
		t.Errorf("np.log\n%sand at the centre\n%s", own, other)
	}
}

// A forwarder that cannot reach the centre keeps its cursor and says so; what
// waits goes there later, from where it ended, also in another life.
func TestForwardWaitsForTheCentre(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	dir := t.TempDir()
	forwarder := func() *collector {
		return start(t, func(c *Config) { c.Dir, c.Forward = filepath.Join(dir, "log"), []string{address} })
	}
	local := forwarder()
	stats := func() *auditv1.SinkStats {
		st, err := auditv1.NewAuditServiceClient(local.dial(nil)).Stats(t.Context(), &auditv1.StatsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return st.GetSinks()[len(st.GetSinks())-1]
	}
	for _, node := range []string{"n1", "n2", "n3"} { // Without Node, all are forwarded.
		s := local.report(node, "b")
		s.batch(1, drop(1), drop(2))
		s.acked(2)
	}
	eventually(t, "an error that says so", func() bool {
		st := stats()
		return st.GetName() == "forward" && st.GetLag() == 6 && st.GetCursor() == 0 && strings.Contains(st.GetLastError(), "connection refused")
	})
	local.stop()
	local = forwarder()
	centre := start(t, func(c *Config) { c.Listen = address })
	eventually(t, "all at the centre", func() bool {
		st := stats()
		return st.GetLag() == 0 && st.GetLastError() == "" && len(records(t, address, insecure.NewCredentials())) == 6
	})
	st, err := auditv1.NewAuditServiceClient(centre.dial(nil)).Stats(t.Context(), &auditv1.StatsRequest{})
	if err != nil || st.GetKept() != 6 || st.GetDuplicates() != 0 || len(st.GetLost()) != 0 {
		t.Errorf("%v, %v", st, err)
	}
}

// More nodes than there may be streams are forwarded all the same, by streams
// that end and begin again.
func TestForwardManyNodes(t *testing.T) {
	centre := start(t, nil)
	local := start(t, func(c *Config) { c.Forward, c.NPLogDir, c.JSONFile = []string{centre.Addr()}, "", "" })
	data, err := proto.Marshal(drop(1))
	if err != nil {
		t.Fatal(err)
	}
	const nodes, rounds = 300, 3
	for round := range rounds {
		for i := range nodes {
			b := eventlog.Batch{Node: fmt.Sprintf("n%d", i), Boot: "b", First: uint64(round + 1), Events: []eventlog.Event{{Data: data}}, Received: time.Now()}
			if err := local.log.Submit(t.Context(), b, func(_ eventlog.Result, err error) {
				if err != nil {
					t.Error(err)
				}
			}); err != nil {
				t.Fatal(err)
			}
		}
	}
	eventually(t, "all at the centre", func() bool { return centre.log.Stats().Kept == nodes*rounds })
	if st := centre.log.Stats(); st.Duplicates != 0 || len(st.Nodes) != nodes {
		t.Errorf("%d nodes, %d duplicates", len(st.Nodes), st.Duplicates)
	}
	eventually(t, "the cursor to be stored", func() bool {
		cursor, err := local.log.Cursors().Load(forwardSink)
		return err == nil && cursor == nodes*rounds
	})
}

// enroller gives who asks the certificate of a node.
type enroller struct {
	policyv1.UnimplementedEnrollmentServiceServer
	ca   tls.Certificate
	node string
}

func (e enroller) Enroll(_ context.Context, r *policyv1.EnrollRequest) (*policyv1.EnrollResponse, error) {
	if r.GetToken() != "token" {
		return nil, status.Error(codes.Unauthenticated, "unknown token")
	}
	csr, err := x509.ParseCertificateRequest(r.GetCsr())
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, URIs: []*url.URL{{Scheme: "weir", Host: "node", Path: "/" + e.node}}}, e.ca.Leaf, csr.PublicKey, e.ca.PrivateKey)
	return &policyv1.EnrollResponse{Certificate: der}, err
}

// A collector that gets the node's certificate by a token forwards with it, and
// takes events before it has one.
func TestForwardByToken(t *testing.T) {
	files := pkiFiles(t, "n1")
	pair := func(name string) tls.Certificate {
		c, err := tls.LoadX509KeyPair(files(name).Cert, files(name).Key)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair("policyd")}})))
	policyv1.RegisterEnrollmentServiceServer(g, enroller{ca: pair("ca"), node: "n1"})
	centre := start(t, func(c *Config) { c.TLS = files("auditd") })
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("token\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	local := start(t, func(c *Config) {
		c.Node, c.Forward = "n1", []string{centre.Addr()}
		c.ForwardEnroll = &identity.EnrolledConfig{PolicyServers: []string{l.Addr().String()}, CA: files("ca").CA, TokenFile: token, Logger: hclog.NewNullLogger()}
	})
	s := local.report("n1", "b")
	s.batch(1, drop(1), drop(2))
	s.acked(2)
	go g.Serve(l)
	t.Cleanup(g.Stop)
	eventually(t, "all at the centre", func() bool { return centre.log.Stats().Kept == 2 })
}

// A collector's certificate speaks for all nodes, a node's for its own.
func TestWhoMayForward(t *testing.T) {
	files := pkiFiles(t, "n1")
	centre := start(t, func(c *Config) { c.TLS = files("auditd") })
	report := func(as string) *stream {
		s, err := auditv1.NewCollectorServiceClient(centre.dial(clientCreds(t, files(as)))).Report(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		st := &stream{t, s}
		st.send(&auditv1.ReportRequest{Message: &auditv1.ReportRequest_Hello{Hello: &auditv1.ReportHello{Node: "n2", Boot: "b"}}})
		return st
	}
	report("auditd").acked(0)
	report("node-n1").ends(codes.PermissionDenied, "node/n1 may not report for node n2")
	report("policyd").ends(codes.PermissionDenied, "role/policyd may not report")
}

// TestForwardKill kills the collector of the node and the central one again and
// again, while a shim's reporter sends. At the end the centre holds each event
// once, and both have its line.
func TestForwardKill(t *testing.T) {
	t.Parallel()
	centre := buildAuditd(t)
	local := newAuditd(t, centre.binary, "--forward", centre.addr)
	centre.start()
	local.start()
	log := packetlog.NewLog(1 << 20)
	reporter, err := packetlog.NewReporter(packetlog.ReporterConfig{Addresses: []string{local.addr}, Node: "n1", Log: log,
		MinBackoff: 5 * time.Millisecond, MaxBackoff: 20 * time.Millisecond, Logger: hclog.NewNullLogger()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan struct{})
	go func() { defer close(ran); _ = reporter.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-ran })

	kept := func(a *auditd) uint64 {
		conn, err := grpc.NewClient(a.addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		st, err := auditv1.NewAuditServiceClient(conn).Stats(ctx, &auditv1.StatsRequest{})
		if err != nil {
			return 0 // It is not up yet.
		}
		return st.GetKept()
	}
	sent := 0
	for range 3 {
		before := kept(centre)
		feedAllows(log, &sent, 5000)
		eventually(t, "some at the centre", func() bool { return kept(centre) > before })
		centre.kill()
		feedAllows(log, &sent, 3000)
		eventually(t, "all at the node", func() bool { return reporter.Acked() == uint64(sent) })
		centre.start()
		feedAllows(log, &sent, 5000)
		eventually(t, "more at the centre", func() bool { return kept(centre) > before+5000 })
		local.kill()
		feedAllows(log, &sent, 10)
		local.start()
	}
	eventually(t, "all at the centre", func() bool { return kept(centre) >= uint64(sent) && reporter.Acked() == uint64(sent) })
	for i, r := range records(t, centre.addr, insecure.NewCredentials()) {
		if want := fmt.Sprintf("#%d ALLOW ", i+1); !strings.Contains(r, want) || i >= sent {
			t.Fatalf("record %d of %d is %s", i+1, sent, r)
		}
	}
	id := func(line string) string { return strings.Join(strings.Fields(line)[9:11], " ") }
	eventually(t, "a line for each in both files", func() bool {
		return distinctLines(t, filepath.Join(local.dir, "np/n1/np.log"), id) == sent && distinctLines(t, filepath.Join(centre.dir, "np/n1/np.log"), id) == sent
	})
}

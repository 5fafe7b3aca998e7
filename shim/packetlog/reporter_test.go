package packetlog

import (
	"context"
	"crypto/tls"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
)

func TestLocal(t *testing.T) {
	for address, want := range map[string]bool{
		"127.0.0.1:9741": true, "127.8.9.10:1": true, "[::1]:9741": true, "[::ffff:127.0.0.1]:9741": true, "localhost:9741": true, "unix:/run/weir/audit.sock": true, "unix:///run/x": true,
		"10.0.0.1:9741": false, "[fd00::1]:9741": false, "0.0.0.0:9741": false, "[::]:9741": false, "audit.example.net:9741": false,
		"localhost.example.net:9741": false, "127.0.0.1.example.net:9741": false, "127.0.0.1": false, "dns:///localhost:9741": false, "": false,
	} {
		if got := local(address); got != want {
			t.Errorf("%q: %v", address, got)
		}
	}
}

// helloCollector says who reports, and acknowledges nothing.
type helloCollector struct {
	auditv1.UnimplementedCollectorServiceServer
	nodes chan string
}

func (c helloCollector) Report(call grpc.BidiStreamingServer[auditv1.ReportRequest, auditv1.ReportResponse]) error {
	r, err := call.Recv()
	if err != nil {
		return err
	}
	c.nodes <- r.GetHello().GetNode()
	<-call.Context().Done()
	return nil
}

// A shim that has a certificate, for the policy service and for collectors
// elsewhere, reports to the collector beside it in plain text.
func TestACollectorOnThisMachineIsToldInPlainText(t *testing.T) {
	for network, address := range map[string]string{"tcp": "127.0.0.1:0", "unix": filepath.Join(t.TempDir(), "audit.sock")} {
		t.Run(network, func(t *testing.T) {
			l, err := net.Listen(network, address)
			if err != nil {
				t.Fatal(err)
			}
			collector := helloCollector{nodes: make(chan string, 1)}
			g := grpc.NewServer()
			auditv1.RegisterCollectorServiceServer(g, collector)
			go g.Serve(l)
			t.Cleanup(g.Stop)
			target := l.Addr().String()
			if network == "unix" {
				target = "unix:" + target
			}
			r, err := NewReporter(ReporterConfig{Addresses: []string{target}, Credentials: credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13}), Node: "n1",
				Log: NewLog(0), Logger: hclog.NewNullLogger()})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			ran := make(chan struct{})
			go func() { defer close(ran); _ = r.Run(ctx) }()
			t.Cleanup(func() { cancel(); <-ran })
			select {
			case node := <-collector.nodes:
				if node != "n1" {
					t.Errorf("node %q reports", node)
				}
			case <-time.After(10 * time.Second):
				t.Fatal("nobody reports")
			}
		})
	}
}

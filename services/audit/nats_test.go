package audit

import (
	"context"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/nats-io/nats-server/v2/server"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	"github.com/weirnet/weir/shim/packetlog"
)

// TestSharedLog: two collectors keep their log in one stream of NATS. A shim that
// reports to the one goes on with the other when it is killed, and back; every
// event is there once, whichever is asked.
func TestSharedLog(t *testing.T) {
	t.Parallel()
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: -1, JetStream: true, StoreDir: t.TempDir(), SyncAlways: true, NoLog: true, NoSigs: true})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(20 * time.Second) {
		t.Fatal("the NATS server does not start")
	}
	a := buildAuditd(t)
	b := newAuditd(t, a.binary)
	both := []*auditd{a, b}
	var addresses []string
	for i, d := range both {
		d.args = append(d.args, "--nats", s.ClientURL(), "--nats-replicas", "1", "--nats-collector", string(rune('a'+i)))
		d.start()
		addresses = append(addresses, d.addr)
	}
	log := packetlog.NewLog(1 << 20)
	reporter, err := packetlog.NewReporter(packetlog.ReporterConfig{Addresses: addresses, Node: "n1", Log: log,
		MinBackoff: 5 * time.Millisecond, MaxBackoff: 20 * time.Millisecond, Logger: hclog.NewNullLogger()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan struct{})
	go func() { defer close(ran); _ = reporter.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-ran })

	sent := 0
	for i := range 4 {
		before := reporter.Acked()
		feedAllows(log, &sent, 3000)
		eventually(t, "some acknowledgements", func() bool { return reporter.Acked() > before })
		both[i%2].kill()
		feedAllows(log, &sent, 10)
		eventually(t, "everything to be acknowledged", func() bool { return reporter.Acked() == uint64(sent) })
		both[i%2].start()
	}
	for _, d := range both {
		conn, err := grpc.NewClient(d.addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		client := auditv1.NewAuditServiceClient(conn)
		eventually(t, "all to be kept, and every sink to have it", func() bool {
			st, err := client.Stats(ctx, &auditv1.StatsRequest{})
			for _, k := range st.GetSinks() {
				if k.GetLag() > 0 || k.GetCursor() == 0 {
					return false
				}
			}
			return err == nil && st.GetKept() == uint64(sent)
		})
		call, err := client.Tail(ctx, &auditv1.TailRequest{})
		if err != nil {
			t.Fatal(err)
		}
		cursor := uint64(0)
		for want := uint64(1); want <= uint64(sent); want++ {
			r, err := call.Recv()
			if err != nil {
				t.Fatalf("after %d of %d: %v", want-1, sent, err)
			}
			if r.GetRecord().GetSequence() != want || r.GetRecord().GetCursor() <= cursor {
				t.Fatalf("record %d at %d follows %d at %d", r.GetRecord().GetSequence(), r.GetRecord().GetCursor(), want-1, cursor)
			}
			cursor = r.GetRecord().GetCursor()
		}
	}
}

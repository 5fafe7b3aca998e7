package sink

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// natsServer runs a real server. Its store outlives it.
func natsServer(t *testing.T, dir string, port int) *server.Server {
	t.Helper()
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: port, JetStream: true, StoreDir: dir, NoSigs: true, NoLog: true})
	if err != nil {
		t.Fatal(err)
	}
	go s.Start()
	if !s.ReadyForConnections(20 * time.Second) {
		t.Fatal("the NATS server does not start")
	}
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	return s
}

// stream makes a stream, or finds it, and what is in it.
func stream(t *testing.T, s *server.Server, maxMsgSize int32) jetstream.Stream {
	t.Helper()
	conn, err := nats.Connect(s.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	st, err := js.CreateOrUpdateStream(t.Context(), jetstream.StreamConfig{Name: "weir", Subjects: []string{"weir.>"}, MaxMsgSize: maxMsgSize})
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func messages(t *testing.T, st jetstream.Stream) uint64 {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	info, err := st.Info(ctx)
	if err != nil {
		return 0
	}
	return info.State.Msgs
}

func (w *world) nats(t *testing.T, url, name string) (*Sink, func()) {
	t.Helper()
	out, err := NewNATS(NATSConfig{Servers: []string{url}, Subject: "weir.audit.{node}", Format: formats[FormatJSON]},
		deadLetters{path: filepath.Join(t.TempDir(), "dead.json"), most: 1 << 20, logger: hclog.NewNullLogger()})
	if err != nil {
		t.Fatal(err)
	}
	return w.start(Config{Name: name, Output: out})
}

// TestNATS: no stream at first, then a server that goes away in the middle; each
// line is in the stream once, also when another sink sends the same again.
func TestNATS(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	dir := t.TempDir()
	s := natsServer(t, dir, -1)
	url := s.ClientURL()
	port := s.Addr().String()
	w.allows(700)
	k, _ := w.nats(t, url, "first")
	eventually(t, "the trouble", func() bool { return k.Stats().LastError != "" })
	st := stream(t, s, 0)
	eventually(t, "what waited", func() bool { return k.Stats().Cursor == 700 && messages(t, st) == 700 })
	s.Shutdown()
	s.WaitForShutdown()
	w.packet("n1.example", allow, 9, 9)
	eventually(t, "the trouble", func() bool { return k.Stats().LastError != "" })
	var number int
	if _, err := fmt.Sscanf(port[strings.LastIndexByte(port, ':')+1:], "%d", &number); err != nil {
		t.Fatal(err)
	}
	s = natsServer(t, dir, number)
	st = stream(t, s, 0)
	eventually(t, "the last", func() bool { return k.Stats().Cursor == 701 && k.Stats().LastError == "" && messages(t, st) == 701 })
	again, _ := w.nats(t, url, "second")
	eventually(t, "the other sink", func() bool { return again.Stats().Cursor == 701 })
	if n := messages(t, st); n != 701 {
		t.Errorf("%d messages", n)
	}
	m, err := st.GetLastMsgForSubject(t.Context(), "weir.audit.n1_example")
	if err != nil {
		t.Fatal(err)
	}
	var line struct {
		Cursor uint64
		Node   string
	}
	if err := json.Unmarshal(m.Data, &line); err != nil || line.Cursor != 701 || line.Node != "n1.example" || m.Header.Get("Nats-Msg-Id") != "n1.example/b/1/1" {
		t.Errorf("%s %v %v", m.Data, m.Header, err)
	}
}

// TestNATSTooLong: what the stream will never take is set aside.
func TestNATSTooLong(t *testing.T) {
	w := newWorld(t)
	s := natsServer(t, t.TempDir(), -1)
	st := stream(t, s, 500)
	w.packet("n1", allow, 1, 0)
	w.packet(strings.Repeat("n", 200), allow, 1, 0)
	w.packet("n1", allow, 1, 0)
	k, _ := w.nats(t, s.ClientURL(), "test")
	eventually(t, "the cursor", func() bool { return k.Stats().Cursor == 3 })
	if n := messages(t, st); n != 2 || k.Stats().DeadLetters != 1 {
		t.Errorf("%d messages, %d dead letters", n, k.Stats().DeadLetters)
	}
}

package upgrade

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protowire"
)

// recorded is the version whose streams are in testdata.
const recorded = "v0.9"

// message is one message of a stream, as it was on the wire.
type message struct {
	fromService bool
	body        []byte
}

// raw is a message for rawCodec.
type raw []byte

// rawCodec takes messages as they are.
type rawCodec struct{}

func (rawCodec) Name() string                    { return "proto" }
func (rawCodec) Marshal(v any) ([]byte, error)   { return *v.(*raw), nil }
func (rawCodec) Unmarshal(b []byte, v any) error { *v.(*raw) = slices.Clone(b); return nil }

// recorder stands between clients and a service, and keeps what they say, by
// session and method.
type recorder struct {
	conn *grpc.ClientConn

	mu      sync.Mutex // Guards what follows.
	session string
	streams map[string][]message // By SESSION.METHOD; of several streams the last.
	changed chan struct{}        // Closed with the next message.
	spoil   func(method string, body []byte) []byte
}

func newRecorder(t *testing.T, service string) (r *recorder, address string) {
	t.Helper()
	conn, err := grpc.NewClient(service, grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	r = &recorder{conn: conn, streams: make(map[string][]message), changed: make(chan struct{})}
	return r, serveRaw(t, r.relay)
}

// begin says of which session the streams are that begin from now on, and what is
// to be done to what the service says; nil is nothing.
func (r *recorder) begin(session string, spoil func(method string, body []byte) []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.session, r.spoil = session, spoil
}

// note keeps a message, and returns what is to be passed on.
func (r *recorder) note(stream string, m message) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	if m.fromService && r.spoil != nil {
		_, method, _ := strings.Cut(stream, ".")
		m.body = r.spoil(method, m.body)
	}
	r.streams[stream] = append(r.streams[stream], m)
	close(r.changed)
	r.changed = make(chan struct{})
	return m.body
}

// until waits until a stream is as it is to be.
func (r *recorder) until(t *testing.T, stream string, condition func([]message) bool) {
	t.Helper()
	for {
		r.mu.Lock()
		done, changed := condition(r.streams[stream]), r.changed
		r.mu.Unlock()
		if done {
			return
		}
		select {
		case <-changed:
		case <-t.Context().Done():
			t.Fatal(t.Context().Err())
		}
	}
}

func (r *recorder) relay(_ any, down grpc.ServerStream) error {
	path, _ := grpc.MethodFromServerStream(down)
	method := path[strings.LastIndex(path, "/")+1:]
	ctx, cancel := context.WithCancel(down.Context())
	defer cancel()
	up, err := r.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, path, grpc.ForceCodec(rawCodec{}))
	if err != nil {
		return err
	}
	r.mu.Lock()
	stream := r.session + "." + method
	delete(r.streams, stream)
	r.mu.Unlock()
	go func() {
		for {
			var b raw
			if err := down.RecvMsg(&b); err != nil {
				if err == io.EOF {
					up.CloseSend()
				} else {
					cancel()
				}
				return
			}
			r.note(stream, message{false, b})
			if up.SendMsg(&b) != nil {
				return
			}
		}
	}()
	for {
		var b raw
		if err := up.RecvMsg(&b); err != nil {
			if err == io.EOF {
				return nil
			}
			return err
		}
		b = r.note(stream, message{true, b})
		if err := down.SendMsg(&b); err != nil {
			return err
		}
	}
}

// save writes the streams, each a file of direction (1: from the service) and
// length-delimited message.
func (r *recorder) save(t *testing.T, dir string) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, messages := range r.streams {
		if strings.HasPrefix(name, ".") { // Of no session.
			continue
		}
		var b []byte
		for _, m := range messages {
			direction := uint64(0)
			if m.fromService {
				direction = 1
			}
			b = protowire.AppendBytes(protowire.AppendVarint(b, direction), m.body)
		}
		must(t, os.WriteFile(filepath.Join(dir, name), b, 0o644))
	}
}

// recording is a stream of testdata.
func recording(t *testing.T, name string) (messages []message) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", recorded, name))
	must(t, err)
	for len(b) > 0 {
		direction, n := protowire.ConsumeVarint(b)
		body, m := protowire.ConsumeBytes(b[max(n, 0):])
		if n < 0 || m < 0 {
			t.Fatalf("%s is torn behind %d messages", name, len(messages))
		}
		messages, b = append(messages, message{direction == 1, body}), b[n+m:]
	}
	if len(messages) == 0 {
		t.Fatalf("%s is empty", name)
	}
	return messages
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// player answers as a recorded service did: it says what that said, and waits where
// it was answered for an answer of the same kind.
type player struct {
	messages []message
	kind     func(body []byte) string // Of what a client says; empty: it is not waited for.
	said     chan []byte              // By the client, of the kinds that are waited for.
	ended    chan error
}

func (p *player) play(_ any, stream grpc.ServerStream) error {
	err := p.follow(stream)
	select {
	case p.ended <- err:
	default:
	}
	if err == nil {
		<-stream.Context().Done()
	}
	return err
}

func (p *player) follow(stream grpc.ServerStream) error {
	for i, m := range p.messages {
		if m.fromService {
			b := raw(m.body)
			if err := stream.SendMsg(&b); err != nil {
				return fmt.Errorf("message %d: %w", i, err)
			}
			continue
		}
		want := p.kind(m.body)
		for got := ""; want != "" && got != want; {
			var b raw
			if err := stream.RecvMsg(&b); err != nil {
				return fmt.Errorf("message %d, while %s is waited for: %w", i, want, err)
			}
			if got = p.kind(b); got != "" && got != want {
				return fmt.Errorf("message %d: %s, want %s", i, got, want)
			}
			if got != "" {
				p.said <- b
			}
		}
	}
	return nil
}

package sink

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/audit/record"
	"github.com/weirnet/weir/storage/eventlog"
)

var begin = time.Unix(1_700_000_000, 0)

var formats = NewFormats(record.NPLog{})

// world is a running log.
type world struct {
	*testing.T
	log  *eventlog.Log
	next map[string]uint64
}

func newWorld(t *testing.T) *world {
	l, err := eventlog.Open(eventlog.Config{Dir: t.TempDir(), MinFree: 1})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan struct{})
	go func() { defer close(ran); _ = l.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-ran
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return &world{t, l, map[string]uint64{}}
}

// packet stores a packet from a source port, so many milliseconds after the beginning.
func (w *world) packet(node string, action policyv1.Action, port uint32, ms int) {
	w.Helper()
	e := &auditv1.Event{Kind: &auditv1.Event_Packet{Packet: &auditv1.PacketEvent{
		First: timestamppb.New(begin.Add(time.Duration(ms) * time.Millisecond)), Direction: 1, Action: action, Table: "IngressRule",
		SourceIp: []byte{10, 0, 0, 1}, DestinationIp: []byte{10, 0, 0, 2}, Protocol: 6, SourcePort: &port, DestinationPort: &port, Length: 60}}}
	data, err := proto.Marshal(e)
	if err != nil {
		w.Fatal(err)
	}
	w.next[node]++
	_, err = w.log.Append(w.Context(), eventlog.Batch{Node: node, Boot: "b", First: w.next[node], Events: []eventlog.Event{{Data: data}}, Received: begin})
	if err != nil {
		w.Fatal(err)
	}
}

// run runs a sink until stopped.
func (w *world) run(out Output, now func() time.Time) (s *Sink, stop func()) {
	w.Helper()
	return w.start(Config{Output: out, Now: now})
}

// start runs a sink as configured.
func (w *world) start(cfg Config) (s *Sink, stop func()) {
	w.Helper()
	if cfg.Name == "" {
		cfg.Name = "test"
	}
	cfg.Log, cfg.Key, cfg.Logger = w.log, record.KeyPrinted, hclog.NewNullLogger()
	s, err := New(cfg)
	if err != nil {
		w.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan struct{})
	go func() { defer close(ran); _ = s.Run(ctx) }()
	var once sync.Once
	stop = func() { once.Do(func() { cancel(); <-ran }) }
	w.Cleanup(stop)
	return s, stop
}

// eventually waits until a condition holds.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

// memory is an output with the semantics of a file: what is not flushed when it
// is closed is gone.
type memory struct {
	mu       sync.Mutex
	buffered []string
	lines    []string
	fail     error // Of everything.
}

func (m *memory) Open(context.Context, Link) error { return m.do(func() { m.buffered = nil }) }
func (m *memory) Write(_ context.Context, l *record.Line) (int, error) {
	return 1, m.do(func() {
		m.buffered = append(m.buffered, fmt.Sprintf("%d x%d", l.Cursor, l.Packets))
	})
}
func (m *memory) Flush(context.Context) error {
	return m.do(func() { m.lines = append(m.lines, m.buffered...); m.buffered = nil })
}
func (m *memory) Sync(context.Context) error { return m.do(func() {}) }
func (m *memory) Close() error               { return nil }

func (m *memory) do(f func()) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail == nil {
		f()
	}
	return m.fail
}

func (m *memory) text() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return strings.Join(m.lines, ", ")
}

func (m *memory) setFail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail = err
}

const allow, drop = policyv1.Action_ACTION_ALLOW, policyv1.Action_ACTION_DROP

func TestLinesAndCursor(t *testing.T) {
	w := newWorld(t)
	for i := range 3 {
		w.packet("n1", drop, 1, i)
	}
	w.packet("n1", allow, 1, 5)
	out := &memory{}
	s, stop := w.run(out, nil)
	eventually(t, "the line of the allow, then that of the window", func() bool { return out.text() == "4 x1, 1 x3" })
	eventually(t, "the cursor", func() bool { return s.Stats().Cursor == 4 })
	if st := s.Stats(); st.Lines != 2 || st.Merged != 2 || st.LastError != "" {
		t.Errorf("%+v", st)
	}
	stop()
	_, stop = w.run(out, nil)
	w.packet("n1", allow, 1, 6)
	eventually(t, "only the new line", func() bool { return out.text() == "4 x1, 1 x3, 5 x1" })
	stop()
}

// TestCursorStaysBelowOpenWindows: a sink that is killed begins again before the
// oldest window that it had not written.
func TestCursorStaysBelowOpenWindows(t *testing.T) {
	w := newWorld(t)
	var mu sync.Mutex
	now := begin
	clock := func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	advance := func(d time.Duration) { mu.Lock(); now = now.Add(d); mu.Unlock() }
	out := &memory{}
	s, stop := w.run(out, clock)
	w.packet("n1", allow, 1, 0)
	w.packet("n1", drop, 1, 1)
	w.packet("n1", allow, 2, 2)
	eventually(t, "the allows", func() bool { return out.text() == "1 x1, 3 x1" })
	if s.Stats().Cursor > 1 {
		t.Fatalf("cursor %d is behind an open window", s.Stats().Cursor)
	}
	// A clean end writes the window early; nothing is repeated.
	stop()
	if got := out.text(); got != "1 x1, 3 x1, 2 x1" || s.Stats().Cursor != 3 {
		t.Errorf("%s, cursor %d", got, s.Stats().Cursor)
	}
	s, _ = w.run(out, clock)
	w.packet("n1", drop, 9, 5)
	w.packet("n1", allow, 3, 6)
	eventually(t, "the next allow", func() bool { return strings.HasSuffix(out.text(), "5 x1") })
	advance(990 * time.Millisecond)
	w.packet("n1", allow, 4, 7)
	eventually(t, "the last allow", func() bool { return strings.HasSuffix(out.text(), "6 x1") })
	advance(time.Second)
	eventually(t, "the window", func() bool { return strings.HasSuffix(out.text(), "4 x1") })
	advance(time.Second)
	eventually(t, "the cursor", func() bool { return s.Stats().Cursor == 6 })
}

func TestErrorsAreRetried(t *testing.T) {
	w := newWorld(t)
	out := &memory{fail: errors.New("the disk is full")}
	s, _ := w.run(out, nil)
	w.packet("n1", allow, 1, 0)
	w.packet("n1", drop, 1, 0)
	eventually(t, "the error", func() bool { return s.Stats().LastError == "the disk is full" })
	if s.Stats().Cursor != 0 {
		t.Error("the cursor moved")
	}
	out.setFail(nil)
	eventually(t, "the lines", func() bool { return out.text() == "1 x1, 2 x1" })
	eventually(t, "the error to be forgotten", func() bool { return s.Stats().LastError == "" && s.Stats().Cursor == 2 })
}

func TestNodeFiles(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	_, stop := w.run(NPLogs(dir, formats[FormatNPLog], Rotation{}, hclog.NewNullLogger()), nil)
	w.packet("n1", allow, 1, 0)
	w.packet("n2", allow, 2, 0)
	w.packet("n1", allow, 3, 0)
	lines := func(node string) int {
		b, _ := os.ReadFile(filepath.Join(dir, node, "np.log"))
		return bytes.Count(b, []byte("\n"))
	}
	eventually(t, "the lines", func() bool { return lines("n1") == 2 && lines("n2") == 1 })
	stop()

	path := filepath.Join(dir, "only.log")
	w2 := newWorld(t)
	_, _ = w2.start(Config{Output: OneFile(path, formats[FormatNPLog], Rotation{}, hclog.NewNullLogger()), Filter: &record.Filter{Nodes: []string{"n2"}}})
	w2.packet("n1", allow, 1, 0)
	w2.packet("n2", allow, 2, 0)
	eventually(t, "the line of n2", func() bool { b, _ := os.ReadFile(path); return bytes.Count(b, []byte("\n")) == 1 })
}

// TestSyslogTCP: the peer goes away in the middle and comes back. No message is
// missing; some come twice.
func TestSyslogTCP(t *testing.T) {
	w := newWorld(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	out, err := NewSyslog("tcp://"+addr, nil, formats[FormatSyslog])
	if err != nil {
		t.Fatal(err)
	}
	_, _ = w.run(out, nil)
	for i := range 5 {
		w.packet("n1", allow, uint32(i+1), i)
	}
	seen := map[string]bool{}
	read := func(r *bufio.Reader, n int) {
		t.Helper()
		for range n {
			var size int
			if _, err := fmt.Fscanf(r, "%d ", &size); err != nil {
				t.Fatal(err)
			}
			msg := make([]byte, size)
			if _, err := io.ReadFull(r, msg); err != nil {
				t.Fatal(err)
			}
			_, rest, _ := strings.Cut(string(msg), `cursor="`)
			cursor, _, _ := strings.Cut(rest, `"`)
			seen[cursor] = true
		}
	}
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	read(bufio.NewReader(conn), 3) // The rest is lost on its way.
	conn.Close()
	l.Close()
	for i := range 5 {
		w.packet("n1", allow, uint32(i+1), 10+i)
	}
	if l, err = net.Listen("tcp", addr); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if conn, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	r := bufio.NewReader(conn)
	for deadline := time.Now().Add(20 * time.Second); len(seen) < 10; {
		_ = conn.SetReadDeadline(deadline)
		read(r, 1)
	}
}

func TestSyslogTargets(t *testing.T) {
	for target, want := range map[string]string{"udp://h:1": "syslog udp://h:1", "tcp://[::1]": "syslog tcp://[::1]:514", "http://h": "", "tls://h": "syslog tls://h:6514", "udp://": "", "tcp://h:0": "", "tcp://h:99999": "", "h:514": "", "udp://h/x": ""} {
		s, err := NewSyslog(target, nil, formats[FormatSyslog])
		if (err == nil) != (want != "") || err == nil && s.Name() != want {
			t.Errorf("%s: %v", target, err)
		}
	}
}

package sink

import (
	"bufio"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
)

// receiver takes batches as a log store does. Its answers can be told.
type receiver struct {
	mu     sync.Mutex
	seen   map[uint64]int // By cursor.
	calls  int
	answer func(w http.ResponseWriter, cursors []uint64) bool // False: it has answered.
	header http.Header
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	z, err := gzip.NewReader(req.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusTeapot)
		return
	}
	var cursors []uint64
	for lines := bufio.NewScanner(z); lines.Scan(); {
		var line struct{ Cursor uint64 }
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			http.Error(w, err.Error(), http.StatusTeapot)
			return
		}
		cursors = append(cursors, line.Cursor)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls++
	r.header = req.Header.Clone()
	if r.answer != nil && !r.answer(w, cursors) {
		return
	}
	for _, c := range cursors {
		r.seen[c]++
	}
}

// has says whether each of so many records was taken once.
func (r *receiver) has(n int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range uint64(n) {
		if r.seen[c+1] != 1 {
			return false
		}
	}
	return len(r.seen) == n
}

func (w *world) http(t *testing.T, cfg HTTPConfig) (*Sink, func(), string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "dead.json")
	cfg.Format = formats[FormatJSON]
	out, err := NewHTTP(cfg, deadLetters{path: path, most: 1 << 20, logger: hclog.NewNullLogger()})
	if err != nil {
		t.Fatal(err)
	}
	s, stop := w.start(Config{Output: out})
	return s, stop, path
}

func (w *world) allows(n int) {
	w.Helper()
	for i := range n {
		w.packet("n1", allow, uint32(i+1), i)
	}
}

func TestHTTP(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := &receiver{seen: make(map[uint64]int)}
	server := httptest.NewServer(r)
	defer server.Close()
	password := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(password, []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.allows(1500)
	s, _, _ := w.http(t, HTTPConfig{URL: server.URL + "/x", Username: "weir", PasswordFile: password, Headers: map[string]string{"X-Tenant": "a"}})
	eventually(t, "all lines, once", func() bool { return r.has(1500) })
	eventually(t, "the cursor", func() bool { return s.Stats().Cursor == 1500 })
	user, pass, _ := (&http.Request{Header: r.header}).BasicAuth()
	if user != "weir" || pass != "secret" || r.header.Get("X-Tenant") != "a" || r.header.Get("Content-Type") != "application/x-ndjson" || r.calls > 10 {
		t.Errorf("%v in %d calls", r.header, r.calls)
	}
}

// TestHTTPTriesAgain: 429 and 503 are waited for, as long as they say, and what
// was taken is not sent again.
func TestHTTPTriesAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := &receiver{seen: make(map[uint64]int)}
	var asked, retried time.Time
	r.answer = func(rw http.ResponseWriter, cursors []uint64) bool {
		switch r.calls {
		case 2:
			asked = time.Now()
			rw.Header().Set("Retry-After", "1")
			rw.WriteHeader(http.StatusTooManyRequests)
			return false
		case 3:
			retried = time.Now()
			rw.WriteHeader(http.StatusServiceUnavailable)
			return false
		}
		return true
	}
	server := httptest.NewServer(r)
	defer server.Close()
	w.allows(2500)
	s, _, _ := w.http(t, HTTPConfig{URL: server.URL})
	eventually(t, "the trouble", func() bool { return strings.Contains(s.Stats().LastError, "429") })
	eventually(t, "all lines, once", func() bool { return r.has(2500) })
	eventually(t, "the trouble to be over", func() bool { st := s.Stats(); return st.LastError == "" && st.Cursor == 2500 })
	if d := retried.Sub(asked); d < time.Second {
		t.Errorf("tried again after %s", d)
	}
}

// TestHTTPRefusesOne: one record that the receiver will never take is set aside;
// all others arrive.
func TestHTTPRefusesOne(t *testing.T) {
	w := newWorld(t)
	r := &receiver{seen: make(map[uint64]int)}
	r.answer = func(rw http.ResponseWriter, cursors []uint64) bool {
		for _, c := range cursors {
			if c == 7 || c == 400 {
				http.Error(rw, "no such index", http.StatusUnprocessableEntity)
				return false
			}
		}
		return true
	}
	server := httptest.NewServer(r)
	defer server.Close()
	w.allows(500)
	s, _, dead := w.http(t, HTTPConfig{URL: server.URL})
	eventually(t, "the cursor", func() bool { return s.Stats().Cursor == 500 })
	r.mu.Lock()
	if len(r.seen) != 498 || r.seen[7] != 0 {
		t.Errorf("%d taken", len(r.seen))
	}
	r.mu.Unlock()
	b, err := os.ReadFile(dead)
	if err != nil || s.Stats().DeadLetters != 2 {
		t.Fatalf("%d dead letters, %v", s.Stats().DeadLetters, err)
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	for i, want := range []string{`"cursor":7,`, `"cursor":400,`} {
		var d deadLetter
		if err := json.Unmarshal([]byte(lines[i]), &d); err != nil || !strings.Contains(d.Line, want) || !strings.Contains(d.Error, "422") || !strings.Contains(d.Error, "no such index") {
			t.Errorf("%s %v", lines[i], err)
		}
	}
}

// TestHTTPWithoutRights: 401 says nothing about the lines; none is set aside.
func TestHTTPWithoutRights(t *testing.T) {
	w := newWorld(t)
	r := &receiver{seen: make(map[uint64]int)}
	refuse := true
	r.answer = func(rw http.ResponseWriter, _ []uint64) bool {
		if refuse {
			rw.WriteHeader(http.StatusUnauthorized)
		}
		return !refuse
	}
	server := httptest.NewServer(r)
	defer server.Close()
	w.allows(5)
	s, _, _ := w.http(t, HTTPConfig{URL: server.URL})
	eventually(t, "the trouble", func() bool { return strings.Contains(s.Stats().LastError, "401") })
	r.mu.Lock()
	refuse = false
	r.mu.Unlock()
	eventually(t, "all lines", func() bool { return r.has(5) })
	if n := s.Stats().DeadLetters; n != 0 {
		t.Errorf("%d dead letters", n)
	}
}

// TestDeadLettersAreBounded: the latest are kept.
func TestDeadLettersAreBounded(t *testing.T) {
	dir := t.TempDir()
	d := deadLetters{path: filepath.Join(dir, "dead.json"), most: 2000, logger: hclog.NewNullLogger()}
	for i := range 200 {
		if err := d.add(fmt.Sprint(i), net.ErrClosed); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.sync(); err != nil {
		t.Fatal(err)
	}
	var size int64
	for _, name := range listing(t, dir) {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		size += info.Size()
	}
	b, err := os.ReadFile(d.path)
	if err != nil || size > 2000 || !strings.Contains(string(b), `"line":"199"`) {
		t.Errorf("%d bytes, %v: %s", size, err, b)
	}
	d.close()
}

// TestSlowSinkSlowsNoOther: a receiver that never answers holds back its own sink
// alone.
func TestSlowSinkSlowsNoOther(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	hang := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-hang }))
	defer server.Close()
	defer close(hang)
	w.allows(3000)
	slow, _, _ := w.http(t, HTTPConfig{URL: server.URL})
	out := &memory{}
	quick, _ := w.start(Config{Name: "quick", Output: out})
	begun := time.Now()
	eventually(t, "the quick sink to be done", func() bool { return quick.Stats().Cursor == 3000 })
	if slow.Stats().Cursor != 0 || time.Since(begun) > postTimeout/2 {
		t.Errorf("the slow one is at %d, after %s", slow.Stats().Cursor, time.Since(begun))
	}
}

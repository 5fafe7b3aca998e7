package audit

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
)

// hops follows a test of a sink to its end, and returns names and errors.
func (c *collector) hops(sink string) (names []string, responses []*auditv1.TestSinkResponse, err error) {
	c.Helper()
	call, err := auditv1.NewAuditServiceClient(c.dial(nil)).TestSink(c.Context(), &auditv1.TestSinkRequest{Sink: sink})
	if err != nil {
		c.Fatal(err)
	}
	for {
		h, err := call.Recv()
		if err == io.EOF {
			return names, responses, nil
		}
		if err != nil {
			return names, responses, err
		}
		names, responses = append(names, h.GetHop()), append(responses, h)
	}
}

// TestTestSink: a test goes through the sink that it is for, and no other, and
// says where it is stuck while it is.
func TestTestSink(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var bodies strings.Builder
	fail := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if fail > 0 {
			fail--
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		b, _ := io.ReadAll(r.Body)
		bodies.Write(b)
	}))
	defer server.Close()
	c := start(t, func(c *Config) {
		c.Sinks = sinksFile(t, "sinks:\n- {name: store, type: http, url: '"+server.URL+"', gzip: false, filter: {ports: [1]}}\n- {name: other, type: file, path: "+filepath.Join(t.TempDir(), "other.json")+"}\n")
	})
	names, responses, err := c.hops("store")
	if want := "stored read encoded written acknowledged"; err != nil || strings.ReplaceAll(strings.Join(names, " "), "connected ", "") != want {
		t.Fatalf("%v %v", names, err)
	}
	id := responses[0].GetId()
	for _, h := range responses {
		if h.GetError() != "" || h.GetId() != id || h.GetElapsed() == nil {
			t.Errorf("%v", h)
		}
		if h.GetHop() == "written" && !strings.Contains(h.GetDetail(), strings.TrimPrefix(server.URL, "http://")) {
			t.Errorf("no peer: %v", h)
		}
	}
	mu.Lock()
	if strings.Count(bodies.String(), id) != 1 || !strings.Contains(bodies.String(), `"test":{`) {
		t.Errorf("%s is not at the other end: %s", id, bodies.String())
	}
	fail = 2
	mu.Unlock()
	names, responses, err = c.hops("store")
	if err != nil || !strings.Contains(strings.Join(names, " "), "failed") || names[len(names)-1] != "acknowledged" {
		t.Errorf("%v %v", names, err)
	}
	for _, h := range responses {
		if h.GetHop() == "failed" && !strings.Contains(h.GetError(), "503") {
			t.Errorf("%v", h)
		}
	}
	eventually(t, "the others to have passed over the tests", func() bool { return c.sinkNamed("other").GetCursor() == 2 })
	if b, err := os.ReadFile(filepath.Join(c.dir, "audit.json")); err == nil && len(b) > 0 {
		t.Errorf("another sink has the test: %s", b)
	}
	if names, responses, err = c.hops("np-log-dir " + filepath.Join(c.dir, "np")); err != nil || !strings.Contains(responses[2].GetError(), "no line for a test") {
		t.Errorf("%v %v", names, err)
	}
	if _, _, err = c.hops("none"); status.Code(err) != codes.NotFound {
		t.Error(err)
	}
}

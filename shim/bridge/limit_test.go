package bridge

import (
	"encoding/json"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"testing"
)

// lateSwitch answers on a control socket as a switch whose passes write the limit
// of the cache after they said that they end: what is set in between is lost, so
// many times.
func lateSwitch(t *testing.T, dir string, lost int) (limit func() string) {
	l, err := net.Listen("unix", filepath.Join(dir, "vswitchd.ctl"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	var mu sync.Mutex
	now := "0"
	answer := func(method string, params []string) string {
		mu.Lock()
		defer mu.Unlock()
		switch method {
		case "revalidator/wait":
			if now == "0" {
				now = "1000"
			}
		case limitCommand:
			if lost--; lost < 0 {
				now = params[0]
			}
		case "upcall/show":
			return fmt.Sprintf("netdev@ovs-netdev:\n  flows         : (current 3) (avg 2) (max 5) (limit %s)\n", now)
		}
		return ""
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				in, out := json.NewDecoder(conn), json.NewEncoder(conn)
				var request struct {
					Method string
					Params []string
					ID     int
				}
				for in.Decode(&request) == nil {
					_ = out.Encode(map[string]any{"id": request.ID, "error": nil, "result": answer(request.Method, request.Params)})
				}
			}()
		}
	}()
	return func() string {
		mu.Lock()
		defer mu.Unlock()
		return now
	}
}

func TestLimitIsLiftedAlsoWhereAPassWritesItLate(t *testing.T) {
	for lost := range 4 {
		dir := t.TempDir()
		limit := lateSwitch(t, dir, lost)
		b, err := New(Config{Name: "br0", RunDir: dir})
		if err != nil {
			t.Fatal(err)
		}
		b.emptying.lifting = true
		b.lift()
		if got := limit(); got != flowLimit || b.emptying.lifting {
			t.Errorf("%d times lost, the limit is %s; still at it: %t", lost, got, b.emptying.lifting)
		}
	}
}

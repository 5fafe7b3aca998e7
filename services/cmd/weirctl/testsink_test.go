package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weirnet/weir/services/audit"
)

// TestAuditTestSink: a test through a sink of the collector itself, whose id is in
// the file.
func TestAuditTestSink(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.json")
	s := startCollector(t, audit.Config{JSONFile: path})
	out, errs, code := run(t, "audit", "test-sink", "json "+path, "--server", s.Addr())
	_, rest, _ := strings.Cut(out, "look for ")
	id, _, _ := strings.Cut(rest, " ")
	text, err := os.ReadFile(path)
	if code != 0 || err != nil || !strings.HasPrefix(id, "test-") || !strings.Contains(string(text), id) || !strings.Contains(out, "acknowledged") {
		t.Errorf("%s %s\n%s %v", out, errs, text, err)
	}
	out, errs, code = run(t, "audit", "test-sink", "json "+path, "--server", s.Addr(), "-o", "json")
	var hop struct{ Hop, ID string }
	if err := json.NewDecoder(strings.NewReader(out)).Decode(&hop); code != 0 || err != nil || hop.Hop != "stored" || !strings.HasPrefix(hop.ID, "test-") {
		t.Errorf("%s %s %v", out, errs, err)
	}
	if _, errs, code := run(t, "audit", "test-sink", "none", "--server", s.Addr()); code == 0 || !strings.Contains(errs, "audit stats lists them") {
		t.Errorf("%d %s", code, errs)
	}
}

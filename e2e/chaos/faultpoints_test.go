package chaos

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

// Points are found where they are written out, each once, and for whom they are.
func TestFindPoints(t *testing.T) {
	module := t.TempDir()
	for path, body := range map[string]string{
		"shim/loop.go":            `faultpoint.Reach("shim.b.c"); faultpoint.Reach("shim.a.b"); faultpoint.Reach("shim.a.b")`,
		"shim/loop_test.go":       `faultpoint.Reach("shim.test.only")`,
		"storage/eventlog/x.go":   `faultpoint.Reach("eventlog.commit.synced"); faultpoint.Reach("file." + "x")`,
		"services/audit/sub/y.go": `other.Reach("not.a.point"); Reach("nor.this.one")`,
		"services/policy/z.go":    ``,
	} {
		path = filepath.Join(module, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("package p\n\nfunc f() { "+body+" }\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := findPoints(module)
	want := points{shim: []string{"shim.a.b", "shim.b.c"}, auditd: []string{"eventlog.commit.synced"}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
}

package e2e

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/weirnet/weir/"

// TestLayout holds the tree to the laws of its layout, by direct imports.
func TestLayout(t *testing.T) {
	top := []string{"proto", "services", "shim", "storage", "deploy", "e2e", "buf.yaml", "go.mod", "go.sum", "Makefile", "README.md", "LICENSE", "bin"}
	entries, err := os.ReadDir("..")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".") && !slices.Contains(top, e.Name()) {
			t.Errorf("%s does not belong at the top level", e.Name())
		}
	}
	packages := make(map[string]bool) // Folders with code; true once their doc comment was seen.
	walk := func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (strings.HasPrefix(d.Name(), ".") && path != ".." || d.Name() == "testdata") {
			return fs.SkipDir
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		file := strings.TrimPrefix(filepath.ToSlash(path), "../")
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly|parser.ParseComments)
		if err != nil {
			return err
		}
		dir := filepath.Dir(file)
		packages[dir] = packages[dir] || f.Doc != nil
		if slices.Contains([]string{"util", "utils", "common", "helpers", "misc", "types"}, f.Name.Name) {
			t.Errorf("%s: package %s names nothing", file, f.Name.Name)
		}
		if strings.HasSuffix(file, "_test.go") || strings.HasPrefix(file, "e2e/") || strings.HasSuffix(file, ".pb.go") {
			return nil
		}
		for _, spec := range f.Imports {
			name, _ := strconv.Unquote(spec.Path.Value)
			if why := breaks(file, name); why != "" {
				t.Errorf("%s imports %s: %s", file, name, why)
			}
		}
		return nil
	}
	if err := filepath.WalkDir("..", walk); err != nil {
		t.Fatal(err)
	}
	for dir, documented := range packages {
		if !documented && !strings.HasPrefix(dir, "proto/") {
			t.Errorf("package %s has no doc comment", dir)
		}
	}
}

// pure are the packages that do no I/O and read no clock.
var pure = []string{"services/policy/engine/", "services/policy/evaluate/", "services/policy/validate/", "services/audit/record/", "shim/pipeline/", "shim/order/", "shim/hostpolicy/", "shim/bridge/openflow/", "shim/reject/", "shim/dns/", "shim/igmp/"}

// breaks says which law an import breaks; empty for none.
func breaks(file, name string) string {
	in := func(dirs ...string) bool {
		return slices.ContainsFunc(dirs, func(d string) bool { return strings.HasPrefix(file, d) })
	}
	ours, isOurs := strings.CutPrefix(name, module)
	switch {
	case in("proto/") && isOurs:
		return "proto imports nothing of ours"
	case in("storage/") && isOurs && !strings.HasPrefix(ours, "proto/") && !strings.HasPrefix(ours, "storage"):
		return "storage imports proto at most"
	case in("services/") && isOurs && strings.HasPrefix(ours, "shim"), in("shim/") && isOurs && strings.HasPrefix(ours, "services"):
		return "services and shim never import each other"
	case isOurs && strings.HasPrefix(ours, "e2e"):
		return "nothing but e2e imports e2e"
	case strings.HasPrefix(name, "k8s.io/client-go") && !in("services/policy/source/", "services/policy/status/", "services/policy/admission/", "services/identity/", "services/cmd/weirctl/"):
		return "client-go is for the sources, status, admission, identity and weirctl"
	case (name == "os/exec" || strings.HasPrefix(name, "github.com/digitalocean/go-openvswitch")) && !in("shim/bridge/"):
		return "only the bridge runs commands and speaks to Open vSwitch's tools"
	}
	impure := []string{"os", "os/exec", "net", "net/http", "time.Now"}
	if in(pure...) && !strings.HasPrefix(file, "services/policy/evaluate/conformance/") &&
		(slices.Contains(impure, name) || strings.HasPrefix(name, "google.golang.org/grpc") || strings.HasPrefix(name, "k8s.io/client-go") || strings.HasPrefix(name, "github.com/hashicorp/go-hclog")) {
		return "the package is pure"
	}
	return ""
}

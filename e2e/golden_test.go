package e2e

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write what kubectl shows into testdata")

// sameAsGolden compares what kubectl shows with a file of testdata.
func sameAsGolden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		must(t, os.WriteFile(file, []byte(got), 0o644))
	}
	want, err := os.ReadFile(file)
	must(t, err)
	if got != string(want) {
		t.Errorf("kubectl shows otherwise than %s (-update writes it):\n%s", file, diffLines(string(want), got))
	}
}

// diffLines are the lines that are in one of two texts alone.
func diffLines(want, got string) string {
	var b strings.Builder
	for _, side := range []struct{ mark, a, b string }{{"-", want, got}, {"+", got, want}} {
		there := strings.Split(side.b, "\n")
		for line := range strings.SplitSeq(side.a, "\n") {
			if !slices.Contains(there, line) {
				fmt.Fprintf(&b, "%s %s\n", side.mark, line)
			}
		}
	}
	return b.String()
}

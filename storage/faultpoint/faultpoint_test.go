package faultpoint

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

const program = `package main

import (
	"fmt"

	"github.com/weirnet/weir/storage/faultpoint"
)

func main() {
	defer fmt.Println("deferred")
	for range 3 {
		fmt.Println("before")
		faultpoint.Reach("a.b.other")
		faultpoint.Reach("a.b.done")
	}
	fmt.Println("end")
}
`

// A binary dies at the named point, at the named time, and without the tag it
// never does.
func TestReach(t *testing.T) {
	dir, err := os.MkdirTemp(".", ".program-") // Within the module, and no package of it.
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.WriteFile(filepath.Join(dir, "main.go"), []byte(program), 0o644); err != nil {
		t.Fatal(err)
	}
	build := func(name string, flags ...string) string {
		out := filepath.Join(t.TempDir(), name)
		args := append(append([]string{"build", "-o", out}, flags...), "./"+dir)
		if text, err := exec.Command("go", args...).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		return out
	}
	tagged, plain := build("tagged", "-tags", "faultpoints"), build("plain")
	for _, tt := range []struct {
		bin, env string
		killed   bool
		out      string
	}{
		{tagged, "", false, "before before before end deferred"},
		{tagged, "a.b.done", true, "before"},
		{tagged, "a.b.done:3", true, "before before before"},
		{tagged, "a.b.done:4", false, "before before before end deferred"},
		{tagged, "a.b", false, "before before before end deferred"},
		{plain, "a.b.done", false, "before before before end deferred"},
	} {
		cmd := exec.Command(tt.bin)
		cmd.Env = append(os.Environ(), "WEIR_FAULTPOINT="+tt.env)
		out, err := cmd.Output()
		var exit *exec.ExitError
		killed := errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL
		if err != nil && !killed {
			t.Fatalf("%s: %v", tt.env, err)
		}
		if got := strings.Join(strings.Fields(string(out)), " "); killed != tt.killed || got != tt.out {
			t.Errorf("%s with %q: killed %t, printed %q; want %t, %q", filepath.Base(tt.bin), tt.env, killed, got, tt.killed, tt.out)
		}
	}
	cmd := exec.Command(tagged)
	cmd.Env = append(os.Environ(), "WEIR_FAULTPOINT=a.b.done:0")
	if err := cmd.Run(); err == nil {
		t.Error("a count of zero is taken")
	}
}

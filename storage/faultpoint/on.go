//go:build faultpoints

package faultpoint

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

// Env is the variable that names the point.
const Env = "WEIR_FAULTPOINT"

var (
	name, after = parse(os.Getenv(Env))
	reached     atomic.Int64
)

// parse reads "NAME" or "NAME:n".
func parse(s string) (name string, after int64) {
	name, count, counted := strings.Cut(s, ":")
	if !counted {
		return name, 1
	}
	n, err := strconv.ParseInt(count, 10, 64)
	if err != nil || n < 1 {
		fmt.Fprintf(os.Stderr, "%s=%s: want NAME or NAME:n, where n is 1 or more\n", Env, s)
		os.Exit(2)
	}
	return name, n
}

// Reach says that the process has come to a point, and ends it there if it is the
// one that was named.
func Reach(point string) {
	if point != name || reached.Add(1) != after {
		return
	}
	fmt.Fprintln(os.Stderr, "fault point reached:", point)
	syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {} // The signal is on its way.
}

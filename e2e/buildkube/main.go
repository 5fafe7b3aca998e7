// Command buildkube builds the API server, etcd and kubectl that the end-to-end
// tests run, ahead of them, so that no test's time is spent on it. It writes the
// folder that has them.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/weirnet/weir/e2e/harness"
)

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	dir, err := harness.BuildKube(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(dir)
}

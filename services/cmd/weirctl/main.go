// Command weirctl is what people and scripts use to ask Weir: it checks
// manifests, explains verdicts offline or from the running service, lists what is
// in force, follows the audit record, runs conformance cases, and makes the
// certificates of a first installation.
//
// The command line is New, a tree of commands over the Streams that it is given; main
// only runs it. Offline commands (validate, evaluate, explain -f, pki init) touch nothing
// but files. The others call one gRPC service and show its answer (pki enroll: write it down). Every
// command that shows something takes -o json; that JSON is a stable interface.
//
// How a service is reached and who we are to it is of type dial, the same for all of
// them:
//
//	--server                             that address
//	in a Pod, without a kubeconfig       the Service in Weir's Namespace ─┐ ConfigMap weir-ca,
//	else: kubeconfig ─► podsOf ─► forwarder    a port-forward to a Pod   ─┘ and kubeUser
//
// podsOf is a resolver of gRPC and forwarder its dialer, so that gRPC tries one Pod
// after the other. Read kubeconfig_test.go first.
//
// The exit status is 0 when all is well, and 1 when something was found wrong
// or could not be done.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	code := Run(ctx, Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}, os.Args[1:])
	stop()
	os.Exit(code)
}

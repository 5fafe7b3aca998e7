package audit

import (
	"cmp"
	"context"
	"fmt"
	mrand "math/rand/v2"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/identity"
)

// How often it is asked again what who follows may see, and how long an answer may
// take. The policy service's answers are up to 10 seconds old: what is revoked is sent
// for 25 seconds at the most.
const (
	reviewInterval = 10 * time.Second
	reviewTimeout  = 5 * time.Second
)

// reviewer asks the policy service what users of the cluster may see of the record:
// the collector does not speak to the API server.
type reviewer struct {
	addresses []string // host:port of replicas; any of them.
	creds     credentials.TransportCredentials
	interval  time.Duration // Zero: reviewInterval.

	mu    sync.Mutex // Guards conns.
	conns map[string]*grpc.ClientConn
}

// review is what a user may see. Its errors are for the caller.
func (r *reviewer) review(ctx context.Context, proof *identity.Proof, verb string, namespaces []string) (*view, error) {
	ctx, cancel := context.WithTimeout(ctx, reviewTimeout)
	defer cancel()
	req := &policyv1.ReviewRequest{Token: proof.Token, Certificates: proof.Certificates, Resource: identity.Records, Verb: verb, Namespaces: namespaces}
	var failed error
	for i, n := mrand.N(len(r.addresses)), 0; n < len(r.addresses); i, n = i+1, n+1 {
		resp, err := r.ask(ctx, r.addresses[i%len(r.addresses)], req)
		switch status.Code(err) {
		case codes.OK:
			v := &view{holder: identity.User{Name: resp.GetUser()}.String(), Scope: identity.ScopeOf(resp.GetNamespaces()...), proof: proof}
			v.All = resp.GetAll()
			return v, nil
		case codes.Unauthenticated, codes.PermissionDenied, codes.ResourceExhausted, codes.InvalidArgument:
			return nil, err
		case codes.FailedPrecondition, codes.Unimplemented:
			return nil, status.Errorf(codes.Unauthenticated, "the caller shows no certificate of ours, and the policy service knows no users: %s", status.Convert(err).Message())
		}
		failed = err
	}
	return nil, status.Errorf(codes.Unavailable, "the policy service cannot be asked what the caller may see: %s", status.Convert(failed).Message())
}

func (r *reviewer) ask(ctx context.Context, address string, req *policyv1.ReviewRequest) (*policyv1.ReviewResponse, error) {
	conn, err := r.conn(address)
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	return policyv1.NewAccessServiceClient(conn).Review(ctx, req)
}

func (r *reviewer) conn(address string) (*grpc.ClientConn, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c := r.conns[address]; c != nil {
		return c, nil
	}
	c, err := grpc.NewClient(address, grpc.WithTransportCredentials(r.creds))
	if err != nil {
		return nil, fmt.Errorf("policy service %s: %w", address, err)
	}
	r.conns[address] = c
	return c, nil
}

func (r *reviewer) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.conns {
		c.Close()
	}
}

// follow reviews again and again what a user may see, until the context ends, and puts
// each answer into a slot. Who may see nothing any more, or has seen all and may not,
// loses the stream by end, and so does who cannot be asked about twice in a row.
func (r *reviewer) follow(ctx context.Context, end context.CancelCauseFunc, was *view, verb string, namespaces []string, slot chan *view) {
	tick := time.NewTicker(cmp.Or(r.interval, reviewInterval))
	defer tick.Stop()
	failed := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		v, err := r.review(ctx, was.proof, verb, namespaces)
		switch code := status.Code(err); {
		case code == codes.OK && was.All && !v.All:
			end(status.Errorf(codes.PermissionDenied, "%s may not %s all of the record any more", was.holder, identity.Right{Resource: identity.Records, Verb: verb}))
			return
		case code == codes.OK:
			failed = false
			select { // An answer that nobody has taken yet is old.
			case <-slot:
			default:
			}
			slot <- v
		case code == codes.PermissionDenied, code == codes.Unauthenticated, failed:
			end(err)
			return
		default:
			failed = true
		}
	}
}

package e2e

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/storage"
)

// statusNode stands for a node's shim: it holds what it is sent, and says so. When
// its stream ends it goes to another replica.
type statusNode struct {
	name    string
	conns   []*grpc.ClientConn
	stuck   atomic.Bool // It takes what it is sent, and acknowledges nothing.
	light   bool        // It keeps nothing, and acknowledges all: there may be a thousand.
	replica storage.Replica
}

// startStatusNodes runs nodes until the test ends.
func startStatusNodes(t testing.TB, addresses []string, names ...string) map[string]*statusNode {
	t.Helper()
	return runStatusNodes(t, addresses, false, names)
}

func runStatusNodes(t testing.TB, addresses []string, light bool, names []string) map[string]*statusNode {
	t.Helper()
	var conns []*grpc.ClientConn
	for _, a := range addresses {
		conn, err := grpc.NewClient(a, grpc.WithTransportCredentials(insecure.NewCredentials()))
		must(t, err)
		t.Cleanup(func() { conn.Close() })
		conns = append(conns, conn)
	}
	nodes := make(map[string]*statusNode)
	ctx, stop := context.WithCancel(context.Background())
	t.Cleanup(stop)
	for i, name := range names {
		n := &statusNode{name: name, conns: conns, light: light}
		nodes[name] = n
		go func() {
			for at := i; ctx.Err() == nil; at++ {
				_ = n.follow(ctx, n.conns[at%len(n.conns)]) // It goes elsewhere.
				select {
				case <-time.After(100 * time.Millisecond):
				case <-ctx.Done():
				}
			}
		}()
	}
	return nodes
}

// follow holds one stream.
func (n *statusNode) follow(ctx context.Context, conn *grpc.ClientConn) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	stream, err := policyv1.NewPolicyServiceClient(conn).Subscribe(ctx)
	if err != nil {
		return err
	}
	hello := &policyv1.Hello{Node: n.name}
	if n.replica.Revision() != 0 {
		hello.Digest, hello.Position = n.replica.Digest().Bytes(), n.replica.Position()
	}
	n.replica.Begin()
	if err := stream.Send(&policyv1.SubscribeRequest{Message: &policyv1.SubscribeRequest_Hello{Hello: hello}}); err != nil {
		return err
	}
	for {
		resp, err := stream.Recv()
		if err != nil {
			return err
		}
		var answer *policyv1.SubscribeRequest
		switch m := resp.GetMessage().(type) {
		case *policyv1.SubscribeResponse_InSync:
			n.replica.InSync(m.InSync)
		case *policyv1.SubscribeResponse_Cut:
			if n.light {
				if m.Cut.GetMore() {
					continue
				}
				answer = &policyv1.SubscribeRequest{Message: &policyv1.SubscribeRequest_Ack{Ack: &policyv1.Ack{Revision: m.Cut.GetRevision()}}}
				break
			}
			if _, done, err := n.replica.Apply(m.Cut); err != nil {
				return err
			} else if !done {
				continue
			}
		case *policyv1.SubscribeResponse_InventoryRequest:
			inventory, err := n.replica.Inventory(m.InventoryRequest)
			if err != nil {
				return err
			}
			answer = &policyv1.SubscribeRequest{Message: &policyv1.SubscribeRequest_Inventory{Inventory: inventory}}
		case *policyv1.SubscribeResponse_Release:
			continue
		default:
			return errors.New("a message that is none of a node's")
		}
		if answer == nil {
			answer = &policyv1.SubscribeRequest{Message: &policyv1.SubscribeRequest_Ack{Ack: &policyv1.Ack{Revision: n.replica.Revision(), Digest: n.replica.Digest().Bytes()}}}
			for n.stuck.Load() {
				select {
				case <-time.After(20 * time.Millisecond):
				case <-ctx.Done():
					return ctx.Err()
				}
			}
		}
		if err := stream.Send(answer); err != nil {
			return err
		}
	}
}

func statusNodeName(i int) string { return fmt.Sprintf("worker-%02d", i) }

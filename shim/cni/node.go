package cni

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

// node is the shim of this node.
type node struct {
	conn   *grpc.ClientConn
	client policyv1.NodeServiceClient
}

func dial(socket string) (*node, error) {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("socket %s: %v", socket, err), "")
	}
	return &node{conn: conn, client: policyv1.NewNodeServiceClient(conn)}, nil
}

func (n *node) close() { n.conn.Close() }

// ready fails with the code unless Pods can be added.
func (n *node) ready(ctx context.Context, code uint) error {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	st, err := n.client.Status(ctx, &policyv1.NodeServiceStatusRequest{})
	if err != nil {
		return types.NewError(code, "weir-shim does not answer: "+status.Convert(err).Message(), "")
	}
	if !st.GetReady() {
		return types.NewError(code, "weir-shim is not ready: "+st.GetReason(), "")
	}
	return nil
}

// retryPause is how long a shim that went away is waited for at a time.
const retryPause = 100 * time.Millisecond

// await returns once the port is open, or fails with what keeps it closed.
func (n *node) await(ctx context.Context, port string, limit time.Duration) error {
	wait, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	closed := func(why string) error {
		return types.NewError(types.ErrTryAgainLater, fmt.Sprintf("port %s is not open after %s: %s", port, limit, why), "")
	}
	for {
		resp, err := n.client.AwaitPort(wait, &policyv1.AwaitPortRequest{Interface: port}, grpc.WaitForReady(true))
		switch {
		case err == nil && resp.GetPort().GetOpen():
			return nil
		case err == nil && resp.GetPort() == nil:
			return closed("weir-shim does not see it on its bridge")
		case err == nil:
			return closed(resp.GetPort().GetReason())
		case status.Code(err) != codes.Unavailable || wait.Err() != nil:
			if errors.Is(wait.Err(), context.DeadlineExceeded) {
				return closed("weir-shim does not answer")
			}
			return closed("weir-shim: " + status.Convert(err).Message())
		}
		select { // The shim restarts.
		case <-wait.Done():
		case <-time.After(retryPause):
		}
	}
}

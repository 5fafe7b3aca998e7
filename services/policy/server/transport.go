package server

import (
	"context"
	"fmt"
	"slices"

	"google.golang.org/grpc"

	"github.com/weirnet/weir/services/identity"
	"github.com/weirnet/weir/services/rpc"
)

// Buffers of a connection. One for reading is held for the connection's whole
// life; what nodes send is small, and what is larger is read past the buffer.
// One for writing is held while there is something to write, which after a
// change that concerns all is on all connections at once; a snapshot is written
// in pieces of this size.
const (
	readBufferBytes  = 2 << 10
	writeBufferBytes = 8 << 10
)

// Transport makes the gRPC server on which s is reached, with its services
// registered. What sets the policy service's connections apart from those of
// other servers is added here and nowhere else, so that what is measured is
// what is run.
func (s *Server) Transport(cfg rpc.Config) (*rpc.Server, error) {
	cfg.Options = slices.Concat([]grpc.ServerOption{grpc.ForceServerCodecV2(Codec()),
		grpc.ReadBufferSize(readBufferBytes), grpc.WriteBufferSize(writeBufferBytes)}, cfg.Options)
	r, err := rpc.New(cfg)
	if err != nil {
		return nil, err
	}
	s.Register(r.GRPC)
	return r, nil
}

// CertifiedNode is the node of a caller's certificate; "" where there is no TLS.
func CertifiedNode(ctx context.Context) (string, error) {
	id, verified, err := identity.FromContext(ctx)
	if err != nil || !verified {
		return "", err
	}
	if id.Node == "" {
		return "", fmt.Errorf("%s is not a node", id)
	}
	return id.Node, nil
}

// CertifiedInspector admits operators and the services, and everybody where
// there is no TLS; a node reads its span only, and a reader the audit record.
func CertifiedInspector(ctx context.Context) error {
	id, verified, err := identity.FromContext(ctx)
	if err != nil {
		return err
	}
	if verified && (len(id.Roles) == 0 || id.Has(identity.RoleReader)) {
		return fmt.Errorf("%s may not inspect; an operator's certificate is needed", id)
	}
	return nil
}

// CertifiedReplica admits the policy service, and everybody where there is no
// TLS.
func CertifiedReplica(ctx context.Context) error {
	id, verified, err := identity.FromContext(ctx)
	if err != nil {
		return err
	}
	if verified && !id.Has(identity.RolePolicyd) {
		return fmt.Errorf("%s is not the policy service", id)
	}
	return nil
}

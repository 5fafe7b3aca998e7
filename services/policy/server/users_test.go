package server

import (
	"context"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/weirnet/weir/services/identity"
	"github.com/weirnet/weir/storage"
)

// chiefs are users who see all.
type chiefs struct{}

func (chiefs) Review(context.Context, identity.Proof, identity.Right) (identity.User, identity.Scope, error) {
	return identity.User{}, identity.Scope{All: true}, nil
}

// TestUsersTakeTurns: so many calls of users are answered at a time; parts of Weir do
// not wait for them.
func TestUsersTakeTurns(t *testing.T) {
	refused := true
	s, err := New(Config{Store: storage.New("epoch"), Model: noModel{}, Registry: prometheus.NewRegistry(), Logger: hclog.NewNullLogger(), Synced: func() bool { return true }, Users: chiefs{},
		MayInspect: func(ctx context.Context) error {
			if refused {
				return CertifiedInspector(ctx)
			}
			return nil
		}})
	if err != nil {
		t.Fatal(err)
	}
	user := metadata.NewIncomingContext(peer.NewContext(t.Context(), &peer.Peer{AuthInfo: credentials.TLSInfo{}}), metadata.Pairs("authorization", "Bearer x"))
	var last func()
	for range maxUserCalls {
		scope, leave, err := s.scope(user, "list")
		if err != nil || !scope.All {
			t.Fatal(scope, err)
		}
		last = leave
	}
	gone, cancel := context.WithCancel(user)
	cancel()
	if _, _, err := s.scope(gone, "list"); status.Code(err) != codes.Canceled {
		t.Errorf("one more: %v", err)
	}
	last()
	_, leave, err := s.scope(user, "list")
	if err != nil {
		t.Fatal(err)
	}
	defer leave()
	refused = false
	if _, _, err := s.scope(t.Context(), "list"); err != nil {
		t.Errorf("a part of Weir: %v", err)
	}
}

package identity

import (
	"context"
	"errors"
	"maps"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

// Access implements AccessService: it reviews users on behalf of the collector.
type Access struct {
	policyv1.UnimplementedAccessServiceServer
	users *Users
}

// NewAccess is for a policy service that knows the cluster's users. Nil: it does not.
func NewAccess(users *Users) *Access { return &Access{users: users} }

// Review implements AccessService.
func (a *Access) Review(ctx context.Context, req *policyv1.ReviewRequest) (*policyv1.ReviewResponse, error) {
	// Without TLS there are no users.
	id, verified, err := FromContext(ctx)
	switch {
	case err != nil:
		return nil, status.Error(codes.Unauthenticated, err.Error())
	case verified && !id.Has(RoleAuditd):
		return nil, status.Errorf(codes.PermissionDenied, "%s is no collector", id)
	case a.users == nil:
		return nil, status.Error(codes.FailedPrecondition, "this policy service reads no API server, and knows no users")
	case req.GetResource() == "" || req.GetVerb() == "":
		return nil, status.Error(codes.InvalidArgument, "resource and verb must be given")
	}
	user, scope, err := a.users.Review(ctx, Proof{Token: req.GetToken(), Certificates: req.GetCertificates()},
		Right{Resource: req.GetResource(), Verb: req.GetVerb(), Namespaces: req.GetNamespaces()})
	if err != nil {
		return nil, ReviewStatus(err)
	}
	return &policyv1.ReviewResponse{User: user.Name, All: scope.All, Namespaces: slices.Sorted(maps.Keys(scope.namespaces))}, nil
}

// ReviewStatus is the gRPC status of an error of Users.Review.
func ReviewStatus(err error) error {
	code := codes.Unavailable
	switch {
	case errors.Is(err, ErrToken), errors.Is(err, ErrCertificate), errors.Is(err, ErrNoProof):
		code = codes.Unauthenticated
	case errors.Is(err, ErrDenied):
		code = codes.PermissionDenied
	case errors.Is(err, ErrBusy), errors.Is(err, ErrTooMany):
		code = codes.ResourceExhausted
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return status.FromContextError(err).Err()
	default:
		return status.Errorf(code, "the cluster cannot be asked: %v", err)
	}
	return status.Error(code, err.Error())
}

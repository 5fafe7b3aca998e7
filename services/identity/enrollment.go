package identity

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/util/validation"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

// Grant is a service account whose tokens are good for a certificate.
type Grant struct {
	Namespace, Name string
	Role            Role // RoleNode: for the node that the token's Pod is on.
	// Hosts are the names and addresses of a server, of RoleAuditd.
	Hosts []string
	// Namespaces are those whose record may be read, of RoleReader.
	Namespaces []string
}

// RoleNode stands for the shim of a node in a Grant. No certificate says it.
const RoleNode Role = "node"

// ParseGrant reads ROLE=NAMESPACE/SERVICEACCOUNT, and of auditd
// auditd=NAMESPACE/SERVICEACCOUNT,HOST,HOST…, of reader
// reader=NAMESPACE/SERVICEACCOUNT,NAMESPACE,NAMESPACE….
func ParseGrant(text string) (Grant, error) {
	role, rest, _ := strings.Cut(text, "=")
	parts := strings.Split(rest, ",")
	namespace, name, found := strings.Cut(parts[0], "/")
	g := Grant{Namespace: namespace, Name: name, Role: Role(role), Hosts: parts[1:]}
	if g.Role == RoleReader {
		g.Hosts, g.Namespaces = nil, slices.Compact(slices.Sorted(slices.Values(parts[1:])))
	}
	switch {
	case !found || namespace == "" || name == "":
		return g, fmt.Errorf("grant %q: write ROLE=NAMESPACE/SERVICEACCOUNT", text)
	case !slices.Contains([]Role{RoleNode, RoleAuditd, RoleOperator, RoleReader}, g.Role):
		return g, fmt.Errorf("grant %q: the role is node, auditd, operator or reader", text)
	case g.Role == RoleReader && len(g.Namespaces) == 0:
		return g, fmt.Errorf("grant %q: write reader=NAMESPACE/SERVICEACCOUNT,NAMESPACE, with each Namespace whose record may be read", text)
	case len(g.Hosts) > 0 && g.Role != RoleAuditd:
		return g, fmt.Errorf("grant %q: only auditd is a server with names", text)
	}
	for _, ns := range g.Namespaces {
		if msgs := validation.IsDNS1123Label(ns); len(msgs) > 0 {
			return g, fmt.Errorf("grant %q: Namespace %q: %s", text, ns, msgs[0])
		}
	}
	return g, nil
}

// EnrollmentConfig of an Enrollment.
type EnrollmentConfig struct {
	// Authority signs; nil for as long as there is none yet.
	Authority func() *Authority
	Reviewer  Reviewer
	Grants    []Grant
	Lifetime  time.Duration // Of certificates.
	Registry  prometheus.Registerer
	Logger    hclog.Logger
}

// Enrollment implements EnrollmentService.
type Enrollment struct {
	policyv1.UnimplementedEnrollmentServiceServer
	cfg    EnrollmentConfig
	issued *prometheus.CounterVec
}

// EnrollMethod is the one method that callers without a certificate may call.
const EnrollMethod = policyv1.EnrollmentService_Enroll_FullMethodName

// NewEnrollment checks the configuration.
func NewEnrollment(cfg EnrollmentConfig) (*Enrollment, error) {
	e := &Enrollment{cfg: cfg, issued: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weir_policy_enrollments_total",
		Help: "Requests for a certificate by a token, by outcome."}, []string{"outcome"})}
	return e, cfg.Registry.Register(e.issued)
}

// Enroll implements EnrollmentService.
func (e *Enrollment) Enroll(ctx context.Context, req *policyv1.EnrollRequest) (*policyv1.EnrollResponse, error) {
	resp, who, err := e.enroll(ctx, req)
	e.issued.WithLabelValues(status.Code(err).String()).Inc()
	if err != nil {
		e.cfg.Logger.Warn("no certificate for a caller", "who", who, "err", status.Convert(err).Message())
		return nil, err
	}
	e.cfg.Logger.Info("certificate issued", "who", who, "until", time.Unix(resp.GetNotAfter(), 0).UTC())
	return resp, nil
}

func (e *Enrollment) enroll(ctx context.Context, req *policyv1.EnrollRequest) (_ *policyv1.EnrollResponse, who string, err error) {
	if req.GetToken() == "" || len(req.GetCsr()) == 0 {
		return nil, "", status.Error(codes.InvalidArgument, "token and csr must be given")
	}
	authority := e.cfg.Authority()
	if authority == nil {
		return nil, "", status.Error(codes.Unavailable, "the certificate authority has not been read yet; try again shortly")
	}
	account, err := e.cfg.Reviewer.Review(ctx, req.GetToken())
	switch {
	case errors.Is(err, ErrToken):
		return nil, "", status.Error(codes.Unauthenticated, err.Error())
	case errors.Is(err, ErrBusy):
		return nil, "", status.Error(codes.ResourceExhausted, err.Error())
	case err != nil:
		return nil, "", status.Errorf(codes.Unavailable, "the cluster cannot be asked: %v", err)
	}
	who = account.Namespace + "/" + account.Name
	i := slices.IndexFunc(e.cfg.Grants, func(g Grant) bool { return g.Namespace == account.Namespace && g.Name == account.Name })
	if i < 0 {
		return nil, who, status.Errorf(codes.PermissionDenied, "service account %s has no right to a certificate", who)
	}
	g := e.cfg.Grants[i]
	id := Identity{Roles: []Role{g.Role}, Namespaces: g.Namespaces}
	if g.Role == RoleNode {
		if account.Node == "" {
			return nil, who, status.Errorf(codes.PermissionDenied, "the token of %s is bound to no Pod on a node: project it into the Pod", who)
		}
		id = Identity{Node: account.Node}
	}
	now := time.Now()
	cert, err := authority.Sign(req.GetCsr(), id, g.Hosts, e.cfg.Lifetime, now)
	if err != nil {
		return nil, id.String(), status.Error(codes.InvalidArgument, err.Error())
	}
	return &policyv1.EnrollResponse{Certificate: cert.Raw, Ca: authority.cert.Raw, NotAfter: cert.NotAfter.Unix()}, id.String(), nil
}

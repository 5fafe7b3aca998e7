package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/kubernetes"

	"github.com/weirnet/weir/services/identity"
)

// maxAnswerBytes is room for a list of hundreds of thousands of nodes.
const maxAnswerBytes = 64 << 20

// service is one of Weir's, as the manifests have it.
type service struct{ name, port, loopback string }

var (
	policyService = service{"weir-policyd", "9740", identity.DefaultPolicyAddress}
	auditService  = service{"weir-auditd", "9741", identity.DefaultAuditAddress}
)

// connectRole is the Role in Weir's Namespace that lets its subjects connect.
const connectRole = "weir-connect"

// dial is how a service is reached: at an address that is given, or by the
// kubeconfig. Then, outside of the cluster, by a port-forward to one of its Pods,
// and inside at its Service; always with TLS, for which the authority is read from
// the cluster; and as the kubeconfig's user, unless another certificate is given.
// With both, only the address is another.
type dial struct {
	service    service
	server     string // Empty: by the kubeconfig.
	kubeconfig kubeconfig
	namespace  string
	files      identity.Files
	insecure   bool
	timeout    time.Duration

	forwards *forwarder // Of the connection; nil where there is none.
}

func (d *dial) flags(cmd *cobra.Command, s service) {
	d.service = s
	f := cmd.Flags()
	f.StringVar(&d.server, "server", "", "address of the service, HOST:PORT; the kubeconfig says where it is otherwise")
	d.kubeconfig.flags(cmd)
	f.StringVar(&d.namespace, "weir-namespace", weirNamespace, "Namespace that Weir is in, for the kubeconfig")
	f.StringVar(&d.files.CA, "ca", "", "certificates of the authorities that may vouch for the service; with the kubeconfig those of the cluster by default")
	f.StringVar(&d.files.Cert, "cert", "", "our own certificate, such as operator.crt")
	f.StringVar(&d.files.Key, "key", "", "its private key")
	f.BoolVar(&d.insecure, "insecure", false, "talk to --server without TLS, beyond loopback too")
	f.DurationVar(&d.timeout, "timeout", 10*time.Second, "how long to wait for an answer")
}

// connect prepares the connection. The context it returns ends at the timeout.
func (d *dial) connect(parent context.Context) (*grpc.ClientConn, context.Context, func(), error) {
	ctx, cancel := context.WithTimeout(parent, d.timeout)
	conn, err := d.client(ctx)
	if err != nil {
		cancel()
		return nil, nil, nil, err
	}
	return conn, ctx, func() {
		cancel()
		_ = conn.Close() // There is nothing left to lose.
	}, nil
}

func (d *dial) client(ctx context.Context) (*grpc.ClientConn, error) {
	if d.server == "" || d.kubeconfig != (kubeconfig{}) {
		return d.byKubeconfig(ctx)
	}
	creds := insecure.NewCredentials()
	switch {
	case d.files.Set() && d.insecure:
		return nil, errors.New("--insecure contradicts --ca, --cert and --key: give one or the other")
	case d.files.Set():
		config, err := identity.ClientTLS(d.files)
		if err != nil {
			return nil, err
		}
		creds = credentials.NewTLS(config)
	default:
		if err := identity.CheckListen(d.server, false, d.insecure); err != nil {
			return nil, err
		}
	}
	return d.newClient(d.server, grpc.WithTransportCredentials(creds))
}

func (d *dial) newClient(target string, options ...grpc.DialOption) (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient(target, append(options, grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswerBytes)))...)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", d.name(), err)
	}
	return conn, nil
}

// byKubeconfig asks the API server for all that is needed.
func (d *dial) byKubeconfig(ctx context.Context) (*grpc.ClientConn, error) {
	if d.insecure {
		return nil, errors.New("--insecure needs --server and no kubeconfig, whose user is shown with TLS alone")
	}
	config, inside, err := d.kubeconfig.load()
	if errors.Is(err, errNoKubeconfig) {
		return nil, fmt.Errorf("%w; or say where %s is by --server HOST:PORT (%s on its own machine)", err, d.service.name, d.service.loopback)
	}
	if err != nil {
		return nil, err
	}
	api, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("kubeconfig: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	roots, err := d.roots(ctx, api)
	if err != nil {
		return nil, d.explained(err)
	}
	secure := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots}
	host := d.service.name + "." + d.namespace + ".svc"
	if d.server == "" {
		secure.ServerName = host
	}
	var options []grpc.DialOption
	if d.files.Cert != "" || d.files.Key != "" {
		pair, err := tls.LoadX509KeyPair(d.files.Cert, d.files.Key)
		if err != nil {
			return nil, fmt.Errorf("read certificate and key: %w", err)
		}
		secure.Certificates = []tls.Certificate{pair}
	} else {
		user, err := newKubeUser(ctx, config)
		if err != nil {
			return nil, err
		}
		secure.GetClientCertificate = user.certificate
		options = append(options, grpc.WithPerRPCCredentials(user))
	}
	options = append(options, grpc.WithTransportCredentials(credentials.NewTLS(secure)))
	switch {
	case d.server != "":
		return d.newClient(d.server, options...)
	case inside: // How to call it is not asked for: a DNS server that says nothing to TXT would hold up all.
		return d.newClient("dns:///"+net.JoinHostPort(host, d.service.port), append(options, grpc.WithNoProxy(), grpc.WithDisableServiceConfig())...)
	}
	pods := &podsOf{api: api, namespace: d.namespace, service: d.service.name}
	if pods.first, err = pods.list(ctx); err != nil {
		return nil, d.explained(err)
	}
	d.forwards = &forwarder{config: config, api: api, namespace: d.namespace}
	return d.newClient(podsScheme+":///"+d.service.name, append(options, grpc.WithResolvers(pods), grpc.WithContextDialer(d.forwards.dial))...)
}

// roots are the authorities that may vouch for the service.
func (d *dial) roots(ctx context.Context, api kubernetes.Interface) (*x509.CertPool, error) {
	var text []byte
	var err error
	if d.files.CA != "" {
		text, err = os.ReadFile(d.files.CA)
	} else {
		text, err = identity.Published(ctx, api, d.namespace)
	}
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, errors.New("certificate authority: there is no certificate in " + cmp.Or(d.files.CA, "what the cluster publishes"))
	}
	return pool, nil
}

// explained adds to an error of the API server what to do about it.
func (d *dial) explained(err error) error {
	if apierrors.IsForbidden(err) {
		return fmt.Errorf("%w; Role %s of Namespace %s permits it: kubectl create rolebinding NAME --namespace %s --role %s --user USER",
			err, connectRole, d.namespace, d.namespace, connectRole)
	}
	return err
}

// name is the service's, for people.
func (d *dial) name() string {
	if d.server != "" {
		return d.server
	}
	return d.service.name + " of Namespace " + d.namespace
}

// failed makes the answer of a service into an error for people.
func (d *dial) failed(what string, err error) error {
	s := status.Convert(err)
	switch s.Code() {
	case codes.Unavailable, codes.DeadlineExceeded:
		if d.forwards != nil && d.forwards.problem() != nil {
			return fmt.Errorf("%s: %s does not answer: %w", what, d.name(), d.explained(d.forwards.problem()))
		}
		return fmt.Errorf("%s: %s does not answer: %s", what, d.name(), s.Message())
	}
	return fmt.Errorf("%s: %s: %s", what, s.Code(), s.Message())
}

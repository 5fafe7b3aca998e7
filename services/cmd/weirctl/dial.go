package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/weirnet/weir/services/identity"
)

// maxAnswerBytes is room for a list of hundreds of thousands of nodes.
const maxAnswerBytes = 64 << 20

// dial is how a service is reached.
type dial struct {
	server   string
	files    identity.Files
	insecure bool
	timeout  time.Duration
}

func (d *dial) flags(cmd *cobra.Command, server string) {
	f := cmd.Flags()
	f.StringVar(&d.server, "server", server, "address of the service, HOST:PORT")
	f.StringVar(&d.files.CA, "ca", "", "certificates of the authorities that may vouch for the service")
	f.StringVar(&d.files.Cert, "cert", "", "our own certificate, such as operator.crt")
	f.StringVar(&d.files.Key, "key", "", "its private key")
	f.BoolVar(&d.insecure, "insecure", false, "talk without TLS, beyond loopback too")
	f.DurationVar(&d.timeout, "timeout", 10*time.Second, "how long to wait for an answer")
}

// connect prepares the connection. The context it returns ends at the timeout.
func (d *dial) connect(parent context.Context) (*grpc.ClientConn, context.Context, func(), error) {
	conn, err := d.client()
	if err != nil {
		return nil, nil, nil, err
	}
	ctx, cancel := context.WithTimeout(parent, d.timeout)
	return conn, ctx, func() {
		cancel()
		_ = conn.Close() // There is nothing left to lose.
	}, nil
}

func (d *dial) client() (*grpc.ClientConn, error) {
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
	conn, err := grpc.NewClient(d.server, grpc.WithTransportCredentials(creds), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswerBytes)))
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", d.server, err)
	}
	return conn, nil
}

// failed makes the answer of a service into an error for people.
func (d *dial) failed(what string, err error) error {
	s := status.Convert(err)
	switch s.Code() {
	case codes.Unavailable, codes.DeadlineExceeded:
		return fmt.Errorf("%s: %s does not answer: %s", what, d.server, s.Message())
	}
	return fmt.Errorf("%s: %s: %s", what, s.Code(), s.Message())
}

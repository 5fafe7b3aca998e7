package sink

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/weirnet/weir/services/audit/record"
	"github.com/weirnet/weir/services/identity"
)

// NATSConfig of a NATS.
type NATSConfig struct {
	Servers  []string  // nats://HOST:PORT or tls://HOST:PORT.
	Subject  string    // Of a stream; {node} is the node's name, "_" in place of ".".
	TLS      *TLSFiles // Nil: plain text, which goes no further than loopback, or tls:// with the system's authorities.
	Insecure bool      // Unless this is said.
	// Who we are, at most one.
	CredentialsFile    string // Of nsc.
	User, PasswordFile string
	TokenFile          string
	Format             Format
}

// Limits of a NATS.
const (
	maxUnacked  = 512
	natsTimeout = 10 * time.Second
)

// NATS publishes lines to a stream of JetStream. So many messages are on their
// way at a time; the cursor moves when the server has acknowledged, which it does
// when the stream has them. The id of a message is the same when it is sent
// again, so that the server leaves out what it has, within its window.
type NATS struct {
	cfg     NATSConfig
	conn    *nats.Conn
	js      jetstream.JetStream
	unacked []jetstream.PubAckFuture // In the order of sending.
	link    Link
	dead    deadLetters
	buf     []byte
}

// NewNATS checks the configuration.
func NewNATS(cfg NATSConfig, dead deadLetters) (*NATS, error) {
	if len(cfg.Servers) == 0 {
		return nil, errors.New("servers: missing")
	}
	for _, server := range cfg.Servers {
		u, err := url.Parse(server)
		if err != nil {
			return nil, fmt.Errorf("servers: %w", err)
		}
		if u.Scheme != "nats" && u.Scheme != "tls" || u.Hostname() == "" || u.User != nil || u.Path != "" {
			return nil, fmt.Errorf("servers: %q: write nats://HOST:PORT or tls://HOST:PORT", server)
		}
		if u.Scheme == "nats" && cfg.TLS == nil && !cfg.Insecure && !identity.Loopback(u.Hostname()+":4222") {
			return nil, fmt.Errorf("servers: %q is beyond loopback: write tls, or say insecure", server)
		}
		if u.Scheme == "tls" && cfg.TLS == nil {
			cfg.TLS = &TLSFiles{}
		}
	}
	if cfg.Subject == "" || strings.ContainsAny(cfg.Subject, " *>\t\n") {
		return nil, fmt.Errorf("subject %q: write one such as weir.audit or weir.audit.{node}", cfg.Subject)
	}
	given := 0
	for _, s := range []string{cfg.CredentialsFile, cfg.PasswordFile, cfg.TokenFile} {
		if s != "" {
			given++
		}
	}
	if given > 1 || (cfg.User == "") != (cfg.PasswordFile == "") {
		return nil, errors.New("credentialsFile, user with passwordFile, tokenFile: give one of them")
	}
	if cfg.TLS != nil {
		if err := cfg.TLS.Check(); err != nil {
			return nil, err
		}
	}
	return &NATS{cfg: cfg, dead: dead}, nil
}

// Peer implements Peered.
func (n *NATS) Peer() string {
	if n.conn == nil {
		return ""
	}
	return "nats " + n.conn.ConnectedAddr()
}

// Open implements Output.
func (n *NATS) Open(_ context.Context, link Link) error {
	options := []nats.Option{nats.Name("weir-auditd"), nats.NoReconnect(), nats.Timeout(dialTimeout)} // The sink connects again itself.
	if n.cfg.TLS != nil {
		cfg, err := n.cfg.TLS.config("")
		if err != nil {
			return err
		}
		options = append(options, nats.Secure(cfg))
	}
	who, err := n.credentials()
	if err != nil {
		return err
	}
	if n.conn, err = nats.Connect(strings.Join(n.cfg.Servers, ","), append(options, who...)...); err != nil {
		return fmt.Errorf("connect to NATS %s: %w", strings.Join(n.cfg.Servers, ","), err)
	}
	n.link, n.unacked = link, nil
	n.js, err = jetstream.New(n.conn, jetstream.WithPublishAsyncMaxPending(2*maxUnacked), jetstream.WithPublishAsyncTimeout(natsTimeout))
	return err
}

func (n *NATS) credentials() ([]nats.Option, error) {
	switch {
	case n.cfg.CredentialsFile != "":
		return []nats.Option{nats.UserCredentials(n.cfg.CredentialsFile)}, nil
	case n.cfg.PasswordFile != "":
		password, err := secret(n.cfg.PasswordFile)
		if err != nil {
			return nil, fmt.Errorf("passwordFile: %w", err)
		}
		return []nats.Option{nats.UserInfo(n.cfg.User, password)}, nil
	case n.cfg.TokenFile != "":
		token, err := secret(n.cfg.TokenFile)
		if err != nil {
			return nil, fmt.Errorf("tokenFile: %w", err)
		}
		return []nats.Option{nats.Token(token)}, nil
	}
	return nil, nil
}

// subjectToken makes one token of a node's name.
var subjectToken = strings.NewReplacer(".", "_", " ", "_", "*", "_", ">", "_")

// Write implements Output.
func (n *NATS) Write(ctx context.Context, l *record.Line) (int, error) {
	n.buf = n.cfg.Format.message(n.buf[:0], l)
	if len(n.buf) == 0 {
		return 0, nil
	}
	if len(n.unacked) >= maxUnacked {
		if err := n.acknowledge(ctx, maxUnacked/2); err != nil {
			return 0, err
		}
	}
	m := &nats.Msg{Subject: replaceNode(n.cfg.Subject, subjectToken.Replace(l.Node)), Data: []byte(string(n.buf))}
	ack, err := n.js.PublishMsgAsync(m, jetstream.WithMsgID(lineID(l)))
	if errors.Is(err, nats.ErrMaxPayload) {
		n.link.Refused(1)
		return 0, n.dead.add(string(n.buf), fmt.Errorf("publish to %s: %w", m.Subject, err))
	}
	if err != nil {
		return 0, fmt.Errorf("publish to %s: %w", m.Subject, err)
	}
	n.unacked = append(n.unacked, ack)
	return 1, nil
}

// acknowledge waits until the first so many messages are acknowledged.
func (n *NATS) acknowledge(ctx context.Context, count int) error {
	for _, ack := range n.unacked[:count] {
		select {
		case <-ack.Ok():
		case err := <-ack.Err():
			var answer *jetstream.APIError
			if !errors.As(err, &answer) || answer.ErrorCode != jetstream.JSErrCodeStreamMessageExceedsMaximum {
				return fmt.Errorf("publish to %s: %w", ack.Msg().Subject, err)
			}
			n.link.Refused(1)
			if err := n.dead.add(string(ack.Msg().Data), fmt.Errorf("publish to %s: %w", ack.Msg().Subject, err)); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	n.unacked = append(n.unacked[:0], n.unacked[count:]...)
	return nil
}

// Flush implements Output: messages leave by themselves.
func (n *NATS) Flush(context.Context) error { return nil }

// Sync implements Output.
func (n *NATS) Sync(ctx context.Context) error {
	if err := n.acknowledge(ctx, len(n.unacked)); err != nil {
		return err
	}
	return n.dead.sync()
}

// Close implements Output.
func (n *NATS) Close() error {
	if n.conn != nil {
		n.conn.Close()
		n.conn = nil
	}
	n.unacked = nil
	return n.dead.close()
}

package sink

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/services/audit/record"
)

// Timeouts of syslog over TCP.
const (
	dialTimeout  = 5 * time.Second
	writeTimeout = 10 * time.Second
	drainPoll    = 2 * time.Millisecond
	settleTime   = 500 * time.Millisecond
)

// maxDatagram is how long a message over UDP may be: receivers cut off what is
// longer than they expect, often 8 KiB.
const maxDatagram = 8 << 10

// Syslog sends lines as messages of RFC 5424: over UDP one a datagram, over TCP
// and TLS (RFC 5425) with octet counting (RFC 6587).
//
// Syslog has no acknowledgements. Over TCP, Sync waits until the peer's kernel
// has taken everything, and a connection that the peer closed is an error: then
// all since the last stored cursor is sent again. A peer of TLS 1.3 judges our
// certificate when we are done with the handshake already, so that the first
// Sync of a connection waits a while for its refusal. Over UDP a datagram is gone
// when it is sent; a peer that says that nobody listens is an error.
type Syslog struct {
	network, address string
	tls              *TLSFiles // Nil: plain text.
	format           Format

	conn    net.Conn               // Of TLS where it is.
	tcp     *net.TCPConn           // Below it. Nil: UDP.
	settled bool                   // The peer has had time to refuse us.
	w       *bufio.Writer          // Of TCP.
	ended   *atomic.Pointer[error] // Why the peer ended the connection.
	over    chan struct{}          // Closed when it has ended.
	buf     []byte
	prefix  []byte
}

// NewSyslog returns the output for udp://HOST:PORT, tcp://HOST:PORT or
// tls://HOST:PORT. A missing port is 514, of TLS 6514. Of TLS alone there are
// files; nil are the system's authorities.
func NewSyslog(target string, files *TLSFiles, format Format) (*Syslog, error) {
	u, err := url.Parse(target)
	if err != nil {
		return nil, fmt.Errorf("syslog target: %w", err)
	}
	if u.Scheme != "udp" && u.Scheme != "tcp" && u.Scheme != "tls" || u.Hostname() == "" || u.User != nil || u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("syslog target %q: write udp://HOST:PORT, tcp://HOST:PORT or tls://HOST:PORT", target)
	}
	port := u.Port()
	switch {
	case port != "":
	case u.Scheme == "tls":
		port = "6514"
	default:
		port = "514"
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return nil, fmt.Errorf("syslog target %q: port %s is none", target, port)
	}
	s := &Syslog{network: u.Scheme, address: net.JoinHostPort(u.Hostname(), port), format: format}
	switch {
	case u.Scheme != "tls" && files != nil:
		return nil, fmt.Errorf("syslog target %q: tls is for tls://HOST:PORT", target)
	case u.Scheme != "tls":
		return s, nil
	case files == nil:
		files = &TLSFiles{}
	}
	s.tls = files
	return s, files.Check()
}

// Name is the target, for the cursor.
func (s *Syslog) Name() string { return "syslog " + s.network + "://" + s.address }

// Peer implements Peered.
func (s *Syslog) Peer() string {
	if s.conn == nil {
		return ""
	}
	return s.network + " " + s.conn.RemoteAddr().String()
}

// Open implements Output.
func (s *Syslog) Open(ctx context.Context, _ Link) error {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	network := s.network
	if s.tls != nil {
		network = "tcp"
	}
	conn, err := new(net.Dialer).DialContext(ctx, network, s.address)
	if err != nil {
		return fmt.Errorf("connect to syslog: %w", err)
	}
	s.conn, s.tcp, s.settled = conn, nil, s.tls == nil
	if s.network == "udp" {
		return nil
	}
	s.tcp = conn.(*net.TCPConn)
	if s.tls != nil {
		over, err := s.tls.handshake(ctx, conn, s.address)
		if err != nil {
			return fmt.Errorf("connect to syslog %s: %w", s.address, err)
		}
		s.conn = over
	}
	s.w, s.over = bufio.NewWriterSize(s.conn, 64<<10), make(chan struct{})
	s.ended = &atomic.Pointer[error]{}
	go s.watch(s.conn, s.ended, s.over)
	return nil
}

// watch reads until the peer ends the connection: it sends nothing else.
func (s *Syslog) watch(conn net.Conn, ended *atomic.Pointer[error], over chan<- struct{}) {
	defer close(over)
	b := make([]byte, 512)
	for {
		if _, err := conn.Read(b); err != nil {
			if !errors.Is(err, net.ErrClosed) {
				err = fmt.Errorf("syslog %s ended the connection: %w", s.address, err)
				ended.Store(&err)
			}
			return
		}
	}
}

// Write implements Output.
func (s *Syslog) Write(_ context.Context, l *record.Line) (int, error) {
	s.buf = s.format.Syslog(s.buf[:0], l)
	if len(s.buf) == 0 {
		return 0, nil
	}
	if err := s.conn.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return 0, fmt.Errorf("send to syslog %s: %w", s.address, err)
	}
	var err error
	if s.network == "udp" {
		_, err = s.conn.Write(s.buf[:min(len(s.buf), maxDatagram)])
	} else {
		s.prefix = append(strconv.AppendInt(s.prefix[:0], int64(len(s.buf)), 10), ' ')
		if _, err = s.w.Write(s.prefix); err == nil {
			_, err = s.w.Write(s.buf)
		}
	}
	if err != nil {
		return 0, fmt.Errorf("send to syslog %s: %w", s.address, err)
	}
	return 1, nil
}

// Flush implements Output.
func (s *Syslog) Flush(context.Context) error {
	if s.network == "udp" {
		return nil
	}
	if err := s.w.Flush(); err != nil {
		return fmt.Errorf("send to syslog %s: %w", s.address, err)
	}
	return s.alive()
}

func (s *Syslog) alive() error {
	if err := s.ended.Load(); err != nil {
		return *err
	}
	return nil
}

// Sync implements Output: the peer's TCP has acknowledged everything.
func (s *Syslog) Sync(ctx context.Context) error {
	if s.network == "udp" {
		return nil
	}
	if !s.settled {
		select {
		case <-s.over:
		case <-time.After(settleTime):
			s.settled = true
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	raw, err := s.tcp.SyscallConn()
	if err != nil {
		return fmt.Errorf("send to syslog %s: %w", s.address, err)
	}
	for deadline := time.Now().Add(writeTimeout); ; {
		unsent, ioctlErr := 0, error(nil)
		if err := raw.Control(func(fd uintptr) { unsent, ioctlErr = unix.IoctlGetInt(int(fd), unix.TIOCOUTQ) }); err != nil || ioctlErr != nil {
			return fmt.Errorf("send to syslog %s: %w", s.address, errors.Join(err, ioctlErr))
		}
		if err := s.alive(); err != nil {
			return err
		}
		if unsent == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("send to syslog %s: %d bytes are not taken after %s", s.address, unsent, writeTimeout)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(drainPoll):
		}
	}
}

// Close implements Output.
func (s *Syslog) Close() error {
	if s.conn == nil {
		return nil
	}
	err := s.conn.Close()
	s.conn = nil
	return err
}

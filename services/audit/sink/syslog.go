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
)

// Syslog sends lines as messages of RFC 5424: over UDP one a datagram, over TCP
// with octet counting (RFC 6587).
//
// Syslog has no acknowledgements. Over TCP, Sync waits until the peer's kernel
// has taken everything, and a connection that the peer closed is an error: then
// all since the last stored cursor is sent again. Over UDP a datagram is gone
// when it is sent; a peer that says that nobody listens is an error.
type Syslog struct {
	network, address string
	enc              record.Syslog

	conn   net.Conn
	w      *bufio.Writer
	ended  atomic.Pointer[error] // Of the TCP connection's other direction.
	buf    []byte
	prefix []byte
}

// NewSyslog returns the output for udp://HOST:PORT or tcp://HOST:PORT. A
// missing port is 514.
func NewSyslog(target string, enc record.Syslog) (*Syslog, error) {
	u, err := url.Parse(target)
	if err != nil {
		return nil, fmt.Errorf("syslog target: %w", err)
	}
	if u.Scheme != "udp" && u.Scheme != "tcp" || u.Hostname() == "" || u.User != nil || u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("syslog target %q: write udp://HOST:PORT or tcp://HOST:PORT", target)
	}
	port := u.Port()
	if port == "" {
		port = "514"
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return nil, fmt.Errorf("syslog target %q: port %s is none", target, port)
	}
	return &Syslog{network: u.Scheme, address: net.JoinHostPort(u.Hostname(), port), enc: enc}, nil
}

// Name is the target, for the cursor.
func (s *Syslog) Name() string { return "syslog " + s.network + "://" + s.address }

// Open implements Output.
func (s *Syslog) Open(ctx context.Context) error {
	d := net.Dialer{Timeout: dialTimeout}
	conn, err := d.DialContext(ctx, s.network, s.address)
	if err != nil {
		return fmt.Errorf("connect to syslog: %w", err)
	}
	s.conn = conn
	s.ended.Store(nil)
	if s.network == "tcp" {
		s.w = bufio.NewWriterSize(conn, 64<<10)
		go s.watch(conn)
	}
	return nil
}

// watch reads until the peer ends the connection: it sends nothing else.
func (s *Syslog) watch(conn net.Conn) {
	b := make([]byte, 512)
	for {
		if _, err := conn.Read(b); err != nil {
			if !errors.Is(err, net.ErrClosed) {
				err = fmt.Errorf("syslog %s ended the connection: %w", s.address, err)
				s.ended.Store(&err)
			}
			return
		}
	}
}

// Write implements Output.
func (s *Syslog) Write(l *record.Line) (int, error) {
	s.buf = s.enc.Append(s.buf[:0], l)
	if err := s.conn.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return 0, fmt.Errorf("send to syslog %s: %w", s.address, err)
	}
	var err error
	if s.network == "udp" {
		_, err = s.conn.Write(s.buf)
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
	raw, err := s.conn.(*net.TCPConn).SyscallConn()
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

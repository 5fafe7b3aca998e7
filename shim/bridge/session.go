package bridge

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/weirnet/weir/shim/bridge/openflow"
)

// session is one OpenFlow connection. One goroutine reads it for all its life;
// exchanges take turns.
type session struct {
	nc net.Conn
	r  *bufio.Reader

	// turn is held by the exchange in progress, and by a change over all of its
	// exchanges; it guards bundle.
	turn   sync.Mutex
	bundle uint32 // id of the last bundle
	// write guards writing: exchanges, and the reader's echo replies.
	write sync.Mutex

	// mu guards what follows.
	mu      sync.Mutex
	xid     uint32
	current *exchange
	err     error // why the session ended
	ended   chan struct{}

	// other receives messages that belong to no exchange, in the reader's
	// goroutine; the body is valid only during the call.
	other func(openflow.Message)
}

// exchange is what one caller waits for.
type exchange struct {
	first, last uint32 // its transaction ids
	// on receives the messages of the exchange in the reader's goroutine and
	// tells when it is complete; the body is valid only during the call.
	on   func(openflow.Message) (complete bool)
	done chan struct{}
}

const (
	handshakeTimeout = 5 * time.Second
	maxBody          = openflow.MaxMessage
)

// dial connects to a bridge's management socket and agrees on the version.
func dial(ctx context.Context, path string) (*session, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	var d net.Dialer
	nc, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	s := &session{nc: nc, r: bufio.NewReaderSize(nc, 1<<16), ended: make(chan struct{}), other: func(openflow.Message) {}}
	if err := s.greet(ctx); err != nil {
		nc.Close()
		return nil, fmt.Errorf("openflow handshake with %s: %w", path, err)
	}
	return s, nil
}

func (s *session) greet(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { s.nc.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := s.nc.Write(openflow.AppendHello(nil, 0)); err != nil {
		return err
	}
	m, err := openflow.ReadMessage(s.r, make([]byte, 0, 64))
	if err != nil {
		return err
	}
	switch {
	case m.Type == openflow.TypeError:
		if e, err := openflow.DecodeError(m.Body); err == nil {
			return e
		}
		return errors.New("refused")
	case m.Type != openflow.TypeHello:
		return fmt.Errorf("message of type %d instead of a greeting", m.Type)
	case m.Version < openflow.Version:
		return fmt.Errorf("the bridge speaks no OpenFlow 1.5: its protocols must name it")
	}
	return nil
}

// run reads until the connection breaks and returns why; close makes it return.
func (s *session) run() error {
	buf := make([]byte, maxBody)
	for {
		m, err := openflow.ReadMessage(s.r, buf)
		if err != nil {
			return s.end(err)
		}
		if m.Version != openflow.Version {
			return s.end(fmt.Errorf("message of version %#x", m.Version))
		}
		if m.Type == openflow.TypeEchoRequest {
			if err := s.send(openflow.AppendEcho(nil, m.XID, true, m.Body)); err != nil {
				return s.end(err)
			}
			continue
		}
		s.dispatch(m)
	}
}

func (s *session) dispatch(m openflow.Message) {
	s.mu.Lock()
	x := s.current
	s.mu.Unlock()
	if x == nil || m.XID-x.first > x.last-x.first {
		s.other(m)
		return
	}
	if x.on(m) {
		s.mu.Lock()
		s.current = nil
		s.mu.Unlock()
		close(x.done)
	}
}

func (s *session) end(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
			err = errors.New("connection closed")
		}
		s.err = err
		close(s.ended)
	}
	s.nc.Close()
	return s.err
}

func (s *session) close() { s.end(net.ErrClosed) }

func (s *session) send(b []byte) error {
	s.write.Lock()
	defer s.write.Unlock()
	_, err := s.nc.Write(b)
	return err
}

// exchange reserves n transaction ids, lets write send messages that bear them,
// and waits until on says that the answer is complete. A context that ends
// closes the session, since nobody could tell late answers from new ones.
func (s *session) exchange(ctx context.Context, n int, write func(first uint32, w io.Writer) error, on func(openflow.Message) bool) error {
	s.turn.Lock()
	defer s.turn.Unlock()
	return s.exchangeLocked(ctx, 0, n, write, on)
}

// exchangeLocked is an exchange of a caller that has the turn; it receives what
// answers the back ids before its own, too.
func (s *session) exchangeLocked(ctx context.Context, back uint32, n int, write func(first uint32, w io.Writer) error, on func(openflow.Message) bool) error {
	x := &exchange{on: on, done: make(chan struct{})}
	s.mu.Lock()
	if s.err != nil {
		s.mu.Unlock()
		return ErrDisconnected
	}
	first := s.xid + 1
	s.xid += uint32(n)
	x.first, x.last = first-back, s.xid
	s.current = x
	s.mu.Unlock()

	stop := context.AfterFunc(ctx, s.close)
	defer stop()
	err := write(first, writerFunc(func(b []byte) (int, error) { return len(b), s.send(b) }))
	if err == nil {
		select {
		case <-x.done:
			return nil
		case <-s.ended:
		}
	}
	s.close()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return ErrDisconnected
}

func (s *session) nextBundleLocked() uint32 {
	s.bundle++
	return s.bundle
}

type writerFunc func(b []byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func decodeError(m openflow.Message) error {
	e, err := openflow.DecodeError(m.Body)
	if err != nil {
		return err
	}
	return e
}

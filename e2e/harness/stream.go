package harness

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/weirnet/weir/services/policy/api"
)

// Stream is traffic that goes on and on: a TCP connection or echo requests.
type Stream struct {
	close func()
	done  chan struct{}

	mu      sync.Mutex // Guards what follows.
	answers int
	sent    int
	last    time.Time
	gap     time.Duration // The longest between two answers.
}

// streamPause is between what a Stream sends.
const streamPause = 5 * time.Millisecond

// StartStream connects by TCP to who answers what it is told, and keeps talking.
func StartStream(from *Host, to netip.Addr, port uint16) (*Stream, error) {
	var conn net.Conn
	err := from.NS.Do(func() (err error) {
		d := net.Dialer{Timeout: answerTimeout, LocalAddr: &net.TCPAddr{IP: from.Addr(to.Is6()).AsSlice()}}
		conn, err = d.Dial("tcp", netip.AddrPortFrom(to, port).String())
		return err
	})
	if err != nil {
		return nil, err
	}
	s := &Stream{done: make(chan struct{}), last: time.Now(), close: func() { conn.Close() }}
	go func() {
		defer close(s.done)
		buf := make([]byte, 1)
		pace := time.NewTicker(streamPause)
		defer pace.Stop()
		for ; ; <-pace.C {
			s.count(true)
			if _, err := conn.Write(buf); err != nil {
				return
			}
			if _, err := conn.Read(buf); err != nil {
				return
			}
			s.count(false)
		}
	}()
	return s, nil
}

// StartPing sends echo requests, each whether or not the last was answered.
func StartPing(from *Host, to netip.Addr) *Stream {
	ctx, cancel := context.WithCancel(context.Background())
	s := &Stream{done: make(chan struct{}), last: time.Now(), close: cancel}
	go func() {
		defer close(s.done)
		var wait sync.WaitGroup
		defer wait.Wait()
		pace := time.NewTicker(streamPause)
		defer pace.Stop()
		for ; ctx.Err() == nil; <-pace.C {
			s.count(true)
			p := Probe{From: from, To: to, Protocol: api.ProtocolICMP}
			wait.Go(func() {
				if r, err := p.once(int(serials.Add(1)), silenceTimeout); err == nil && r == Allow {
					s.count(false)
				}
			})
		}
	}()
	return s
}

// once is an echo request that is not repeated.
func (p *Probe) once(serial int, limit time.Duration) (string, error) {
	return p.echo(p.From.Addr(p.To.Is6()), time.Now().Add(min(limit, repeatEvery)), serial)
}

func (s *Stream) count(sent bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sent {
		s.sent++
		return
	}
	now := time.Now()
	s.gap = max(s.gap, now.Sub(s.last))
	s.answers, s.last = s.answers+1, now
}

// Lives fails unless ten more answers come in time.
func (s *Stream) Lives(ctx context.Context, limit time.Duration) error {
	start := s.answered()
	return Eventually(ctx, limit, func() error {
		if now := s.answered(); now < start+10 {
			return fmt.Errorf("the stream had %d answers and has %d", start, now)
		}
		return nil
	})
}

// Stalls fails unless no answer comes for a while, within a time.
func (s *Stream) Stalls(ctx context.Context, limit time.Duration) error {
	return Eventually(ctx, limit, func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if since := time.Since(s.last); since < silenceTimeout {
			return fmt.Errorf("an answer came %s ago", since)
		}
		return nil
	})
}

// Count is how many answers there were to how many requests, and the longest
// time between two since the last Count.
func (s *Stream) Count() (answers, sent int, gap time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	gap, s.gap = s.gap, 0
	return s.answers, s.sent, gap
}

func (s *Stream) answered() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.answers
}

// Close ends the stream.
func (s *Stream) Close() {
	s.close()
	<-s.done
}

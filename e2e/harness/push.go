package harness

import (
	"context"
	"net"
	"net/netip"
	"time"
)

// StartPush connects by TCP to a port at which a server is started for it, which
// speaks on and on while the client says nothing. An answer is what the client hears.
func StartPush(ctx context.Context, client, server *Host, to netip.Addr, port uint16) (*Stream, error) {
	var l net.Listener
	at := netip.AddrPortFrom(to, port).String()
	err := server.NS.Do(func() (err error) {
		var cfg net.ListenConfig
		l, err = cfg.Listen(ctx, "tcp", at)
		return err
	})
	if err != nil {
		return nil, err
	}
	defer l.Close()
	accepted := make(chan net.Conn, 1)
	go func() {
		defer close(accepted)
		if conn, err := l.Accept(); err == nil {
			accepted <- conn
		}
	}()
	var heard net.Conn
	err = client.NS.Do(func() (err error) {
		d := net.Dialer{Timeout: answerTimeout, LocalAddr: &net.TCPAddr{IP: client.Addr(to.Is6()).AsSlice()}}
		heard, err = d.DialContext(ctx, "tcp", at)
		return err
	})
	if err != nil {
		return nil, err
	}
	said := <-accepted
	s := &Stream{done: make(chan struct{}), last: time.Now(), close: func() { heard.Close(); said.Close() }}
	go func() {
		pace := time.NewTicker(streamPause)
		defer pace.Stop()
		for ; ; <-pace.C {
			if _, err := said.Write([]byte{0}); err != nil {
				return
			}
			s.count(true)
		}
	}()
	go func() {
		defer close(s.done)
		buf := make([]byte, 1)
		for {
			if _, err := heard.Read(buf); err != nil {
				return
			}
			s.count(false)
		}
	}()
	return s, nil
}

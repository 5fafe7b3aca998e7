package server

import (
	"bufio"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

// wire is the least of a gRPC client: one HTTP/2 connection with one stream at
// a time, one goroutine that reads, nothing between it and the socket but TLS.
// Thousands of nodes on the machine of the server must not cost more than the
// server does.
//
// It does not count its own flow-control windows: it sends a few bytes at a
// time and the server grants more long before they are used up.
type wire struct {
	conn *tls.Conn
	// onMessage is called by the reading goroutine. The message is valid until
	// it returns.
	onMessage func(message []byte) error

	mu       sync.Mutex // Guards what follows.
	stream   uint32     // The present stream; zero for none.
	next     uint32     // The next stream's.
	received int        // Bytes since windows were granted.
	partial  []byte     // Of a message whose end has not come.
}

// HTTP/2 frame types and flags (RFC 9113, section 6).
const (
	frameData, frameHeaders, frameReset, frameSettings, framePing, frameGoAway, frameWindow = 0, 1, 3, 4, 6, 7, 8

	flagAck, flagEndStream, flagEndHeaders, flagPadded = 1, 1, 4, 8

	settingWindow = 4
	cancelled     = 8 // Error code of a stream that is not wanted any more.
)

// Flow-control windows, as a shim has them.
const (
	streamWindow     = 1 << 20
	connectionWindow = 4 << 20
	grantAfter       = streamWindow / 4
)

// dialWire connects and says what HTTP/2 says first. Run reads.
func dialWire(address string, config *tls.Config, onMessage func([]byte) error) (*wire, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	config = config.Clone()
	config.ServerName, config.NextProtos = host, []string{"h2"}
	conn, err := tls.Dial("tcp", address, config)
	if err != nil {
		return nil, err
	}
	hello := []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
	setting := binary.BigEndian.AppendUint16(nil, settingWindow)
	hello = appendFrame(hello, frameSettings, 0, 0, binary.BigEndian.AppendUint32(setting, streamWindow))
	hello = appendGrant(hello, 0, connectionWindow-65_535)
	if _, err := conn.Write(hello); err != nil {
		conn.Close()
		return nil, err
	}
	return &wire{conn: conn, onMessage: onMessage, next: 1}, nil
}

func appendFrame(b []byte, kind, flags byte, stream uint32, payload []byte) []byte {
	b = append(b, byte(len(payload)>>16), byte(len(payload)>>8), byte(len(payload)), kind, flags)
	return append(binary.BigEndian.AppendUint32(b, stream), payload...)
}

func appendGrant(b []byte, stream uint32, bytes int) []byte {
	return appendFrame(b, frameWindow, 0, stream, binary.BigEndian.AppendUint32(nil, uint32(bytes)))
}

// open begins a stream with its first message, made once nothing more comes of
// the stream before, which is cancelled.
func (w *wire) open(authority string, first func() ([]byte, error)) error {
	var fields []byte // Literals without indexing (RFC 7541, section 6.2.2).
	for _, f := range [][2]string{
		{":method", "POST"}, {":scheme", "https"}, {":path", policyv1.PolicyService_Subscribe_FullMethodName}, {":authority", authority},
		{"content-type", "application/grpc"}, {"te", "trailers"},
	} {
		fields = append(append(fields, 0, byte(len(f[0]))), f[0]...)
		fields = append(append(fields, byte(len(f[1]))), f[1]...)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	message, err := first()
	if err != nil {
		return err
	}
	var out []byte
	if w.stream != 0 {
		out = appendFrame(out, frameReset, 0, w.stream, binary.BigEndian.AppendUint32(nil, cancelled))
	}
	w.stream, w.partial = w.next, w.partial[:0]
	w.next += 2
	out = appendFrame(out, frameHeaders, flagEndHeaders, w.stream, fields)
	_, err = w.conn.Write(appendMessage(out, w.stream, message))
	return err
}

// appendMessage is a gRPC message, uncompressed, in a frame of its own.
func appendMessage(b []byte, stream uint32, message []byte) []byte {
	prefix := binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message)))
	return appendFrame(b, frameData, 0, stream, append(prefix, message...))
}

// send is for the reading goroutine: for answers on the present stream.
func (w *wire) send(message []byte) error {
	_, err := w.conn.Write(appendMessage(make([]byte, 0, 64), w.stream, message))
	return err
}

// run reads until the connection is closed or its stream ends.
func (w *wire) run() error {
	in := bufio.NewReaderSize(w.conn, 2<<10)
	var head [9]byte
	var payload []byte
	for {
		if _, err := io.ReadFull(in, head[:]); err != nil {
			return err
		}
		n := int(head[0])<<16 | int(head[1])<<8 | int(head[2])
		if n > cap(payload) {
			payload = make([]byte, n)
		}
		payload = payload[:n]
		if _, err := io.ReadFull(in, payload); err != nil {
			return err
		}
		if err := w.frame(head[3], head[4], binary.BigEndian.Uint32(head[5:]), payload); err != nil {
			return err
		}
	}
}

func (w *wire) frame(kind, flags byte, stream uint32, payload []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch kind {
	case frameData:
		return w.data(flags, stream, payload)
	case frameHeaders:
		if flags&flagEndStream != 0 && stream == w.stream {
			return fmt.Errorf("the server ended the stream: %q", payload)
		}
	case frameReset:
		if stream == w.stream {
			return fmt.Errorf("the server reset the stream: code %d", binary.BigEndian.Uint32(payload))
		}
	case frameGoAway:
		return fmt.Errorf("the server ended the connection: %q", payload)
	case frameSettings, framePing:
		if flags&flagAck != 0 {
			return nil
		}
		if kind == frameSettings {
			payload = nil
		}
		_, err := w.conn.Write(appendFrame(nil, kind, flagAck, 0, payload))
		return err
	}
	return nil
}

// data takes the messages, or parts of messages, of one frame.
func (w *wire) data(flags byte, stream uint32, payload []byte) error {
	if flags&(flagEndStream|flagPadded) != 0 {
		return fmt.Errorf("data with flags %x", flags)
	}
	if w.received += len(payload); w.received >= grantAfter {
		if _, err := w.conn.Write(appendGrant(appendGrant(nil, 0, w.received), w.stream, w.received)); err != nil {
			return err
		}
		w.received = 0
	}
	if stream != w.stream {
		return nil // Of a stream that was cancelled.
	}
	if len(w.partial) > 0 {
		w.partial = append(w.partial, payload...)
		payload = w.partial
	}
	for len(payload) >= 5 {
		end := 5 + int(binary.BigEndian.Uint32(payload[1:]))
		if len(payload) < end {
			break
		}
		if payload[0] != 0 {
			return fmt.Errorf("a compressed message")
		}
		if err := w.onMessage(payload[5:end]); err != nil {
			return err
		}
		payload = payload[end:]
	}
	w.partial = append(w.partial[:0], payload...)
	return nil
}

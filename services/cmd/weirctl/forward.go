package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/streaming/pkg/httpstream"
)

// forwarder connects to ports of Pods by way of the API server, as kubectl
// port-forward does, but without a port of this machine: others on it cannot use the
// connection.
type forwarder struct {
	config    *rest.Config
	api       kubernetes.Interface
	namespace string

	mu  sync.Mutex // Guards err.
	err error      // Of the last attempt. gRPC would quote it.
}

// dial connects to POD:PORT.
func (f *forwarder) dial(ctx context.Context, address string) (net.Conn, error) {
	pod, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	conn, err := f.connect(ctx, pod, port)
	if err != nil {
		err = fmt.Errorf("port-forward to Pod %s/%s: %w", f.namespace, pod, err)
	}
	if ctx.Err() == nil { // Or gRPC has another Pod.
		f.mu.Lock()
		f.err = err
		f.mu.Unlock()
	}
	return conn, err
}

// problem is why the last attempt failed; nil if it did not.
func (f *forwarder) problem() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

func (f *forwarder) connect(ctx context.Context, pod, port string) (net.Conn, error) {
	at := f.api.CoreV1().RESTClient().Post().Resource("pods").Namespace(f.namespace).Name(pod).SubResource("portforward").URL()
	type opened struct {
		conn *forward
		err  error
	}
	done := make(chan opened, 1)
	go func() { // What it calls knows no context.
		conn, err := f.open(at, port)
		done <- opened{conn, err}
	}()
	select {
	case o := <-done:
		if o.err != nil {
			return nil, o.err
		}
		return o.conn, nil
	case <-ctx.Done():
		go func() {
			if o := <-done; o.err == nil {
				o.conn.Close()
			}
		}()
		return nil, ctx.Err()
	}
}

func (f *forwarder) open(at *url.URL, port string) (*forward, error) {
	streams, err := f.upgrade(at)
	if err != nil {
		return nil, err
	}
	headers := http.Header{corev1.PortHeader: {port}, corev1.PortForwardRequestIDHeader: {"0"}}
	create := func(kind string) (httpstream.Stream, error) {
		h := headers.Clone()
		h.Set(corev1.StreamType, kind)
		return streams.CreateStream(h)
	}
	complaints, err := create(corev1.StreamTypeError)
	if err == nil {
		_ = complaints.Close() // We say nothing there.
		var data httpstream.Stream
		if data, err = create(corev1.StreamTypeData); err == nil {
			return newForward(streams, data, complaints), nil
		}
	}
	streams.Close()
	return nil, err
}

// upgrade opens a connection of many streams: in a WebSocket, or, where the API
// server or a proxy before it has none, by SPDY, as kubectl does.
func (f *forwarder) upgrade(at *url.URL) (httpstream.Connection, error) {
	socket, err := portforward.NewSPDYOverWebsocketDialerForStreaming(at, f.config)
	if err != nil {
		return nil, err
	}
	streams, _, socketErr := socket.Dial(portforward.PortForwardProtocolV1Name)
	if socketErr == nil || !httpstream.IsUpgradeFailure(socketErr) && !httpstream.IsHTTPSProxyError(socketErr) {
		return streams, socketErr
	}
	transport, upgrader, err := spdy.RoundTripperFor(f.config)
	if err != nil {
		return nil, err
	}
	streams, _, err = spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: transport}, http.MethodPost, at).Dial(portforward.PortForwardProtocolV1Name)
	var refused *httpstream.UpgradeFailureError
	if err != nil && errors.As(socketErr, &refused) && apierrors.IsForbidden(refused.Cause) {
		return nil, refused.Cause // SPDY has but a text for it.
	}
	return streams, err
}

// forward is a connection to a Pod's port.
type forward struct {
	net.Conn                       // Our end of a pipe, at whose other end the streams are.
	lost     atomic.Pointer[error] // Why the other end was closed; set before.
}

func newForward(streams httpstream.Connection, data, complaints httpstream.Stream) *forward {
	near, far := net.Pipe()
	f := &forward{Conn: near}
	said := make(chan string, 1)
	go func() {
		text, _ := io.ReadAll(complaints) // That it ends is what counts.
		said <- strings.TrimSpace(string(text))
	}()
	go func() {
		_, _ = io.Copy(data, far) // Ends when either end is closed.
		_ = data.Close()
		streams.Close()
	}()
	go func() {
		_, err := io.Copy(far, data)
		_ = data.Reset() // Or what is not sent yet keeps the complaint behind it.
		select {
		case text := <-said:
			if text != "" {
				err = errors.New(text)
			}
		case <-time.After(time.Second): // The API server is gone without a word.
		}
		if err != nil {
			err = fmt.Errorf("port-forward: %w", err)
			f.lost.Store(&err)
		}
		far.Close()
	}()
	return f
}

// Read implements net.Conn.
func (f *forward) Read(p []byte) (int, error) {
	n, err := f.Conn.Read(p)
	if lost := f.lost.Load(); errors.Is(err, io.EOF) && lost != nil {
		err = *lost
	}
	return n, err
}

// Write implements net.Conn.
func (f *forward) Write(p []byte) (int, error) {
	n, err := f.Conn.Write(p)
	if lost := f.lost.Load(); errors.Is(err, io.ErrClosedPipe) && lost != nil {
		err = *lost
	}
	return n, err
}

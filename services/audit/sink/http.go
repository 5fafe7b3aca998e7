package sink

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/weirnet/weir/services/audit/record"
	"github.com/weirnet/weir/services/identity"
)

// HTTPConfig of an HTTP.
type HTTPConfig struct {
	URL     string
	TLS     *TLSFiles // Of https. Nil: the system's authorities.
	Headers map[string]string
	// Who we are, at most one of both; the files are read for each request.
	BearerTokenFile        string
	Username, PasswordFile string
	Plain                  bool // Bodies are not compressed.
	Insecure               bool // Credentials may go over http beyond loopback.
	Format                 Format
}

// HTTP posts batches of lines, one line a line, gzip. A batch is the receiver's
// when it answers 2xx. What 400, 413, 415 and 422 say of a batch is of a line in
// it, which is found and set aside; any other answer says nothing about the lines
// and is tried again, not before the time that Retry-After tells.
type HTTP struct {
	cfg    HTTPConfig
	client *http.Client
	lines  batcher[[]byte]
	dead   deadLetters
	peer   string
	body   bytes.Buffer
	zip    *gzip.Writer
}

// NewHTTP checks the configuration.
func NewHTTP(cfg HTTPConfig, dead deadLetters) (*HTTP, error) {
	u, err := url.Parse(cfg.URL)
	if err != nil {
		return nil, fmt.Errorf("url: %w", err)
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.Fragment != "" {
		return nil, fmt.Errorf("url %q: write https://HOST[:PORT]/PATH", cfg.URL)
	}
	if cfg.BearerTokenFile != "" && cfg.PasswordFile != "" {
		return nil, errors.New("bearerTokenFile and basicAuth: give one of both")
	}
	if u.Scheme == "http" && cfg.TLS != nil {
		return nil, errors.New("tls is for https")
	}
	if secret := cfg.BearerTokenFile != "" || cfg.PasswordFile != ""; u.Scheme == "http" && secret && !cfg.Insecure && !identity.Loopback(net.JoinHostPort(u.Hostname(), "80")) {
		return nil, fmt.Errorf("url %q: credentials would go in plain text: write https, or say insecure", cfg.URL)
	}
	if cfg.TLS == nil {
		cfg.TLS = &TLSFiles{}
	}
	h := &HTTP{cfg: cfg, dead: dead, zip: gzip.NewWriter(io.Discard)}
	return h, cfg.TLS.Check()
}

// Peer implements Peered.
func (h *HTTP) Peer() string { return h.peer }

// Open implements Output.
func (h *HTTP) Open(_ context.Context, link Link) error {
	dialer := &net.Dialer{Timeout: dialTimeout}
	h.client = &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{DialContext: dialer.DialContext, MaxConnsPerHost: 1, IdleConnTimeout: time.Minute,
			DialTLSContext: func(ctx context.Context, network, address string) (net.Conn, error) {
				conn, err := dialer.DialContext(ctx, network, address)
				if err != nil {
					return nil, err
				}
				over, err := h.cfg.TLS.handshake(ctx, conn, address)
				if err != nil {
					return nil, errors.Join(err, conn.Close())
				}
				return over, nil
			}},
	}
	h.lines = batcher[[]byte]{post: h.post, trouble: link.Trouble, dead: func(line []byte, reason error) error {
		link.Refused(1)
		return h.dead.add(strings.TrimSuffix(string(line), "\n"), reason)
	}}
	return nil
}

// Write implements Output.
func (h *HTTP) Write(ctx context.Context, l *record.Line) (int, error) {
	line := h.cfg.Format.line(nil, l)
	if len(line) == 0 {
		return 0, nil
	}
	return 1, h.lines.add(ctx, line, len(line))
}

// Flush implements Output.
func (h *HTTP) Flush(ctx context.Context) error { return h.lines.flush(ctx) }

// Sync implements Output: what was flushed is acknowledged.
func (h *HTTP) Sync(context.Context) error { return h.dead.sync() }

// Close implements Output.
func (h *HTTP) Close() error {
	h.client.CloseIdleConnections()
	h.lines.reset()
	return h.dead.close()
}

func (h *HTTP) post(ctx context.Context, lines [][]byte) error {
	h.body.Reset()
	var w io.Writer = &h.body
	if !h.cfg.Plain {
		h.zip.Reset(&h.body)
		w = h.zip
	}
	for _, line := range lines {
		if _, err := w.Write(line); err != nil {
			return err
		}
	}
	if !h.cfg.Plain {
		if err := h.zip.Close(); err != nil {
			return err
		}
	}
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(c httptrace.GotConnInfo) { h.peer = "http " + c.Conn.RemoteAddr().String() }})
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, h.cfg.URL, bytes.NewReader(h.body.Bytes()))
	if err != nil {
		return err
	}
	if err := h.headers(req.Header); err != nil {
		return err
	}
	resp, err := h.client.Do(req)
	if err != nil {
		return err // It names method and URL.
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	if resp.StatusCode >= 200 && resp.StatusCode < 300 {
		return nil
	}
	return h.answer(resp, strings.TrimSpace(string(text)), err)
}

func (h *HTTP) headers(to http.Header) error {
	to.Set("Content-Type", h.cfg.Format.MediaType)
	if !h.cfg.Plain {
		to.Set("Content-Encoding", "gzip")
	}
	for name, value := range h.cfg.Headers {
		to.Set(name, value)
	}
	if h.cfg.BearerTokenFile != "" {
		token, err := secret(h.cfg.BearerTokenFile)
		if err != nil {
			return fmt.Errorf("bearerTokenFile: %w", err)
		}
		to.Set("Authorization", "Bearer "+token)
	}
	if h.cfg.PasswordFile != "" {
		password, err := secret(h.cfg.PasswordFile)
		if err != nil {
			return fmt.Errorf("basicAuth: passwordFile: %w", err)
		}
		(&http.Request{Header: to}).SetBasicAuth(h.cfg.Username, password)
	}
	return nil
}

// secret reads a file that holds one secret.
func secret(path string) (string, error) {
	b, err := os.ReadFile(path)
	return strings.TrimSpace(string(b)), err
}

// answer is what an answer means that is not 2xx.
func (h *HTTP) answer(resp *http.Response, text string, reading error) error {
	err := fmt.Errorf("post to %s: %s %.200s", h.cfg.URL, resp.Status, text)
	if reading != nil {
		err = errors.Join(err, reading)
	}
	switch resp.StatusCode {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType, http.StatusUnprocessableEntity:
		return &refusal{err}
	}
	return &laterError{err, retryAfter(resp.Header.Get("Retry-After"), time.Now())}
}

// maxRetryAfter is how long a receiver may have us wait.
const maxRetryAfter = 5 * time.Minute

// retryAfter reads the header: seconds, or a date.
func retryAfter(s string, now time.Time) time.Duration {
	if n, err := strconv.ParseUint(s, 10, 31); err == nil {
		return min(time.Duration(n)*time.Second, maxRetryAfter)
	}
	if at, err := http.ParseTime(s); err == nil {
		return min(max(0, at.Sub(now)), maxRetryAfter)
	}
	return 0
}

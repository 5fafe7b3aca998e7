package eventlog

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// DefaultReplicas of a stream that is made here.
const DefaultReplicas = 3

// Times that are waited for the stream.
const (
	streamOpenTimeout  = 5 * time.Second
	streamStoreTimeout = 10 * time.Second
	streamAskTimeout   = 2 * time.Second // Of one message, before it is tried again.
	streamReadTimeout  = 5 * time.Second
	streamReadyTimeout = 2 * time.Second
	followPause        = 200 * time.Millisecond
)

// NATSConfig is of a log in a JetStream stream.
type NATSConfig struct {
	Servers []string // nats://HOST:PORT or tls://HOST:PORT of any of the cluster; required.
	Stream  string   // Made if it is absent; required.
	// Replicas of the stream if it is made. Zero: DefaultReplicas.
	Replicas int
	// Collector names this collector among those that share the stream: cursors are
	// of one collector. Required, and the same in every life.
	Collector     string
	CA, Cert, Key string // PEM files. Empty: the system's authorities, no certificate.
	Credentials   string // File of a NATS user's JWT and seed. Empty: none.
}

func (c *NATSConfig) check() error {
	switch {
	case len(c.Servers) == 0:
		return errors.New("open event log: no NATS server given")
	case c.Stream == "" || strings.ContainsAny(c.Stream, ". \t\r\n*>/\\"):
		return fmt.Errorf("open event log: %q is no name of a stream", c.Stream)
	case c.Collector == "":
		return errors.New("open event log: no name given for this collector, of which the cursors in the stream are")
	case (c.Cert == "") != (c.Key == ""):
		return errors.New("open event log: a certificate for NATS and its key belong together")
	}
	return nil
}

// stream is a log in a JetStream stream that several collectors may write.
//
// A message is of one node, on the node's subject, and holds blocks. Its headers
// have the node's state behind it, so that the last message of each subject is
// all that must be read to go on. It is published with the sequence of the
// subject's last message as its condition: of two collectors that store events
// of one node at a time, one is refused, learns what the other has stored,
// and goes on from there.
//
// The cursor of a record is its message's sequence in the stream, and its place
// in the message. How many records there are below is known by the total that
// each message has of some message shortly before it.
type stream struct {
	*Log
	nc  *nats.Conn
	js  jetstream.JetStream
	str jetstream.Stream
	kv  jetstream.KeyValue

	maxBytes int // Of a message's blocks.

	// Guarded by mu:
	nodes  map[string]*streamNode
	last   uint64 // Sequence of the newest message that is known.
	seen   total  // All messages up to it were seen here.
	starts starts
	loaded map[uint64]uint64 // Totals at cursors that were loaded.
}

// streamNode is the last message of a node's subject. Its state is never changed.
type streamNode struct {
	seq   uint64 // Zero: there is none.
	state *nodeState
	stale bool // There may be a later one.
}

// total is how many records there are up to a message, from the stream's beginning.
type total struct{ seq, records uint64 }

// openStream connects, makes the stream if it is absent, and reads the positions.
func openStream(log *Log) (*stream, error) {
	cfg := log.cfg.NATS
	if err := cfg.check(); err != nil {
		return nil, err
	}
	s := &stream{Log: log, nodes: make(map[string]*streamNode), loaded: make(map[uint64]uint64)}
	ctx, cancel := context.WithTimeout(context.Background(), streamOpenTimeout)
	defer cancel()
	if err := s.connect(cfg); err != nil {
		return nil, fmt.Errorf("open event log %s: %w", log.cfg.where(), err)
	}
	if err := s.open(ctx, cfg); err != nil {
		s.nc.Close()
		return nil, fmt.Errorf("open event log %s: %w", log.cfg.where(), err)
	}
	return s, nil
}

func (s *stream) connect(cfg *NATSConfig) error {
	logger := s.cfg.Logger
	opts := []nats.Option{nats.Name("weir-auditd " + cfg.Collector), nats.MaxReconnects(-1), nats.ReconnectWait(500 * time.Millisecond),
		nats.ReconnectBufSize(-1), // What cannot be sent fails, and is not sent later.
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				logger.Warn("connection to NATS is lost", "err", err)
			}
		}),
		nats.ReconnectHandler(func(nc *nats.Conn) { logger.Info("connected to NATS again", "server", nc.ConnectedUrlRedacted()) }),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { logger.Warn("NATS reports an error", "err", err) }),
	}
	if cfg.CA != "" {
		opts = append(opts, nats.RootCAs(cfg.CA))
	}
	if cfg.Cert != "" {
		opts = append(opts, nats.ClientCert(cfg.Cert, cfg.Key))
	}
	if cfg.Credentials != "" {
		opts = append(opts, nats.UserCredentials(cfg.Credentials))
	}
	var err error
	if s.nc, err = nats.Connect(strings.Join(cfg.Servers, ","), opts...); err != nil {
		return err
	}
	if s.js, err = jetstream.New(s.nc); err != nil {
		s.nc.Close()
		return err
	}
	s.maxBytes = min(int(s.nc.MaxPayload())-messageHeaderBytes, groupBytes)
	return nil
}

func (s *stream) open(ctx context.Context, cfg *NATSConfig) error {
	replicas := cfg.Replicas
	if replicas == 0 {
		replicas = DefaultReplicas
	}
	var err error
	s.str, err = s.js.Stream(ctx, cfg.Stream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		s.str, err = s.js.CreateStream(ctx, jetstream.StreamConfig{Name: cfg.Stream, Subjects: []string{s.subjects()}, Storage: jetstream.FileStorage,
			Replicas: replicas, AllowDirect: true, DenyDelete: true, PersistMode: jetstream.DefaultPersistMode,
			Description: "The audit record of Weir. Removed from by the collectors alone."})
	}
	if err != nil {
		return fmt.Errorf("stream: %w", err)
	}
	if err := s.checkStream(s.str.CachedInfo().Config, replicas); err != nil {
		return err
	}
	s.kv, err = s.js.KeyValue(ctx, cfg.Stream+"-cursors")
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		s.kv, err = s.js.CreateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: cfg.Stream + "-cursors", Storage: jetstream.FileStorage,
			Replicas: replicas, Description: "How far the sinks of each collector have got."})
	}
	if err != nil {
		return fmt.Errorf("bucket of cursors: %w", err)
	}
	return s.recover(ctx)
}

// checkStream refuses a stream that would not keep what is acknowledged.
func (s *stream) checkStream(c jetstream.StreamConfig, replicas int) error {
	switch {
	case c.Storage != jetstream.FileStorage:
		return errors.New("the stream is not in files")
	case c.PersistMode != jetstream.DefaultPersistMode:
		return errors.New("the stream acknowledges what is not written yet")
	case c.NoAck || c.Retention != jetstream.LimitsPolicy || c.MaxAge != 0 || c.MaxBytes > 0 || c.MaxMsgs > 0 || c.MaxMsgsPerSubject > 0:
		return errors.New("the stream has limits of its own: the collectors remove what is too old or too much, and no other may, since it would take their positions")
	case !c.AllowDirect:
		return errors.New("the stream does not allow direct reads")
	case c.Replicas < replicas:
		return fmt.Errorf("the stream has %d replicas, not %d", c.Replicas, replicas)
	}
	return nil
}

// subjects are those of the stream's messages.
func (s *stream) subjects() string { return s.cfg.NATS.Stream + ".events.>" }

// subject is that of a node's messages. Node names may have dots and more that
// means something in a subject.
func (s *stream) subject(node string) string {
	b := []byte(s.cfg.NATS.Stream + ".events.")
	for i := range len(node) {
		if c := node[i]; 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_' {
			b = append(b, c)
		} else {
			b = fmt.Appendf(b, "=%02X", c)
		}
	}
	if node == "" {
		b = append(b, '=')
	}
	return string(b)
}

// recover reads the last message of every subject, without its blocks.
func (s *stream) recover(ctx context.Context) error {
	c, err := s.str.CreateConsumer(ctx, jetstream.ConsumerConfig{DeliverPolicy: jetstream.DeliverLastPerSubjectPolicy, AckPolicy: jetstream.AckNonePolicy,
		HeadersOnly: true, InactiveThreshold: streamOpenTimeout, MemoryStorage: true, Replicas: 1, FilterSubject: s.subjects()})
	if err != nil {
		return fmt.Errorf("read positions: %w", err)
	}
	anchor := total{}
	for left := int(c.CachedInfo().NumPending); left > 0; {
		batch, err := c.Fetch(min(left, 256), jetstream.FetchContext(ctx))
		if err != nil {
			return fmt.Errorf("read positions: %w", err)
		}
		before := left
		for msg := range batch.Messages() {
			m, err := received(msg)
			if err != nil {
				return err
			}
			s.take(m)
			if m.before.seq >= anchor.seq {
				anchor = m.before
			}
			left--
		}
		if err := batch.Error(); err != nil || left == before {
			return fmt.Errorf("read positions: %d subjects are missing: %w", left, errors.Join(err, ctx.Err()))
		}
	}
	s.mu.Lock()
	s.seen = anchor
	s.mu.Unlock()
	return s.findOldest(ctx)
}

// take takes in a message that is in the stream, in any order.
func (s *stream) take(m *message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := s.nodes[m.node]; n == nil || n.seq < m.seq {
		s.nodes[m.node] = &streamNode{seq: m.seq, state: m.state}
		s.positions.nodes[m.node] = m.state
	}
	if m.records > 0 {
		s.positions.newest = max(s.positions.newest, lastCursor(m.seq, m.records))
		if s.oldest == 0 {
			s.oldest = firstCursor(m.seq)
		}
	}
	s.last = max(s.last, m.seq)
	if m.seq == s.seen.seq+1 {
		s.seen = total{m.seq, s.seen.records + m.records}
	}
	s.wakeLocked()
}

// run implements backend: it follows what all collectors write.
func (s *stream) run(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := s.follow(ctx); err != nil && ctx.Err() == nil {
			s.cfg.Logger.Warn("cannot follow the stream; tries on", "err", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(followPause):
		}
	}
	return ctx.Err()
}

func (s *stream) follow(ctx context.Context) error {
	s.mu.RLock()
	from := s.seen.seq + 1
	s.mu.RUnlock()
	c, err := s.str.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: from,
		HeadersOnly: true, FilterSubjects: []string{s.subjects()}})
	if err != nil {
		return err
	}
	it, err := c.Messages()
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, it.Stop)()
	defer it.Stop()
	for {
		msg, err := it.Next()
		if err != nil {
			return err
		}
		m, err := received(msg)
		if err != nil {
			return err
		}
		s.mu.Lock()
		if m.seq > s.seen.seq { // Messages between were removed, if it is not the next.
			s.seen = total{m.seq - 1, max(s.seen.records, m.before.records)}
		}
		s.mu.Unlock()
		s.take(m)
	}
}

// ready implements backend.
func (s *stream) ready(time.Time) error {
	if !s.nc.IsConnected() {
		return fmt.Errorf("not connected to NATS: %s", s.nc.Status())
	}
	ctx, cancel := context.WithTimeout(context.Background(), streamReadyTimeout)
	defer cancel()
	info, err := s.str.Info(ctx)
	if err != nil {
		return fmt.Errorf("the stream does not answer; a majority of its replicas may be gone: %w", err)
	}
	if info.Cluster != nil && len(info.Cluster.Replicas) > 0 && info.Cluster.Leader == "" {
		return errors.New("the stream has no leader; a majority of its replicas is gone")
	}
	return nil
}

// ended implements backend: the connection is made anew without end.
func (s *stream) ended() error { return nil }

// close implements backend.
func (s *stream) close() error {
	s.nc.Close()
	return nil
}

// extent is how many records are below a message, and how many are in it.
type extent struct{ below, records uint64 }

// starts remembers those of the messages that were read last.
type starts struct {
	below map[uint64]extent // By the message's sequence.
	order [4096]uint64
	next  int
}

func (s *starts) add(m *message, below uint64) {
	if s.below == nil {
		s.below = make(map[uint64]extent, len(s.order))
	}
	if _, ok := s.below[m.seq]; ok {
		return
	}
	delete(s.below, s.order[s.next])
	s.order[s.next] = m.seq
	s.next = (s.next + 1) % len(s.order)
	s.below[m.seq] = extent{below, m.records}
}

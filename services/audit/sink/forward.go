package sink

import (
	"context"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	"github.com/weirnet/weir/storage/eventlog"
)

// ForwardConfig of a Forward.
type ForwardConfig struct {
	Name      string // Names the cursor, as that of a Sink does.
	Log       *eventlog.Log
	Addresses []string // host:port of the collector; any of them.
	// Credentials are shown to it. Nil: plain text.
	Credentials credentials.TransportCredentials
	Node        string // Whose records are sent. Empty: those of all nodes.
	// MinBackoff and MaxBackoff bound the pause before a reconnect. Zero: 200 ms and 10 s.
	MinBackoff, MaxBackoff time.Duration
	Logger                 hclog.Logger
}

// Forward sends the log on to another collector, as the nodes themselves would:
// by CollectorService/Report, each event with its node, boot and sequence. So
// the other collector knows what it has, and stores nothing twice.
//
// The cursor moves when the other collector has acknowledged, which it does when
// it holds the events durably. What it has acknowledged of a boot already, before
// a crash of ours, is not sent again. What is in flight is bounded, in bytes and
// batches; the rest stays in the log, on the disk. On any error the forwarder
// waits, connects again and goes on from what was acknowledged.
//
// Losses that nodes report are events like others. Those that this collector
// states (sequence numbers that never arrived, which retention's are too, for
// the other one) are not sent: the other one sees the same numbers missing, and
// states it.
type Forward struct {
	cfg ForwardConfig

	mu    sync.Mutex // Guards stats.
	stats Stats
}

// NewForward returns a forwarder; Run connects it.
func NewForward(cfg ForwardConfig) (*Forward, error) {
	if cfg.Name == "" || cfg.Log == nil || len(cfg.Addresses) == 0 {
		return nil, errors.New("forward: name, log and addresses are needed")
	}
	if cfg.MinBackoff == 0 {
		cfg.MinBackoff = minBackoff
	}
	if cfg.MaxBackoff == 0 {
		cfg.MaxBackoff = maxBackoff
	}
	cursor, err := cfg.Log.Cursors().Load(cfg.Name)
	if err != nil {
		return nil, fmt.Errorf("forward: %w", err)
	}
	return &Forward{cfg: cfg, stats: Stats{Name: cfg.Name, Type: TypeForward, Cursor: cursor}}, nil
}

// Stats says how far the forwarder is. Lines are the events that were
// acknowledged since start.
func (f *Forward) Stats() Stats {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.stats
}

// Run sends until the context ends.
func (f *Forward) Run(ctx context.Context) error {
	pause := f.cfg.MinBackoff
	for i := 0; ; i++ {
		before, address := f.Stats().Cursor, f.cfg.Addresses[i%len(f.cfg.Addresses)]
		err := f.connect(ctx, address)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		after := f.Stats()
		if after.Cursor > before {
			pause = f.cfg.MinBackoff
		}
		if after.LastError == "" {
			f.cfg.Logger.Warn("sink fails; it goes on from its cursor", "sink", f.cfg.Name, "server", address, "cursor", after.Cursor, "err", err)
		}
		f.mu.Lock()
		f.stats.LastError = err.Error()
		f.mu.Unlock()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause/2 + mrand.N(pause/2+1)):
		}
		pause = min(2*pause, f.cfg.MaxBackoff)
	}
}

// connect forwards over one connection, to its first error.
func (f *Forward) connect(ctx context.Context, address string) (err error) {
	creds := f.cfg.Credentials
	if creds == nil {
		creds = insecure.NewCredentials()
	}
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(creds),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}))
	if err != nil {
		return fmt.Errorf("forward to %s: %w", address, err)
	}
	defer conn.Close()
	streams, cancel := context.WithCancel(ctx)
	defer cancel()
	w := &forwarding{Forward: f, address: address, conn: conn, reader: f.cfg.Log.NewReader(f.Stats().Cursor), cursor: f.Stats().Cursor,
		streams: make(map[string]*upstream), answers: make(chan answer)}
	defer func() { err = errors.Join(err, w.commit()) }() // Whatever ends it, what is acknowledged need not be sent again.
	return w.run(streams)
}

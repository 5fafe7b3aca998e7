package bridge

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/weirnet/weir/shim/bridge/openflow"
)

// Mark tells our flows from others by their cookies: a flow is ours if its
// cookie under Mask is Value. The zero Mark takes every flow for ours.
type Mark struct {
	Value, Mask uint64
}

// Ours tells whether a flow with this cookie is ours.
func (m Mark) Ours(cookie uint64) bool { return cookie&m.Mask == m.Value&m.Mask }

// Controller is a receiver of packet-ins: those that a Controller action with
// its ID sends.
type Controller struct {
	ID    uint16 // 1 to 65534
	Queue int    // packets that may wait; 0: 4096. Beyond it they are dropped and counted.
}

// Config says which bridge it is.
type Config struct {
	Name string // of the bridge; required
	// RunDir is where the switch keeps its sockets. Empty: /var/run/openvswitch.
	RunDir string
	// OVSDB is the address of the database. Empty: unix:RUNDIR/db.sock.
	OVSDB string
	// DatapathType is "system" or "netdev". Empty: system.
	DatapathType string
	// Mark is the mark of our flows.
	Mark Mark
	// Controllers receive packet-ins, on a connection each, so that none starves
	// another.
	Controllers []Controller
	// MinBackoff and MaxBackoff bound the pause before a reconnect, which
	// doubles. Zero: 50 ms and 250 ms.
	MinBackoff, MaxBackoff time.Duration
	// Passing says by its cookie whether a flow comes and goes by itself: see
	// Bridge.Disturbed. Nil: none does.
	Passing func(cookie uint64) bool
	// Mended is told what others changed of a bridge that is ours and was restored: a
	// value of Mended…. Nil: nobody is.
	Mended func(what string)
	Logger hclog.Logger // nil: none
}

// Bridge is the client of one Open vSwitch bridge.
type Bridge struct {
	cfg         Config
	log         hclog.Logger
	reconnected chan struct{}
	disturbed   chan struct{}
	listeners   map[uint16]*listener
	ports       *portWatch
	guarding    guarding
	emptying    emptying // Of a userspace datapath's cache.

	// mu guards what follows.
	mu       sync.Mutex
	sessions map[role]*session // nil while disconnected
	connects uint64
	up       chan struct{} // closed when connected, replaced when disconnected
}

// role is what a session is for. Packet-in sessions have the controller's id.
type role int

const (
	roleChange role = -1
	roleRead   role = -2
	roleSend   role = -3
)

// New makes the client of a bridge; Run connects it.
func New(cfg Config) (*Bridge, error) {
	if cfg.Name == "" {
		return nil, errors.New("bridge: no name")
	}
	if cfg.RunDir == "" {
		cfg.RunDir = "/var/run/openvswitch"
	}
	if cfg.OVSDB == "" {
		cfg.OVSDB = "unix:" + filepath.Join(cfg.RunDir, "db.sock")
	}
	switch cfg.DatapathType {
	case "":
		cfg.DatapathType = "system"
	case "system", "netdev":
	default:
		return nil, fmt.Errorf("bridge %s: unknown datapath type %q", cfg.Name, cfg.DatapathType)
	}
	if cfg.MinBackoff == 0 {
		cfg.MinBackoff = 50 * time.Millisecond
	}
	if cfg.MaxBackoff == 0 {
		cfg.MaxBackoff = 250 * time.Millisecond
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	b := &Bridge{
		cfg:         cfg,
		log:         cfg.Logger.With("bridge", cfg.Name),
		reconnected: make(chan struct{}, 1),
		disturbed:   make(chan struct{}, 1),
		listeners:   map[uint16]*listener{},
		up:          make(chan struct{}),
	}
	for _, c := range cfg.Controllers {
		if c.ID == 0 || c.ID == 0xffff || b.listeners[c.ID] != nil {
			return nil, fmt.Errorf("bridge %s: controller id %d is reserved or taken", cfg.Name, c.ID)
		}
		b.listeners[c.ID] = newListener(c)
	}
	b.ports = newPortWatch(b)
	b.guarding = guarding{bridge: b, changed: make(chan struct{}, 1)}
	return b, nil
}

// Name is the bridge's name.
func (b *Bridge) Name() string { return b.cfg.Name }

// Reconnected signals that a connection to the switch was made, the first one
// too. The bridge may have forgotten everything since: read back. Signals that
// nobody took are one.
func (b *Bridge) Reconnected() <-chan struct{} { return b.reconnected }

// Connected tells whether the switch can be reached now, and how often a
// connection to it was made.
func (b *Bridge) Connected() (bool, uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.sessions != nil, b.connects
}

// WaitConnected returns when the switch can be reached.
func (b *Bridge) WaitConnected(ctx context.Context) error {
	b.mu.Lock()
	up := b.up
	b.mu.Unlock()
	select {
	case <-up:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("bridge %s: wait for the switch: %w", b.cfg.Name, ctx.Err())
	}
}

// Run keeps the bridge connected until the context ends.
func (b *Bridge) Run(ctx context.Context) error {
	var wait sync.WaitGroup
	defer wait.Wait()
	wait.Go(func() { b.ports.run(ctx) })
	wait.Go(func() { b.guarding.run(ctx) })
	pause := b.cfg.MinBackoff
	failing := false
	for ctx.Err() == nil {
		err := b.serve(ctx, func() {
			pause, failing = b.cfg.MinBackoff, false
			b.log.Info("connected to switch")
		})
		if ctx.Err() != nil {
			break
		}
		if !failing { // once per outage
			b.log.Warn("no connection to switch", "err", err)
			failing = true
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, b.cfg.MaxBackoff)
	}
	return ctx.Err()
}

// serve connects every session and returns when the first of them ends.
func (b *Bridge) serve(ctx context.Context, connected func()) error {
	sessions := map[role]*session{}
	var readers sync.WaitGroup
	defer readers.Wait()
	defer func() {
		for _, s := range sessions {
			s.close()
		}
	}()
	ended := make(chan error, 3+len(b.listeners))
	open := func(r role, setUp func(*session) error) error {
		s, err := dial(ctx, filepath.Join(b.cfg.RunDir, b.cfg.Name+".mgmt"))
		if err != nil {
			return err
		}
		sessions[r] = s
		if err := setUp(s); err != nil {
			return err
		}
		readers.Go(func() { ended <- s.run() })
		return nil
	}
	for r, setUp := range map[role]func(*session) error{roleChange: b.monitor, roleRead: b.prepare, roleSend: b.prepare} {
		if err := open(r, setUp); err != nil {
			return err
		}
	}
	for id, l := range b.listeners {
		if err := open(role(id), l.attach); err != nil {
			return err
		}
	}
	b.setSessions(sessions)
	defer b.setSessions(nil)
	connected()
	signal(b.reconnected)
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// prepare gives a session a controller id that no flow uses. With the default
// id, a connection that has not sent a flow yet makes the switch send every
// packet that no flow matches through its slow path, towards controllers that
// do not listen, instead of dropping it in the datapath.
func (b *Bridge) prepare(s *session) error {
	s.other = func(m openflow.Message) {
		if m.Type == openflow.TypeError {
			b.log.Debug("switch refused a message that nobody waits for", "err", decodeError(m))
		}
	}
	return s.send(openflow.AppendSetControllerID(nil, 0, 0xffff))
}

func (b *Bridge) setSessions(sessions map[role]*session) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sessions = sessions
	if sessions != nil {
		b.connects++
		close(b.up)
	} else {
		b.up = make(chan struct{})
	}
}

// session is the session of a role; nil while disconnected.
func (b *Bridge) session(r role) *session {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.sessions[r]
}

// signal fills a one-slot channel.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// PacketOut sends a packet. It does not wait: that the switch refuses the packet
// is only logged, at debug level.
func (b *Bridge) PacketOut(_ context.Context, p openflow.PacketOut) error {
	s := b.session(roleSend)
	if s == nil {
		return ErrDisconnected
	}
	if len(p.Packet)+p.Actions.Size() > openflow.MaxMessage-64 {
		return fmt.Errorf("packet-out of %d bytes: %w", len(p.Packet), errTooLarge)
	}
	if err := s.send(openflow.AppendPacketOut(nil, 0, &p)); err != nil {
		return ErrDisconnected
	}
	return nil
}

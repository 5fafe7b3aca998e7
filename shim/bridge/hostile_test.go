package bridge_test

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"path/filepath"
	"testing"

	"github.com/weirnet/weir/shim/bridge"
	of "github.com/weirnet/weir/shim/bridge/openflow"
)

// standIn is a management socket whose switch says what the test says.
type standIn struct {
	t      *testing.T
	listen net.Listener
}

// newStandIn answers every connection's greeting; then what connection made for
// it is called with each message that comes, and what that returns is sent.
func newStandIn(t *testing.T, connection func() func(m of.Message) []byte) (*bridge.Bridge, context.Context) {
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, "br0.mgmt"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	s := standIn{t, l}
	go s.accept(connection)
	cfg := config("br0")
	cfg.RunDir = dir
	b, err := bridge.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx := deadline(t)
	run, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { b.Run(run); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
	return b, ctx
}

func (s standIn) accept(connection func() func(m of.Message) []byte) {
	for {
		nc, err := s.listen.Accept()
		if err != nil {
			return
		}
		go func() {
			defer nc.Close()
			answer := connection()
			for {
				m, err := of.ReadMessage(nc, make([]byte, of.MaxMessage))
				if err != nil {
					return
				}
				reply := of.AppendHello(nil, 0)
				if m.Type != of.TypeHello {
					reply = answer(m)
				}
				if _, err := nc.Write(reply); err != nil {
					return
				}
			}
		}()
	}
}

// message is a raw message of the type, with the body.
func message(t of.MessageType, xid uint32, body ...byte) []byte {
	b := []byte{of.Version, byte(t), 0, 0}
	b = binary.BigEndian.AppendUint32(b, xid)
	b = append(b, body...)
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	return b
}

func TestBrokenFramesEndTheConnectionOnly(t *testing.T) {
	const flowStats = 1
	for name, reply := range map[string]func(xid uint32) []byte{
		"length below the header": func(uint32) []byte { return []byte{of.Version, 19, 0, 4, 0, 0, 0, 0} },
		"another version":         func(uint32) []byte { return []byte{1, 19, 0, 8, 0, 0, 0, 0} },
		"short multipart":         func(xid uint32) []byte { return message(of.TypeMultipartReply, xid, 0, 1) },
		"short error":             func(xid uint32) []byte { return message(of.TypeError, xid, 0) },
		"flow of length 0": func(xid uint32) []byte {
			return message(of.TypeMultipartReply, xid, append([]byte{0, flowStats, 0, 0, 0, 0, 0, 0}, make([]byte, 24)...)...)
		},
		"flow beyond the message": func(xid uint32) []byte {
			return message(of.TypeMultipartReply, xid, append([]byte{0, flowStats, 0, 0, 0, 0, 0, 0, 0xff, 0xf8}, make([]byte, 40)...)...)
		},
		"unasked packet-in": func(xid uint32) []byte {
			junk := message(of.TypeExperimenter, 0, 0, 0, 0x23, 0x20, 0, 0, 0, 30, 0, 0, 0xff)
			return append(junk, message(of.TypeError, xid, 0, 1, 0, 2)...)
		},
	} {
		t.Run(name, func(t *testing.T) {
			b, ctx := newStandIn(t, func() func(of.Message) []byte {
				return func(m of.Message) []byte {
					if m.Type != 18 { // multipart requests are what Counters sends
						return nil
					}
					return reply(m.XID)
				}
			})
			if err := b.WaitConnected(ctx); err != nil {
				t.Fatal(err)
			}
			if err := b.Counters(ctx, of.FlowFilter{Table: of.AllTables}, func(of.Flow) {}); err == nil {
				t.Error("the answer was taken")
			} else if errors.Is(err, context.DeadlineExceeded) {
				t.Error("the answer was waited for")
			}
			if err := b.WaitConnected(ctx); err != nil {
				t.Errorf("not connected again: %v", err)
			}
		})
	}
}

func TestLostConnectionLeavesNoDoubt(t *testing.T) {
	one := bridge.Change{Upsert: []of.Flow{flow(0, 1, of.NewMatch())}}
	two := bridge.Change{Upsert: []of.Flow{flow(0, 1, of.NewMatch()), flow(0, 2, of.NewMatch())}}
	garbage := []byte{of.Version, 0, 0, 4, 0, 0, 0, 0} // shorter than its own header
	for name, c := range map[string]struct {
		change bridge.Change
		at     of.MessageType // where the connection breaks
		nth    int
		want   error
	}{
		"single flow":       {one, 20, 1, bridge.ErrOutcomeUnknown},
		"before the commit": {two, 20, 1, bridge.ErrDisconnected},
		"at the commit":     {two, 33, 2, bridge.ErrOutcomeUnknown},
	} {
		t.Run(name, func(t *testing.T) {
			b, ctx := newStandIn(t, func() func(of.Message) []byte {
				seen := map[of.MessageType]int{}
				return func(m of.Message) []byte {
					seen[m.Type]++
					switch {
					case m.Type == c.at && seen[m.Type] == c.nth:
						return garbage
					case m.Type == 20:
						return message(of.TypeBarrierReply, m.XID)
					case m.Type == of.TypeBundleControl:
						return message(of.TypeBundleControl, m.XID, 0, 0, 0, 1, 0, 1, 0, 3)
					}
					return nil
				}
			})
			if err := b.WaitConnected(ctx); err != nil {
				t.Fatal(err)
			}
			if err := b.Apply(ctx, c.change); !errors.Is(err, c.want) {
				t.Errorf("error %v, want %v", err, c.want)
			}
		})
	}
}

func TestCallsWithoutASwitch(t *testing.T) {
	b, err := bridge.New(bridge.Config{Name: "br0", RunDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	f := bridge.NewFake(config("br0"))
	f.Disconnect()
	ctx := deadline(t)
	for _, s := range []api{b, f} {
		if err := s.Apply(ctx, bridge.Change{}); !errors.Is(err, bridge.ErrDisconnected) {
			t.Errorf("apply: %v", err)
		}
		if _, err := s.Read(ctx); !errors.Is(err, bridge.ErrDisconnected) {
			t.Errorf("read: %v", err)
		}
		p := tcp(1, "10.0.0.1", "10.0.0.2", 1, 2, 2)
		if err := s.PacketOut(ctx, of.PacketOut{Packet: p.Frame()}); !errors.Is(err, bridge.ErrDisconnected) {
			t.Errorf("packet-out: %v", err)
		}
	}
	for name, cfg := range map[string]bridge.Config{
		"no name":          {},
		"datapath type":    {Name: "br0", DatapathType: "fast"},
		"controller id 0":  {Name: "br0", Controllers: []bridge.Controller{{}}},
		"controller twice": {Name: "br0", Controllers: []bridge.Controller{{ID: 1}, {ID: 1}}},
	} {
		if _, err := bridge.New(cfg); err == nil {
			t.Errorf("New takes a config with a wrong %s", name)
		}
	}
}

func FuzzParseFrame(f *testing.F) {
	for _, p := range []bridge.Packet{tcp(0, "10.0.0.1", "10.0.0.2", 1, 2, 2), udp(0, "fd00::1", "fd00::2", 3, 4),
		{EthType: of.EtherARP, ARPOp: 1, ARPSPA: addrOf("10.0.0.1"), ARPTPA: addrOf("10.0.0.2")},
		{EthType: of.EtherIPv6, IPSrc: addrOf("fd00::1"), IPDst: addrOf("fd00::2"), IPProto: of.ProtoICMPv6, ICMPType: of.NDSolicit, NDTarget: addrOf("fd00::2"), NDSLL: macA, TTL: 255}} {
		got, err := bridge.ParseFrame(p.Frame())
		if err != nil || got != p {
			f.Fatalf("%+v reads back as %+v, %v", p, got, err)
		}
		f.Add(p.Frame())
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		p, err := bridge.ParseFrame(frame)
		if err != nil || p.Inner != nil && p.Inner.Inner != nil {
			return
		}
		_ = p.String()
		if _, err := bridge.ParseFrame(p.Frame()); err != nil {
			t.Errorf("%+v makes a frame that cannot be read: %v", p, err)
		}
	})
}

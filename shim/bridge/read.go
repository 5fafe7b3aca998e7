package bridge

import (
	"context"
	"fmt"
	"io"

	"github.com/weirnet/weir/shim/bridge/openflow"
)

// Read reads back all that the bridge holds.
func (b *Bridge) Read(ctx context.Context) (State, error) {
	return b.ReadBut(ctx, func(openflow.Flow) bool { return false })
}

// Parts is in how many parts flows are read, by the lowest bits of their cookies. A
// power of two. The switch takes no other work while it lists flows, of a userspace
// datapath not even packets, so that whoever puts many flows spreads their cookies.
const Parts = 8

// ReadBut is Read without the flows of which except says so, which is called for
// each, one after the other, from another goroutine. What it leaves out takes no
// memory, however much it is. The parts are not of one moment: others' changes meanwhile
// may be seen in some and not in others.
func (b *Bridge) ReadBut(ctx context.Context, except func(openflow.Flow) bool) (State, error) {
	state := State{Content: NewContent(), Foreign: map[openflow.FlowKey]openflow.Flow{}}
	var err error
	for part := uint64(0); part < Parts && err == nil; part++ {
		err = b.ask(ctx, question{
			func(buf []byte, xid uint32) []byte {
				return openflow.AppendFlowStatsRequest(buf, xid, openflow.FlowFilter{Table: openflow.AllTables, Cookie: part, CookieMask: Parts - 1})
			},
			func(p openflow.Part) error {
				return openflow.DecodeFlowStats(p.Body, func(f openflow.Flow) {
					switch {
					case except(f):
					case b.cfg.Mark.Ours(f.Cookie):
						state.Flows[f.Key()] = f
					default:
						state.Foreign[f.Key()] = f
					}
				})
			},
		})
	}
	if err == nil {
		err = b.ask(ctx, state.readGroups(), state.readMeters())
	}
	if err != nil {
		return State{}, fmt.Errorf("read bridge %s: %w", b.cfg.Name, err)
	}
	return state, nil
}

// ReadShared reads back groups and meters alone.
func (b *Bridge) ReadShared(ctx context.Context) (Content, error) {
	c := NewContent()
	if err := b.ask(ctx, c.readGroups(), c.readMeters()); err != nil {
		return Content{}, fmt.Errorf("read groups and meters of bridge %s: %w", b.cfg.Name, err)
	}
	return c, nil
}

func (c Content) readGroups() question {
	return question{openflow.AppendGroupDescRequest, func(p openflow.Part) error {
		groups, err := openflow.DecodeGroupDesc(p.Body)
		for _, g := range groups {
			c.Groups[g.ID] = g
		}
		return err
	}}
}

func (c Content) readMeters() question {
	return question{openflow.AppendMeterConfigRequest, func(p openflow.Part) error {
		meters, err := openflow.DecodeMeterConfig(p.Body)
		for _, m := range meters {
			c.Meters[m.ID] = m
		}
		return err
	}}
}

// Counters tells the flows of a filter, with their counters, one after the other, in
// no order, from another goroutine.
func (b *Bridge) Counters(ctx context.Context, filter openflow.FlowFilter, read func(openflow.Flow)) error {
	err := b.ask(ctx, question{
		func(buf []byte, xid uint32) []byte { return openflow.AppendFlowStatsRequest(buf, xid, filter) },
		func(p openflow.Part) error {
			return openflow.DecodeFlowStats(p.Body, read)
		},
	})
	if err != nil {
		return fmt.Errorf("read counters of bridge %s: %w", b.cfg.Name, err)
	}
	return nil
}

// MeterCounters reads the counters of all meters.
func (b *Bridge) MeterCounters(ctx context.Context) ([]openflow.MeterStats, error) {
	var out []openflow.MeterStats
	err := b.ask(ctx, question{openflow.AppendMeterStatsRequest, func(p openflow.Part) error {
		stats, err := openflow.DecodeMeterStats(p.Body)
		out = append(out, stats...)
		return err
	}})
	if err != nil {
		return nil, fmt.Errorf("read meters of bridge %s: %w", b.cfg.Name, err)
	}
	return out, nil
}

// MeterLimit is the highest id that a meter may have.
func (b *Bridge) MeterLimit(ctx context.Context) (uint32, error) {
	var limit uint32
	err := b.ask(ctx, question{openflow.AppendMeterLimitsRequest, func(p openflow.Part) (err error) {
		limit, err = openflow.DecodeMeterLimits(p.Body)
		return err
	}})
	if err != nil {
		return 0, fmt.Errorf("read what meters bridge %s may have: %w", b.cfg.Name, err)
	}
	return limit, nil
}

// FlowCounts is how many flows each table holds, of those that hold any,
// whoever's they are. It costs next to nothing, however many there are.
func (b *Bridge) FlowCounts(ctx context.Context) (map[uint8]int, error) {
	out := make(map[uint8]int)
	err := b.ask(ctx, question{openflow.AppendTableStatsRequest, func(p openflow.Part) error {
		stats, err := openflow.DecodeTableStats(p.Body)
		for _, t := range stats {
			if t.Active > 0 {
				out[t.Table] = int(t.Active)
			}
		}
		return err
	}})
	if err != nil {
		return nil, fmt.Errorf("count flows of bridge %s: %w", b.cfg.Name, err)
	}
	return out, nil
}

// question is a multipart request and what takes the parts of its reply.
type question struct {
	request func(b []byte, xid uint32) []byte
	part    func(openflow.Part) error
}

// ask puts questions at once and returns when all are answered.
func (b *Bridge) ask(ctx context.Context, questions ...question) error {
	s := b.session(roleRead)
	if s == nil {
		return ErrDisconnected
	}
	var first uint32
	var refused error
	open := len(questions)
	err := s.exchange(ctx, len(questions), func(xid uint32, w io.Writer) error {
		first = xid
		var buf []byte
		for i, q := range questions {
			buf = q.request(buf, xid+uint32(i))
		}
		_, err := w.Write(buf)
		return err
	}, func(m openflow.Message) bool {
		more, err := questions[m.XID-first].take(m)
		if err != nil && refused == nil {
			refused = err
		}
		if !more {
			open--
		}
		return open == 0
	})
	if err != nil {
		return err
	}
	return refused
}

// take takes one message of the answer and tells whether more follow.
func (q question) take(m openflow.Message) (more bool, err error) {
	if m.Type != openflow.TypeMultipartReply {
		return false, decodeError(m)
	}
	p, err := openflow.DecodePart(m.Body)
	if err != nil {
		return false, err
	}
	return p.More, q.part(p)
}

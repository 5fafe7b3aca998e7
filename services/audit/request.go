package audit

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"k8s.io/apimachinery/pkg/util/validation"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	"github.com/weirnet/weir/services/audit/record"
	"github.com/weirnet/weir/storage/eventlog"
)

// Limits of a request, beside the server's of its size.
const (
	maxBatchEvents = 65536
	maxBootLen     = 128
)

// request is a ReportRequest: a hello or a batch. It points into the bytes that
// it was read from.
type request struct {
	hello  *auditv1.ReportHello
	first  uint64
	events []eventlog.Event
	tally  tally  // Of events.
	arena  []byte // For events that are completed.
}

// arenaBytes of a batch are taken at a time.
const arenaBytes = 64 << 10

// complete puts an event and its context behind each other. Where nothing is
// known the event stays where it is.
func (r *request) complete(data []byte, p *record.Packet, context func([]byte, *record.Packet) []byte) []byte {
	if cap(r.arena)-len(r.arena) < len(data)+1024 {
		r.arena = make([]byte, 0, max(arenaBytes, 2*len(data)))
	}
	start := len(r.arena)
	whole := context(append(r.arena, data...), p)
	if n := len(whole) - start; n == len(data) || n > record.MaxEventBytes {
		return data
	}
	if &whole[0] == &r.arena[:1][0] { // It had room.
		r.arena = whole
	}
	return whole[start:len(whole):len(whole)]
}

var (
	errRequest = errors.New("malformed request")
	errNeither = errors.New("neither a hello nor a batch")
	errTwice   = errors.New("more than one hello or batch in a request")
	errEmpty   = errors.New("batch: no events")
	errMany    = fmt.Errorf("batch: more than %d events", maxBatchEvents)
	errFirst   = errors.New("batch: first_sequence: sequence numbers begin with one and do not wrap")
	errStage   = errors.New("loss: stage: losses in transport, and damage, are stated by the collector")
	errStated  = errors.New("changes, tests and context are stated by collectors, and not taken from nodes")
)

// parser reads and checks requests. It is as strict as record.Decoder.
type parser struct {
	// What collectors state is taken from collectors alone.
	fromCollector bool
	// context completes a packet's event by what is known of it. Nil: nothing is.
	context func(b []byte, p *record.Packet) []byte
	decoder *record.Decoder
}

func (p *parser) parse(b []byte) (request, error) {
	var r request
	found := false
	for len(b) > 0 {
		num, data, rest, err := consume(b)
		if err != nil {
			return request{}, err
		}
		b = rest
		if num != 1 && num != 2 {
			continue
		}
		if data == nil {
			return request{}, errRequest
		}
		if found {
			return request{}, errTwice
		}
		found = true
		if num == 1 {
			r.hello, err = parseHello(data)
		} else {
			err = p.batch(data, &r)
		}
		if err != nil {
			return request{}, err
		}
	}
	if !found {
		return request{}, errNeither
	}
	return r, nil
}

// consume takes the first field off b; data is nil if it is not length-prefixed.
func consume(b []byte) (num protowire.Number, data, rest []byte, err error) {
	num, typ, n := protowire.ConsumeTag(b)
	if n < 0 {
		return 0, nil, nil, errRequest
	}
	b = b[n:]
	if typ == protowire.BytesType {
		if data, n = protowire.ConsumeBytes(b); n >= 0 && data == nil {
			data = []byte{}
		}
	} else {
		n = protowire.ConsumeFieldValue(num, typ, b)
	}
	if n < 0 {
		return 0, nil, nil, errRequest
	}
	return num, data, b[n:], nil
}

func parseHello(b []byte) (*auditv1.ReportHello, error) {
	h := &auditv1.ReportHello{}
	if err := proto.Unmarshal(b, h); err != nil {
		return nil, fmt.Errorf("hello: %w", errRequest)
	}
	// The name is part of paths of files.
	if msgs := validation.IsDNS1123Subdomain(h.GetNode()); len(msgs) > 0 {
		return nil, fmt.Errorf("hello: node %.80q: %s", h.GetNode(), msgs[0])
	}
	if h.GetBoot() == "" || len(h.GetBoot()) > maxBootLen {
		return nil, fmt.Errorf("hello: boot: must have 1 to %d bytes", maxBootLen)
	}
	return h, nil
}

func (p *parser) batch(b []byte, r *request) error {
	var event record.Event
	hadFirst := false
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return errRequest
		}
		if num == 1 {
			if typ != protowire.VarintType || hadFirst {
				return errRequest
			}
			hadFirst = true
			var m int
			if r.first, m = protowire.ConsumeVarint(b[n:]); m < 0 {
				return errRequest
			}
			b = b[n+m:]
			continue
		}
		_, data, rest, err := consume(b)
		if err != nil {
			return err
		}
		b = rest
		if num != 2 {
			continue
		}
		if data == nil {
			return errRequest
		}
		if len(r.events) >= maxBatchEvents {
			return errMany
		}
		if err := p.decoder.DecodeInto(data, &event); err != nil {
			return fmt.Errorf("batch: events[%d]: %w", len(r.events), err)
		}
		e := eventlog.Event{Data: data}
		switch event.Kind {
		case record.KindLoss:
			if s := event.Loss.Stage; s == auditv1.LossStage_LOSS_STAGE_TRANSPORT || s == auditv1.LossStage_LOSS_STAGE_DAMAGED {
				return fmt.Errorf("batch: events[%d]: %w", len(r.events), errStage)
			}
			e.Stage, e.Lost = event.Loss.Stage, event.Loss.Count
		case record.KindChange, record.KindTest:
			if !p.fromCollector {
				return fmt.Errorf("batch: events[%d]: %w", len(r.events), errStated)
			}
		}
		switch {
		case event.HasContext && !p.fromCollector:
			return fmt.Errorf("batch: events[%d]: %w", len(r.events), errStated)
		case event.Kind == record.KindPacket && !event.HasContext && p.context != nil:
			e.Data = r.complete(data, &event.Packet, p.context)
		}
		r.tally.add(&event)
		if r.events == nil {
			r.events = make([]eventlog.Event, 0, min(1+len(b)/max(1, len(data)), 1024))
		}
		r.events = append(r.events, e)
	}
	if len(r.events) == 0 {
		return errEmpty
	}
	if r.first == 0 || r.first+uint64(len(r.events)) < r.first {
		return errFirst
	}
	return nil
}

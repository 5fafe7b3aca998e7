package record

import (
	"errors"
	"fmt"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

// Limits of an event.
const (
	MaxEventBytes = 256 << 10
	MaxString     = 4 << 10
	MaxPolicies   = 1024
	MaxCount      = 1 << 48 // Packets of one event: more is no claim to believe.
)

// Years that an event's time may be in.
var (
	earliest = time.Date(1970, 1, 1, 0, 0, 0, 0, time.UTC).Unix()
	latest   = time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC).Unix()
)

// Decoder reads events. It shares strings and policy lists among the events
// that it reads: the same few come again and again. Not for concurrent use.
// The zero Decoder only checks: the strings and policies of what it reads are
// empty.
type Decoder struct {
	// Redacted takes packets whose addresses were left out, as they are told to those
	// who may not know them; for readers of what a collector sends.
	Redacted bool

	strings  map[string]string
	lists    map[string][]Policy
	contexts map[string]*Context
	scratch  []byte // Policies of the list that is read, each with its length.
	staging  []byte // The same, of a staged outcome, which comes amid the event's list.

	unattributed bool // The event that is read says so.
	spoof        bool // The same.
}

// reasonUnattributed is the reason of packets whose flow was gone when they
// were looked at: they alone have no direction and no action.
const reasonUnattributed = "unattributed"

// NewDecoder returns a decoder that keeps what it reads.
func NewDecoder() *Decoder {
	return &Decoder{strings: make(map[string]string), lists: make(map[string][]Policy), contexts: make(map[string]*Context)}
}

// internMax bounds what a decoder shares; then it begins anew.
const internMax = 1 << 15

var (
	errWire      = errors.New("malformed")
	errKind      = errors.New("neither a packet, a loss, a change nor a test")
	errTwice     = errors.New("given twice")
	errTooLong   = errors.New("too long")
	errUTF8      = errors.New("not UTF-8")
	errRange     = errors.New("out of range")
	errAddress   = errors.New("not of 4 or 16 bytes")
	errFamilies  = errors.New("of another family than the source")
	errMandatory = errors.New("missing")
	errHardware  = errors.New("not of 6 bytes, or zero")
	errForged    = errors.New("only what is forged has hardware addresses")
	errContext   = errors.New("only packets have one")
	errWhose     = errors.New("neither of a Pod nor of a Node")
)

func fieldError(name string, err error) error { return fmt.Errorf("%s: %w", name, err) }

// Decode reads an encoded auditv1.Event.
func (d *Decoder) Decode(b []byte) (Event, error) {
	var e Event
	err := d.DecodeInto(b, &e)
	return e, err
}

// DecodeInto is Decode into an event that is overwritten.
func (d *Decoder) DecodeInto(b []byte, e *Event) error {
	*e = Event{}
	if len(b) > MaxEventBytes {
		return fieldError("event", errTooLong)
	}
	var had seen
	for len(b) > 0 {
		f, rest, err := next(b)
		if err != nil {
			return fieldError("event", err)
		}
		b = rest
		if f.num > 5 {
			continue
		}
		if f.typ != protowire.BytesType {
			return fieldError("event", errWire)
		}
		if f.num < 5 && had&^(1<<5) != 0 || !had.add(f.num) {
			return fieldError("event", errTwice)
		}
		if err := d.part(&f, e); err != nil {
			return err
		}
	}
	if had&^(1<<5) == 0 {
		return errKind
	}
	e.HasContext = had.has(5)
	if e.HasContext && e.Kind != KindPacket {
		return fieldError("context", errContext)
	}
	return nil
}

// part reads what an event is of, or what was known about it.
func (d *Decoder) part(f *field, e *Event) (err error) {
	name := [...]string{1: "packet", 2: "loss", 3: "change", 4: "test", 5: "context"}[f.num]
	switch f.num {
	case 1:
		err = d.packet(f.data, &e.Packet)
	case 2:
		e.Kind = KindLoss
		err = d.loss(f.data, &e.Loss)
	case 3:
		e.Kind = KindChange
		e.Change, err = change(f.data)
	case 4:
		e.Kind = KindTest
		e.Test, err = test(f.data)
	case 5:
		e.Context, err = d.context(f.data)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// Wire types of PacketEvent's fields, and their names.
var packetFields = [...]struct {
	name  string
	bytes bool
}{
	1: {"first", true}, 2: {"last", true}, 3: {"count", false}, 4: {"direction", false}, 5: {"action", false},
	6: {"table", true}, 7: {"policies", true}, 8: {"isolation", false}, 9: {"rule", true}, 10: {"log_label", true},
	11: {"openflow_priority", false}, 12: {"applied_to", true}, 13: {"peer", true}, 14: {"source_ip", true},
	15: {"destination_ip", true}, 16: {"protocol", false}, 17: {"source_port", false}, 18: {"destination_port", false},
	19: {"length", false}, 20: {"tcp_flags", false}, 21: {"icmp_type", false}, 22: {"icmp_code", false},
	23: {"reason", true}, 24: {"redirected", false}, 25: {"staged", true}, 26: {"source_mac", true}, 27: {"ether_type", false},
	28: {"claimed_mac", true}, 29: {"target_ip", true}, 30: {"service", true},
}

func (d *Decoder) packet(b []byte, p *Packet) error {
	var had seen
	d.scratch, d.unattributed, d.spoof = d.scratch[:0], false, false
	policies := 0
	for len(b) > 0 {
		f, rest, err := next(b)
		if err != nil {
			return err
		}
		b = rest
		if int(f.num) >= len(packetFields) {
			continue
		}
		name := packetFields[f.num].name
		if packetFields[f.num].bytes != (f.typ == protowire.BytesType) || !packetFields[f.num].bytes && f.typ != protowire.VarintType {
			return fieldError(name, errWire)
		}
		if f.num == 7 {
			if policies++; policies > MaxPolicies {
				return fieldError(name, errTooLong)
			}
			d.scratch = protowire.AppendBytes(d.scratch, f.data)
			continue
		}
		if !had.add(f.num) {
			return fieldError(name, errTwice)
		}
		if err := d.packetField(&f, p); err != nil {
			return fieldError(name, err)
		}
	}
	var err error
	if p.Policies, err = d.policies(d.scratch); err != nil {
		return fieldError("policies", err)
	}
	if p.Count == 0 {
		p.Count = 1
	}
	if !had.has(2) {
		p.Last = p.First
	}
	for _, num := range [...]protowire.Number{1, 14, 15} {
		if !had.has(num) && !(num > 1 && d.Redacted) && !(num > 1 && p.Forged != nil && p.Forged.EtherType != 0) { // What is not IP may have no addresses.
			return fieldError(packetFields[num].name, errMandatory)
		}
	}
	if !d.unattributed {
		if p.Direction == 0 {
			return fieldError("direction", errMandatory)
		}
		if p.Action == 0 {
			return fieldError("action", errMandatory)
		}
	}
	if p.Forged != nil && !d.spoof { // Such as frames without addresses, which np.log cannot write.
		return fieldError("reason", errForged)
	}
	if p.Source.BitLen() != p.Destination.BitLen() && !(d.Redacted && !(p.Source.IsValid() && p.Destination.IsValid())) {
		return fieldError("destination_ip", errFamilies)
	}
	if p.Last.Before(p.First) {
		p.Last = p.First // The node's clock was set back.
	}
	return nil
}

func (d *Decoder) packetField(f *field, p *Packet) (err error) {
	switch f.num {
	case 1:
		p.First, err = timestamp(f.data)
	case 2:
		p.Last, err = timestamp(f.data)
	case 3:
		p.Count, err = within(f.num8, MaxCount)
	case 4:
		p.Direction, err = optionalEnum[policyv1.Direction](f.num8, 2)
	case 5:
		p.Action, err = optionalEnum[policyv1.Action](f.num8, 4)
	case 6:
		p.Table, err = d.string(f.data)
	case 8:
		p.Isolation = f.num8 != 0
	case 9:
		p.Rule, err = d.string(f.data)
	case 10:
		p.LogLabel, err = d.string(f.data)
	case 11:
		p.Priority, err = number(f.num8, 1<<16-1)
	case 12:
		p.AppliedTo, err = d.string(f.data)
	case 13:
		p.Peer, err = d.string(f.data)
	case 14:
		p.Source, err = address(f.data)
	case 15:
		p.Destination, err = address(f.data)
	case 16:
		var v uint64
		v, err = within(f.num8, 255)
		p.Protocol = uint8(v)
	case 17:
		p.SourcePort, err = number(f.num8, 1<<16-1)
	case 18:
		p.DestPort, err = number(f.num8, 1<<16-1)
	case 19:
		var v uint64
		v, err = within(f.num8, 1<<32-1)
		p.Length = uint32(v)
	case 20:
		var v uint64
		v, err = within(f.num8, 1<<12-1)
		p.TCPFlags = uint32(v)
	case 21:
		p.ICMPType, err = number(f.num8, 255)
	case 22:
		p.ICMPCode, err = number(f.num8, 255)
	case 23:
		d.unattributed, d.spoof = string(f.data) == reasonUnattributed, string(f.data) == reasonSpoof
		p.Reason, err = d.string(f.data)
	case 24:
		p.Redirected = f.num8 != 0
	case 25:
		p.Staged, err = d.staged(f.data)
	case 26, 27, 28, 29:
		if p.Forged == nil {
			p.Forged = &Forged{}
		}
		err = forged(f, p.Forged)
	case 30:
		p.Service, err = d.string(f.data)
	}
	return err
}

func forged(f *field, to *Forged) (err error) {
	switch f.num {
	case 26:
		to.SourceMAC, err = hardware(f.data)
	case 27:
		var v uint64
		v, err = within(f.num8, 1<<16-1)
		to.EtherType = uint16(v)
	case 28:
		to.ClaimedMAC, err = hardware(f.data)
	case 29:
		if to.Target, err = address(f.data); err == nil && !to.Target.Is6() {
			err = errAddress
		}
	}
	return err
}

func hardware(b []byte) (mac [6]byte, err error) {
	if len(b) != len(mac) || [6]byte(b) == mac {
		return mac, errHardware
	}
	return [6]byte(b), nil
}

func (d *Decoder) loss(b []byte, l *Loss) error {
	names := [...]string{1: "from", 2: "to", 3: "count", 4: "stage", 5: "reason", 6: "policy", 7: "rule", 8: "direction"}
	var had seen
	for len(b) > 0 {
		f, rest, err := next(b)
		if err != nil {
			return err
		}
		b = rest
		if int(f.num) >= len(names) {
			continue
		}
		name := names[f.num]
		if !had.add(f.num) {
			return fieldError(name, errTwice)
		}
		if wantBytes := f.num <= 2 || f.num >= 5 && f.num <= 7; wantBytes != (f.typ == protowire.BytesType) || !wantBytes && f.typ != protowire.VarintType {
			return fieldError(name, errWire)
		}
		switch f.num {
		case 1:
			l.From, err = timestamp(f.data)
		case 2:
			l.To, err = timestamp(f.data)
		case 3:
			l.Count = f.num8 // Of numbers that never arrived there may be any count.
		case 4:
			l.Stage, err = enum[auditv1.LossStage](f.num8, 8)
		case 5:
			l.Reason, err = d.string(f.data)
		case 6:
			l.Policy, err = d.policy(f.data)
		case 7:
			l.Rule, err = d.string(f.data)
		case 8:
			l.Direction, err = optionalEnum[policyv1.Direction](f.num8, 2)
		}
		if err != nil {
			return fieldError(name, err)
		}
	}
	if l.Stage == 0 {
		return fieldError("stage", errMandatory)
	}
	if !had.has(1) || !had.has(2) {
		return fieldError("from, to", errMandatory)
	}
	return nil
}

// string checks a string, and shares it.
func (d *Decoder) string(b []byte) (string, error) {
	if len(b) > MaxString {
		return "", errTooLong
	}
	if !utf8.Valid(b) {
		return "", errUTF8
	}
	if d.strings == nil || len(b) == 0 {
		return "", nil
	}
	if s, ok := d.strings[string(b)]; ok {
		return s, nil
	}
	if len(d.strings) >= internMax {
		clear(d.strings)
	}
	s := string(b)
	d.strings[s] = s
	return s, nil
}

// policies reads a list, of elements each with its length, and shares it.
func (d *Decoder) policies(elements []byte) ([]Policy, error) {
	if len(elements) == 0 {
		return nil, nil
	}
	if list, ok := d.lists[string(elements)]; ok {
		return list, nil
	}
	var list []Policy
	for b := elements; len(b) > 0; {
		data, n := protowire.ConsumeBytes(b)
		b = b[n:]
		p, err := d.policy(data)
		if err != nil {
			return nil, err
		}
		list = append(list, p)
	}
	if d.lists == nil {
		return nil, nil
	}
	if len(d.lists) >= internMax {
		clear(d.lists)
	}
	d.lists[string(elements)] = list
	return list, nil
}

func (d *Decoder) policy(b []byte) (p Policy, err error) {
	var had seen
	for len(b) > 0 {
		f, rest, err := next(b)
		if err != nil {
			return p, err
		}
		b = rest
		if f.num > 3 {
			continue
		}
		if f.num == 1 && f.typ != protowire.VarintType || f.num > 1 && f.typ != protowire.BytesType {
			return p, errWire
		}
		if !had.add(f.num) {
			return p, errTwice
		}
		switch f.num {
		case 1:
			p.Kind, err = enum[policyv1.PolicyKind](f.num8, 6)
		case 2:
			p.Namespace, err = d.string(f.data)
		case 3:
			if len(f.data) == 0 {
				return p, fieldError("name", errMandatory)
			}
			p.Name, err = d.string(f.data)
		}
		if err != nil {
			return p, err
		}
	}
	if !had.has(1) || !had.has(3) {
		return p, fieldError("kind, name", errMandatory)
	}
	return p, nil
}

func (d *Decoder) staged(b []byte) (*Staged, error) {
	s := &Staged{}
	var had seen
	d.staging = d.staging[:0]
	policies := 0
	for len(b) > 0 {
		f, rest, err := next(b)
		if err != nil {
			return nil, err
		}
		b = rest
		if f.num > 4 {
			continue
		}
		if f.num == 1 && f.typ != protowire.VarintType || f.num > 1 && f.typ != protowire.BytesType {
			return nil, errWire
		}
		if f.num == 4 {
			if policies++; policies > MaxPolicies {
				return nil, errTooLong
			}
			d.staging = protowire.AppendBytes(d.staging, f.data)
			continue
		}
		if !had.add(f.num) {
			return nil, errTwice
		}
		switch f.num {
		case 1:
			s.Action, err = enum[policyv1.Action](f.num8, 4)
		case 2:
			s.Policy, err = d.policy(f.data)
		case 3:
			s.Rule, err = d.string(f.data)
		}
		if err != nil {
			return nil, err
		}
	}
	if !had.has(1) {
		return nil, fieldError("action", errMandatory)
	}
	var err error
	s.Policies, err = d.policies(d.staging)
	return s, err
}

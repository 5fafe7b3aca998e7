package record

import (
	"fmt"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
)

// maxFields of a change that are told.
const maxFields = 64

// context reads what was known of a packet, and shares it.
func (d *Decoder) context(b []byte) (*Context, error) {
	if c, ok := d.contexts[string(b)]; ok {
		return c, nil
	}
	c := &Context{}
	if err := d.contextFields(b, c); err != nil {
		return nil, err
	}
	if d.contexts == nil {
		return nil, nil
	}
	if len(d.contexts) >= internMax {
		clear(d.contexts)
	}
	d.contexts[string(b)] = c
	return c, nil
}

func (d *Decoder) contextFields(b []byte, c *Context) error {
	names := [...]string{1: "source", 2: "destination", 3: "service", 4: "policies"}
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
		if f.typ != protowire.BytesType {
			return fieldError(name, errWire)
		}
		if f.num != 4 && !had.add(f.num) {
			return fieldError(name, errTwice)
		}
		switch f.num {
		case 1:
			c.Source, err = d.end(f.data)
		case 2:
			c.Destination, err = d.end(f.data)
		case 3:
			c.Service, err = d.string(f.data)
		case 4:
			if len(c.Policies) == MaxPolicies {
				return fieldError(name, errTooLong)
			}
			var v Version
			v, err = d.version(f.data)
			c.Policies = append(c.Policies, v)
		}
		if err != nil {
			return fieldError(name, err)
		}
	}
	return nil
}

func (d *Decoder) end(b []byte) (e End, err error) {
	names := [...]string{1: "namespace", 2: "pod", 3: "node", 4: "workload"}
	var had seen
	for len(b) > 0 {
		f, rest, err := next(b)
		if err != nil {
			return e, err
		}
		b = rest
		if int(f.num) >= len(names) {
			continue
		}
		if f.typ != protowire.BytesType {
			return e, fieldError(names[f.num], errWire)
		}
		if len(f.data) > 0 && !had.add(f.num) {
			return e, fieldError(names[f.num], errTwice)
		}
		s, err := d.string(f.data)
		if err != nil {
			return e, fieldError(names[f.num], err)
		}
		*[...]*string{1: &e.Namespace, 2: &e.Pod, 3: &e.Node, 4: &e.Workload}[f.num] = s
	}
	if had.has(1) != had.has(2) || !had.has(2) && !had.has(3) {
		return e, errWhose
	}
	return e, nil
}

func (d *Decoder) version(b []byte) (v Version, err error) {
	var had seen
	for len(b) > 0 {
		f, rest, err := next(b)
		if err != nil {
			return v, err
		}
		b = rest
		if f.num > 2 {
			continue
		}
		if f.num == 1 && f.typ != protowire.BytesType || f.num == 2 && f.typ != protowire.VarintType {
			return v, errWire
		}
		if !had.add(f.num) {
			return v, errTwice
		}
		if f.num == 2 {
			v.Generation = int64(f.num8)
		} else if v.UID, err = d.string(f.data); err != nil {
			return v, err
		}
	}
	return v, nil
}

// change reads a change. There are few: the generated code does.
func change(b []byte) (*Change, error) {
	m := &auditv1.ChangeEvent{}
	if err := proto.Unmarshal(b, m); err != nil {
		return nil, errWire
	}
	c := &Change{Kind: m.GetKind(), Object: m.GetObject(), Fields: m.GetFields(), PodsBefore: m.GetPodsBefore(), PodsAfter: m.GetPodsAfter()}
	var err error
	if c.Time, err = moment(m.GetTime().GetSeconds(), m.GetTime().GetNanos()); err != nil || m.GetTime() == nil {
		return nil, fieldError("time", errRange)
	}
	if _, known := auditv1.ChangeKind_name[int32(c.Kind)]; !known || c.Kind == 0 {
		return nil, fieldError("kind", errRange)
	}
	if len(c.Fields) > maxFields {
		return nil, fieldError("fields", errTooLong)
	}
	o := c.Object
	if o.GetKind() == "" || o.GetName() == "" {
		return nil, fieldError("object", fmt.Errorf("kind, name: %w", errMandatory))
	}
	for _, s := range append([]string{o.GetApiVersion(), o.GetKind(), o.GetNamespace(), o.GetName(), o.GetUid(), o.GetManager(), o.GetUser()}, c.Fields...) {
		if len(s) > MaxString {
			return nil, fieldError("object", errTooLong)
		}
	}
	if !utf8.Valid(o.GetManifest()) {
		return nil, fieldError("object.manifest", errUTF8)
	}
	return c, nil
}

func test(b []byte) (*Test, error) {
	m := &auditv1.TestEvent{}
	if err := proto.Unmarshal(b, m); err != nil {
		return nil, errWire
	}
	t := &Test{Sink: m.GetSink(), ID: m.GetId()}
	var err error
	if t.Time, err = moment(m.GetTime().GetSeconds(), m.GetTime().GetNanos()); err != nil || m.GetTime() == nil {
		return nil, fieldError("time", errRange)
	}
	if t.Sink == "" || t.ID == "" || len(t.Sink) > MaxString || len(t.ID) > MaxString {
		return nil, fieldError("sink, id", errRange)
	}
	return t, nil
}

// moment is a time within the years that an event's may be in.
func moment(seconds int64, nanos int32) (time.Time, error) {
	if seconds < earliest || seconds >= latest || nanos < 0 || nanos >= 1e9 {
		return time.Time{}, errRange
	}
	return time.Unix(seconds, int64(nanos)).UTC(), nil
}

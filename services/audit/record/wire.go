package record

import (
	"net/netip"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// field is one field of a message.
type field struct {
	num  protowire.Number
	typ  protowire.Type
	num8 uint64 // Of varints.
	data []byte // Of length-prefixed fields.
}

// next takes the first field off b. Fields of other types are skipped over.
func next(b []byte) (f field, rest []byte, err error) {
	num, typ, n := protowire.ConsumeTag(b)
	if n < 0 {
		return f, nil, errWire
	}
	f.num, f.typ = num, typ
	b = b[n:]
	switch typ {
	case protowire.VarintType:
		f.num8, n = protowire.ConsumeVarint(b)
	case protowire.BytesType:
		f.data, n = protowire.ConsumeBytes(b)
	default:
		n = protowire.ConsumeFieldValue(num, typ, b)
	}
	if n < 0 {
		return f, nil, errWire
	}
	return f, b[n:], nil
}

// seen notes which fields of a message were there.
type seen uint64

func (s *seen) add(num protowire.Number) bool {
	if num > 63 {
		return true // Not known, and so never twice.
	}
	bit := seen(1) << num
	if *s&bit != 0 {
		return false
	}
	*s |= bit
	return true
}

func (s seen) has(num protowire.Number) bool { return s&(1<<num) != 0 }

func timestamp(b []byte) (time.Time, error) {
	var seconds, nanos uint64
	var had seen
	for len(b) > 0 {
		f, rest, err := next(b)
		if err != nil {
			return time.Time{}, err
		}
		b = rest
		if f.num > 2 {
			continue
		}
		if f.typ != protowire.VarintType {
			return time.Time{}, errWire
		}
		if !had.add(f.num) {
			return time.Time{}, errTwice
		}
		if f.num == 1 {
			seconds = f.num8
		} else {
			nanos = f.num8
		}
	}
	if nanos >= 1e9 {
		return time.Time{}, errRange
	}
	return moment(int64(seconds), int32(nanos))
}

func address(b []byte) (netip.Addr, error) {
	a, ok := netip.AddrFromSlice(b)
	if !ok {
		return a, errAddress
	}
	return a, nil
}

func within(v, most uint64) (uint64, error) {
	if v > most {
		return 0, errRange
	}
	return v, nil
}

func number(v uint64, most uint32) (Number, error) {
	if v > uint64(most) {
		return Number{}, errRange
	}
	return Number{Value: uint32(v), Set: true}, nil
}

func enum[E ~int32](v uint64, most uint64) (E, error) {
	if v == 0 || v > most {
		return 0, errRange
	}
	return E(v), nil
}

func optionalEnum[E ~int32](v uint64, most uint64) (E, error) {
	v, err := within(v, most)
	return E(v), err
}

package engine

import (
	"net/netip"

	"google.golang.org/protobuf/encoding/protowire"
)

// The functions below append fields as proto3 has them: a zero value is left
// out, but an entry of a repeated field is not.

// open begins a message in a field; shut ends the one that begins there. One
// byte is set aside for the length, which is enough for most messages.
func open(b []byte, field protowire.Number) ([]byte, int) {
	b = append(protowire.AppendTag(b, field, protowire.BytesType), 0)
	return b, len(b)
}

func shut(b []byte, start int) []byte {
	n := len(b) - start
	if n < 0x80 {
		b[start-1] = byte(n)
		return b
	}
	size := protowire.SizeVarint(uint64(n))
	for range size - 1 {
		b = append(b, 0)
	}
	copy(b[start+size-1:], b[start:start+n])
	protowire.AppendVarint(b[:start-1], uint64(n))
	return b
}

func appendUint(b []byte, field protowire.Number, v uint64) []byte {
	if v == 0 {
		return b
	}
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), v)
}

func appendOptional(b []byte, field protowire.Number, v *uint32) []byte {
	if v == nil {
		return b
	}
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), uint64(*v))
}

func appendBool(b []byte, field protowire.Number, v bool) []byte {
	if !v {
		return b
	}
	return appendUint(b, field, 1)
}

func appendString(b []byte, field protowire.Number, v string) []byte {
	if v == "" {
		return b
	}
	return protowire.AppendString(protowire.AppendTag(b, field, protowire.BytesType), v)
}

// appendStrings appends every value, even if it is empty.
func appendStrings(b []byte, field protowire.Number, values []string) []byte {
	for _, v := range values {
		b = protowire.AppendString(protowire.AppendTag(b, field, protowire.BytesType), v)
	}
	return b
}

// appendBytes appends the value even if it is empty.
func appendBytes(b []byte, field protowire.Number, v []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, field, protowire.BytesType), v)
}

func appendIDs(b []byte, field protowire.Number, groups []*group) []byte {
	for _, g := range groups {
		b = appendBytes(b, field, g.id[:])
	}
	return b
}

func appendAddrs(b []byte, field protowire.Number, addrs []netip.Addr) []byte {
	for _, a := range addrs {
		b = appendAddr(b, field, a.Unmap())
	}
	return b
}

func appendAddr(b []byte, field protowire.Number, a netip.Addr) []byte {
	if a.Is4() {
		raw := a.As4()
		return appendBytes(b, field, raw[:])
	}
	raw := a.As16()
	return appendBytes(b, field, raw[:])
}

package storage

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"math/bits"

	"github.com/zeebo/xxh3"
)

// Digest is a 128-bit sum of the hashes of items: it depends on which items
// there are and not on the order in which they came. The zero Digest is that
// of no scope at all.
//
// It tells by accident unequal states apart; it is no proof against someone
// who may choose the content of items and wants two states to look alike.
type Digest struct{ hi, lo uint64 }

// Plus returns the sum modulo 2^128.
func (d Digest) Plus(o Digest) Digest {
	lo, carry := bits.Add64(d.lo, o.lo, 0)
	hi, _ := bits.Add64(d.hi, o.hi, carry)
	return Digest{hi: hi, lo: lo}
}

// Minus returns the difference modulo 2^128.
func (d Digest) Minus(o Digest) Digest {
	lo, borrow := bits.Sub64(d.lo, o.lo, 0)
	hi, _ := bits.Sub64(d.hi, o.hi, borrow)
	return Digest{hi: hi, lo: lo}
}

// Bytes is the digest in 16 bytes, big endian.
func (d Digest) Bytes() []byte {
	b := d.array()
	return b[:]
}

func (d Digest) array() (b [16]byte) {
	binary.BigEndian.PutUint64(b[:8], d.hi)
	binary.BigEndian.PutUint64(b[8:], d.lo)
	return b
}

// String is the digest in hexadecimal.
func (d Digest) String() string { return hex.EncodeToString(d.Bytes()) }

// DigestFromBytes reads what Bytes wrote; ok is false for another length.
func DigestFromBytes(b []byte) (d Digest, ok bool) {
	if len(b) != 16 {
		return Digest{}, false
	}
	return Digest{hi: binary.BigEndian.Uint64(b), lo: binary.BigEndian.Uint64(b[8:])}, true
}

// ScopeID names a scope by its content.
type ScopeID [16]byte

// NewScopeID derives an id from what the scope stands for. The hash is
// collision resistant, since users choose what goes into it.
func NewScopeID(kind ScopeKind, content string) ScopeID {
	var room [256]byte
	sum := sha256.Sum256(append(append(room[:0], byte(kind)), content...))
	return ScopeID(sum[:len(ScopeID{})])
}

// String is the id in hexadecimal.
func (id ScopeID) String() string { return hex.EncodeToString(id[:]) }

// ScopeIDFromBytes reads an id from the wire; ok is false for another length.
func ScopeIDFromBytes(b []byte) (id ScopeID, ok bool) {
	if len(b) != len(id) {
		return id, false
	}
	copy(id[:], b)
	return id, true
}

// scopeHash is what a scope adds to a digest by being there, empty or not.
func scopeHash(id ScopeID) Digest {
	h := xxh3.Hash128Seed(id[:], 1)
	return Digest{hi: h.Hi, lo: h.Lo}
}

// itemHash is what an item adds to the digest of a scope.
func itemHash(id ScopeID, body string) Digest {
	h := xxh3.HashString128(body)
	var b [32]byte
	copy(b[:16], id[:])
	binary.BigEndian.PutUint64(b[16:], h.Hi)
	binary.BigEndian.PutUint64(b[24:], h.Lo)
	h = xxh3.Hash128(b[:])
	return Digest{hi: h.Hi, lo: h.Lo}
}

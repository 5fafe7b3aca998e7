package openflow

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"
)

// TestMetadataIsWhatAMatchOfItSays: fields are found as they came, whatever the width
// in which registers came, as a match that is made of them has them.
func TestMetadataIsWhatAMatchOfItSays(t *testing.T) {
	for seed := range uint64(500) {
		r := rand.New(rand.NewPCG(seed, 3))
		var oxm []byte
		entry := func(class uint16, number uint8, width int) {
			masked := r.IntN(2) == 0 && number != fields[FieldInPort].number
			if !masked {
				oxm = append(oxm, byte(class>>8), byte(class), number<<1, byte(width))
			} else {
				oxm = append(oxm, byte(class>>8), byte(class), number<<1|1, byte(2*width))
			}
			for range width {
				oxm = append(oxm, byte(r.Uint32()))
			}
			for i := 0; masked && i < width; i += 4 { // Words of a mask that are whole, or missing, or neither.
				word := []uint32{0, 1<<32 - 1, r.Uint32()}[r.IntN(3)]
				if width == 4 && word == 0 {
					word = 1
				}
				oxm = binary.BigEndian.AppendUint32(oxm, word)
			}
		}
		id := func(id FieldID) { entry(fields[id].class, fields[id].number, int(fields[id].width)) }
		id(FieldInPort)
		for n := 0; n < 16; {
			switch width := r.IntN(4); {
			case width == 0:
				n++ // Zero: not sent.
			case width == 1:
				id(FieldReg(n))
				n++
			case width == 2 && n%2 == 0:
				entry(classPacketReg, uint8(n/2), 8)
				n += 2
			case width == 3 && n%4 == 0:
				id(FieldXXReg(n / 4))
				n += 4
			}
		}
		id(FieldCTLabel)
		oxm = append(oxm, 0xff, 0xff, 2, 4, 1, 2, 3, 4) // Not known.
		var b matchBuilder
		if err := b.decodeOXM(string(oxm)); err != nil {
			t.Fatal(err)
		}
		want := b.match()
		var m Metadata
		if err := m.read(string(oxm)); err != nil {
			t.Fatal(err)
		}
		for f := range fieldCount {
			if _, wide := f.Registers(); wide {
				continue
			}
			w, had := want.Field(f)
			got, has := m.Field(f)
			if has != had || got != w.Value {
				t.Fatalf("seed %d: %s is %v, %v; the match has %v, %v", seed, f, got, has, w.Value, had)
			}
		}
	}
}

package openflow

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// GroupType says which of a group's buckets a packet goes through.
type GroupType uint8

// Group types.
const (
	GroupAll      GroupType = 0 // every bucket, each with a copy
	GroupSelect   GroupType = 1 // one, chosen by a hash of the connection
	GroupIndirect GroupType = 2 // its only one
)

// Bucket is one set of steps of a group.
type Bucket struct {
	Weight  uint16 // share of the packets in a GroupSelect; 0: none. Otherwise 0.
	Actions Actions
}

// GroupHash is what a GroupSelect chooses its bucket by.
type GroupHash uint8

const (
	// HashDefault is the switch's choice. In the userspace datapath of Open vSwitch
	// 3.1, and in all where the weights, with the least for 1, add up to more than
	// 256, it leaves out the ports of UDP, and takes the hardware addresses in.
	HashDefault GroupHash = iota
	// HashDatapath is a hash of addresses, protocol and ports, worked out in the
	// datapath, up to that sum; beyond it is HashDefault.
	HashDatapath
	// HashFields is a hash of the same whatever the sum, for which the switch itself
	// sees each connection's first packet.
	HashFields

	hashUnknown GroupHash = 0xff // as read
)

// Group is an entry of a bridge's group table.
type Group struct {
	ID      uint32
	Type    GroupType
	Hash    GroupHash // of a GroupSelect; otherwise 0
	Buckets []Bucket
}

// Same tells whether two groups are the same.
func (g Group) Same(o Group) bool {
	if g.ID != o.ID || g.Type != o.Type || g.Hash != o.Hash || len(g.Buckets) != len(o.Buckets) {
		return false
	}
	for i := range g.Buckets {
		if g.Buckets[i] != o.Buckets[i] {
			return false
		}
	}
	return true
}

// String is the group in the text form of ovs-ofctl add-group.
func (g Group) String() string {
	var b strings.Builder
	name := map[GroupType]string{GroupAll: "all", GroupSelect: "select", GroupIndirect: "indirect"}[g.Type]
	fmt.Fprintf(&b, "group_id=%d,type=%s", g.ID, name)
	if g.Hash != HashDefault {
		b.WriteString(",selection_method=" + g.Hash.String())
	}
	for _, k := range g.Buckets {
		b.WriteString(",bucket=")
		if g.Type == GroupSelect {
			fmt.Fprintf(&b, "weight:%d,", k.Weight)
		}
		b.WriteString("actions=" + k.Actions.String())
	}
	return b.String()
}

// Fits tells whether the group can be said in one message, also in a bundle.
func (g *Group) Fits() bool {
	n := HeaderLen + 16 + overhead + len(g.Hash.appendProp(nil))
	for i := range g.Buckets {
		n += 24 + len(g.Buckets[i].Actions.steps)
	}
	return n <= MaxMessage
}

// Commands of a group modification.
const (
	groupDelete   = 2
	groupAddOrMod = 0x8000
	bucketNone    = 0xffffffff
)

// AppendGroupPut writes the message that adds the group or replaces the one
// with its id.
func AppendGroupPut(b []byte, xid uint32, g *Group) []byte {
	start := len(b)
	b = appendHeader(b, typeGroupMod, xid)
	b = binary.BigEndian.AppendUint16(b, groupAddOrMod)
	b = append(b, byte(g.Type), 0)
	b = binary.BigEndian.AppendUint32(b, g.ID)
	at := len(b)
	b = append(b, 0, 0, 0, 0)
	b = binary.BigEndian.AppendUint32(b, bucketNone)
	first := len(b)
	for i := range g.Buckets {
		b = appendBucket(b, uint32(i), g.Type, &g.Buckets[i])
	}
	binary.BigEndian.PutUint16(b[at:], uint16(len(b)-first))
	return finish(g.Hash.appendProp(b), start)
}

func appendBucket(b []byte, id uint32, t GroupType, k *Bucket) []byte {
	if k.Actions.next != 0 {
		panic("openflow: goto_table in a bucket")
	}
	start := len(b)
	b = append(b, 0, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(len(k.Actions.steps)))
	b = binary.BigEndian.AppendUint32(b, id)
	b = append(b, k.Actions.steps...)
	if t == GroupSelect {
		b = append(b, 0, 0, 0, 8)
		b = binary.BigEndian.AppendUint16(b, k.Weight)
		b = append(b, 0, 0)
	}
	binary.BigEndian.PutUint16(b[start:], uint16(len(b)-start))
	return b
}

// AppendGroupDelete writes the message that removes a group, with every flow
// that refers to it; that there is none is no error.
func AppendGroupDelete(b []byte, xid uint32, id uint32) []byte {
	start := len(b)
	b = appendHeader(b, typeGroupMod, xid)
	b = binary.BigEndian.AppendUint16(b, groupDelete)
	b = append(b, 0, 0)
	b = binary.BigEndian.AppendUint32(b, id)
	b = append(b, 0, 0, 0, 0)
	b = binary.BigEndian.AppendUint32(b, bucketNone)
	return finish(b, start)
}

// AppendGroupDescRequest writes the request for all groups.
func AppendGroupDescRequest(b []byte, xid uint32) []byte {
	start := len(b)
	b = appendMultipart(b, xid, multipartGroupDesc)
	b = append(b, 0xff, 0xff, 0xff, 0xfc, 0, 0, 0, 0)
	return finish(b, start)
}

// DecodeGroupDesc reads the groups of one part of the reply.
func DecodeGroupDesc(body []byte) ([]Group, error) {
	var out []Group
	for s := string(body); s != ""; {
		if len(s) < 16 {
			return nil, errors.New("group: cut short")
		}
		length, buckets := int(be16(s)), int(be16(s[8:]))
		if length < 16 || length > len(s) || 16+buckets > length {
			return nil, fmt.Errorf("group: length %d, buckets %d of %d", length, buckets, len(s))
		}
		g := Group{ID: be32(s[4:]), Type: GroupType(s[2])}
		var err error
		if g.Buckets, err = decodeBuckets(s[16 : 16+buckets]); err != nil {
			return nil, fmt.Errorf("group %d: %w", g.ID, err)
		}
		if g.Hash, err = decodeGroupHash(s[16+buckets : length]); err != nil {
			return nil, fmt.Errorf("group %d: %w", g.ID, err)
		}
		out = append(out, g)
		s = s[length:]
	}
	return out, nil
}

func decodeBuckets(s string) ([]Bucket, error) {
	var out []Bucket
	for s != "" {
		if len(s) < 8 {
			return nil, errors.New("bucket: cut short")
		}
		length, steps := int(be16(s)), int(be16(s[2:]))
		if length < 8 || length > len(s) || 8+steps > length {
			return nil, fmt.Errorf("bucket: length %d, actions %d of %d", length, steps, len(s))
		}
		k := Bucket{Actions: Actions{steps: s[8 : 8+steps]}}
		if _, err := decodeSteps(k.Actions.steps, 0); err != nil {
			return nil, fmt.Errorf("bucket: %w", err)
		}
		for props := s[8+steps : length]; props != ""; {
			typ, content, tail, err := cutProp(props)
			if err != nil {
				return nil, fmt.Errorf("bucket: %w", err)
			}
			if typ == 0 && len(content) >= 2 {
				k.Weight = be16(content)
			}
			props = tail
		}
		out = append(out, k)
		s = s[length:]
	}
	return out, nil
}

package openflow

import (
	"encoding/binary"
	"strings"
)

// The property of a group that says how it selects.
const (
	propExperimenter = 0xffff
	netronomeVendor  = 0x0000154d
	selectionMethod  = 1
	selectionHeader  = 36 // what is in the property before fields
)

// hashedFields are those of HashFields that a packet has.
var hashedFields = [...]FieldID{
	FieldIPv4Src, FieldIPv4Dst, FieldIPv6Src, FieldIPv6Dst, FieldIPProto,
	FieldTCPSrc, FieldTCPDst, FieldUDPSrc, FieldUDPDst, FieldSCTPSrc, FieldSCTPDst,
}

// String is the method in the text form of ovs-ofctl.
func (h GroupHash) String() string {
	switch h {
	case HashDatapath:
		return "dp_hash"
	case HashFields:
		names := make([]string, len(hashedFields))
		for i, id := range hashedFields {
			names[i] = id.actionName()
		}
		return "hash,fields(" + strings.Join(names, ",") + ")"
	case HashDefault:
		return "default"
	}
	return "foreign"
}

// appendProp writes the property; the default has none.
func (h GroupHash) appendProp(b []byte) []byte {
	method := map[GroupHash]string{HashDatapath: "dp_hash", HashFields: "hash"}[h]
	if method == "" {
		return b
	}
	content := binary.BigEndian.AppendUint32(make([]byte, 0, 160), netronomeVendor)
	content = binary.BigEndian.AppendUint32(content, selectionMethod)
	content = append(content, 0, 0, 0, 0)
	content = append(content, method...)
	content = append(content, make([]byte, selectionHeader-len(content))...) // the parameter is 0: five fields
	if h == HashFields {
		for _, id := range hashedFields {
			content = appendOXM(content, id, id.full(), id.full())
		}
	}
	return appendProp(b, propExperimenter, content)
}

// decodeGroupHash reads the properties of a group.
func decodeGroupHash(props string) (GroupHash, error) {
	out := HashDefault
	for props != "" {
		typ, content, tail, err := cutProp(props)
		if err != nil {
			return 0, err
		}
		props = tail
		if typ == propExperimenter {
			out = groupHash(content)
		}
	}
	return out, nil
}

func groupHash(content string) GroupHash {
	if len(content) < selectionHeader || be32(content) != netronomeVendor || be32(content[4:]) != selectionMethod || be64(content[28:]) != 0 {
		return hashUnknown
	}
	fields := content[selectionHeader:]
	switch method := strings.TrimRight(content[12:28], "\x00"); {
	case method == "dp_hash" && fields == "":
		return HashDatapath
	case method == "hash" && hashesFields(fields):
		return HashFields
	}
	return hashUnknown
}

// hashesFields tells whether fields, which come in any order, are those of HashFields.
func hashesFields(s string) bool {
	var want, have fieldSet
	for _, id := range hashedFields {
		want.add(id)
	}
	for s != "" {
		e, tail, err := cutOXM(s)
		if err != nil {
			return false
		}
		f, ok := e.field()
		if !ok || e.hasMask || f.Value != f.ID.full() {
			return false
		}
		have.add(f.ID)
		s = tail
	}
	return have == want
}

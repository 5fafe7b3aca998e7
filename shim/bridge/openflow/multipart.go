package openflow

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// MultipartType is the type of a multipart request and its reply.
type MultipartType uint16

// Multipart types.
const (
	multipartFlow        MultipartType = 1
	multipartTable       MultipartType = 3
	multipartGroupDesc   MultipartType = 7
	multipartMeter       MultipartType = 9
	multipartMeterConfig MultipartType = 10
	multipartMeterLimits MultipartType = 11
	multipartFlowMonitor MultipartType = 16
)

func appendMultipart(b []byte, xid uint32, t MultipartType) []byte {
	b = appendHeader(b, typeMultipartRequest, xid)
	b = binary.BigEndian.AppendUint16(b, uint16(t))
	return append(b, 0, 0, 0, 0, 0, 0)
}

// Part is one part of a multipart reply.
type Part struct {
	Type MultipartType
	More bool // further parts follow
	Body []byte
}

// DecodePart reads the body of a multipart reply.
func DecodePart(body []byte) (Part, error) {
	if len(body) < 8 {
		return Part{}, errors.New("multipart: cut short")
	}
	return Part{
		Type: MultipartType(binary.BigEndian.Uint16(body)),
		More: body[3]&1 != 0,
		Body: body[8:],
	}, nil
}

// TableStats are the counters of one table.
type TableStats struct {
	Table           uint8
	Active          uint32 // flows in it
	Lookups, Misses uint64 // packets that reached it, and those that hit no flow
}

// AppendTableStatsRequest writes the request for every table's counters.
func AppendTableStatsRequest(b []byte, xid uint32) []byte {
	start := len(b)
	return finish(appendMultipart(b, xid, multipartTable), start)
}

// DecodeTableStats reads one part of the reply.
func DecodeTableStats(body []byte) ([]TableStats, error) {
	if len(body)%24 != 0 {
		return nil, fmt.Errorf("table stats: length %d", len(body))
	}
	var out []TableStats
	for ; len(body) > 0; body = body[24:] {
		lookups, hits := binary.BigEndian.Uint64(body[8:]), binary.BigEndian.Uint64(body[16:])
		out = append(out, TableStats{body[0], binary.BigEndian.Uint32(body[4:]), lookups, lookups - hits})
	}
	return out, nil
}

package server

import (
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // Registers the codec that is wrapped here.
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
)

// frame is an encoded policyv1.Cut, sent as a SubscribeResponse without being
// decoded.
type frame []byte

// responseCut is the number of SubscribeResponse.cut.
const responseCut = 2

// codec is the proto codec, but for frames.
type codec struct{ encoding.CodecV2 }

// Codec returns the codec that a server of PolicyService must be forced to use.
func Codec() encoding.CodecV2 { return codec{encoding.GetCodecV2("proto")} }

// Marshal implements encoding.CodecV2.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	f, ok := v.(frame)
	if !ok {
		return c.CodecV2.Marshal(v)
	}
	if len(f) > copyBytes {
		return mem.BufferSlice{mem.SliceBuffer(appendHead(nil, f)), mem.SliceBuffer(f)}, nil
	}
	pool := mem.DefaultBufferPool() // gRPC gives it back once it is written.
	buf := pool.Get(headBytes + len(f))
	*buf = append(appendHead((*buf)[:0], f), f...)
	return mem.BufferSlice{mem.NewBuffer(buf, pool)}, nil
}

// Frames of up to copyBytes are copied behind their head, of at most headBytes:
// that costs less than a second buffer on gRPC's way.
const (
	copyBytes = 4 << 10
	headBytes = 1 + 5
)

func appendHead(b []byte, f frame) []byte {
	b = protowire.AppendTag(b, responseCut, protowire.BytesType)
	return protowire.AppendVarint(b, uint64(len(f)))
}

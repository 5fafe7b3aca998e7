package server

import (
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // Registers the codec that is wrapped here.
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
)

// frame is an encoded policyv1.Cut, sent as a SubscribeResponse without being
// decoded or copied.
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
	head := protowire.AppendTag(nil, responseCut, protowire.BytesType)
	head = protowire.AppendVarint(head, uint64(len(f)))
	return mem.BufferSlice{mem.SliceBuffer(head), mem.SliceBuffer(f)}, nil
}

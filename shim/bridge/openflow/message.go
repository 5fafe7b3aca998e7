package openflow

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Version is the version byte of OpenFlow 1.5.
const Version = 0x06

// MessageType is the type of an OpenFlow message.
type MessageType uint8

// The message types that appear on a bridge's management socket.
const (
	TypeHello            MessageType = 0
	TypeError            MessageType = 1
	TypeEchoRequest      MessageType = 2
	TypeEchoReply        MessageType = 3
	TypeExperimenter     MessageType = 4
	TypeFeaturesReply    MessageType = 6
	TypePacketIn         MessageType = 10
	TypeFlowRemoved      MessageType = 11
	TypePortStatus       MessageType = 12
	TypeMultipartReply   MessageType = 19
	TypeBarrierReply     MessageType = 21
	TypeBundleControl    MessageType = 33
	typeFeaturesRequest  MessageType = 5
	typeSetConfig        MessageType = 9
	typePacketOut        MessageType = 13
	typeFlowMod          MessageType = 14
	typeGroupMod         MessageType = 15
	typeMultipartRequest MessageType = 18
	typeBarrierRequest   MessageType = 20
	typeMeterMod         MessageType = 29
	typeBundleAdd        MessageType = 34
)

// HeaderLen is the length of the header that every message begins with.
const HeaderLen = 8

// Message is one message as it came.
type Message struct {
	Version uint8
	Type    MessageType
	XID     uint32
	Body    []byte // what follows the header
}

// ReadMessage reads one message. Its body lies in buf, if that is large enough
// (64 KiB always is), and is then overwritten by the next call.
func ReadMessage(r io.Reader, buf []byte) (Message, error) {
	var h [HeaderLen]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return Message{}, err
	}
	length := int(binary.BigEndian.Uint16(h[2:]))
	if length < HeaderLen {
		return Message{}, fmt.Errorf("openflow: message of length %d", length)
	}
	n := length - HeaderLen
	if n > len(buf) {
		buf = make([]byte, n) // at most 64 KiB: the length has 16 bits
	}
	body := buf[:n]
	if _, err := io.ReadFull(r, body); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return Message{}, err
	}
	return Message{h[0], MessageType(h[1]), binary.BigEndian.Uint32(h[4:]), body}, nil
}

func appendHeader(b []byte, t MessageType, xid uint32) []byte {
	b = append(b, Version, byte(t), 0, 0)
	return binary.BigEndian.AppendUint32(b, xid)
}

// MaxMessage is the greatest length of a message.
const MaxMessage = 0xffff

// finish writes the length of the message that began at start. A message beyond
// MaxMessage cannot be said in OpenFlow; callers that take sizes from outside
// check with Flow.Fits and Group.Fits before.
func finish(b []byte, start int) []byte {
	length := len(b) - start
	if length > MaxMessage {
		panic(fmt.Sprintf("openflow: message of %d bytes", length))
	}
	binary.BigEndian.PutUint16(b[start+2:], uint16(length))
	return b
}

// overhead is what a bundle adds to the message inside.
const overhead = 2 * HeaderLen

// Fits tells whether the flow can be said in one message, also in a bundle.
func (f *Flow) Fits() bool {
	return HeaderLen+48+len(f.Match.oxm)+8+f.Actions.Size()+overhead <= MaxMessage
}

// AppendHello writes the greeting that offers OpenFlow 1.5 alone.
func AppendHello(b []byte, xid uint32) []byte {
	start := len(b)
	b = appendHeader(b, TypeHello, xid)
	b = append(b, 0, 1, 0, 8, 0, 0, 0, 1<<Version)
	return finish(b, start)
}

// AppendEcho writes an echo request, or the reply to one, with its content.
func AppendEcho(b []byte, xid uint32, reply bool, content []byte) []byte {
	t := TypeEchoRequest
	if reply {
		t = TypeEchoReply
	}
	start := len(b)
	b = append(appendHeader(b, t, xid), content...)
	return finish(b, start)
}

// AppendFeaturesRequest writes the request for the bridge's identity.
func AppendFeaturesRequest(b []byte, xid uint32) []byte {
	start := len(b)
	return finish(appendHeader(b, typeFeaturesRequest, xid), start)
}

// Features are what a bridge says of itself.
type Features struct {
	DatapathID   uint64
	Tables       uint8
	Capabilities uint32
}

// DecodeFeatures reads the body of a features reply.
func DecodeFeatures(body []byte) (Features, error) {
	if len(body) < 24 {
		return Features{}, errors.New("features: cut short")
	}
	return Features{
		DatapathID:   binary.BigEndian.Uint64(body),
		Tables:       body[12],
		Capabilities: binary.BigEndian.Uint32(body[16:]),
	}, nil
}

// AppendBarrier writes the request that is answered when all before it is done.
func AppendBarrier(b []byte, xid uint32) []byte {
	start := len(b)
	return finish(appendHeader(b, typeBarrierRequest, xid), start)
}

// AppendSetConfig writes how much of a packet a table miss sends. A management
// connection receives packet-ins only after one with more than 0.
func AppendSetConfig(b []byte, xid uint32, missSendLen uint16) []byte {
	start := len(b)
	b = appendHeader(b, typeSetConfig, xid)
	b = append(b, 0, 0)
	b = binary.BigEndian.AppendUint16(b, missSendLen)
	return finish(b, start)
}

// BundleControl is what a bundle control message says.
type BundleControl uint16

// Bundle control messages: requests that we write, replies that we read.
const (
	BundleOpen          BundleControl = 0
	BundleOpenReply     BundleControl = 1
	BundleCommit        BundleControl = 4
	BundleCommitReply   BundleControl = 5
	BundleDiscard       BundleControl = 6
	BundleDiscardReply  BundleControl = 7
	bundleAtomicOrdered               = 3
)

// AppendBundleControl writes a bundle control request. Bundles are atomic and
// ordered.
func AppendBundleControl(b []byte, xid, bundle uint32, c BundleControl) []byte {
	start := len(b)
	b = appendHeader(b, TypeBundleControl, xid)
	b = binary.BigEndian.AppendUint32(b, bundle)
	b = binary.BigEndian.AppendUint16(b, uint16(c))
	b = binary.BigEndian.AppendUint16(b, bundleAtomicOrdered)
	return finish(b, start)
}

// DecodeBundleControl reads the body of a bundle control message.
func DecodeBundleControl(body []byte) (bundle uint32, c BundleControl, err error) {
	if len(body) < 8 {
		return 0, 0, errors.New("bundle control: cut short")
	}
	return binary.BigEndian.Uint32(body), BundleControl(binary.BigEndian.Uint16(body[4:])), nil
}

// AppendBundled wraps the message that inside appends, which must have the same
// xid, so that it becomes part of a bundle.
func AppendBundled(b []byte, xid, bundle uint32, inside func(b []byte) []byte) []byte {
	start := len(b)
	b = appendHeader(b, typeBundleAdd, xid)
	b = binary.BigEndian.AppendUint32(b, bundle)
	b = append(b, 0, 0, 0, bundleAtomicOrdered)
	return finish(inside(b), start)
}

func appendNiciraHeader(b []byte, xid uint32, subtype uint32) []byte {
	b = appendHeader(b, TypeExperimenter, xid)
	b = binary.BigEndian.AppendUint32(b, niciraVendor)
	return binary.BigEndian.AppendUint32(b, subtype)
}

// Subtypes of the Nicira messages.
const (
	nxSetPacketInFormat = 16
	nxSetControllerID   = 20
	nxResume            = 28
	nxPacketIn2         = 30
	nxCTFlush           = 32
)

// AppendSetControllerID writes the id by which Controller actions choose this
// connection.
func AppendSetControllerID(b []byte, xid uint32, id uint16) []byte {
	start := len(b)
	b = appendNiciraHeader(b, xid, nxSetControllerID)
	b = append(b, 0, 0, 0, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, id)
	return finish(b, start)
}

// AppendSetPacketInFormat asks for packet-ins in the form that DecodePacketIn
// reads.
func AppendSetPacketInFormat(b []byte, xid uint32) []byte {
	start := len(b)
	b = appendNiciraHeader(b, xid, nxSetPacketInFormat)
	b = append(b, 0, 0, 0, 2)
	return finish(b, start)
}

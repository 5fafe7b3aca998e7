package openflow

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// FlowUpdate is what a flow monitor tells of one flow.
type FlowUpdate struct {
	// Event is what became of it: FlowAdded, FlowRemoved or FlowModified, of another
	// connection's doing or by itself; for FlowsOwn and what pauses the monitor there is
	// no flow.
	Event  uint16
	Table  uint8
	Cookie uint64
}

// Events of a FlowUpdate.
const (
	FlowAdded    = 1
	FlowRemoved  = 2
	FlowModified = 3
	FlowsOwn     = 4 // What the connection that has the monitor changed itself.
	FlowsPaused  = 5 // There was too much to tell.
	FlowsResumed = 6
)

// monitorChanges are the flags of a monitor that tells of what is added, removed and
// modified, without instructions, and briefly of what its own connection does.
const monitorChanges = 1<<1 | 1<<2 | 1<<3

// AppendFlowMonitor writes the request that has a connection told of changes of flows, in
// all tables, from now on (OpenFlow 1.4; Open vSwitch 2.17).
func AppendFlowMonitor(b []byte, xid, monitor uint32) []byte {
	start := len(b)
	b = appendMultipart(b, xid, multipartFlowMonitor)
	b = binary.BigEndian.AppendUint32(b, monitor)
	b = append(b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff) // Any port, any group.
	b = binary.BigEndian.AppendUint16(b, monitorChanges)
	b = append(b, AllTables, 0) // The command: add.
	b = appendMatch(b, Match{})
	return finish(b, start)
}

// DecodeFlowUpdates reads one part of what a monitor tells; ok is false for a part of
// another kind.
func DecodeFlowUpdates(p Part) (out []FlowUpdate, ok bool, err error) {
	if p.Type != multipartFlowMonitor {
		return nil, false, nil
	}
	for body := p.Body; len(body) > 0; {
		if len(body) < 8 {
			return out, true, errors.New("flow update: cut short")
		}
		length, u := int(binary.BigEndian.Uint16(body)), FlowUpdate{Event: binary.BigEndian.Uint16(body[2:])}
		if length < 8 || length > len(body) {
			return out, true, fmt.Errorf("flow update: length %d of %d", length, len(body))
		}
		if u.Event < FlowsOwn {
			if length < 24 {
				return out, true, fmt.Errorf("flow update: length %d", length)
			}
			u.Table, u.Cookie = body[4], binary.BigEndian.Uint64(body[16:])
		}
		out, body = append(out, u), body[length:]
	}
	return out, true, nil
}

package eventlog

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Headers of a stream's messages.
const (
	headerNode    = "Weir-Node"
	headerState   = "Weir-State"   // nodeState behind the message, base64.
	headerRecords = "Weir-Records" // How many the message has.
	headerBefore  = "Weir-Before"  // total at some message before: sequence, records.
)

const (
	cursorIndexBits    = 16
	maxMessageRecords  = 1 << cursorIndexBits
	messageHeaderBytes = 64 << 10 // Left for the headers.
)

// firstCursor is that of a message's first record.
func firstCursor(seq uint64) uint64 { return seq << cursorIndexBits }

// lastCursor is that of a message's last record.
func lastCursor(seq, records uint64) uint64 { return seq<<cursorIndexBits + records - 1 }

// message is one of the stream. Its blocks follow each other, each as:
// number of records, length, block; none if only the state is to be kept.
type message struct {
	seq     uint64
	stored  time.Time
	node    string
	state   *nodeState
	records uint64
	before  total
	blocks  []byte
}

// encode makes the message that is published.
func (m *message) encode(subject string) *nats.Msg {
	msg := nats.NewMsg(subject)
	msg.Header.Set(headerNode, base64.StdEncoding.EncodeToString([]byte(m.node)))
	msg.Header.Set(headerState, base64.StdEncoding.EncodeToString(m.state.append([]byte{blockVersion})))
	msg.Header.Set(headerRecords, strconv.FormatUint(m.records, 10))
	msg.Header.Set(headerBefore, fmt.Sprintf("%d %d", m.before.seq, m.before.records))
	msg.Data = m.blocks
	return msg
}

// decodeMessage reads a message of the stream, but not its state.
func decodeMessage(seq uint64, stored time.Time, h nats.Header, data []byte) (*message, error) {
	m := &message{seq: seq, stored: stored, blocks: data}
	node, err := base64.StdEncoding.DecodeString(h.Get(headerNode))
	if err == nil {
		m.node = string(node)
		m.records, err = strconv.ParseUint(h.Get(headerRecords), 10, 64)
	}
	if err == nil {
		_, err = fmt.Sscanf(h.Get(headerBefore), "%d %d", &m.before.seq, &m.before.records)
	}
	if err != nil || m.records > maxMessageRecords {
		return nil, fmt.Errorf("message %d: %w", seq, errCorrupt)
	}
	return m, nil
}

// decodeState reads the state too.
func (m *message) decodeState(h nats.Header) error {
	b, err := base64.StdEncoding.DecodeString(h.Get(headerState))
	if err != nil || len(b) == 0 || b[0] != blockVersion {
		return fmt.Errorf("message %d: state: %w", m.seq, errCorrupt)
	}
	d := decoder{rest: b[1:]}
	m.state = newNodeState()
	if m.state.decode(&d); d.err != nil {
		return fmt.Errorf("message %d: state: %w", m.seq, d.err)
	}
	return nil
}

// received is a message that a consumer gave, with its state.
func received(msg jetstream.Msg) (*message, error) {
	meta, err := msg.Metadata()
	if err != nil {
		return nil, fmt.Errorf("message: %w", err)
	}
	m, err := decodeMessage(meta.Sequence.Stream, meta.Timestamp, msg.Headers(), nil)
	if err != nil {
		return nil, err
	}
	return m, m.decodeState(msg.Headers())
}

// each calls f for every block, with the cursor of its first record.
func (m *message) each(f func(cursor uint64, value []byte)) error {
	d := decoder{rest: m.blocks}
	cursor := firstCursor(m.seq)
	for len(d.rest) > 0 && d.err == nil {
		n := d.uvarint()
		if value := d.bytes(); d.err == nil {
			f(cursor, value)
			cursor += n
		}
	}
	if d.err != nil || cursor != firstCursor(m.seq)+m.records {
		return fmt.Errorf("message %d: %w", m.seq, errCorrupt)
	}
	return nil
}

// put adds a block.
func (m *message) put(h header, body func([]byte) []byte) error {
	value := body(h.append(nil))
	m.blocks = binary.AppendUvarint(m.blocks, h.count)
	m.blocks = binary.AppendUvarint(m.blocks, uint64(len(value)))
	m.blocks = append(m.blocks, value...)
	m.records += h.count
	m.state.apply(&h)
	return nil
}

// arrived is when the message's first block did; that of none: when it was stored.
func (m *message) arrived() (time.Time, error) {
	d := decoder{rest: m.blocks}
	if len(d.rest) == 0 {
		return m.stored, nil
	}
	d.uvarint()
	var h header
	_, err := h.decode(d.bytes())
	return h.received, err
}

package dns

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"time"
)

// How much of each port's conversations is kept. Past it queries are not known, and
// what answers them is not learned.
const (
	questionsMost = 1024
	streamsMost   = 64
	patience      = 30 * time.Second // For an answer.
	idleMost      = 10 * time.Minute // Of a connection.
)

// Why nothing is learned of a packet.
var (
	ErrUnasked = errors.New("an answer that was not asked for")
	ErrMany    = errors.New("too many questions are open")
	errBroken  = errors.New("a part of the connection is missing")
)

// Talks are the conversations of Pods with DNS servers. It belongs to one
// goroutine.
type Talks struct{ ports map[uint32]*talk }

// talk is what a port has asked.
type talk struct {
	questions map[asked]time.Time
	streams   map[conversation]*exchange
}

// conversation is a Pod's end and the server's.
type conversation struct {
	pod, server netip.AddrPort
	tcp         bool
}

// asked is a query that may be answered.
type asked struct {
	conversation
	id       uint16
	question Question
}

// exchange is both ways of a TCP connection.
type exchange struct {
	queries, answers stream
	last             time.Time
}

// NewTalks returns none.
func NewTalks() *Talks { return &Talks{ports: make(map[uint32]*talk)} }

// Expire forgets what nobody waits for any more.
func (t *Talks) Expire(now time.Time) {
	for port, of := range t.ports {
		if of.expire(now); len(of.questions) == 0 && len(of.streams) == 0 {
			delete(t.ports, port)
		}
	}
}

// Query takes in a frame that a port's Pod sends to a server.
func (t *Talks) Query(now time.Time, port uint32, frame []byte) error {
	s, err := readFrame(frame)
	if err != nil {
		return err
	}
	of := t.ports[port]
	if of == nil {
		of = &talk{questions: make(map[asked]time.Time), streams: make(map[conversation]*exchange)}
		t.ports[port] = of
	}
	with := conversation{s.src, s.dst, s.tcp}
	messages := [][]byte{s.payload}
	if s.tcp {
		if messages, err = of.exchange(now, with, s.flags).queries.take(s); err != nil {
			return err
		}
	}
	for _, m := range messages {
		id, q, err := readQuery(m)
		if err != nil {
			return err
		}
		if len(of.questions) >= questionsMost {
			of.expire(now)
		}
		if len(of.questions) >= questionsMost {
			return ErrMany
		}
		of.questions[asked{with, id, q}] = now
	}
	return nil
}

// Answer takes in a frame that a server sends to a port's Pod, and returns what it
// says of names that were asked for. Each question is answered once.
func (t *Talks) Answer(now time.Time, port uint32, frame []byte) (list []Heard, err error) {
	s, err := readFrame(frame)
	if err != nil {
		return nil, err
	}
	of := t.ports[port]
	if of == nil {
		return nil, ErrUnasked
	}
	with := conversation{s.dst, s.src, s.tcp}
	messages := [][]byte{s.payload}
	if s.tcp {
		if messages, err = of.exchange(now, with, s.flags).answers.take(s); err != nil {
			return nil, err
		}
	}
	for _, m := range messages {
		id, q, records, err := readAnswer(m)
		if err != nil {
			return list, err
		}
		key := asked{with, id, q}
		since, is := of.questions[key]
		if !is || now.Sub(since) > patience {
			return list, ErrUnasked
		}
		delete(of.questions, key)
		list = append(list, Heard{q.Name, records})
	}
	return list, nil
}

// exchange is a TCP connection. The oldest makes room for a new one.
func (of *talk) exchange(now time.Time, with conversation, flags uint8) *exchange {
	x := of.streams[with]
	if x == nil || flags&flagSyn != 0 && now.Sub(x.last) > time.Second {
		if len(of.streams) >= streamsMost {
			var oldest conversation
			at := now.Add(time.Hour)
			for c, x := range of.streams {
				if x.last.Before(at) {
					oldest, at = c, x.last
				}
			}
			delete(of.streams, oldest)
		}
		x = &exchange{}
		of.streams[with] = x
	}
	x.last = now
	if flags&flagRst != 0 {
		delete(of.streams, with)
	}
	return x
}

func (of *talk) expire(now time.Time) {
	for q, since := range of.questions {
		if now.Sub(since) > patience {
			delete(of.questions, q)
		}
	}
	for with, x := range of.streams {
		if now.Sub(x.last) > idleMost {
			delete(of.streams, with)
		}
	}
}

// stream is one way of a TCP connection, from its SYN on.
type stream struct {
	begun bool
	next  uint32 // Sequence number.
	held  []byte // The beginning of a message.
}

// take adds a segment, and returns the messages that are whole with it (RFC 1035,
// 4.2.2). One that comes before its turn is an error: whoever sent it sends it
// again if what is missing was lost.
func (st *stream) take(s segment) (messages [][]byte, err error) {
	if s.flags&flagSyn != 0 {
		*st = stream{begun: true, next: s.seq + 1}
		return nil, nil
	}
	if len(s.payload) == 0 {
		return nil, nil
	}
	if !st.begun {
		return nil, errBroken
	}
	known := int32(st.next - s.seq)
	if known < 0 {
		return nil, errBroken
	}
	if int(known) >= len(s.payload) {
		return nil, nil // It came before.
	}
	fresh := s.payload[known:]
	st.next += uint32(len(fresh))
	st.held = append(st.held, fresh...)
	for len(st.held) >= 2 {
		end := 2 + int(binary.BigEndian.Uint16(st.held))
		if len(st.held) < end {
			break
		}
		messages = append(messages, st.held[2:end:end])
		st.held = st.held[end:]
	}
	if len(st.held) == 0 {
		st.held = nil
	}
	return messages, nil
}

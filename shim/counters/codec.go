package counters

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/zeebo/xxh3"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/pipeline"
)

// Version of what Encode writes.
const Version = 1

// ErrNode says that books are those of another node.
var ErrNode = errors.New("the accounts are of another node")

var errShort = errors.New("the accounts are cut short")

// Encode writes the books for storage.
func (b *Books) Encode() []byte {
	w := writer(make([]byte, 0, 256+96*len(b.subjects)+48*len(b.flows)))
	w.text(b.node)
	w.time(b.began)
	w.number(b.reading)
	w.stamp(b.last)
	w.number(uint64(b.lost))
	w.number(uint64(len(b.uncounted)))
	for _, i := range b.uncounted {
		w.time(i.From)
		w.time(i.To)
	}
	places := make(map[*account]int, len(b.subjects))
	w.number(uint64(len(b.subjects)))
	for _, a := range b.subjects {
		places[a] = len(places)
		w.subject(a.subject)
		w.number(a.tally.Sessions)
		w.number(a.tally.Packets)
		w.number(a.tally.Bytes)
		w.number(a.changed)
		w.time(a.left)
	}
	w.number(uint64(b.highest))
	w.number(uint64(len(b.ids)))
	for id, o := range b.ids {
		w.number(uint64(id))
		w.number(uint64(len(o.accounts)))
		for _, a := range o.accounts {
			w.number(uint64(places[a]))
		}
		w.number(uint64(o.counted.Up)) // Flows do not outlive the machine's boot.
	}
	w.number(uint64(len(b.flows)))
	for k, f := range b.flows {
		w = append(w, k[:]...)
		w.number(uint64(f.count.ID))
		w.bits(f.count.Packets, f.count.Sessions, f.count.Carried, f.leaving, f.replaced)
		w.number(f.packets)
		w.number(f.bytes)
		w.number(uint64(f.age))
		w.number(uint64(f.at - b.last.Up)) // Zero, mostly.
	}
	return w
}

// Decode reads what Encode wrote, of the same node.
func Decode(content []byte, node string) (*Books, error) {
	r := &reader{rest: content}
	b := New(r.text(), r.time())
	if r.err == nil && b.node != node {
		return nil, fmt.Errorf("%w: %q, not %q", ErrNode, b.node, node)
	}
	b.reading, b.last, b.lost = r.number(), r.stamp(), time.Duration(r.number())
	for range r.count() {
		b.uncounted = append(b.uncounted, Interval{r.time(), r.time()})
	}
	var accounts []*account
	for range r.count() {
		a := &account{subject: r.subject()}
		a.tally = Tally{Sessions: r.number(), Packets: r.number(), Bytes: r.number()}
		a.changed, a.left = r.number(), r.time()
		accounts = append(accounts, a)
		b.subjects[a.subject] = a
	}
	b.highest = uint32(r.number())
	for range r.count() {
		o, id := &owner{}, uint32(r.number())
		for range r.count() {
			place := r.number()
			if place >= uint64(len(accounts)) {
				return nil, errShort
			}
			accounts[place].ids++
			o.accounts = append(o.accounts, accounts[place])
		}
		o.counted = Stamp{Up: time.Duration(r.number()), Boot: b.last.Boot}
		b.ids[id] = o
	}
	for range r.count() {
		var k Key
		copy(k[:], r.take(len(k)))
		f := &flow{count: pipeline.Count{ID: uint32(r.number())}}
		r.bits(&f.count.Packets, &f.count.Sessions, &f.count.Carried, &f.leaving, &f.replaced)
		f.packets, f.bytes, f.age = r.number(), r.number(), time.Duration(r.number())
		f.at = b.last.Up + time.Duration(r.number())
		o := b.ids[f.count.ID]
		if o == nil {
			return nil, errShort
		}
		o.flows++
		o.carried = o.carried || f.count.Carried
		b.flows[k] = f
	}
	if r.err == nil && len(r.rest) > 0 {
		r.err = errors.New("the accounts are longer than they say")
	}
	return b, r.err
}

// AppendLearned writes one record of a journal.
func AppendLearned(out []byte, l Learned) []byte {
	var w writer
	w.number(uint64(l.ID))
	w.number(uint64(len(l.Subjects)))
	for _, s := range l.Subjects {
		w.subject(s)
	}
	out = binary.BigEndian.AppendUint32(out, uint32(len(w)))
	out = binary.BigEndian.AppendUint64(out, xxh3.Hash(w))
	return append(out, w...)
}

// ReadLearned reads the records of a journal, up to the first that is torn, and
// says how many bytes they are.
func ReadLearned(journal []byte) (out []Learned, length int) {
	for {
		outer := &reader{rest: journal}
		head := outer.take(12)
		if outer.err != nil {
			return out, length
		}
		body := outer.take(int(binary.BigEndian.Uint32(head)))
		if outer.err != nil || xxh3.Hash(body) != binary.BigEndian.Uint64(head[4:]) {
			return out, length
		}
		r := &reader{rest: body}
		l := Learned{ID: uint32(r.number())}
		for range r.count() {
			l.Subjects = append(l.Subjects, r.subject())
		}
		if r.err != nil {
			return out, length
		}
		out, length, journal = append(out, l), length+len(head)+len(body), outer.rest
	}
}

type writer []byte

func (w *writer) number(n uint64) { *w = binary.AppendUvarint(*w, n) }

func (w *writer) text(s string) {
	w.number(uint64(len(s)))
	*w = append(*w, s...)
}

// time writes Unix nanoseconds; the zero time is 0.
func (w *writer) time(t time.Time) {
	if t.IsZero() {
		w.number(0)
		return
	}
	w.number(uint64(t.UnixNano()))
}

func (w *writer) stamp(s Stamp) {
	w.time(s.Wall)
	w.number(uint64(s.Up))
	w.text(s.Boot)
}

func (w *writer) bits(list ...bool) {
	var n byte
	for i, b := range list {
		if b {
			n |= 1 << i
		}
	}
	*w = append(*w, n)
}

func (w *writer) subject(s pipeline.Subject) {
	w.number(uint64(s.Kind))
	w.text(s.Namespace)
	w.text(s.Name)
	w.text(s.UID)
	w.number(uint64(s.Direction))
	w.text(s.Rule)
	w.number(uint64(s.Index))
	w.bits(s.Isolation)
}

// reader reads what a writer wrote; after an error it reads zeros.
type reader struct {
	rest []byte
	err  error
}

func (r *reader) take(n int) []byte {
	if n < 0 || n > len(r.rest) {
		r.err, r.rest = errShort, nil
		return nil
	}
	out := r.rest[:n]
	r.rest = r.rest[n:]
	return out
}

func (r *reader) number() uint64 {
	n, size := binary.Uvarint(r.rest)
	if size <= 0 {
		r.err, r.rest = errShort, nil
		return 0
	}
	r.rest = r.rest[size:]
	return n
}

// count is a number of things of which each takes a byte at least.
func (r *reader) count() int {
	n := r.number()
	if n > uint64(len(r.rest)) {
		r.err, r.rest = errShort, nil
		return 0
	}
	return int(n)
}

func (r *reader) text() string { return string(r.take(r.count())) }

func (r *reader) time() time.Time {
	n := r.number()
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, int64(n))
}

func (r *reader) stamp() Stamp {
	return Stamp{Wall: r.time(), Up: time.Duration(r.number()), Boot: r.text()}
}

func (r *reader) bits(list ...*bool) {
	for _, n := range r.take(1) {
		for i, b := range list {
			*b = n&(1<<i) != 0
		}
	}
}

func (r *reader) subject() pipeline.Subject {
	s := pipeline.Subject{Kind: policyv1.PolicyKind(r.number()), Namespace: r.text(), Name: r.text(), UID: r.text(),
		Direction: policyv1.Direction(r.number()), Rule: r.text(), Index: uint32(r.number())}
	r.bits(&s.Isolation)
	return s
}

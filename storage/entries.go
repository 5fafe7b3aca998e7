package storage

import (
	"hash/maphash"
)

// entries are the items of a scope and the tombstones of what it lost, each in
// a list that is ordered by the revision of the last change. Slots are named by
// number, so that a slot costs 64 bytes and its growth moves nothing that
// others point to; a scope of a few items has no index.
type entries struct {
	first []entry      // Slots below slabSlots.
	rest  []*entrySlab // Slots from there on, so that a large scope never moves.
	free  int32        // Head of the list of free slots, by next; none is -1.
	live  list         // Items.
	dead  list         // Tombstones.
	index *index       // Of slots by key, where these are many.
}

type slot = int32

type entry struct {
	key        string
	body       string // Empty in a tombstone.
	hash       Digest // Of the item within its scope.
	revision   uint64
	prev, next slot // Older, newer.
}

type list struct {
	oldest, newest slot
	len            int32
}

const (
	slabSlots = 256
	none      = slot(-1)
)

// keySeed makes hashes that nothing but the place in an index depends on.
var keySeed = maphash.MakeSeed()

func hashKey(key string) uint32 { return uint32(maphash.String(keySeed, key)) }

func (es *entries) hashAt(i slot) uint32 { return hashKey(es.at(i).key) }

type entrySlab [slabSlots]entry

func newEntries() entries {
	empty := list{oldest: none, newest: none}
	return entries{free: none, live: empty, dead: empty}
}

func (es *entries) at(i slot) *entry {
	if i < slabSlots {
		return &es.first[i]
	}
	return &es.rest[i/slabSlots-1][i%slabSlots]
}

// find is the slot of a key, be it an item's or a tombstone's.
func (es *entries) find(key string) slot {
	if es.index != nil {
		return es.index.find(hashKey(key), func(i slot) bool { return es.at(i).key == key })
	}
	for _, l := range []*list{&es.live, &es.dead} {
		for i := l.newest; i != none; {
			e := es.at(i)
			if e.key == key {
				return i
			}
			i = e.prev
		}
	}
	return none
}

// item is the entry of an item that is there.
func (es *entries) item(key string) *entry {
	if i := es.find(key); i != none {
		if e := es.at(i); e.body != "" {
			return e
		}
	}
	return nil
}

// take returns a slot for a key that has none.
func (es *entries) take(key string) slot {
	i := es.free
	if i != none {
		es.free = es.at(i).next
	} else {
		i = es.grow()
	}
	es.at(i).key = key
	if es.index != nil {
		es.index.add(hashKey(key), i, es.hashAt)
	} else if es.live.len+es.dead.len >= scanned {
		es.buildIndex()
		es.index.add(hashKey(key), i, es.hashAt)
	}
	return i
}

// reserve makes room for the first items.
func (es *entries) reserve(n int) {
	if len(es.first) == 0 {
		es.first = make([]entry, 0, min(n, slabSlots))
	}
}

// slots is how many slots there are.
func (es *entries) slots() slot { return slot(len(es.first) + slabSlots*len(es.rest)) }

// grow makes free slots and returns one of them.
func (es *entries) grow() slot {
	n := es.slots()
	if n < slabSlots {
		es.first = append(es.first, entry{})
		return n
	}
	es.rest = append(es.rest, new(entrySlab))
	for i := es.slots() - 1; i > n; i-- {
		es.at(i).next = es.free
		es.free = i
	}
	return n
}

func (es *entries) buildIndex() {
	es.index = new(index)
	for _, l := range []*list{&es.live, &es.dead} {
		for i := l.oldest; i != none; i = es.at(i).next {
			es.index.add(es.hashAt(i), i, es.hashAt)
		}
	}
}

// release frees the slot of an entry that is in no list.
func (es *entries) release(i slot) {
	if es.index != nil {
		es.index.remove(es.hashAt(i), i, es.hashAt)
	}
	*es.at(i) = entry{next: es.free}
	es.free = i
}

func (es *entries) push(l *list, i slot, rev uint64) {
	e := es.at(i)
	e.revision, e.prev, e.next = rev, l.newest, none
	if l.newest != none {
		es.at(l.newest).next = i
	} else {
		l.oldest = i
	}
	l.newest = i
	l.len++
}

func (es *entries) unlink(l *list, i slot) {
	e := es.at(i)
	if e.prev != none {
		es.at(e.prev).next = e.next
	} else {
		l.oldest = e.next
	}
	if e.next != none {
		es.at(e.next).prev = e.prev
	} else {
		l.newest = e.prev
	}
	l.len--
}

// each calls fn for the items, the oldest change first.
func (es *entries) each(fn func(*entry)) {
	for i := es.live.oldest; i != none; {
		e := es.at(i)
		fn(e)
		i = e.next
	}
}

// after calls fn for the entries of a list that changed after a revision, the
// newest first.
func (es *entries) after(l *list, rev uint64, fn func(*entry)) {
	for i := l.newest; i != none; {
		e := es.at(i)
		if e.revision <= rev {
			return
		}
		fn(e)
		i = e.prev
	}
}

// tighten gives memory back once most slots are free.
func (es *entries) tighten() {
	used := es.live.len + es.dead.len
	if es.slots() <= 2*slabSlots || used > es.slots()/4 {
		return
	}
	old := *es
	*es = newEntries()
	for _, l := range []struct{ from, to *list }{{&old.live, &es.live}, {&old.dead, &es.dead}} {
		for i := l.from.oldest; i != none; i = old.at(i).next {
			e := old.at(i)
			n := es.take(e.key)
			es.at(n).body, es.at(n).hash = e.body, e.hash
			es.push(l.to, n, e.revision)
		}
	}
}

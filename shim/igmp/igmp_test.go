package igmp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"
)

var (
	group  = netip.MustParseAddr("239.1.2.3")
	other  = netip.MustParseAddr("225.1.2.3")
	source = netip.MustParseAddr("10.9.1.1")
)

// frame is a message in a packet with a router alert, with its checksum put right.
func frame(msg ...byte) []byte {
	msg = slices.Clone(msg)
	msg[2], msg[3] = 0, 0
	binary.BigEndian.PutUint16(msg[2:], sum(msg))
	b := append(make([]byte, 12), 8, 0, 0x46, 0xc0, 0, byte(24+len(msg)), 0, 0, 0x40, 0, 1, 2, 0, 0, 10, 9, 1, 1, 224, 0, 0, 22, 0x94, 4, 0, 0)
	return append(b, msg...)
}

// v3 is a report of records, each type, number of sources, words of auxiliary
// data and group.
func v3(list ...[]byte) []byte {
	msg := []byte{ReportV3, 0, 0, 0, 0, 0, 0, byte(len(list))}
	for _, r := range list {
		msg = append(msg, r[0], r[2], 0, r[1])
		msg = append(msg, r[3:7]...)
		msg = append(msg, make([]byte, 4*int(r[1])+4*int(r[2]))...)
	}
	return frame(msg...)
}

func TestParse(t *testing.T) {
	at := []byte{239, 1, 2, 3}
	rec := func(typ, sources, aux byte) []byte { return append([]byte{typ, sources, aux}, at...) }
	joins, leaves, neither := Record{Group: group, Joins: true}, Record{Group: group, Leaves: true}, Record{Group: group}
	of := func(frame []byte, change func(b []byte)) []byte { change(frame); return frame }
	for name, tc := range map[string]struct {
		frame []byte
		typ   uint8
		want  []Record
		err   error
	}{
		"version 1":                      {frame(ReportV1, 0, 0, 0, 239, 1, 2, 3), ReportV1, []Record{joins}, nil},
		"version 2":                      {frame(ReportV2, 0, 0, 0, 239, 1, 2, 3), ReportV2, []Record{joins}, nil},
		"leave":                          {frame(Leave, 0, 0, 0, 239, 1, 2, 3), Leave, []Record{leaves}, nil},
		"version 3, all sources":         {v3(rec(isExclude, 0, 0), rec(toExclude, 2, 1)), ReportV3, []Record{joins, joins}, nil},
		"some sources":                   {v3(rec(isInclude, 1, 0), rec(toInclude, 1, 0), rec(allowNew, 1, 0)), ReportV3, []Record{joins, joins, joins}, nil},
		"no source":                      {v3(rec(isInclude, 0, 0), rec(toInclude, 0, 3)), ReportV3, []Record{leaves, leaves}, nil},
		"fewer sources, or none changed": {v3(rec(blockOld, 1, 0), rec(allowNew, 0, 0), rec(9, 0, 0)), ReportV3, []Record{neither, neither, neither}, nil},
		"no records":                     {v3(), ReportV3, nil, nil},
		"what follows the packet":        {append(frame(ReportV2, 0, 0, 0, 239, 1, 2, 3), 1, 2, 3), ReportV2, []Record{joins}, nil},
		"a query":                        {frame(Query, 0, 0, 0, 0, 0, 0, 0), Query, nil, errType},
		"a unicast address":              {frame(ReportV2, 0, 0, 0, 10, 0, 0, 1), ReportV2, nil, errGroup},
		"one in a record":                {v3([]byte{isExclude, 0, 0, 10, 0, 0, 1}), ReportV3, nil, errGroup},
		"a record too few":               {frame(ReportV3, 0, 0, 0, 0, 0, 0, 1), ReportV3, nil, errRecords},
		"a source too few":               {frame(ReportV3, 0, 0, 0, 0, 0, 0, 1, isInclude, 0, 0, 1, 239, 1, 2, 3), ReportV3, nil, errRecords},
		"too many records":               {frame(ReportV3, 0, 0, 0, 0, 0, 1, 0), ReportV3, nil, errRecords},
		"a wrong checksum":               {of(frame(ReportV2, 0, 0, 0, 239, 1, 2, 3), func(b []byte) { b[len(b)-1]++ }), 0, nil, errChecksum},
		"a fragment":                     {of(frame(ReportV2, 0, 0, 0, 239, 1, 2, 3), func(b []byte) { b[21] = 1 }), 0, nil, errFrame},
		"of another protocol":            {of(frame(ReportV2, 0, 0, 0, 239, 1, 2, 3), func(b []byte) { b[23] = 17 }), 0, nil, errFrame},
		"cut short":                      {frame(ReportV2, 0, 0, 0, 239, 1, 2, 3)[:44], 0, nil, errFrame},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := Parse(tc.frame)
			if !errors.Is(err, tc.err) || m.Type != tc.typ || !slices.Equal(m.Records, tc.want) {
				t.Errorf("%+v, %v; want %v, %v", m, err, tc.want, tc.err)
			}
			if err == nil && (m.Source != source || int(m.Length) == 0) {
				t.Errorf("from %s, %d bytes", m.Source, m.Length)
			}
		})
	}
}

// Whatever a Pod sends, no more is read than is there, and each record is of a group.
func FuzzParse(f *testing.F) {
	f.Add(frame(ReportV2, 0, 0, 0, 239, 1, 2, 3))
	f.Add(v3([]byte{isExclude, 2, 1, 239, 1, 2, 3}))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Parse(b)
		if err != nil && len(m.Records) > 0 || len(m.Records) > recordsMost {
			t.Errorf("%d records, %v", len(m.Records), err)
		}
		for _, r := range m.Records {
			if !r.Group.IsMulticast() || r.Joins && r.Leaves {
				t.Errorf("record %+v", r)
			}
		}
	})
}

func TestQueryIsOne(t *testing.T) {
	b := AppendQuery(nil, [6]byte{2, 0, 0, 0, 0, 1}, 125)
	if sum(b[14:38]) != 0 || sum(b[38:]) != 0 || len(b) != 50 || b[38] != Query || b[22] != 1 || [4]byte(b[30:34]) != AllHosts.As4() {
		t.Errorf("% x", b)
	}
	if _, err := Parse(b); !errors.Is(err, errType) { // Whole, and nothing but the type is amiss.
		t.Errorf("%v", err)
	}
}

func TestMembers(t *testing.T) {
	var m Members
	now := time.Unix(0, 0)
	one, two := Port{1, "a"}, Port{2, "b"}
	join := func(g netip.Addr, p Port, fresh bool) {
		t.Helper()
		if got, err := m.Join(now, Member{g, p}, ReportV2); got != fresh || err != nil {
			t.Fatalf("joined %v, %v", got, err)
		}
	}
	held := func(want ...Member) {
		t.Helper()
		if got := m.All(); !slices.Equal(got, want) {
			t.Fatalf("members %v, want %v", got, want)
		}
	}
	join(group, two, true)
	join(group, one, true)
	join(other, one, true)
	join(netip.MustParseAddr("224.0.0.251"), one, false) // Of the link alone.
	held(Member{other, one}, Member{group, one}, Member{group, two})
	now = now.Add(Lifetime / 2)
	join(group, one, false)
	all := func(Member, uint8) bool { return true }
	now = now.Add(Lifetime/2 - 1)
	if m.Keep(now, all) {
		t.Error("a member went before its time")
	}
	now = now.Add(1)
	if !m.Keep(now, all) {
		t.Error("none went")
	}
	held(Member{group, one})
	if m.Leave(Member{group, two}) || !m.Leave(Member{group, one}) || len(m.held) != 0 {
		t.Error("leaving is amiss")
	}
	held()
	join(group, one, true)
	if !m.Keep(now, func(at Member, typ uint8) bool { return at.Port != one || typ != ReportV2 }) {
		t.Error("who may not stay stays")
	}
	held()
}

// No Pod takes the room of others.
func TestMembersHaveBounds(t *testing.T) {
	var m Members
	at := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{239, 1, byte(i >> 8), byte(i)}) }
	for i := range GroupsOfNode {
		if _, err := m.Join(time.Time{}, Member{at(i), Port{uint32(i / GroupsOfPort), "a"}}, ReportV2); err != nil {
			t.Fatalf("group %d: %v", i, err)
		}
	}
	if _, err := m.Join(time.Time{}, Member{at(GroupsOfNode), Port{9999, "a"}}, ReportV2); !errors.Is(err, ErrFull) {
		t.Errorf("one group too many: %v", err)
	}
	if _, err := m.Join(time.Time{}, Member{at(1000), Port{0, "a"}}, ReportV2); !errors.Is(err, ErrFull) {
		t.Errorf("one group too many of a port: %v", err)
	}
	for i := range PortsOfGroup - 1 {
		if _, err := m.Join(time.Time{}, Member{at(0), Port{1, fmt.Sprint(i)}}, ReportV2); err != nil {
			t.Fatalf("port %d: %v", i, err)
		}
	}
	if _, err := m.Join(time.Time{}, Member{at(0), Port{2, "a"}}, ReportV2); !errors.Is(err, ErrFull) {
		t.Errorf("one port too many: %v", err)
	}
	if _, err := m.Join(time.Time{}, Member{at(0), Port{0, "a"}}, ReportV2); err != nil {
		t.Errorf("who is a member is refused: %v", err)
	}
}

func TestBudgetIsOfAPort(t *testing.T) {
	var b Budget
	now := time.Unix(100, 0)
	took := 0
	for range 1000 {
		if b.Take(now, 1) {
			took++
		}
	}
	if took != MessagesASecond || !b.Take(now, 2) || !b.Take(now.Add(time.Second), 1) {
		t.Errorf("took %d", took)
	}
}

package dns

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

var (
	pod    = netip.MustParseAddrPort("10.0.0.2:40000")
	server = netip.MustParseAddrPort("10.96.0.10:53")
	start  = time.Unix(1000, 0)
)

func query(id uint16, name string, typ dnsmessage.Type) []byte {
	return pack(dnsmessage.Message{Header: dnsmessage.Header{ID: id, RecursionDesired: true}, Questions: []dnsmessage.Question{asks(name, typ)}})
}

func asks(name string, typ dnsmessage.Type) dnsmessage.Question {
	return dnsmessage.Question{Name: dnsmessage.MustNewName(name + "."), Type: typ, Class: dnsmessage.ClassINET}
}

func pack(m dnsmessage.Message) []byte {
	b, err := m.Pack()
	if err != nil {
		panic(err)
	}
	return b
}

// answer answers a question with records, each "NAME TTL CNAME|A|AAAA VALUE".
func answer(id uint16, name string, typ dnsmessage.Type, records ...string) []byte {
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: id, Response: true}, Questions: []dnsmessage.Question{asks(name, typ)}}
	for _, text := range records {
		var owner, kind, value string
		var ttl uint32
		if _, err := fmt.Sscan(text, &owner, &ttl, &kind, &value); err != nil {
			panic(err)
		}
		r := dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName(owner + "."), Class: dnsmessage.ClassINET, TTL: ttl}}
		switch kind {
		case "CNAME":
			r.Body = &dnsmessage.CNAMEResource{CNAME: dnsmessage.MustNewName(value + ".")}
		case "A":
			r.Body = &dnsmessage.AResource{A: netip.MustParseAddr(value).As4()}
		case "AAAA":
			r.Body = &dnsmessage.AAAAResource{AAAA: netip.MustParseAddr(value).As16()}
		case "TXT":
			r.Body = &dnsmessage.TXTResource{TXT: []string{value}}
		}
		m.Answers = append(m.Answers, r)
	}
	return pack(m)
}

func ipFrame(from, to netip.AddrPort, proto byte, body []byte) []byte {
	b := make([]byte, 12, 100)
	b = append(b, 8, 0, 0x45, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(20+len(body)))
	b = append(b, 0, 0, 0, 0, 64, proto, 0, 0)
	b = append(append(b, from.Addr().AsSlice()...), to.Addr().AsSlice()...)
	return append(append(b, body...), 0, 0, 0) // Padded by Ethernet.
}

func datagram(from, to netip.AddrPort, payload []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, from.Port())
	b = binary.BigEndian.AppendUint16(b, to.Port())
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(payload)))
	return ipFrame(from, to, protoUDP, append(append(b, 0, 0), payload...))
}

func tcp(from, to netip.AddrPort, seq uint32, flags byte, payload []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, from.Port())
	b = binary.BigEndian.AppendUint16(b, to.Port())
	b = binary.BigEndian.AppendUint32(b, seq)
	b = append(b, 0, 0, 0, 0, 5<<4, flags, 0, 0, 0, 0, 0, 0)
	return ipFrame(from, to, protoTCP, append(b, payload...))
}

func framed(m []byte) []byte { return append(binary.BigEndian.AppendUint16(nil, uint16(len(m))), m...) }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// heard is what an answer says, in words.
func heard(list []Heard) string {
	var out []string
	for _, h := range list {
		text := h.Name
		for _, r := range h.Records {
			text += fmt.Sprintf(" %s/%d", r.Addr, r.TTL/time.Second)
		}
		out = append(out, text)
	}
	return strings.Join(out, "; ")
}

const a, aaaa = dnsmessage.TypeA, dnsmessage.TypeAAAA

func TestAnswersFollowAliases(t *testing.T) {
	for _, tc := range []struct {
		name    string
		typ     dnsmessage.Type
		records []string
		want    string
	}{
		{"addresses", a, []string{"www.Foo.com 60 A 192.0.2.1", "www.foo.com 30 A 192.0.2.2"}, "www.foo.com 192.0.2.1/60 192.0.2.2/30"},
		{"of IPv6", aaaa, []string{"www.foo.com 60 AAAA 2001:db8::1"}, "www.foo.com 2001:db8::1/60"},
		{"aliases, in any order", a, []string{"edge.cdn.net 300 A 192.0.2.3", "www.foo.com 60 CNAME foo.cdn.net", "foo.cdn.net 20 CNAME edge.cdn.net"}, "www.foo.com 192.0.2.3/20"},
		{"what nobody asked for", a, []string{"www.foo.com 60 A 192.0.2.1", "bank.com 60 A 192.0.2.66"}, "www.foo.com 192.0.2.1/60"},
		{"aliases in a circle", a, []string{"www.foo.com 60 CNAME b.com", "b.com 60 CNAME www.foo.com"}, "www.foo.com"},
		{"none", a, nil, "www.foo.com"},
		{"beside other types", a, []string{"www.foo.com 60 TXT x", "www.foo.com 60 A 192.0.2.1"}, "www.foo.com 192.0.2.1/60"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			talks := NewTalks()
			must(t, talks.Query(start, 1, datagram(pod, server, query(7, "WWW.foo.com", tc.typ))))
			list, err := talks.Answer(start, 1, datagram(server, pod, answer(7, "www.foo.com", tc.typ, tc.records...)))
			if got := heard(list); err != nil || got != tc.want {
				t.Errorf("%q, want %q; %v", got, tc.want, err)
			}
		})
	}
}

// What a Pod did not ask, another did, or was answered, is not learned.
func TestOnlyWhatWasAskedIsLearned(t *testing.T) {
	other := netip.MustParseAddrPort("10.0.0.2:40001")
	right := answer(7, "foo.com", a, "foo.com 60 A 192.0.2.1")
	for name, tc := range map[string]struct {
		port  uint32
		after time.Duration
		frame []byte
	}{
		"another id":          {1, 0, datagram(server, pod, answer(8, "foo.com", a, "foo.com 60 A 192.0.2.1"))},
		"another name":        {1, 0, datagram(server, pod, answer(7, "bar.com", a, "bar.com 60 A 192.0.2.1"))},
		"another type":        {1, 0, datagram(server, pod, answer(7, "foo.com", aaaa, "foo.com 60 A 192.0.2.1"))},
		"another port":        {1, 0, datagram(server, other, right)},
		"another server":      {1, 0, datagram(netip.MustParseAddrPort("10.96.0.11:53"), pod, right)},
		"another server port": {1, 0, datagram(netip.MustParseAddrPort("10.96.0.10:5353"), pod, right)},
		"another Pod":         {2, 0, datagram(server, pod, right)},
		"too late":            {1, time.Minute, datagram(server, pod, right)},
		"a query":             {1, 0, datagram(server, pod, query(7, "foo.com", a))},
		"by TCP":              {1, 0, tcp(server, pod, 1, 0, framed(right))},
		"cut short":           {1, 0, datagram(server, pod, right)[:50]},
		"no message":          {1, 0, datagram(server, pod, []byte("weir"))},
	} {
		talks := NewTalks()
		must(t, talks.Query(start, 1, datagram(pod, server, query(7, "foo.com", a))))
		if list, err := talks.Answer(start.Add(tc.after), tc.port, tc.frame); err == nil || len(list) > 0 {
			t.Errorf("%s: %s; %v", name, heard(list), err)
		}
	}
	talks := NewTalks()
	must(t, talks.Query(start, 1, datagram(pod, server, query(7, "foo.com", a))))
	for i, want := range []string{"foo.com 192.0.2.1/60", ""} {
		if list, _ := talks.Answer(start, 1, datagram(server, pod, right)); heard(list) != want {
			t.Errorf("answer %d: %s", i, heard(list))
		}
	}
}

// A Pod with many questions loses its own, and no other's.
func TestManyQuestions(t *testing.T) {
	talks := NewTalks()
	must(t, talks.Query(start, 2, datagram(pod, server, query(7, "foo.com", a))))
	for i := range questionsMost {
		must(t, talks.Query(start, 1, datagram(pod, server, query(uint16(i), "foo.com", a))))
	}
	late := datagram(pod, server, query(60000, "foo.com", a))
	if err := talks.Query(start, 1, late); !errors.Is(err, ErrMany) {
		t.Errorf("one more: %v", err)
	}
	if list, _ := talks.Answer(start, 2, datagram(server, pod, answer(7, "foo.com", a, "foo.com 60 A 192.0.2.1"))); len(list) != 1 {
		t.Error("another's answer is not learned")
	}
	must(t, talks.Query(start.Add(time.Minute), 1, late)) // The others are old.
	if talks.Expire(start.Add(time.Minute)); len(talks.ports) != 1 || len(talks.ports[1].questions) != 1 {
		t.Errorf("of %d ports questions are kept", len(talks.ports))
	}
	if talks.Expire(start.Add(time.Hour)); len(talks.ports) != 0 {
		t.Errorf("of %d ports questions are kept in the end", len(talks.ports))
	}
}

// Messages are put together of segments, which may come twice.
func TestConversationsByTCP(t *testing.T) {
	talks := NewTalks()
	ask := framed(query(7, "foo.com", a))
	must(t, talks.Query(start, 1, tcp(pod, server, 99, flagSyn, nil)))
	_, err := talks.Answer(start, 1, tcp(server, pod, 0xfffffffe, flagSyn, nil)) // Its numbers go past the end.
	must(t, err)
	must(t, talks.Query(start, 1, tcp(pod, server, 100, 0, ask[:5])))
	must(t, talks.Query(start, 1, tcp(pod, server, 100, 0, ask[:9])))
	must(t, talks.Query(start, 1, tcp(pod, server, 109, 0, append(bytes.Clone(ask[9:]), framed(query(8, "bar.com", a))...))))
	say := append(framed(answer(8, "bar.com", a, "bar.com 60 A 192.0.2.8")), framed(answer(7, "foo.com", a, "foo.com 60 A 192.0.2.7"))...)
	var got []string
	for i, cut := range [][2]int{{0, 1}, {1, 40}, {20, 60}, {0, 30}, {60, len(say)}} {
		list, err := talks.Answer(start, 1, tcp(server, pod, 0xffffffff+uint32(cut[0]), 0, say[cut[0]:cut[1]]))
		if err != nil {
			t.Fatalf("segment %d: %v", i, err)
		}
		if len(list) > 0 {
			got = append(got, heard(list))
		}
	}
	if want := "bar.com 192.0.2.8/60; foo.com 192.0.2.7/60"; strings.Join(got, "; ") != want {
		t.Errorf("%q, want %q", got, want)
	}
	if _, err := talks.Answer(start, 1, tcp(server, pod, 5000, 0, say)); err == nil {
		t.Error("what comes before its turn is no error")
	}
}

func TestMatches(t *testing.T) {
	for pattern, names := range map[string][2][]string{
		"foobar.com":     {{"foobar.com"}, {"www.foobar.com", "xfoobar.com", "foobar.com.net"}},
		"*foobar.com":    {{"foobar.com", "www.foobar.com", "test.uswest.foobar.com", "xfoobar.com"}, {"foobar.org", "foobar.com.net"}},
		"*.foobar.com":   {{"a.foobar.com", "a.b.foobar.com"}, {"foobar.com", "xfoobar.com"}},
		"a*b*c":          {{"abc", "a.b.c", "axbxbxc"}, {"ab", "acb", "bac", "abcd"}},
		"*":              {{"x", "x.y"}, nil},
		"ab*ba":          {{"abba", "abxba"}, {"aba"}},
		"mail.*.example": {{"mail.x.example", "mail.x.y.example"}, {"mail.example"}},
	} {
		for _, name := range names[0] {
			if !Matches(pattern, name) {
				t.Errorf("%s is not %s", pattern, name)
			}
		}
		for _, name := range names[1] {
			if Matches(pattern, name) {
				t.Errorf("%s is %s", pattern, name)
			}
		}
	}
}

// text is changes in words, in order.
func text(changes []Change) string {
	var out []string
	for _, c := range changes {
		sign := "+"
		if c.Gone {
			sign = "-"
		}
		out = append(out, sign+c.Name+" "+c.Addr.String())
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

func of(name string, ttl int, addrs ...string) Heard {
	h := Heard{Name: name}
	for _, addr := range addrs {
		h.Records = append(h.Records, Record{netip.MustParseAddr(addr), time.Duration(ttl) * time.Second})
	}
	return h
}

func TestCacheKeepsToTheTimeToLive(t *testing.T) {
	c := NewCache(5 * time.Second)
	c.SetNames([]string{"*.foo.com", "www.foo.com"})
	expect := func(what string, changes []Change, want string) {
		t.Helper()
		if got := text(changes); got != want {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	learn := func(after time.Duration, h Heard) []Change {
		t.Helper()
		changes, err := c.Learn(start.Add(after), h)
		must(t, err)
		return changes
	}
	expect("a name that nobody wrote", learn(0, of("bar.com", 60, "192.0.2.9")), "")
	expect("a host", learn(0, of("www.foo.com", 60, "192.0.2.1")), "+*.foo.com 192.0.2.1, +www.foo.com 192.0.2.1")
	expect("another of the same address", learn(0, of("api.foo.com", 0, "192.0.2.1", "192.0.2.2")), "+*.foo.com 192.0.2.2")
	expect("again, for longer", learn(30*time.Second, of("www.foo.com", 60, "192.0.2.3")), "+*.foo.com 192.0.2.3, +www.foo.com 192.0.2.3")
	expect("before the least time is over", c.Expire(start.Add(4*time.Second)), "")
	expect("after", c.Expire(start.Add(6*time.Second)), "-*.foo.com 192.0.2.2")
	expect("after the first's time to live", c.Expire(start.Add(61*time.Second)), "-*.foo.com 192.0.2.1, -www.foo.com 192.0.2.1")

	again := NewCache(5 * time.Second)
	must(t, again.Decode(c.Encode(), start.Add(70*time.Second)))
	expect("read back", again.All(), "+*.foo.com 192.0.2.3, +www.foo.com 192.0.2.3")
	expect("with other names now", again.SetNames([]string{"www.foo.com", "w*"}), "+w* 192.0.2.3, -*.foo.com 192.0.2.3")
	expect("and over", again.Expire(start.Add(91*time.Second)), "-w* 192.0.2.3, -www.foo.com 192.0.2.3")
	must(t, again.Decode(c.Encode(), start.Add(200*time.Second)))
	expect("read back late", again.All(), "")
}

// A name with wildcards is full by itself, and evicts nothing.
func TestCacheIsBounded(t *testing.T) {
	c := NewCache(time.Second)
	c.SetNames([]string{"*.evil.com", "good.com"})
	refused := 0
	for i := range WildcardMost + 10 {
		if _, err := c.Learn(start, of(fmt.Sprintf("h%d.evil.com", i), 60, "192.0.2.1")); err != nil {
			refused++
		}
	}
	if changes, err := c.Learn(start, of("good.com", 60, "192.0.2.7")); err != nil || text(changes) != "+good.com 192.0.2.7" {
		t.Errorf("another's name: %s, %v", text(changes), err)
	}
	if refused != 10 || !slices.Equal(c.Full(), []string{"*.evil.com"}) || len(c.Entries()) != WildcardMost+1 {
		t.Errorf("%d were refused; full are %q; %d are kept", refused, c.Full(), len(c.Entries()))
	}
	var names []string
	for i := range CacheMost {
		names = append(names, fmt.Sprintf("n%d.com", i))
	}
	c.SetNames(names)
	for i := range CacheMost {
		_, err := c.Learn(start, of(names[i], 60, "192.0.2.1"))
		must(t, err)
	}
	c.SetNames(append(names, "more.com"))
	if _, err := c.Learn(start, of("more.com", 60, "192.0.2.1")); err == nil || !strings.Contains(err.Error(), "no room for more.com") {
		t.Errorf("past the most of all: %v", err)
	}
	c.Expire(start.Add(time.Hour))
	if _, err := c.Learn(start, of("more.com", 60, "192.0.2.1")); err != nil {
		t.Errorf("with room again: %v", err)
	}
}

// Nothing that is sent here is taken for more than it is.
func FuzzTalks(f *testing.F) {
	f.Add(datagram(pod, server, query(7, "foo.com", a)), datagram(server, pod, answer(7, "foo.com", a, "foo.com 60 CNAME b.com", "b.com 60 A 192.0.2.1")))
	f.Add(tcp(pod, server, 1, 0, framed(query(7, "foo.com", a))), tcp(server, pod, 1, 0, framed(answer(7, "foo.com", a))))
	f.Fuzz(func(t *testing.T, ask, say []byte) {
		talks := NewTalks()
		_ = talks.Query(start, 1, tcp(pod, server, 0, flagSyn, nil))
		_, _ = talks.Answer(start, 1, tcp(server, pod, 0, flagSyn, nil))
		if list, _ := talks.Answer(start, 1, say); len(list) > 0 {
			t.Errorf("%s was learned, and nothing was asked", heard(list))
		}
		_ = talks.Query(start, 1, ask)
		list, _ := talks.Answer(start, 1, say)
		for _, h := range list {
			if h.Name != clean(h.Name) {
				t.Errorf("name %q", h.Name)
			}
		}
	})
}

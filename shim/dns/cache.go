package dns

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Most names that are kept: of one name with wildcards, and in all.
const (
	WildcardMost = 1024
	CacheMost    = 10000
)

// addrsMost is how many addresses of one host are kept.
const addrsMost = 1024

// Change is an address that a name of a policy stands for from now on, or stands
// for no more.
type Change struct {
	Name string // As policies write it.
	Addr netip.Addr
	Gone bool
}

// Cache is what the names of policies stand for. It belongs to one goroutine.
type Cache struct {
	least    time.Duration
	patterns map[string]*pattern
	wild     []string // Those with wildcards, in order.
	hosts    map[string]*host
}

// pattern is a name as policies write it.
type pattern struct {
	addrs map[netip.Addr]int // How many hosts have it.
	hosts int
	full  bool // A host was not taken in.
}

// host is a name that was asked for.
type host struct {
	addrs map[netip.Addr]time.Time // Until when.
	fits  []string                 // Patterns.
}

// NewCache returns a cache that keeps an address for so long at least, however
// short its time to live.
func NewCache(least time.Duration) *Cache {
	return &Cache{least: least, patterns: make(map[string]*pattern), hosts: make(map[string]*host)}
}

// SetNames takes over which names policies write. What was heard before is known
// for those only that were written then.
func (c *Cache) SetNames(names []string) (changes []Change) {
	now := make(map[string]bool, len(names))
	for _, name := range names {
		now[name] = true
		if c.patterns[name] != nil {
			continue
		}
		c.patterns[name] = &pattern{addrs: make(map[netip.Addr]int)}
		if !wildcard(name) {
			if c.hosts[name] != nil {
				changes = append(changes, c.fit(name, name)...)
			}
			continue
		}
		c.wild = append(c.wild, name)
		for _, at := range sorted(c.hosts) {
			if Matches(name, at) {
				changes = append(changes, c.fit(at, name)...)
			}
		}
	}
	slices.Sort(c.wild)
	gone := func(name string) bool { return !now[name] }
	for name, p := range c.patterns {
		if !gone(name) {
			continue
		}
		for addr := range p.addrs {
			changes = append(changes, Change{name, addr, true})
		}
		delete(c.patterns, name)
	}
	c.wild = slices.DeleteFunc(c.wild, gone)
	for at, h := range c.hosts {
		if h.fits = slices.DeleteFunc(h.fits, gone); len(h.fits) == 0 {
			delete(c.hosts, at)
		}
	}
	return changes
}

func wildcard(name string) bool { return strings.Contains(name, "*") }

// fitting are the names of policies that a host's fits.
func (c *Cache) fitting(at string) (names []string) {
	if c.patterns[at] != nil {
		names = append(names, at)
	}
	for _, name := range c.wild {
		if Matches(name, at) {
			names = append(names, name)
		}
	}
	return names
}

func sorted[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

// fit adds a host to a pattern that it fits, if there is room.
func (c *Cache) fit(at, name string) (changes []Change) {
	p, h := c.patterns[name], c.hosts[at]
	if p.hosts >= WildcardMost {
		p.full = true
		return nil
	}
	p.hosts++
	h.fits = append(h.fits, name)
	for addr := range h.addrs {
		if p.addrs[addr]++; p.addrs[addr] == 1 {
			changes = append(changes, Change{name, addr, false})
		}
	}
	return changes
}

// Learn takes in what was heard at a time. An error says that there was no room
// for a host that policies name.
func (c *Cache) Learn(now time.Time, heard Heard) (changes []Change, err error) {
	h := c.hosts[heard.Name]
	if h == nil {
		if len(heard.Records) == 0 {
			return nil, nil
		}
		var fits []string
		for _, name := range c.fitting(heard.Name) {
			if p := c.patterns[name]; len(c.hosts) >= CacheMost || p.hosts >= WildcardMost {
				p.full = true
				err = fmt.Errorf("no room for %s: of %s there are %d hosts, in all %d", heard.Name, name, p.hosts, len(c.hosts))
				continue
			}
			fits = append(fits, name)
		}
		if len(fits) == 0 {
			return nil, err
		}
		h = &host{addrs: make(map[netip.Addr]time.Time)}
		c.hosts[heard.Name] = h
		for _, name := range fits {
			c.fit(heard.Name, name)
		}
	}
	for _, r := range heard.Records {
		until := now.Add(max(r.TTL, c.least))
		if former, had := h.addrs[r.Addr]; had {
			if until.After(former) {
				h.addrs[r.Addr] = until
			}
			continue
		}
		if len(h.addrs) >= addrsMost {
			err = fmt.Errorf("no room for %s: it has %d addresses", heard.Name, len(h.addrs))
			continue
		}
		h.addrs[r.Addr] = until
		for _, name := range h.fits {
			p := c.patterns[name]
			if p.addrs[r.Addr]++; p.addrs[r.Addr] == 1 {
				changes = append(changes, Change{name, r.Addr, false})
			}
		}
	}
	return changes, err
}

// Expire forgets the addresses whose time is over.
func (c *Cache) Expire(now time.Time) (changes []Change) {
	for at, h := range c.hosts {
		for addr, until := range h.addrs {
			if until.After(now) {
				continue
			}
			delete(h.addrs, addr)
			for _, name := range h.fits {
				p := c.patterns[name]
				if p.addrs[addr]--; p.addrs[addr] == 0 {
					delete(p.addrs, addr)
					changes = append(changes, Change{name, addr, true})
				}
			}
		}
		if len(h.addrs) > 0 {
			continue
		}
		for _, name := range h.fits {
			p := c.patterns[name]
			p.hosts--
			p.full = false // Until the next has no room.
		}
		delete(c.hosts, at)
	}
	return changes
}

// All is what every name stands for.
func (c *Cache) All() (changes []Change) {
	for _, name := range sorted(c.patterns) {
		for addr := range c.patterns[name].addrs {
			changes = append(changes, Change{name, addr, false})
		}
	}
	return changes
}

// Full are the names of policies for which a host was not taken in, since there was
// no room, in order.
func (c *Cache) Full() (names []string) {
	for _, name := range sorted(c.patterns) {
		if c.patterns[name].full {
			names = append(names, name)
		}
	}
	return names
}

// Entry is an address of a host.
type Entry struct {
	Host  string     `json:"host"`
	Addr  netip.Addr `json:"addr"`
	Until time.Time  `json:"until"`
	Names []string   `json:"names"` // Of policies, that the host fits.
}

// Entries are all, by host and address.
func (c *Cache) Entries() (list []Entry) {
	for _, at := range sorted(c.hosts) {
		h := c.hosts[at]
		from := len(list)
		for addr, until := range h.addrs {
			list = append(list, Entry{at, addr, until, h.fits})
		}
		slices.SortFunc(list[from:], func(a, b Entry) int { return a.Addr.Compare(b.Addr) })
	}
	return list
}

// Encode writes the cache for a checkpoint.
func (c *Cache) Encode() []byte {
	b, err := json.Marshal(c.Entries())
	if err != nil {
		panic("dns: encode cache: " + err.Error())
	}
	return b
}

// Decode reads what Encode wrote into an empty cache. What is over at a time is
// left out.
func (c *Cache) Decode(b []byte, now time.Time) error {
	var list []Entry
	if err := json.Unmarshal(b, &list); err != nil {
		return fmt.Errorf("decode names: %w", err)
	}
	for _, e := range list {
		if !e.Addr.IsValid() || e.Host == "" {
			return fmt.Errorf("decode names: host %q has address %q", e.Host, e.Addr)
		}
		for _, name := range e.Names {
			if c.patterns[name] == nil {
				c.SetNames(append(sorted(c.patterns), name))
			}
		}
		if left := e.Until.Sub(now); left > 0 {
			if _, err := c.Learn(now, Heard{e.Host, []Record{{e.Addr, left}}}); err != nil {
				return fmt.Errorf("decode names: %w", err)
			}
		}
	}
	return nil
}

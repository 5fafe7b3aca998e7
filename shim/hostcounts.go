package shim

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/weirnet/weir/shim/counters"
	"github.com/weirnet/weir/shim/hostfw"
	"github.com/weirnet/weir/shim/hostpolicy"
	"github.com/weirnet/weir/shim/pipeline"
	"github.com/weirnet/weir/storage/atomicfile"
)

// hostCountsName is the file of the host's accounts in the state folder.
const hostCountsName = "counters.host"

var hostCountsFormat = atomicfile.Format{Magic: "WEIRHCNT", Version: 1}

// hostCounts are the accounts of what rules of the host matched. The counters of
// its firewall count on from plan to plan, and while no shim is there; an account
// counts on where they began anew. It is safe for concurrent use.
//
// Only packets are counted that belong to no established connection: each is a
// session, as the rules see it.
type hostCounts struct {
	path   string
	logger hclog.Logger

	mu       sync.Mutex              // Guards what follows.
	accounts map[string]*hostAccount // By the counter's name.
	told     uint64                  // Reading that was last told of.
	read     time.Time               // When the counters were last read.
	failing  bool                    // They cannot be stored.
}

// hostAccount is what a rule matched.
type hostAccount struct {
	Subject pipeline.Subject
	Total   hostfw.Tally
	Counter hostfw.Tally // As it was last read.
	Gone    int64        `json:",omitempty"` // Since when there is no such counter, in Unix seconds. Zero: there is.
	changed uint64       // Reading that is to tell of it.
}

// keepHostAccount is for how long an account is kept of which there is no counter.
const keepHostAccount = 30 * 24 * time.Hour

// openHostCounts reads the accounts in a folder, or begins new ones.
func openHostCounts(dir string, logger hclog.Logger) *hostCounts {
	c := &hostCounts{path: filepath.Join(dir, hostCountsName), logger: logger, accounts: make(map[string]*hostAccount)}
	content, err := atomicfile.Read(c.path, hostCountsFormat)
	if err == nil {
		err = json.Unmarshal(content, &c.accounts)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		logger.Warn("the accounts of what rules of the host matched cannot be used; they begin with what its firewall has counted", "err", err)
		c.accounts = make(map[string]*hostAccount)
	}
	for _, a := range c.accounts {
		a.changed = 1
	}
	return c
}

// expect makes the counters of a plan's rules be understood.
func (c *hostCounts) expect(p *hostpolicy.Plan) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range hostpolicy.Lists {
		rules := p.Rules(l)
		for i := range rules {
			r := &rules[i]
			name := hostfw.CounterName(l, r)
			if a := c.accounts[name]; a != nil {
				a.Subject.Rule = r.Name
				continue
			}
			s := pipeline.Subject{Kind: r.Policy.GetKind(), Namespace: r.Policy.GetNamespace(), Name: r.Policy.GetName(), UID: r.UID, Direction: l.Direction(), Rule: r.Name}
			if s.Rule == "" {
				s.Index = r.Index
			}
			c.accounts[name] = &hostAccount{Subject: s, changed: c.told + 1}
		}
	}
}

// take enters what the counters say. Lost says since when it may not be all: some
// began anew since they were last read; zero: it is all.
func (c *hostCounts) take(found map[string]hostfw.Tally, now time.Time) (lost time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	changed := false
	for name, a := range c.accounts {
		n, there := found[name]
		switch {
		case !there && a.Gone == 0:
			a.Gone, a.Counter, changed = now.Unix(), hostfw.Tally{}, true
			continue
		case !there && now.Sub(time.Unix(a.Gone, 0)) > keepHostAccount:
			delete(c.accounts, name)
			changed = true
			continue
		case !there, n == a.Counter && a.Gone == 0:
			continue
		}
		if n.Packets < a.Counter.Packets || n.Bytes < a.Counter.Bytes {
			a.Counter, lost = hostfw.Tally{}, c.read
		}
		a.Total.Packets += n.Packets - a.Counter.Packets
		a.Total.Bytes += n.Bytes - a.Counter.Bytes
		a.Counter, a.Gone, a.changed, changed = n, 0, c.told+1, true
	}
	c.read = now
	if !changed {
		return lost
	}
	content, err := json.Marshal(c.accounts)
	if err == nil {
		err = atomicfile.Write(c.path, hostCountsFormat, content)
	}
	if err != nil && !c.failing {
		c.logger.Error("what rules of the host matched cannot be stored", "err", err)
	}
	c.failing = err != nil
	return lost
}

// changedAfter are the accounts that the reading after another is to tell of.
func (c *hostCounts) changedAfter(after, reading uint64) (lines []counters.Line) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, a := range c.accounts {
		if a.changed > after && a.changed <= reading {
			lines = append(lines, counters.Line{Subject: a.Subject, Tally: counters.Tally{Sessions: a.Total.Packets, Packets: a.Total.Packets, Bytes: a.Total.Bytes}})
		}
	}
	c.told = max(c.told, reading)
	slices.SortFunc(lines, func(a, b counters.Line) int {
		return strings.Compare(fmt.Sprint(a.Subject), fmt.Sprint(b.Subject))
	})
	return lines
}

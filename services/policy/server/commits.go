package server

import (
	"sync"
	"time"
)

// commits remembers when the newest revisions were committed. The zero value has
// none.
type commits struct {
	mu     sync.RWMutex // Guards what follows.
	ring   [1024]commit
	next   int // Where the next goes, over the oldest.
	newest uint64
}

type commit struct {
	revision uint64 // Zero: none.
	at       time.Time
}

// add takes a commit. One that made no revision is left out.
func (c *commits) add(revision uint64, at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if revision <= c.newest {
		return
	}
	c.newest = revision
	c.ring[c.next] = commit{revision, at}
	c.next = (c.next + 1) % len(c.ring)
}

// at is when a revision was committed, or, where that is forgotten, the oldest
// that is not. Where it is not known, it is now.
func (c *commits) at(revision uint64) (at time.Time, known bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if revision == 0 || revision > c.newest {
		return time.Now(), false
	}
	for back := 1; back <= len(c.ring); back++ { // What is asked for is among the last, mostly.
		e := c.ring[(c.next+len(c.ring)-back)%len(c.ring)]
		if e.revision == 0 {
			break
		}
		at = e.at
		if e.revision <= revision {
			break
		}
	}
	return at, true
}

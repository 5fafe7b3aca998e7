package bridge

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/weirnet/weir/shim/bridge/openflow"
)

// Settle returns when every packet that arrives from now on meets the flows of
// the last Apply. A bundle that is committed is in the tables, but packets of
// known kinds go by the datapath's cache, which the switch brings up to date on
// threads of its own, some time after.
//
// With a datapath in the kernel, Settle waits for two whole passes over that
// cache to end: the first may have begun before the commit, the second has not.
// So that the second does not wait for its timer, the touch flow, which must be
// one that the bridge holds, is put in once more as it is.
//
// The userspace datapath of Open vSwitch 3.1 cannot be waited for: a pass that
// finds other actions for a cached flow looks that flow up by a packet, may
// find another that overlaps it, and changes that one; the stale one stays for
// as long as packets hit it. So its cache is emptied instead, at the price of
// one look-up through the tables for each kind of packet.
func (b *Bridge) Settle(ctx context.Context, touch openflow.Flow) error {
	again := func() error { return b.Apply(ctx, Change{Upsert: []openflow.Flow{touch}}) }
	wait := func() error {
		_, err := b.control(ctx, command{"revalidator/wait"})
		return err
	}
	steps := []func() error{wait, again, wait}
	if b.cfg.DatapathType == "netdev" {
		steps = []func() error{func() error { return b.emptyCache(ctx, again) }}
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("settle bridge %s: %w", b.cfg.Name, err)
		}
	}
	return nil
}

// emptying is what emptyCache shares with what lifts its limit.
type emptying struct {
	mu      sync.Mutex // Guards what follows; held while the limit is set, too.
	number  uint64     // Of times so far.
	lifting bool
}

// flowLimit is with how many cached flows a switch begins: it goes on from there
// by itself.
const flowLimit = "10000"

// emptyCache takes all flows out of the userspace datapath's cache. Before 3.1.4
// the switch does that beside its passes over the cache, which goes wrong in two
// ways. A flow that a pass is at is left. And a pass first notes what some fifty
// flows have counted, and credits it after: a flow that is taken out between, its
// packets credited, and comes back with its next packet, is credited with all of
// them again.
//
// So no flow may come back before the pass is over: the limit of cached flows is
// set to zero, which has the switch look each packet up in the tables. The end of
// a pass sets the limit to a thousand by itself, whatever becomes of this shim, and
// lift sets it to what it was. That is not waited for, since passes begin at least
// 5 ms after each other; the touch has one begin if none is under way.
func (b *Bridge) emptyCache(ctx context.Context, touch func() error) error {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	c, err := b.dialControl(ctx)
	if err != nil {
		return err
	}
	defer c.close()
	e := &b.emptying
	e.mu.Lock()
	defer e.mu.Unlock()
	for empty := false; !empty; { // A pass is at one flow at a time.
		if empty, err = c.empty(); err != nil {
			return errors.Join(err, ctx.Err())
		}
	}
	if e.number++; !e.lifting {
		e.lifting = true
		go b.lift()
	}
	return touch()
}

// empty takes cached flows out, and says whether none was left.
func (c *control) empty() (bool, error) {
	// Packets wait while the switch goes through these, so none brings a flow back
	// before the limit is set. A pass that begins with that limit takes out what it
	// still finds, and loses the count of packets that come just then: so little may
	// be left.
	purge := command{"revalidator/purge"}
	commands := []command{purge, purge, purge, {limitCommand, "0"}, {"upcall/show"}}
	if err := c.ask(commands...); err != nil {
		return false, err
	}
	var shown string
	for range commands {
		var err error
		if shown, err = c.reply(); err != nil {
			return false, err
		}
	}
	return !cached(shown), nil
}

const limitCommand = "upcall/set-flow-limit"

// lift brings the limit of cached flows back to what it was, once a pass has ended
// since the cache was emptied last. A pass reads the limit, says that it ends, and
// then writes the limit: what is set just then is lost. So it is looked at again
// after the next pass. Should it fail, the switch does so by itself, a thousand a
// pass.
func (b *Bridge) lift() {
	e := &b.emptying
	end := func(err error) {
		if err != nil {
			b.log.Debug("the limit of cached flows is left to the switch", "err", err)
		}
		e.lifting = false
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for {
		seen := e.number
		e.mu.Unlock()
		// A switch that has another datapath beside this one refuses to wait.
		_, err := b.control(context.Background(), command{"revalidator/wait"})
		e.mu.Lock()
		if err != nil {
			end(err)
			return
		}
		if e.number != seen {
			continue
		}
		shown, err := b.control(context.Background(), command{"upcall/show"}, command{limitCommand, flowLimit})
		if err != nil || strings.Contains(shown[0], "(limit "+flowLimit+")") {
			end(err)
			return
		}
	}
}

// cached says whether a userspace datapath has cached flows, by upcall/show.
func cached(shown string) bool {
	userspace := false
	for line := range strings.Lines(shown) {
		if line != "\n" && !strings.HasPrefix(line, " ") { // The name of a datapath.
			userspace = strings.HasPrefix(line, "netdev@")
		}
		if _, keys, is := strings.Cut(line, "(keys "); is && userspace && !strings.HasPrefix(keys, "0)") {
			return true
		}
	}
	return false
}

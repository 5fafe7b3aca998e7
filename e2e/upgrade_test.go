package e2e

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/e2e/harness"
	"github.com/weirnet/weir/shim/pipeline"
)

var cookieField = regexp.MustCompile(`cookie=0x([0-9a-f]+)`)

// versions counts the flows that bear our mark, by layout, and returns the ids that
// connections may carry.
func versions(t *testing.T, flows []string) (byVersion map[uint64]int, ids []uint32) {
	t.Helper()
	byVersion, carried := make(map[uint64]int), make(map[uint32]bool)
	for _, f := range flows {
		m := cookieField.FindStringSubmatch(f)
		if m == nil {
			t.Fatalf("flow without cookie: %s", f)
		}
		cookie, err := strconv.ParseUint(m[1], 16, 64)
		must(t, err)
		if cookie&pipeline.CookieMask == pipeline.CookieMark {
			byVersion[cookie>>48&0xff]++
		}
		if id := pipeline.CarriedID(cookie); id != 0 {
			carried[id] = true
		}
	}
	return byVersion, slices.Sorted(maps.Keys(carried))
}

// asLayout writes flows as those of another layout: with its version in their
// cookies, and one more that lets in what is denied, which its successor does not
// know.
func asLayout(flows []string, version uint64) string {
	var b strings.Builder
	for _, f := range flows {
		b.WriteString(cookieField.ReplaceAllStringFunc(f, func(s string) string {
			cookie, _ := strconv.ParseUint(strings.TrimPrefix(s, "cookie=0x"), 16, 64)
			if cookie&pipeline.CookieMask == pipeline.CookieMark {
				cookie = cookie&^(uint64(0xff)<<48) | version<<48
			}
			return fmt.Sprintf("cookie=%#x", cookie)
		}) + "\n")
	}
	fmt.Fprintf(&b, "cookie=%#x, table=45, priority=7,udp actions=group:4000\n", pipeline.CookieMark|version<<48|uint64(pipeline.KindRule)<<40|9000)
	return b.String()
}

// A shim that finds the flows, a group and a meter of an earlier layout puts its own
// in their place at once: connections go on, what is denied never passes, and rules
// keep the ids that connections carry in their labels. No other rule gets an id
// that a flow of then had.
func TestFlowsOfEarlierLayoutsAreReplaced(t *testing.T) {
	t.Parallel()
	g := newGuarded(t)
	node, ctx := g.Nodes["node-1"], t.Context()
	ofctl := func(args ...string) string {
		t.Helper()
		out, err := node.OVS.Ofctl(ctx, args...)
		must(t, err)
		return out
	}
	for version := uint64(1); version < pipeline.LayoutVersion; version++ {
		node.Shim.Terminate()
		flows, err := node.Flows(ctx, "")
		must(t, err)
		_, before := versions(t, flows)
		ofctl("add-group", harness.Bridge, "group_id=4000,type=all,bucket=actions=drop")
		ofctl("add-meter", harness.Bridge, "meter=4000,pktps,band=type=drop,rate=1")
		replace := node.OVS.Command(ctx, "ovs-ofctl", "-O", "OpenFlow15", "replace-flows", harness.Bridge, "-")
		replace.Stdin = strings.NewReader(asLayout(flows, version))
		if out, err := replace.CombinedOutput(); err != nil {
			t.Fatalf("replace flows: %v: %s", err, out)
		}
		flows, err = node.Flows(ctx, "")
		must(t, err)
		if by, _ := versions(t, flows); by[version] == 0 || by[pipeline.LayoutVersion] > 0 {
			t.Fatalf("the bridge is not of layout %d: %v", version, by)
		}
		for _, s := range g.streams {
			must(t, s.Lives(ctx, 10*time.Second))
			s.Count() // Ends the gap that the test made.
		}

		must(t, node.Shim.Start())
		eventually(t, func() error {
			flows, err := node.Flows(ctx, "")
			if err != nil {
				return err
			}
			if by, _ := versions(t, flows); by[version] > 0 || by[pipeline.LayoutVersion] == 0 {
				return fmt.Errorf("flows by layout: %v", by)
			}
			return nil
		})
		must(t, g.InSync(ctx))
		g.enforced(harness.Drop)
		for _, s := range g.streams {
			if _, _, gap := s.Count(); gap > 500*time.Millisecond {
				t.Errorf("layout %d: the stream stood still for %s", version, gap)
			}
		}
		flows, err = node.Flows(ctx, "")
		must(t, err)
		if _, after := versions(t, flows); !slices.Equal(after, before) {
			t.Errorf("layout %d: ids are %v, and were %v", version, after, before)
		}
		if out := ofctl("-O", "OpenFlow15", "dump-groups", harness.Bridge); strings.Contains(out, "group_id=4000") {
			t.Errorf("layout %d: its group is still there:\n%s", version, out)
		}
		if out := ofctl("-O", "OpenFlow15", "dump-meters", harness.Bridge); strings.Contains(out, "meter=4000") {
			t.Errorf("layout %d: its meter is still there:\n%s", version, out)
		}
	}
	g.set(alsoRemote)
	flows, err := node.Flows(ctx, "")
	must(t, err)
	_, ids := versions(t, flows)
	if last := ids[len(ids)-1]; last <= 9000 {
		t.Errorf("a new rule got the id %d, below that of a former one: 9000", last)
	}
}

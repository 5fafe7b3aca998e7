package chaos

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/weirnet/weir/e2e/chaos/invariant"
	"github.com/weirnet/weir/e2e/harness"
	"github.com/weirnet/weir/shim/pipeline"
)

// loggedIn is the policy that logs in a table.
var loggedIn = map[string]string{
	strconv.Itoa(pipeline.TableAntreaPolicyEgressRule):  policyRefuse,
	strconv.Itoa(pipeline.TableEgressDefaultRule):       policyMute,
	strconv.Itoa(pipeline.TableAntreaPolicyIngressRule): policyGuarded,
	strconv.Itoa(pipeline.TableIngressRule):             policyOpen,
	strconv.Itoa(pipeline.TableIngressDefaultRule):      policyShut,
}

// flowLine is a flow as ovs-ofctl prints it.
var flowLine = regexp.MustCompile(`cookie=(0x[0-9a-f]+), duration=([0-9.]+)s, table=(\d+), n_packets=(\d+), n_bytes=\d+,(.*?) actions=(.*)`)

// idle are times of a flow that change by themselves.
var idle = regexp.MustCompile(` (idle|hard)_age=\d+,`)

// dump are the flows of a node's bridge. The flows of a bridge that is gone are none.
func dump(ctx context.Context, n *harness.Node) ([][]string, error) {
	out, err := n.OVS.Ofctl(ctx, "--no-names", "dump-flows", harness.Bridge)
	if err != nil {
		return nil, err
	}
	var flows [][]string
	for line := range strings.Lines(out) {
		if m := flowLine.FindStringSubmatch(line); m != nil {
			m[5] = strings.TrimSpace(idle.ReplaceAllString(m[5], ""))
			flows = append(flows, m)
		}
	}
	return flows, nil
}

// readFlows reads what the log flows of a node have counted.
func readFlows(ctx context.Context, n *harness.Node) (invariant.Reading, error) {
	r := invariant.Reading{Node: n.Name}
	r.From = time.Now()
	flows, err := dump(ctx, n)
	if err != nil {
		return r, err
	}
	r.To = time.Now()
	for _, f := range flows {
		policy := loggedIn[f[3]]
		if policy == "" || !strings.Contains(f[6], "controller(") {
			continue
		}
		packets, err := strconv.ParseUint(f[4], 10, 64)
		if err != nil {
			return r, fmt.Errorf("flow %q: %w", f[0], err)
		}
		age, err := strconv.ParseFloat(f[2], 64)
		if err != nil {
			return r, fmt.Errorf("flow %q: %w", f[0], err)
		}
		r.Flows = append(r.Flows, invariant.FlowCount{Key: f[3] + " " + f[5], Policy: policy, Packets: packets, Age: time.Duration(age * float64(time.Second))})
	}
	return r, nil
}

// readings are those of all nodes.
type readings struct {
	mu   sync.Mutex // Guards list.
	list []invariant.Reading
}

const readEvery = 500 * time.Millisecond

func (r *readings) take(ctx context.Context, n *harness.Node) error {
	reading, err := readFlows(ctx, n)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = append(r.list, reading)
	return nil
}

// run reads a node's flows again and again; while there is no switch it does not.
func (r *readings) run(ctx context.Context, n *harness.Node) {
	tick := time.NewTicker(readEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			short, cancel := context.WithTimeout(ctx, 2*time.Second)
			_ = r.take(short, n)
			cancel()
		case <-ctx.Done():
			return
		}
	}
}

func (r *readings) all() []invariant.Reading {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]invariant.Reading(nil), r.list...)
}

// touched are flows that went, or were put in within the time before the second
// dump, but for those of Output, where one is renewed with each bundle on purpose.
func touched(before, after [][]string, within time.Duration) []string {
	had := make(map[string]bool)
	for _, f := range before {
		had[f[3]+" "+f[5]] = true
	}
	var out []string
	for _, f := range after {
		age, _ := strconv.ParseFloat(f[2], 64) // Of digits, by the pattern.
		if delete(had, f[3]+" "+f[5]); age < within.Seconds()-0.1 && f[3] != strconv.Itoa(pipeline.TableOutput) {
			out = append(out, "put in: "+f[0])
		}
	}
	for key := range had {
		out = append(out, "gone: "+key)
	}
	return out
}

package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/e2e/harness"
	"github.com/weirnet/weir/services/policy/api"
)

// shimFaultpoints are those of shim/DESIGN.md, in its order.
func shimFaultpoints(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile("../shim/DESIGN.md")
	must(t, err)
	_, table, _ := strings.Cut(string(text), "| point | what was done last |")
	table, _, _ = strings.Cut(table, "\n\n")
	var points []string
	for _, m := range regexp.MustCompile("`((?:shim|file)\\.[a-z.]+)`").FindAllStringSubmatch(table, -1) {
		points = append(points, m[1])
	}
	return points
}

// The points that shim/DESIGN.md lists are those that there are.
func TestShimFaultpointsAreListed(t *testing.T) {
	listed := shimFaultpoints(t)
	reach := regexp.MustCompile(`faultpoint\.Reach\("(shim\.[a-z.]+)"\)`)
	var found []string
	must(t, filepath.WalkDir("../shim", func(path string, _ os.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, m := range reach.FindAllStringSubmatch(string(text), -1) {
			if !strings.HasPrefix(m[1], "shim.log.") { // They are of the audit path: TestFaultPointsAreListed.
				found = append(found, m[1])
			}
		}
		return err
	}))
	for _, p := range found {
		if !slices.Contains(listed, p) {
			t.Errorf("%s is not in shim/DESIGN.md", p)
		}
	}
	for _, p := range listed {
		if strings.HasPrefix(p, "shim.") && !slices.Contains(found, p) {
			t.Errorf("shim/DESIGN.md lists %s, which is nowhere", p)
		}
	}
}

// dying is a node whose shim dies again and again, with what goes on meanwhile.
type dying struct {
	c    *harness.Cluster
	node *harness.Node
	step int
	shut map[int]time.Time // Since when what a step denies is denied, in whichever life.

	streams, fresh []*harness.Datagrams // Of allowed pairs: connections that last, and that begin.
	never          []*harness.Datagrams // Of pairs that are denied all the time.
	closing        *harness.Datagrams   // To the port of each step, which it denies; a connection each.
}

const (
	keptPort, freshPort, neverPort, closingPort = 8000, 8001, 8002, 7000
	bulk                                        = 700 // Peers that each step exchanges: bundles of more than 64 KiB.
)

// objects are those of a step: another member of a group, other peers, one port
// less, and a policy that logs, of its own meter.
func (d *dying) objects(steps int) string {
	var b strings.Builder
	b.WriteString(smallObjects(true))
	fmt.Fprintf(&b, "---\napiVersion: v1\nkind: Pod\nmetadata: {name: ghost-%d, labels: {app: ghost}}\nspec: {nodeName: node-2, containers: [{name: c, image: c}]}\nstatus: {podIPs: [{ip: 10.9.2.%d}]}\n", d.step, 100+d.step)
	b.WriteString(policy("steady", "{podSelector: {matchLabels: {app: nginx}}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: 8000, endPort: 8001, protocol: UDP}, {port: 80}]}]}"))
	b.WriteString(policy("client", "{podSelector: {matchLabels: {app: client}}, ingress: [{from: [{podSelector: {matchLabels: {app: nginx}}}], ports: [{port: 8000, protocol: UDP}]}]}"))
	b.WriteString("---\napiVersion: crd.antrea.io/v1beta1\nkind: ClusterNetworkPolicy\nmetadata: {name: hosts}\nspec: {priority: 5, tier: securityops, appliedTo: [{podSelector: {matchLabels: {app: client}}}], egress: [{action: Allow, to: [{fqdn: '*.example.com'}]}]}\n")
	if d.step < steps {
		b.WriteString(policy("open", fmt.Sprintf("{podSelector: {matchLabels: {app: nginx}}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: %d, endPort: %d, protocol: UDP}]}]}", closingPort+d.step+1, closingPort+steps)))
	}
	b.WriteString(policy("ghosts", "{podSelector: {matchLabels: {app: nginx}}, ingress: [{from: [{podSelector: {matchLabels: {app: ghost}}}], ports: [{port: 20000}]}]}"))
	var peers []string
	for i := range bulk {
		peers = append(peers, fmt.Sprintf("{ipBlock: {cidr: 10.%d.%d.%d/32}}", 100+d.step, i/250, i%250))
	}
	b.WriteString(policy(fmt.Sprint("step-", d.step), fmt.Sprintf("{podSelector: {matchLabels: {app: nginx}}, ingress: [{from: [%s], ports: [{port: %d}]}]}",
		strings.Join(peers, ", "), 20000+d.step)))
	return b.String()
}

// inForce says whether the bridge has the flows of the present step.
func (d *dying) inForce(t *testing.T) bool {
	t.Helper()
	return slices.ContainsFunc(flows(t, d.node, ""), func(f string) bool { return strings.Contains(f, fmt.Sprintf("tp_dst=%d", 20000+d.step)) })
}

// undisturbed fails unless allowed traffic lost nothing and no denied packet came
// through, up to now.
func (d *dying) undisturbed(t *testing.T, when string) {
	t.Helper()
	for i, s := range slices.Concat(d.streams, d.fresh) {
		if err := s.Complete(t.Context(), 2*time.Second); err != nil {
			t.Errorf("%s: allowed traffic %d: %v", when, i, err)
		}
	}
	for i, s := range d.never {
		if n, _ := s.Arrived(neverPort); n > 0 || s.Sent() == 0 {
			t.Errorf("%s: of %d datagrams of denied traffic %d, %d arrived", when, s.Sent(), i, n)
		}
	}
	for step, since := range d.shut {
		if _, last := d.closing.Arrived(closingPort + uint16(step)); last.After(since) {
			t.Errorf("%s: what step %d denied came through %s after it was in force", when, step, last.Sub(since))
		}
	}
}

func numbered(t *testing.T, cfg harness.DatagramsConfig) *harness.Datagrams {
	t.Helper()
	d, err := harness.StartDatagrams(cfg)
	must(t, err)
	t.Cleanup(func() { must(t, d.Close()) })
	return d
}

// births are when the flows were put in, but for those that are put in again on
// purpose: the touch flow and the lease of DNS.
func births(t *testing.T, n *harness.Node) map[string]time.Time {
	t.Helper()
	out, err := n.OVS.Ofctl(t.Context(), "dump-flows", harness.Bridge, "--no-names")
	must(t, err)
	now, born := time.Now(), make(map[string]time.Time)
	for line := range strings.Lines(out) {
		_, rest, ok := strings.Cut(line, "duration=")
		var seconds float64
		if _, err := fmt.Sscanf(rest, "%fs", &seconds); !ok || err != nil || strings.Contains(line, "table=26,") || strings.Contains(line, "table=39,") {
			continue
		}
		_, table, _ := strings.Cut(rest, "table=")
		table, _, _ = strings.Cut(table, ",")
		_, content, _ := strings.Cut(rest, "priority=")
		born["table="+table+","+strings.TrimSpace(content)] = now.Add(-time.Duration(seconds * float64(time.Second)))
	}
	return born
}

// counting are flows that count and decide nothing.
var counting = regexp.MustCompile("^table=(13|23|27|28|29),")

// restartsUntouched starts the shim once more, and fails where that touches a flow.
func (d *dying) restartsUntouched(t *testing.T) {
	t.Helper()
	d.node.Shim.Terminate() // With its checkpoint, whenever that was due.
	before := births(t, d.node)
	must(t, d.node.Shim.Start())
	must(t, d.c.Settled(t.Context()))
	d.intended(t)
	after := births(t, d.node)
	for f, born := range after {
		if was, there := before[f]; !there || born.Sub(was) > 200*time.Millisecond {
			t.Errorf("step %d: the restart put in %s", d.step, f)
		}
	}
	for f := range before {
		if _, there := after[f]; !there && !counting.MatchString(f) { // Those of rules that are gone go when they were read.
			t.Errorf("step %d: the restart took out %s", d.step, f)
		}
	}
}

// dies waits until the shim has died at its fault point. Meanwhile a Pod asks DNS:
// answers are part of what it may die at.
func (d *dying) dies(t *testing.T, client *harness.Host) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	if d.node.Shim.Faultpoint == "shim.names.learned" {
		for d.node.Shim.Running() && ctx.Err() == nil {
			asking, done := context.WithTimeout(ctx, 300*time.Millisecond)
			_, _ = lookup(asking, client, netip.MustParseAddrPort("10.9.2.1:53"), "www.example.com")
			done()
		}
	}
	must(t, d.node.Shim.Died(ctx))
}

// intended fails unless the bridge holds what weir-shim check says that it should.
func (d *dying) intended(t *testing.T) {
	t.Helper()
	if code, out := checkBridge(t, d.node); code != 0 {
		t.Errorf("step %d: %s", d.step, out)
	}
}

// The shim dies at each of its fault points, with a change of policy to apply: it
// disturbs no traffic that is allowed before and after, of old connections and of
// new ones, lets nothing through that is denied or has been in force as denied,
// and its next life brings the state in force. What is not denied for good is that
// which the change itself denies, until it is in force: until the bundle's packets
// were waited for, or the next life is in sync.
func TestShimDiesAnywhere(t *testing.T) {
	t.Parallel()
	requireFaultpoints(t)
	points := shimFaultpoints(t)
	rand.New(rand.NewPCG(6, 1)).Shuffle(len(points), func(i, j int) { points[i], points[j] = points[j], points[i] })
	c := smallCluster(t, "--stats-interval=300ms", "--dns-server=10.9.2.1")
	d := &dying{c: c, node: c.Nodes["node-1"], shut: make(map[int]time.Time)}
	client, nginx, remote := c.Pod("default/client"), c.Pod("default/nginx"), c.Pod("default/remote")
	names := newZone()
	names.serve(t, remote)
	names.set("www.example.com", "203.0.113.1")
	set(t, c, d.objects(len(points)))

	every := 5 * time.Millisecond
	for _, pair := range [][2]*harness.Host{{client, nginx}, {nginx, client}} {
		d.streams = append(d.streams, numbered(t, harness.DatagramsConfig{From: pair[0], To: pair[1], Ports: []uint16{keptPort}, V4: true, V6: true, Every: every}))
	}
	for _, s := range d.streams { // Before the next is begun, of the same addresses.
		must(t, s.Complete(t.Context(), 5*time.Second))
	}
	d.fresh = append(d.fresh, numbered(t, harness.DatagramsConfig{From: client, To: nginx, Ports: []uint16{freshPort}, V4: true, V6: true, Every: 2 * every, Fresh: true}))
	d.never = append(d.never, numbered(t, harness.DatagramsConfig{From: remote, To: nginx, Ports: []uint16{neverPort}, V4: true, V6: true, Every: every, Fresh: true}))
	var ports []uint16
	for i := range points {
		ports = append(ports, uint16(closingPort+i+1))
	}
	d.closing = numbered(t, harness.DatagramsConfig{From: client, To: nginx, Ports: ports, V4: true, Every: 4 * time.Millisecond, Fresh: true})
	tcp80 := stream(t, client, "fd09:1::2")

	for i, point := range points {
		d.step = i + 1
		d.node.Shim.Kill()
		must(t, c.WriteManifests(t.Context(), []byte(d.objects(len(points)))))
		must(t, c.ManifestsRead(t.Context()))
		d.node.Shim.Faultpoint = point
		must(t, d.node.Shim.Start())
		d.dies(t, client)
		inForce, at := d.inForce(t), time.Now()
		switch point {
		case "shim.apply.settled", "shim.cut.applied", "shim.cut.answered":
			if !inForce {
				t.Errorf("at %s the change is not on the bridge", point)
			}
			d.shut[d.step] = at
		case "shim.cut.received", "shim.apply.learned", "shim.bundle.metered", "shim.bundle.begun", "shim.bundle.filled":
			if inForce {
				t.Errorf("at %s the change is on the bridge", point)
			}
		case "shim.bundle.committed":
			if !inForce {
				t.Errorf("at %s the change is not on the bridge", point)
			}
		}
		t.Logf("step %d: dead at %s, in force: %t", d.step, point, inForce)
		outcomes(t, []harness.Probe{tcp(client, "10.9.1.2"), tcp(client, "fd09:1::2"), {From: nginx, To: ip("10.9.2.1"), Protocol: api.ProtocolTCP, Port: 80}}, harness.Allow, harness.Allow, harness.Allow)
		d.undisturbed(t, "dead at "+point)
		must(t, d.node.Shim.Start())
		must(t, c.Settled(t.Context()))
		if d.shut[d.step].IsZero() {
			d.shut[d.step] = time.Now()
		}
		d.intended(t)
		if i%7 == 6 || i == len(points)-1 {
			d.restartsUntouched(t)
		}
		if t.Failed() {
			t.Fatalf("after a death at %s, the step %d", point, d.step)
		}
	}
	d.undisturbed(t, "in the end")
	lives(t, "in the end", tcp80)
	if left, _ := filepath.Glob(filepath.Join(d.node.OVS.Dir, "state", ".*")); len(left) > 0 {
		t.Errorf("files that were being written are left: %v", left)
	}
	for _, s := range slices.Concat(d.streams, d.fresh) {
		t.Logf("%d datagrams, none lost", s.Sent())
	}
}

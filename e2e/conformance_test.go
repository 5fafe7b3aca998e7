package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weirnet/weir/e2e/harness"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/services/policy/engine"
	"github.com/weirnet/weir/services/policy/evaluate/conformance"
)

var (
	conformanceDir    = flag.String("conformance.dir", "", "file or folder of conformance cases; our own, and those of WEIR_CONFORMANCE_DIR, by default")
	conformanceReport = flag.String("conformance.report", "", "file for the report")
	conformanceStrict = flag.Bool("conformance.strict", false, "fail where a case is skipped")
)

// TestConformance runs conformance cases on real processes, Open vSwitch and
// packets. A failing case is a subtest of its suite and name.
func TestConformance(t *testing.T) {
	t.Parallel()
	requireDataplane(t)
	report := conformance.NewReport(conformance.ModeDatapath)
	// Cases on the same nodes share a cluster, as far as that does not take long.
	groups := groupCases(report, loadCases(report), casesPerCluster)
	runAll(t, report, groups, clustersAtOnce, func(t *testing.T, nodes []harness.NodeConfig) *harness.Cluster {
		return startCluster(t, harness.Config{Nodes: nodes})
	})
	if *conformanceReport != "" {
		f, err := os.Create(*conformanceReport)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(report.Write(f), f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	judge(t, report)
}

// loadCases reads the cases that the flags and the environment name.
func loadCases(report *conformance.Report) (cases []conformance.Case) {
	dirs := []string{"testdata/conformance"}
	if d := os.Getenv("WEIR_CONFORMANCE_DIR"); d != "" {
		dirs = append(dirs, d)
	}
	if *conformanceDir != "" {
		dirs = []string{*conformanceDir}
	}
	for _, d := range dirs {
		found, err := conformance.Load(d)
		if err != nil {
			report.Unreadable(d, err)
		}
		cases = append(cases, found...)
	}
	return cases
}

// groupCases puts cases on the same nodes together, up to a number, and skips
// those that cannot be run.
func groupCases(report *conformance.Report, cases []conformance.Case, most int) [][]*conformance.Case {
	groups := make(map[string][][]*conformance.Case)
	for i := range cases {
		if why := unsupportedOnDatapath(&cases[i]); why != "" {
			r := report.Begin(&cases[i])
			r.Skip(why)
			r.End()
			continue
		}
		text, _ := json.Marshal(cases[i].Fixture.Nodes)
		shares := groups[string(text)]
		if n := len(shares); n == 0 || len(shares[n-1]) == most {
			shares = append(shares, nil)
		}
		shares[len(shares)-1] = append(shares[len(shares)-1], &cases[i])
		groups[string(text)] = shares
	}
	return slices.Concat(slices.Collect(maps.Values(groups))...)
}

// judge fails the test where the report has failures.
func judge(t *testing.T, report *conformance.Report) {
	t.Helper()
	t.Logf("%d of %d cases passed, %d verdicts, %d wrong, %d skipped", report.Totals.Passed, report.Totals.Cases, report.Totals.Verdicts, report.Totals.Wrong, report.Totals.Skipped)
	for _, f := range report.Failures {
		t.Error(f)
	}
	for _, s := range report.Skips {
		t.Logf("skipped %s/%s: %s", s.Suite, s.Case, s.Why)
	}
	if report.Failed(*conformanceStrict) {
		t.Error("conformance failed")
	}
}

// unsupportedOnDatapath says why a case cannot be run here yet: what the
// engine says of its policies that nodes do not enforce, and what probes ask for.
func unsupportedOnDatapath(c *conformance.Case) string {
	if c.Schema == conformance.SchemaAdmission {
		return "admission cases run against the validation package, in evaluate mode"
	}
	world, err := conformance.NewWorld(c)
	if err != nil {
		return "" // Running the case says it better.
	}
	for i := range c.Steps {
		s := &c.Steps[i]
		if _, err := world.Enter(s); err != nil {
			return ""
		}
		e := engine.New()
		for _, o := range world.Objects() {
			e.Apply(api.Event{Ref: o.Ref(), Object: o})
		}
		for _, p := range e.Policies() {
			for _, f := range p.Faults {
				if f.Reason == engine.ReasonNotEnforced {
					return f.Message
				}
			}
		}
	}
	return ""
}

// A case mostly waits for packets that must not arrive, so several clusters
// run beside each other.
const (
	casesPerCluster = 12
	clustersAtOnce  = 6
)

// runAll runs groups of cases, several at once, each on a cluster of its own.
func runAll(t *testing.T, report *conformance.Report, groups [][]*conformance.Case, atOnce int, start startFunc) {
	var mu sync.Mutex // Guards report.
	var work sync.WaitGroup
	slots := make(chan struct{}, atOnce)
	for _, group := range groups {
		work.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			own := conformance.NewReport(conformance.ModeDatapath)
			runGroup(t, own, group, start)
			mu.Lock()
			defer mu.Unlock()
			report.Add(own)
		})
	}
	work.Wait()
}

// startFunc starts a cluster with these nodes, which ends with the test.
type startFunc func(t *testing.T, nodes []harness.NodeConfig) *harness.Cluster

// runGroup runs cases that have their nodes in common.
func runGroup(t *testing.T, report *conformance.Report, group []*conformance.Case, start startFunc) {
	var nodes []harness.NodeConfig
	for _, n := range group[0].Fixture.Nodes {
		nc := harness.NodeConfig{Name: n.Name}
		for _, a := range n.Addresses() {
			nc.IPs = append(nc.IPs, netip.MustParseAddr(a))
		}
		nodes = append(nodes, nc)
	}
	t.Run(fmt.Sprintf("%d-cases-on-%d-nodes-from-%s-on", len(group), len(nodes), group[0].Name), func(t *testing.T) {
		cluster := start(t, nodes)
		broken := 0 // Cases in a row that could not be run: the cluster is to blame then.
		for _, c := range group {
			t.Run(c.Suite+"/"+c.Name, func(t *testing.T) {
				r := report.Begin(c)
				switch {
				case broken >= 2:
					r.Fail(nil, "the cluster could not run the cases before")
				case runCase(t.Context(), cluster, c, r):
					broken = 0
				default:
					broken++
				}
				if !r.End() {
					t.Fail()
				}
			})
		}
	})
}

// runCase runs a case and says whether it could be run, whatever came out.
func runCase(ctx context.Context, cluster *harness.Cluster, c *conformance.Case, r *conformance.CaseReport) bool {
	world, err := conformance.NewWorld(c)
	if err != nil {
		r.Fail(nil, err.Error())
		return false
	}
	for i := range c.Steps {
		s := &c.Steps[i]
		if err := runStep(ctx, cluster, c, s, world, r); err != nil {
			r.Fail(s, err.Error())
			return false
		}
	}
	return true
}

func runStep(ctx context.Context, cluster *harness.Cluster, c *conformance.Case, s *conformance.Step, world *conformance.World, r *conformance.CaseReport) error {
	if _, err := world.Enter(s); err != nil {
		return err
	}
	run := &stepRun{ctx: ctx, cluster: cluster, world: world, fixture: world.Fixture()}
	if err := cluster.SetPods(ctx, run.pods()); err != nil {
		return err
	}
	text, err := world.Manifest()
	if err != nil {
		return err
	}
	checks := s.Checks()
	if names := run.zone(checks); len(names.addrs) > 0 {
		text = append(text, nameserverObjects...)
	}
	if err := cluster.SetManifests(ctx, text); err != nil {
		return err
	}
	if err := run.setProxied(); err != nil {
		return err
	}
	if err := run.serveHosts(checks); err != nil {
		return err
	}
	if err := run.resolve(checks); err != nil {
		return err
	}
	probes := make([]harness.Probe, 0, len(checks))
	for _, p := range append(slices.Clone(checks), s.Traffic...) {
		hp, err := run.probe(p)
		if err != nil {
			return fmt.Errorf("probe from %s to %s: %w", p.Source(), p.Destination(), err)
		}
		probes = append(probes, hp)
	}
	outcomes, err := harness.Run(ctx, probes)
	if err != nil {
		return err
	}
	for i, p := range checks {
		got := outcomes[i]
		if got == harness.Drop {
			got = conformance.Deny
		}
		why := "by packets"
		if !c.Meets(p.Expected, got) {
			why = run.evidence(probes[i])
		}
		r.Verdict(s, p, got, why)
	}
	for _, e := range s.Evaluations {
		if why := run.named(s, e); why != "" {
			r.Fail(s, why)
		}
	}
	return run.auditLogs(s)
}

// named asks the policy service which policy decides, and says how the answer
// is another than the expected one.
func (run *stepRun) named(s *conformance.Step, e conformance.Evaluation) string {
	q := e.Question(s)
	resp, err := run.cluster.Inspection().Explain(run.ctx, &policyv1.ExplainRequest{From: q.From, To: q.To, Port: uint32(q.Port),
		Protocol: policyv1.Protocol(policyv1.Protocol_value["PROTOCOL_"+q.Protocol])})
	if err != nil {
		return fmt.Sprintf("evaluation of %s -> %s: %v", e.From, e.To, err)
	}
	return e.Differs(resp)
}

// stepRun maps the names of a step onto the cluster.
type stepRun struct {
	ctx     context.Context
	cluster *harness.Cluster
	world   *conformance.World
	fixture conformance.Fixture
	names   *zone // Hosts that probes go to by their names.
}

// pods are the fixture's Pods that have a network of their own.
func (run *stepRun) pods() []harness.PodConfig {
	var out []harness.PodConfig
	for _, p := range run.fixture.Pods {
		if p.HostNetwork || p.Phase == "Succeeded" || p.Phase == "Failed" || len(p.IPs) == 0 {
			continue
		}
		pc := harness.PodConfig{Namespace: p.Namespace, Name: p.Name, Node: p.Node}
		for _, ip := range p.IPs {
			pc.IPs = append(pc.IPs, netip.MustParseAddr(ip))
		}
		for _, port := range p.Serves() {
			pc.Serves = append(pc.Serves, harness.Service{Protocol: conformance.ProtocolOf(port.Protocol), Port: port.Port})
		}
		out = append(out, pc)
	}
	return out
}

// serveHosts puts answers where probes go that are for no Pod of the Pod
// network. A probe that is expected to be denied gets its answer there too, or
// its silence would prove nothing.
func (run *stepRun) serveHosts(checks []conformance.Probe) error {
	want := make(map[netip.Addr]map[harness.Service]bool)
	for _, p := range checks {
		p = run.world.Direct(p)
		addr, err := run.destination(p)
		if err != nil {
			return err
		}
		if run.podAt(addr) != nil || run.atService(addr, p) {
			continue
		}
		if want[addr] == nil {
			want[addr] = make(map[harness.Service]bool)
		}
		want[addr][harness.Service{Protocol: conformance.ProtocolOf(p.Protocol), Port: p.Port}] = true
	}
	for addr, services := range want {
		h, err := run.hostAt(addr)
		if err != nil {
			return err
		}
		for s := range services {
			one := &harness.Host{NS: h.NS, IPs: []netip.Addr{addr}}
			if err := one.Serve(s); err != nil && !strings.Contains(err.Error(), "address already in use") {
				return err
			}
		}
	}
	return nil
}

// podAt is the Pod with a network of its own that has an address.
func (run *stepRun) podAt(addr netip.Addr) *harness.Host {
	for _, p := range run.pods() {
		if slices.Contains(p.IPs, addr) {
			return run.cluster.Pod(p.Namespace + "/" + p.Name)
		}
	}
	return nil
}

// hostAt is the node that has an address, or else a host outside.
func (run *stepRun) hostAt(addr netip.Addr) (*harness.Host, error) {
	for _, n := range run.cluster.Nodes {
		if slices.Contains(n.IPs, addr) {
			return n.Host(), nil
		}
	}
	return run.cluster.Outside(run.ctx, addr)
}

func (run *stepRun) fixturePod(name string) (conformance.Pod, error) {
	for _, p := range run.fixture.Pods {
		if p.Namespace+"/"+p.Name == name {
			return p, nil
		}
	}
	return conformance.Pod{}, fmt.Errorf("no pod %s", name)
}

func (run *stepRun) destination(p conformance.Probe) (netip.Addr, error) {
	text := p.ToIP
	switch {
	case p.To != "":
		pod, err := run.fixturePod(p.To)
		if err != nil {
			return netip.Addr{}, err
		}
		if len(pod.IPs) == 0 {
			return netip.Addr{}, fmt.Errorf("pod %s has no address", p.To)
		}
		text = pod.IPs[0]
		if from, err := run.fixturePod(p.From); err == nil && len(from.IPs) > 0 { // A family that both have.
			for _, ip := range pod.IPs {
				if slices.ContainsFunc(from.IPs, func(f string) bool { return strings.Contains(f, ":") == strings.Contains(ip, ":") }) {
					text = ip
					break
				}
			}
		}
	case p.ToIP == "" && p.ToNode != "":
		for _, n := range run.fixture.Nodes {
			if n.Name == p.ToNode {
				text = n.Addresses()[0]
			}
		}
	case p.ToIP == "" && p.ToService != "":
		return run.serviceAddress(p)
	case p.ToFQDN != "":
		return run.addressOf(p.ToFQDN), nil
	}
	return netip.ParseAddr(text)
}

func (run *stepRun) source(p conformance.Probe) (*harness.Host, error) {
	if p.From == "" {
		addr, err := netip.ParseAddr(p.FromIP)
		if err != nil {
			return nil, err
		}
		if pod := run.podAt(addr); pod != nil {
			return pod, nil
		}
		return run.hostAt(addr)
	}
	pod, err := run.fixturePod(p.From)
	if err != nil {
		return nil, err
	}
	if !pod.HostNetwork {
		if h := run.cluster.Pod(p.From); h != nil {
			return h, nil
		}
		return nil, fmt.Errorf("pod %s has no network", p.From)
	}
	return run.cluster.Nodes[pod.Node].Host(), nil
}

func (run *stepRun) probe(p conformance.Probe) (harness.Probe, error) {
	p = run.world.Direct(p)
	from, err := run.source(p)
	if err != nil {
		return harness.Probe{}, err
	}
	to, err := run.destination(p)
	if err != nil {
		return harness.Probe{}, err
	}
	return harness.Probe{From: from, To: to, Protocol: conformance.ProtocolOf(p.Protocol), Port: p.Port, SourcePort: p.SourcePort,
		Answered: p.Expected != conformance.Deny}, nil
}

// evidence is what there is to know about a probe that went wrong: what becomes
// of it when it is tried again, and what the switches hold of its addresses.
func (run *stepRun) evidence(p harness.Probe) string {
	var b strings.Builder
	again, err := harness.Run(run.ctx, []harness.Probe{p})
	fmt.Fprintf(&b, "by packets; tried again: %v %v", again, err)
	src, dst := p.From.Addr(p.To.Is6()).String(), p.To.String()
	for name, n := range run.cluster.Nodes {
		for _, command := range []string{"dpctl/dump-conntrack", "dpctl/dump-flows"} {
			out, err := n.OVS.Appctl(run.ctx, command)
			fmt.Fprintf(&b, "\n%s %s %v", name, command, err)
			for _, line := range strings.Split(out, "\n") {
				if strings.Contains(line, src) && strings.Contains(line, dst) || command == "dpctl/dump-flows" && strings.Contains(line, "drop") {
					b.WriteString("\n  " + line)
				}
			}
		}
	}
	return b.String()
}

// auditLogs waits for the lines that a step's traffic must have left.
func (run *stepRun) auditLogs(s *conformance.Step) error {
	for _, want := range s.AuditLogs {
		for _, text := range want.ExpectRegex {
			re, err := regexp.Compile(text)
			if err != nil {
				return fmt.Errorf("audit log of %s: %w", want.Node, err)
			}
			err = harness.Eventually(run.ctx, 10*time.Second, func() error {
				lines, err := os.ReadFile(run.cluster.NPLog(want.Node))
				if err != nil {
					return err
				}
				if !slices.ContainsFunc(strings.Split(string(lines), "\n"), re.MatchString) {
					return fmt.Errorf("audit log of %s: no line matches %s", want.Node, text)
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

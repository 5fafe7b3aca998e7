package e2e

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/e2e/harness"
	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/services/policy/evaluate"
	"github.com/weirnet/weir/services/policy/source/manifests"
)

var (
	stagedFor  = flag.Duration("staged.for", 12*time.Second, "how long TestStagedPoliciesUnderChurn goes on")
	stagedSeed = flag.Uint64("staged.seed", 1, "seed of TestStagedPoliciesUnderChurn's policies, for the first minute; each further one has the next")
)

// stagedPods are the Pods of one node; the fence is out of every policy's reach.
var stagedPods = map[string]string{"client": "10.9.1.1", "nginx": "10.9.1.2", "db": "10.9.1.3", "fence": "10.9.1.9"}

var stagedPorts = []uint16{8001, 8002}

// letFence keeps the way to the fence open, ahead of everything.
const letFence = `---
apiVersion: crd.antrea.io/v1beta1
kind: ClusterNetworkPolicy
metadata: {name: let-fence}
spec:
  tier: emergency
  priority: 1
  appliedTo: [{podSelector: {}}]
  egress: [{name: fence, action: Allow, to: [{podSelector: {matchLabels: {app: fence}}}]}]
`

// Policies, staged and enforced, change more than twenty times a second on a
// node on which connections begin all the time. Whether each was let through,
// and every record of it, must be what the evaluator says of the policies that
// were in force then: where staged policies would change a verdict there is a
// record with both, which names a policy that was staged; where they would not,
// there is none for their sake. Connections that were there before stay.
//
// Each connection is one datagram, so that it is judged once. A bundle of them
// is followed by one to the fence, which comes by the same port; when that is
// answered the others were judged. So it is known which policies they may have
// met: those of one moment, or where a change was under way, of before or after.
func TestStagedPoliciesUnderChurn(t *testing.T) {
	t.Parallel()
	for seed, left := *stagedSeed, *stagedFor; left > 0; seed, left = seed+1, left-time.Minute {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { stagedUnderChurn(t, seed, min(left, time.Minute)) })
	}
}

// stagedUnderChurn is a cluster of its own: no source port comes twice.
func stagedUnderChurn(t *testing.T, seed uint64, duration time.Duration) {
	c := startCluster(t, harness.Config{Nodes: []harness.NodeConfig{{Name: "node-1", IPs: []netip.Addr{ip("192.0.2.1")}}}, ShimArgs: []string{"--log-rate", "100000"}})
	var pods []harness.PodConfig
	objects := stagedObjects()
	for name, address := range stagedPods {
		pods = append(pods, harness.PodConfig{Namespace: "default", Name: name, Node: "node-1", IPs: []netip.Addr{ip(address)}, Serves: []harness.Service{{Protocol: api.ProtocolTCP, Port: 80}}})
	}
	must(t, c.SetPods(t.Context(), pods))
	set(t, c, objects)
	s := &stagedChurn{t: t, c: c, rng: rand.New(rand.NewPCG(seed, 0)), policies: make(map[string]string), got: make(map[string]chan map[uint16]bool)}
	for _, name := range []string{"nginx", "db"} {
		for _, port := range stagedPorts {
			s.receive(name, port)
		}
	}
	fence := listen(t, c.Pod("default/fence"))
	older, err := harness.StartStream(c.Pod("default/client"), ip(stagedPods["nginx"]), 80)
	must(t, err)
	defer older.Close()

	stop, ended := make(chan struct{}), make(chan error, 1)
	s.fenced = make(chan struct{})
	go func() { ended <- c.Pod("default/client").NS.Do(func() error { return s.connect(stop, fence.addr) }) }()
	start := time.Now()
	s.rounds = []stagedRound{{text: objects, applied: start}}
	for time.Since(start) < duration {
		s.change(objects)
		for range 4 { // Some connections that only these policies can have met.
			select {
			case <-s.fenced:
			case err := <-ended:
				t.Fatalf("the connections ended: %v", err)
			}
		}
	}
	took := time.Since(start)
	close(stop)
	must(t, <-ended)
	if rate := float64(s.changes) / took.Seconds(); rate < 20 {
		t.Errorf("%.0f policies changed a second, want 20 and more", rate)
	}
	must(t, older.Lives(t.Context(), 5*time.Second))
	s.verify()
	t.Logf("%d changes of policies in %d cuts in %s (%.0f a second)", s.changes, len(s.rounds), took.Round(time.Millisecond), float64(s.changes)/took.Seconds())
}

// stagedObjects are those that stay.
func stagedObjects() string {
	var b strings.Builder
	b.WriteString("---\napiVersion: v1\nkind: Namespace\nmetadata: {name: default}\n")
	b.WriteString("---\napiVersion: v1\nkind: Node\nmetadata: {name: node-1, annotations: {weir.dev/gateway-addresses: '169.254.1.1'}}\nstatus: {addresses: [{type: InternalIP, address: 192.0.2.1}]}\n")
	for _, name := range slices.Sorted(maps.Keys(stagedPods)) {
		fmt.Fprintf(&b, "---\napiVersion: v1\nkind: Pod\nmetadata: {name: %s, labels: {app: %s}}\nspec: {nodeName: node-1, containers: [{name: c, image: c}]}\nstatus: {podIPs: [{ip: %s}]}\n", name, name, stagedPods[name])
	}
	return b.String() + letFence
}

// stagedChurn is what TestStagedPoliciesUnderChurn did and saw.
type stagedChurn struct {
	t        *testing.T
	c        *harness.Cluster
	rng      *rand.Rand
	policies map[string]string // Manifests, by name.
	changes  int
	rounds   []stagedRound
	tries    []stagedTry
	fenced   chan struct{}                   // A bundle was judged, to who waits for one.
	got      map[string]chan map[uint16]bool // Of each server, "POD:PORT": the source ports heard of, once it has ended.
}

// stagedRound is a set of policies. It is in force at the earliest when it was
// written, and for certain once it was seen to be applied.
type stagedRound struct {
	text             string
	written, applied time.Time
}

// stagedTry is a connection, which was judged between two moments.
type stagedTry struct {
	to            string
	port, source  uint16
	begun, judged time.Time
}

// receive hears what comes to a Pod's port, until its socket is closed.
func (s *stagedChurn) receive(pod string, port uint16) {
	var conn *net.UDPConn
	must(s.t, s.c.Pod("default/"+pod).NS.Do(func() (err error) {
		if conn, err = net.ListenUDP("udp4", &net.UDPAddr{Port: int(port)}); err != nil {
			return err
		}
		return roomy(conn, 16<<20)
	}))
	out := make(chan map[uint16]bool, 1)
	s.got[fmt.Sprintf("%s:%d", pod, port)] = out
	s.t.Cleanup(func() { conn.Close() })
	go func() {
		heard := make(map[uint16]bool)
		defer func() { out <- heard }()
		for buf := make([]byte, 64); ; {
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil || string(buf[:n]) == "end" {
				return
			}
			heard[from.Port()] = true
		}
	}()
}

// connect begins connections, some and then one to the fence, until stop.
func (s *stagedChurn) connect(stop chan struct{}, fence netip.Addr) error {
	pace := time.NewTicker(10 * time.Millisecond)
	defer pace.Stop()
	source := uint16(10000)
	for ; ; <-pace.C {
		select {
		case <-stop:
			return nil
		default:
		}
		first := len(s.tries)
		for _, to := range []string{"nginx", "db"} {
			for _, port := range stagedPorts {
				if source++; source == 0 {
					return errors.New("no source port is left")
				}
				try := stagedTry{to: to, port: port, source: source, begun: time.Now()}
				conn, err := net.DialUDP("udp4", &net.UDPAddr{Port: int(source)}, &net.UDPAddr{IP: net.ParseIP(stagedPods[to]), Port: int(port)})
				if err != nil {
					return err
				}
				_, err = conn.Write([]byte("staged"))
				conn.Close()
				if err != nil {
					return err
				}
				s.tries = append(s.tries, try)
			}
		}
		if err := echo(fence, "fence"); err != nil {
			return fmt.Errorf("after %d connections: the fence: %w", len(s.tries), err)
		}
		for i := range s.tries[first:] {
			s.tries[first+i].judged = time.Now()
		}
		select {
		case s.fenced <- struct{}{}:
		default:
		}
	}
}

// change makes some policies others than they are, and waits until they are in
// force.
func (s *stagedChurn) change(objects string) {
	s.t.Helper()
	const atOnce, names = 9, 12
	for _, i := range s.rng.Perm(names)[:atOnce] {
		name := fmt.Sprint("policy-", i)
		if s.policies[name] != "" && s.rng.IntN(3) == 0 {
			delete(s.policies, name)
		} else {
			for was := s.policies[name]; s.policies[name] == was; {
				s.policies[name] = s.policy(name, i)
			}
		}
		s.changes++
	}
	text := objects
	for _, name := range slices.Sorted(maps.Keys(s.policies)) {
		text += s.policies[name]
	}
	r := stagedRound{text: text, written: time.Now()}
	must(s.t, s.c.WriteManifests(s.t.Context(), []byte(text)))
	must(s.t, s.c.Applied(s.t.Context(), "node-1"))
	r.applied = time.Now()
	s.rounds = append(s.rounds, r)
}

// policy is one at random: of Kubernetes, of a tier or of the baseline.
func (s *stagedChurn) policy(name string, i int) (text string) {
	pick := func(of ...string) string { return of[s.rng.IntN(len(of))] }
	selector := func(app string) string { return fmt.Sprintf("{podSelector: {matchLabels: {app: %s}}}", app) }
	port := fmt.Sprint(stagedPorts[s.rng.IntN(len(stagedPorts))])
	target, peer, direction, preposition := pick("nginx", "db"), pick("client", "nobody"), "ingress", "from"
	if s.rng.IntN(3) == 0 {
		target, peer, direction, preposition = "client", pick("nginx", "db"), "egress", "to"
	}
	if i < 4 {
		kind := map[string]string{"ingress": "Ingress", "egress": "Egress"}[direction]
		rules := "[]"
		if s.rng.IntN(3) > 0 {
			rules = fmt.Sprintf("[{%s: [%s], ports: [{protocol: UDP, port: %s}]}]", preposition, selector(peer), port)
		}
		text = policy(name, fmt.Sprintf("{podSelector: {matchLabels: {app: %s}}, policyTypes: [%s], %s: %s}", target, kind, direction, rules))
	} else {
		tier, action := pick("securityops", "application", "baseline"), pick("Allow", "Drop", "Reject", "Pass")
		if tier == "baseline" && action == "Pass" {
			action = "Drop"
		}
		logging := pick("true", "false")
		if action == "Pass" {
			logging = "false" // It would have a record of its own, beside that of what decides.
		}
		text = fmt.Sprintf("---\napiVersion: crd.antrea.io/v1beta1\nkind: ClusterNetworkPolicy\nmetadata: {name: %s}\nspec: {tier: %s, priority: %d, appliedTo: [%s], %s: [{name: rule, action: %s, enableLogging: %s, %s: [%s], ports: [{protocol: UDP, port: %s}]}]}\n",
			name, tier, i, selector(target), direction, action, logging, preposition, selector(peer), port)
	}
	if s.rng.IntN(2) == 0 {
		text = inStage(text)
	}
	return text
}

// verify holds what came of the connections to the evaluator.
func (s *stagedChurn) verify() {
	t := s.t
	t.Helper()
	heard := make(map[string]map[uint16]bool)
	for name, out := range s.got { // The last word goes from each Pod to itself.
		pod, port, _ := strings.Cut(name, ":")
		must(t, s.c.Pod("default/"+pod).NS.Do(func() error {
			conn, err := net.Dial("udp4", "127.0.0.1:"+port)
			if err != nil {
				return err
			}
			defer conn.Close()
			_, err = conn.Write([]byte("end"))
			return err
		}))
		heard[name] = <-out
	}
	states := s.states()
	records := s.records()
	var from, allowed, denied, differing, changing int
	for _, try := range s.tries {
		outcomes := make([]expectedTry, 0, 2)
		for from+1 < len(s.rounds) && s.rounds[from+1].applied.Before(try.begun) {
			from++
		}
		for i := from; i < len(s.rounds) && !s.rounds[i].written.After(try.judged); i++ {
			outcomes = append(outcomes, s.expect(states[i], &try))
		}
		first := &outcomes[0]
		key := fmt.Sprintf("%s:%d", try.to, try.port)
		came := heard[key][try.source]
		got := records[fmt.Sprintf("%s:%d", key, try.source)]
		if !slices.ContainsFunc(outcomes, func(e expectedTry) bool {
			return e.fits(came, got)
		}) {
			t.Errorf("%s from port %d: arrived: %t, recorded %q; with the policies that were in force it is to be %v", key, try.source, came, got, outcomes)
		}
		if len(outcomes) > 1 {
			changing++
		}
		if came {
			allowed++
		} else {
			denied++
		}
		if len(first.must) > 0 {
			differing++
		}
	}
	t.Logf("%d connections: %d let through, %d not, of %d while a change was under way; of %d staged policies would change the verdict", len(s.tries), allowed, denied, changing, differing)
	if few := len(s.tries) / 20; allowed < few || denied < few || differing < few || len(s.tries)-changing < few {
		t.Error("too few of a kind to show anything")
	}
}

// states are the evaluators of the rounds.
func (s *stagedChurn) states() (out []*evaluate.State) {
	file := filepath.Join(s.t.TempDir(), "objects.yaml")
	for _, r := range s.rounds {
		must(s.t, os.WriteFile(file, []byte(r.text), 0o600))
		loaded, err := manifests.Load(file)
		must(s.t, err)
		if len(loaded.Problems) > 0 {
			s.t.Fatalf("policies with problems: %v", loaded.Problems)
		}
		out = append(out, evaluate.New(loaded.Objects...))
	}
	return out
}

// expectedTry is what is to come of a connection.
type expectedTry struct {
	arrives bool
	must    []string // Records that there have to be, since the verdicts differ.
	may     []string // Records where they do not, if a rule logs.
}

// fits says whether that came of it.
func (e expectedTry) fits(came bool, got []string) bool {
	known := slices.Concat(e.must, e.may)
	return came == e.arrives && !slices.ContainsFunc(e.must, func(r string) bool { return !slices.Contains(got, r) }) &&
		!slices.ContainsFunc(got, func(r string) bool { return !slices.Contains(known, r) })
}

func (s *stagedChurn) expect(state *evaluate.State, try *stagedTry) (e expectedTry) {
	r, err := state.Evaluate(evaluate.Connection{From: evaluate.Endpoint{Namespace: "default", Pod: "client"}, To: evaluate.Endpoint{Namespace: "default", Pod: try.to},
		Protocol: api.ProtocolUDP, Port: try.port, SourcePort: try.source})
	must(s.t, err)
	would := r.Staged
	if would == nil {
		would = &r
	}
	e.arrives = r.Verdict == evaluate.Allow
	for _, d := range []struct {
		name      string
		is, would evaluate.Decision
	}{{"egress", r.Egress, would.Egress}, {"ingress", r.Ingress, would.Ingress}} {
		if d.is.Action != d.would.Action {
			e.must = append(e.must, fmt.Sprintf("%s: %v by %v, staged %v by %v", d.name, d.is.Action, decidedBy(&d.is), d.would.Action, decidedBy(&d.would)))
		} else {
			e.may = append(e.may, fmt.Sprintf("%s: %v by %v", d.name, d.is.Action, decidedBy(&d.is)))
		}
		if d.is.Action != evaluate.Allow {
			break // It does not come to be judged by the other.
		}
	}
	return e
}

// decidedBy are the policies that a record names for a decision, by name.
func decidedBy(d *evaluate.Decision) (names []string) {
	refs := d.IsolatedBy
	switch {
	case d.Action != evaluate.Allow && d.Policy != nil:
		refs = []api.Ref{*d.Policy}
	case d.Action == evaluate.Allow:
		refs = nil
		for _, by := range d.AllowedBy {
			refs = append(refs, by.Policy)
		}
	}
	for _, ref := range refs {
		names = append(names, ref.Name)
	}
	slices.Sort(names)
	return names
}

// records are what the collector has of the connections, in words, by
// "POD:PORT:SOURCEPORT", once the losses that it states are known to be none.
func (s *stagedChurn) records() map[string][]string {
	t := s.t
	t.Helper()
	apps := make(map[netip.Addr]string)
	for name, address := range stagedPods {
		apps[ip(address)] = name
	}
	names := func(refs []*policyv1.PolicyRef) (out []string) {
		for _, ref := range refs {
			out = append(out, ref.GetName())
		}
		slices.Sort(out)
		return out
	}
	actions := map[policyv1.Action]string{policyv1.Action_ACTION_ALLOW: "allow", policyv1.Action_ACTION_DROP: "drop", policyv1.Action_ACTION_REJECT: "reject"}
	out := make(map[string][]string)
	stream, err := s.c.Audit().Tail(t.Context(), &auditv1.TailRequest{})
	must(t, err)
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return out
		}
		must(t, err)
		if l := resp.GetRecord().GetEvent().GetLoss(); l.GetCount() > 0 {
			t.Fatalf("a loss is stated: %v", l)
		}
		p := resp.GetRecord().GetEvent().GetPacket()
		if p == nil || p.DestinationPort == nil || !slices.Contains(stagedPorts, uint16(p.GetDestinationPort())) {
			continue
		}
		to, _ := netip.AddrFromSlice(p.GetDestinationIp())
		text := fmt.Sprintf("%s: %s by %v", strings.ToLower(strings.TrimPrefix(p.GetDirection().String(), "DIRECTION_")), actions[p.GetAction()], names(p.GetPolicies()))
		if p.Staged != nil {
			text += fmt.Sprintf(", staged %s by %v", actions[p.GetStaged().GetAction()], names(p.GetStaged().GetPolicies()))
		}
		key := fmt.Sprintf("%s:%d:%d", apps[to], p.GetDestinationPort(), p.GetSourcePort())
		out[key] = append(out[key], text)
	}
}

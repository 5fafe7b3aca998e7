package audit

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/audit/record"
)

// teller is a policy service that tells what the test has told it to: all of it
// to a new watcher, then each change. e2e has the real one.
type teller struct {
	policyv1.UnimplementedInspectionServiceServer
	addr    string
	changes chan *policyv1.ObjectChange
	present chan []*policyv1.ObjectChange
	cut     chan struct{}
}

func startTeller(t *testing.T, present ...*policyv1.ObjectChange) *teller {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	te := &teller{addr: l.Addr().String(), changes: make(chan *policyv1.ObjectChange), present: make(chan []*policyv1.ObjectChange, 1), cut: make(chan struct{})}
	te.present <- present
	policyv1.RegisterInspectionServiceServer(s, te)
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	return te
}

func (te *teller) WatchChanges(_ *policyv1.WatchChangesRequest, stream grpc.ServerStreamingServer[policyv1.WatchChangesResponse]) error {
	present := <-te.present
	te.present <- present
	for _, c := range present {
		if err := stream.Send(&policyv1.WatchChangesResponse{Changes: []*policyv1.ObjectChange{c}}); err != nil {
			return err
		}
	}
	if err := stream.Send(&policyv1.WatchChangesResponse{Complete: true}); err != nil {
		return err
	}
	for {
		select {
		case c := <-te.changes:
			if err := stream.Send(&policyv1.WatchChangesResponse{Changes: []*policyv1.ObjectChange{c}}); err != nil {
				return err
			}
		case <-te.cut:
			return status.Error(codes.Unavailable, "stopping")
		case <-stream.Context().Done():
			return nil
		}
	}
}

// has replaces what the next watcher is told.
func (te *teller) has(present ...*policyv1.ObjectChange) {
	<-te.present
	te.present <- present
}

func pod(name, address string) *policyv1.ObjectChange {
	return &policyv1.ObjectChange{TimeUnixNano: day.Add(-time.Hour).UnixNano(), Object: &policyv1.ObjectChange_Endpoint{Endpoint: &policyv1.EndpointFact{
		Namespace: "shop", Name: name, Node: "n1", Workload: "Deployment/" + name[:len(name)-2], Ips: [][]byte{netip.MustParseAddr(address).AsSlice()}}}}
}

// policy is a version of shop/NAME, of so many minutes after the beginning.
func policy(name string, generation int64, minutes int) *policyv1.ObjectChange {
	return &policyv1.ObjectChange{TimeUnixNano: day.Add(time.Duration(minutes) * time.Minute).UnixNano(), PodsBefore: 1, PodsAfter: 2, Object: &policyv1.ObjectChange_Version{
		Version: &policyv1.ObjectVersion{ApiVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy", Namespace: "shop", Name: name, Uid: "u-" + name, Generation: generation, Manager: "kubectl",
			Manifest: fmt.Appendf(nil, `{"spec":{"priority":%d}}`, generation)}}}
}

// wantChanges waits for the changes that the log tells, as "NAME KIND GENERATION FIELDS".
func (c *collector) wantChanges(want ...string) {
	c.Helper()
	var got []string
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		got = nil
		reader, decoder := c.log.NewReader(0), record.NewDecoder()
		for {
			e, ok, err := reader.Next()
			if err != nil {
				c.Fatal(err)
			}
			if !ok {
				break
			}
			if event, err := decoder.Decode(e.Data); err != nil {
				c.Fatal(err)
			} else if ch := event.Change; ch != nil {
				got = append(got, strings.TrimSpace(fmt.Sprint(ch.Object.GetName(), " ", strings.TrimPrefix(ch.Kind.String(), "CHANGE_KIND_"), " ", ch.Object.GetGeneration(), " ", strings.Join(ch.Fields, ","))))
			}
		}
		if slices.Equal(got, want) {
			return
		}
	}
	c.Fatalf("changes:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
}

// last is the newest record.
func (c *collector) last() *auditv1.Record {
	c.Helper()
	_, newest := c.log.Range()
	r, err := recordAt(c.log, newest)
	if err != nil {
		c.Fatal(err)
	}
	return r
}

func (c *collector) objectAt(name string, cursor uint64) string {
	c.Helper()
	resp, err := auditv1.NewAuditServiceClient(c.dial(nil)).ObjectAt(c.Context(), &auditv1.ObjectAtRequest{Cursor: cursor,
		Policy: &policyv1.PolicyRef{Kind: policyv1.PolicyKind_POLICY_KIND_K8S_NETWORK_POLICY, Namespace: "shop", Name: name}})
	if err != nil {
		return status.Code(err).String()
	}
	text := string(resp.GetChange().GetEvent().GetChange().GetObject().GetManifest())
	if resp.GetNext() != nil {
		text += " until " + strings.TrimPrefix(resp.GetNext().GetEvent().GetChange().GetKind().String(), "CHANGE_KIND_")
	}
	return text
}

// TestNamesAndTrail: records are named as of their time, changes are in the log,
// and what was in force when a record was made can be seen, over restarts.
func TestNamesAndTrail(t *testing.T) {
	te := startTeller(t, pod("web-1", "10.0.1.5"), policy("default-deny", 3, -10), policy("gone", 1, -10))
	dir := t.TempDir()
	config := func(c *Config) { c.Dir, c.PolicyServers = filepath.Join(dir, "log"), []string{te.addr} }
	c := start(t, config)
	c.wantChanges("default-deny PRESENT 3", "gone PRESENT 1")
	eventually(t, "the policy service is followed", c.watcher.connected.Load)

	s := c.report("n1", "b1")
	s.acked(0)
	s.batch(1, drop(1))
	s.acked(1)
	first := c.last()
	want := &auditv1.PacketContext{Source: &auditv1.PacketEnd{Namespace: "shop", Pod: "web-1", Node: "n1", Workload: "Deployment/web"},
		Policies: []*auditv1.PolicyVersion{{Uid: "u-default-deny", Generation: 3}, {}}}
	if got := first.GetEvent().GetContext(); got.String() != want.String() {
		t.Errorf("context %v, want %v", got, want)
	}

	te.changes <- policy("default-deny", 4, 10)
	c.wantChanges("default-deny PRESENT 3", "gone PRESENT 1", "default-deny UPDATED 4 spec.priority")
	late := drop(2)
	late.GetPacket().First.Seconds += 3600
	s.batch(2, late)
	s.acked(2)
	second := c.last()
	if got := second.GetEvent().GetContext().GetPolicies()[0].GetGeneration(); got != 4 {
		t.Errorf("generation %d", got)
	}
	check := func() {
		t.Helper()
		for cursor, want := range map[uint64]string{
			first.GetCursor():  `{"spec":{"priority":3}} until UPDATED`,
			second.GetCursor(): `{"spec":{"priority":4}}`,
			0:                  `{"spec":{"priority":4}}`,
			1 << 40:            "NotFound",
		} {
			if got := c.objectAt("default-deny", cursor); got != want {
				t.Errorf("at %d: %s, want %s", cursor, got, want)
			}
		}
		if got := c.objectAt("unheard", 0); got != "NotFound" {
			t.Errorf("of what was never told: %s", got)
		}
	}
	check()

	// The policy service goes and comes back with other objects.
	te.has(pod("web-1", "10.0.1.5"), policy("default-deny", 4, 10), policy("new", 1, 70))
	te.cut <- struct{}{}
	all := []string{"default-deny PRESENT 3", "gone PRESENT 1", "default-deny UPDATED 4 spec.priority", "new PRESENT 1", "gone DELETED 1"}
	c.wantChanges(all...)

	// The collector, too; once without what it kept of the trail.
	for _, name := range []string{"", "changes.index"} {
		c.stop()
		if name != "" {
			if err := os.Remove(filepath.Join(dir, "log", name)); err != nil {
				t.Fatal(err)
			}
		}
		c = start(t, config)
		eventually(t, "the policy service is followed", c.watcher.connected.Load)
		c.wantChanges(all...)
		check()
	}
}

// TestWithoutNames: a policy service that is not there holds nothing up.
func TestWithoutNames(t *testing.T) {
	c := start(t, func(c *Config) { c.PolicyServers = []string{"127.0.0.1:1"} })
	s := c.report("n1", "b1")
	s.acked(0)
	s.batch(1, drop(1))
	s.acked(1)
	if r := c.last(); r.GetEvent().GetContext() != nil {
		t.Errorf("context %v", r.GetEvent().GetContext())
	}
}

// TestTrailIsToldAgain: what retention took of objects that are there is told again.
func TestTrailIsToldAgain(t *testing.T) {
	te := startTeller(t, policy("stays", 1, 0))
	c := start(t, func(c *Config) { c.PolicyServers, c.retell = []string{te.addr}, time.Nanosecond })
	c.wantChanges("stays PRESENT 1")
	eventually(t, "the policy service is followed", c.watcher.connected.Load)
	c.overview.mu.Lock()
	c.overview.index.Trim(1 << 40) // As after retention.
	c.overview.dropped = true
	c.overview.mu.Unlock()
	te.changes <- pod("web-1", "10.0.1.5")
	c.wantChanges("stays PRESENT 1", "stays PRESENT 1")
}

// TestRulesAreCounted: Stats tell packets and losses by rule.
func TestRulesAreCounted(t *testing.T) {
	c := start(t, nil)
	s := c.report("n1", "b1")
	s.acked(0)
	loss := lossEvent(7)
	loss.GetLoss().Policy, loss.GetLoss().Direction, loss.GetLoss().Reason = allow(1).GetPacket().GetPolicies()[0], policyv1.Direction_DIRECTION_INGRESS, "rule"
	many := allow(2)
	many.GetPacket().Count = 5
	s.batch(1, allow(1), many, drop(1), drop(2), loss, lossEvent(3))
	s.acked(6)
	if err := c.overview.await(context.Background()); err != nil {
		t.Fatal(err)
	}
	stats, err := auditv1.NewAuditServiceClient(c.dial(nil)).Stats(t.Context(), &auditv1.StatsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range stats.GetRules() {
		got = append(got, fmt.Sprint(r.GetPolicy().GetName(), " ", r.GetReason(), " ", r.GetPackets(), " ", r.GetLost()))
	}
	if want := []string{"allow-web rule 6 7", "  0 3", " isolation 2 0"}; !slices.Equal(got, want) {
		t.Errorf("rules %q, want %q", got, want)
	}
}

// TestOverviewIsBounded: beyond so many rules the rest are one row.
func TestOverviewIsBounded(t *testing.T) {
	o := &overview{rules: make(map[ruleKey]*ruleCount)}
	total := uint64(0)
	for i := range maxRules + 1000 {
		o.ruleLocked(ruleKey{rule: fmt.Sprint(i)}).packets++
	}
	for _, c := range o.rules {
		total += c.packets
	}
	if len(o.rules) > maxRules+1 || total != maxRules+1000 || len(o.ruleEvents()) != maxRulesTold {
		t.Errorf("%d rules, %d packets", len(o.rules), total)
	}
}

// TestFollowAsForwarder: a collector that shows certificates for forwarding alone follows
// the policy service with these, and beyond loopback with none does not.
func TestFollowAsForwarder(t *testing.T) {
	files := pkiFiles(t)
	cfg := Config{Dir: t.TempDir(), Listen: "127.0.0.1:0", MinFree: 1, PolicyServers: []string{"192.0.2.1:9740"}, Logger: hclog.NewNullLogger()}
	if _, err := New(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "--policy-server") {
		t.Errorf("without certificates: %v", err)
	}
	cfg.Forward, cfg.ForwardTLS = []string{"192.0.2.1:9741"}, files("auditd")
	s, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if s.watcher.creds == nil || s.watcher.creds.Info().SecurityProtocol != "tls" {
		t.Error("the policy service is followed in plain text")
	}
	if err := s.log.Close(); err != nil {
		t.Error(err)
	}
}

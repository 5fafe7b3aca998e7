package e2e

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"

	"github.com/weirnet/weir/e2e/harness"
	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/storage"
	"github.com/weirnet/weir/storage/checkpoint"
)

// guarded is a small cluster in which the client alone is let in, to port 80 of
// both nodes. Streams that were allowed go on, and datagrams that are denied are
// sent, all the time.
type guarded struct {
	*harness.Cluster
	t       *testing.T
	streams []*harness.Stream
	ears    []*ear
	rounds  *atomic.Int64
}

const clientAlone = "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: 80}]}]}"

// alsoRemote lets remote in, too.
var alsoRemote = policy("also-remote", "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: remote}}}], ports: [{port: 80}]}]}")

func newGuarded(t *testing.T, shimArgs ...string) *guarded {
	t.Helper()
	g := &guarded{Cluster: smallCluster(t, shimArgs...), t: t}
	g.set()
	for _, to := range []string{"10.9.1.2", "10.9.2.1"} {
		s, err := harness.StartStream(g.Pod("default/client"), ip(to), 80)
		must(t, err)
		t.Cleanup(s.Close)
		g.streams = append(g.streams, s)
	}
	g.ears = []*ear{listen(t, g.Pod("default/client")), listen(t, g.Pod("default/remote"))}
	g.rounds = blast(t, g.Cluster, "default/nginx", "denied", g.ears...)
	return g
}

// objects are those of the cluster, with more policies.
func (g *guarded) objects(more ...string) []byte {
	return []byte(smallObjects(false) + policy("client-alone", clientAlone) + strings.Join(more, ""))
}

// set puts objects in force.
func (g *guarded) set(more ...string) {
	g.t.Helper()
	must(g.t, g.SetManifests(g.t.Context(), g.objects(more...)))
}

// write changes the folder, whether the policy service is there or not.
func (g *guarded) write(more ...string) {
	g.t.Helper()
	path := filepath.Join(g.Manifests(), "cluster.yaml")
	must(g.t, os.WriteFile(path+".new", g.objects(more...), 0o644))
	must(g.t, os.Rename(path+".new", path))
}

// enforced checks with packets that what was allowed goes on, that new connections
// are let in or not, remote's to nginx as it is said, and that nothing denied has
// come through.
func (g *guarded) enforced(remote string) {
	g.t.Helper()
	for _, s := range g.streams {
		must(g.t, s.Lives(g.t.Context(), 10*time.Second))
	}
	outcomes(g.t, []harness.Probe{tcp(g.Pod("default/client"), "10.9.1.2"), tcp(g.Pod("default/client"), "fd09:2::1"), tcp(g.Pod("default/nginx"), "10.9.2.1"), tcp(g.Pod("default/remote"), "10.9.1.2")},
		harness.Allow, harness.Allow, harness.Drop, remote)
	g.silent()
}

func (g *guarded) silent() {
	g.t.Helper()
	further(g.t, g.rounds, 20)
	for _, e := range g.ears {
		if n := e.heard("denied"); n > 0 {
			g.t.Fatalf("%d denied datagrams came to %s", n, e.addr)
		}
	}
}

// until waits until new connections of remote to nginx are let in, or not.
func (g *guarded) until(limit time.Duration, remote string) {
	g.t.Helper()
	must(g.t, harness.Eventually(g.t.Context(), limit, func() error {
		p := tcp(g.Pod("default/remote"), "10.9.1.2")
		p.Answered = remote == harness.Allow
		got, err := harness.Run(g.t.Context(), []harness.Probe{p})
		if err == nil && got[0] != remote {
			err = fmt.Errorf("remote to nginx: %s, want %s", got[0], remote)
		}
		return err
	}))
}

// lost counts the lines in which shims say that they have no stream.
func (g *guarded) lost() map[string]int {
	lost := make(map[string]int)
	for name, n := range g.Nodes {
		for _, line := range n.Shim.Lines() {
			if strings.Contains(line, "no stream of the policy service") {
				lost[name]++
			}
		}
	}
	return lost
}

// noticed waits until every shim says that it has no stream any more.
func (g *guarded) noticed(before map[string]int, limit time.Duration) {
	g.t.Helper()
	must(g.t, harness.Eventually(g.t.Context(), limit, func() error {
		for name, n := range g.lost() {
			if n <= before[name] {
				return fmt.Errorf("the shim of %s has not noticed", name)
			}
		}
		if now := g.lost(); len(now) < len(g.Nodes) {
			return fmt.Errorf("only the shims of %v have noticed", now)
		}
		return nil
	}))
}

// A policy service that is killed leaves everything as it is, and the next life
// brings what has changed. A node that boots meanwhile, its switch without a flow,
// enforces its checkpoint and keeps Pods closed that this does not know; without a
// checkpoint it keeps everything closed.
func TestPolicyServiceIsKilled(t *testing.T) {
	t.Parallel()
	g := newGuarded(t)
	node := g.Nodes["node-1"]
	g.Policyd.Kill()
	g.enforced(harness.Drop)
	g.write(alsoRemote)
	must(t, g.Policyd.Start())
	must(t, g.InSync(t.Context()))
	g.until(5*time.Second, harness.Allow)
	g.enforced(harness.Allow)
	eventually(t, func() error { return savedWith(node, "also-remote") })

	g.Policyd.Kill()
	boot := func(prepare func()) {
		t.Helper()
		node.Shim.Kill()
		node.OVS.KillSwitch()
		prepare()
		must(t, node.OVS.StartSwitch(t.Context()))
		must(t, node.RebuildBridgePort(t.Context()))
		g.silent() // The bridge has no flow yet.
		must(t, node.Shim.Start())
	}
	boot(func() {})
	g.until(10*time.Second, harness.Allow)
	unknown := harness.PodConfig{Namespace: "default", Name: "unknown", Node: "node-1", IPs: []netip.Addr{ip("10.9.1.9")}, Serves: []harness.Service{{Protocol: api.ProtocolTCP, Port: 80}}}
	must(t, g.SetPods(t.Context(), append(smallPodConfigs(), unknown)))
	outcomes(t, []harness.Probe{tcp(g.Pod("default/client"), "10.9.1.2"), tcp(g.Pod("default/client"), "10.9.2.1"), tcp(g.Pod("default/nginx"), "10.9.2.1"),
		tcp(g.Pod("default/client"), "10.9.1.9"), tcp(g.Pod("default/unknown"), "10.9.1.2")},
		harness.Allow, harness.Allow, harness.Drop, harness.Drop, harness.Drop)
	g.silent()

	boot(func() { must(t, os.Remove(node.Checkpoint())) })
	eventually(t, func() error {
		flows, err := node.Flows(t.Context(), "table=0")
		if err == nil && len(flows) == 0 {
			err = errors.New("the shim has put in nothing")
		}
		return err
	})
	outcomes(t, []harness.Probe{tcp(g.Pod("default/client"), "10.9.1.2"), tcp(g.Pod("default/remote"), "10.9.1.2"), tcp(g.Pod("default/client"), "10.9.2.1")},
		harness.Drop, harness.Drop, harness.Drop)
	g.silent()

	must(t, g.Policyd.Start())
	g.until(15*time.Second, harness.Allow)
	outcomes(t, []harness.Probe{tcp(g.Pod("default/client"), "10.9.1.2"), tcp(g.Pod("default/nginx"), "10.9.2.1")}, harness.Allow, harness.Drop)
	g.silent()
}

// savedWith fails until a node's checkpoint has a policy.
func savedWith(n *harness.Node, name string) error {
	c, err := checkpoint.Load(n.Checkpoint(), n.Name)
	if err != nil {
		return err
	}
	for _, sd := range c.State.GetScopes() {
		for _, item := range sd.GetUpserts() {
			if item.GetPolicy().GetRef().GetName() == name {
				return nil
			}
		}
	}
	return fmt.Errorf("the checkpoint of %s has no policy %s", n.Name, name)
}

// A policy service that hangs, and one that is cut off without a word, are noticed
// by the silence; afterwards nodes are in sync within seconds.
func TestPolicyServiceIsSilent(t *testing.T) {
	t.Parallel()
	g := newGuarded(t)
	before := g.lost()
	must(t, g.Policyd.Pause())
	g.write(alsoRemote)
	g.noticed(before, 25*time.Second)
	g.enforced(harness.Drop)
	must(t, g.Policyd.Resume())
	g.until(10*time.Second, harness.Allow)
	must(t, g.InSync(t.Context()))

	before = g.lost()
	must(t, g.CutOff(t.Context(), true))
	g.write()
	g.noticed(before, 25*time.Second)
	g.enforced(harness.Allow)
	must(t, g.CutOff(t.Context(), false))
	g.until(12*time.Second, harness.Drop)
	must(t, g.InSync(t.Context()))
	g.enforced(harness.Drop)
}

// A replica with an older folder is left for one that has what the node was told;
// where there is none any more, its state is taken over, and that is said.
func TestPolicyServiceIsBehind(t *testing.T) {
	t.Parallel()
	old := t.TempDir()
	g := newGuarded(t)
	for _, n := range g.Nodes {
		n.ShimArgs("--policy-server", g.BesideAddress())
	}
	must(t, os.WriteFile(filepath.Join(old, "cluster.yaml"), g.objects(alsoRemote), 0o644))
	g.set(alsoRemote) // By when the folder's next change is certainly a later one.
	g.set()           // What the older replica would let in is denied now.
	beside := g.BesidePolicyd(old)
	must(t, beside.Start())
	for _, n := range g.Nodes {
		n.Shim.Terminate()
		must(t, n.Shim.Start())
	}
	must(t, g.InSync(t.Context())) // Whichever they tried first.

	g.Policyd.Kill()
	must(t, g.Policyd.Start())
	eventually(t, func() error { // Those that were sent on have come back.
		for name := range g.Nodes {
			if err := g.Applied(t.Context(), name); err != nil {
				return err
			}
		}
		return nil
	})
	g.enforced(harness.Drop)
	for name, n := range g.Nodes {
		if text, err := n.Metrics(); err != nil || !strings.Contains(text, "weir_shim_position_rollbacks_total 0\n") {
			t.Errorf("the shim of %s was taken back, or cannot be asked: %v", name, err)
		}
	}

	g.Policyd.Kill()
	g.until(30*time.Second, harness.Allow)
	g.enforced(harness.Allow)
	node := g.Nodes["node-1"]
	if !slices.ContainsFunc(node.Shim.Lines(), func(line string) bool { return strings.Contains(line, "its state is taken over all the same") }) {
		t.Errorf("the shim does not say so:\n%s", node.Shim.Tail())
	}
	must(t, g.Policyd.Start())
	beside.Kill()
	g.until(15*time.Second, harness.Drop)
	g.enforced(harness.Drop)
}

// raw is a message as it is on the wire.
type raw []byte

// rawCodec is the proto codec, but for raw messages.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }
func (rawCodec) Marshal(v any) ([]byte, error) {
	if b, is := v.(raw); is {
		return b, nil
	}
	return proto.Marshal(v.(proto.Message))
}
func (rawCodec) Unmarshal(b []byte, v any) error { return proto.Unmarshal(b, v.(proto.Message)) }

type subscription = grpc.BidiStreamingServer[policyv1.SubscribeRequest, policyv1.SubscribeResponse]

// lie is what an impostor says on one stream, and what is to become of it: the
// shim ends the stream, or answers.
type lie struct {
	name string
	want string // "ended", "ack" or "nack".
	tell func(stream subscription, hello *policyv1.Hello, held *policyv1.Cut) error
}

// impostor answers each stream with the next lie.
type impostor struct {
	policyv1.UnimplementedPolicyServiceServer
	cluster *guarded
	told    chan string // What became of them.

	mu   sync.Mutex // Guards lies.
	lies []lie
}

func (i *impostor) Subscribe(stream subscription) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	hello := first.GetHello()
	c, err := checkpoint.Load(i.cluster.Nodes[hello.GetNode()].Checkpoint(), hello.GetNode())
	if err != nil {
		return err
	}
	i.mu.Lock()
	if len(i.lies) == 0 {
		i.mu.Unlock()
		<-stream.Context().Done()
		return nil
	}
	l := i.lies[0]
	i.lies = i.lies[1:]
	i.mu.Unlock()
	if err := l.tell(stream, hello, c.State); err != nil {
		i.told <- fmt.Sprintf("%s: %v", l.name, err)
		return err
	}
	got := "ended"
	for got == "ended" {
		answer, err := stream.Recv()
		if err != nil {
			break
		}
		switch answer.GetMessage().(type) {
		case *policyv1.SubscribeRequest_Ack:
			got = "ack"
		case *policyv1.SubscribeRequest_Nack:
			got = "nack"
		}
	}
	if got == "nack" {
		select { // As long as refused cuts are tried again.
		case <-time.After(time.Second):
		case <-stream.Context().Done():
		}
	}
	if got != l.want {
		i.told <- fmt.Sprintf("%s: %s, want %s", l.name, got, l.want)
	} else {
		i.told <- ""
	}
	return errors.New("enough")
}

func say(m *policyv1.SubscribeResponse) func(subscription, *policyv1.Hello, *policyv1.Cut) error {
	return func(s subscription, _ *policyv1.Hello, _ *policyv1.Cut) error { return s.Send(m) }
}

func sayRaw(b raw) func(subscription, *policyv1.Hello, *policyv1.Cut) error {
	return func(s subscription, _ *policyv1.Hello, _ *policyv1.Cut) error { return s.SendMsg(b) }
}

// sayCut sends a cut about the first scope of policies that the node holds, with
// the digest that it says it has.
func sayCut(change func(cut *policyv1.Cut, scope *policyv1.ScopeDelta)) func(subscription, *policyv1.Hello, *policyv1.Cut) error {
	return func(s subscription, hello *policyv1.Hello, held *policyv1.Cut) error {
		cut := &policyv1.Cut{Epoch: "impostor", Revision: 7, Position: hello.GetPosition(), Digest: hello.GetDigest()}
		sd := &policyv1.ScopeDelta{Id: scopeOfPolicies(held).GetId(), Kind: storage.ScopePolicies}
		cut.Scopes = append(cut.Scopes, sd)
		change(cut, sd)
		return s.Send(&policyv1.SubscribeResponse{Message: &policyv1.SubscribeResponse_Cut{Cut: cut}})
	}
}

func scopeOfPolicies(state *policyv1.Cut) *policyv1.ScopeDelta {
	i := slices.IndexFunc(state.GetScopes(), func(sd *policyv1.ScopeDelta) bool { return sd.GetKind() == storage.ScopePolicies })
	return state.GetScopes()[i]
}

// sayUnreadableDeny sends what the node holds and a policy before all others that
// nobody can carry out, with the right digest.
func sayUnreadableDeny(s subscription, _ *policyv1.Hello, held *policyv1.Cut) error {
	cut := proto.Clone(held).(*policyv1.Cut)
	sd := scopeOfPolicies(cut)
	deny := &policyv1.Policy{Ref: &policyv1.PolicyRef{Kind: policyv1.PolicyKind_POLICY_KIND_ANTREA_CLUSTER_NETWORK_POLICY, Name: "deny"}, Rank: 50, Priority: math.Inf(1),
		AppliedTo: sd.GetUpserts()[0].GetPolicy().GetAppliedTo(), Rules: []*policyv1.Rule{{Direction: policyv1.Direction_DIRECTION_INGRESS, Action: policyv1.Action_ACTION_DROP}}}
	sd.Upserts = append(sd.Upserts, &policyv1.Item{Body: &policyv1.Item_Policy{Policy: deny}})
	r := &storage.Replica{}
	if _, _, err := r.Apply(cut); err != nil {
		return err
	}
	cut.Epoch, cut.Digest = "impostor", r.Digest().Bytes()
	return s.Send(&policyv1.SubscribeResponse{Message: &policyv1.SubscribeResponse_Cut{Cut: cut}})
}

func sayInSync(times int) func(subscription, *policyv1.Hello, *policyv1.Cut) error {
	return func(s subscription, hello *policyv1.Hello, _ *policyv1.Cut) error {
		for range times {
			m := &policyv1.InSync{Epoch: "impostor", Revision: 7, Position: hello.GetPosition()}
			if err := s.Send(&policyv1.SubscribeResponse{Message: &policyv1.SubscribeResponse_InSync{InSync: m}}); err != nil {
				return err
			}
		}
		return nil
	}
}

// harmless is a cut that says nothing new, after which a shim tries again soon.
var harmless = lie{"removal of what is not held", "ack", sayCut(func(_ *policyv1.Cut, sd *policyv1.ScopeDelta) {
	sd.Removals = []string{"policy/1/default/none"}
})}

var lies = []lie{
	harmless, harmless,
	{"no protobuf", "ended", sayRaw(raw{0xff, 0xff, 0xff})},
	{"too large", "ended", sayRaw(make(raw, 17<<20))},
	{"end of a scope that is not held", "ack", sayCut(func(_ *policyv1.Cut, sd *policyv1.ScopeDelta) {
		sd.Id, sd.Gone = make([]byte, 16), true
	})},
	harmless,
	{"no message", "ended", say(&policyv1.SubscribeResponse{})},
	{"item of no kind", "ended", sayCut(func(_ *policyv1.Cut, sd *policyv1.ScopeDelta) { sd.Upserts = []*policyv1.Item{{}} })},
	{"policies gone with the digest of before", "nack", sayCut(func(_ *policyv1.Cut, sd *policyv1.ScopeDelta) { sd.Kind, sd.Gone = 0, true })},
	{"nothing at all with the digest of before", "nack", sayCut(func(cut *policyv1.Cut, _ *policyv1.ScopeDelta) { cut.Snapshot, cut.Scopes = true, nil })},
	{"scope without id", "ended", sayCut(func(_ *policyv1.Cut, sd *policyv1.ScopeDelta) { sd.Id = sd.Id[:3] })},
	{"in sync with nobody knows what", "ended", say(&policyv1.SubscribeResponse{Message: &policyv1.SubscribeResponse_InSync{InSync: &policyv1.InSync{}}})},
	{"deny that cannot be read", "nack", sayUnreadableDeny},
	{"deny that cannot be read", "nack", sayUnreadableDeny},
	{"release of nobody", "ended", func(s subscription, _ *policyv1.Hello, _ *policyv1.Cut) error {
		if err := s.Send(&policyv1.SubscribeResponse{Message: &policyv1.SubscribeResponse_Release{Release: &policyv1.Release{Endpoints: []string{"pod/default/none", ""}}}}); err != nil {
			return err
		}
		return sayInSync(1)(s, nil, nil) // Not first, and so out of place.
	}},
}

// Whatever comes from the address of the policy service, corrupt bytes or
// well-formed nonsense, its state as it was stays in force.
func TestPolicyServiceTalksNonsense(t *testing.T) {
	t.Parallel()
	g := newGuarded(t)
	g.Auditd.Kill() // It would listen too.
	for _, n := range g.Nodes {
		eventually(t, func() error { return savedWith(n, "client-alone") })
	}
	g.Policyd.Terminate()
	l, err := g.Impersonate()
	must(t, err)
	for _, answer := range []string{"HTTP/1.1 400 Bad Request\r\n\r\n", strings.Repeat("\xff", 100)} {
		conn, err := l.Accept()
		must(t, err)
		_, err = conn.Write([]byte(answer))
		must(t, err)
		must(t, conn.Close())
	}
	imp := &impostor{cluster: g, told: make(chan string, len(lies)), lies: slices.Clone(lies)}
	server := grpc.NewServer(grpc.ForceServerCodec(rawCodec{}))
	policyv1.RegisterPolicyServiceServer(server, imp)
	go server.Serve(l)
	t.Cleanup(server.Stop)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for range lies {
		select {
		case why := <-imp.told:
			if why != "" {
				t.Error(why)
			}
			g.silent()
		case <-ctx.Done():
			t.Fatal("the shims have not heard all lies")
		}
	}
	g.enforced(harness.Drop)
	server.Stop()
	must(t, g.Policyd.Start())
	must(t, g.InSync(t.Context()))

	r, err := g.RelayPolicy()
	must(t, err)
	t.Cleanup(r.Close)
	g.set(alsoRemote)
	before := g.lost()
	for name, spoil := range map[string]func(sent int, piece []byte) []byte{
		"a bit": func(sent int, piece []byte) []byte {
			if sent > 2000 {
				piece[len(piece)/2] ^= 4
			}
			return piece
		},
		"the rest": func(sent int, piece []byte) []byte {
			if sent > 2000 {
				return nil
			}
			return piece
		},
	} {
		r.Spoil(spoil)
		g.write()
		g.noticed(before, 15*time.Second)
		eventually(t, func() error {
			if n := r.Spoiled(); n < 2 {
				return fmt.Errorf("%s was spoiled in %d pieces", name, n)
			}
			return nil
		})
		g.silent()
	}
	r.Spoil(nil)
	g.until(15*time.Second, harness.Drop)
	must(t, g.InSync(t.Context()))
	g.enforced(harness.Drop)
}

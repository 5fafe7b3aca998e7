package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

// trail reads a stream of WatchChanges as lines.
type trail struct {
	t      *testing.T
	stream policyv1.InspectionService_WatchChangesClient
	times  map[string]int64 // Of each line, the newest.
}

func (f *fixture) watch(certificate string) trail {
	f.t.Helper()
	conn, ctx := f.dial(certificate)
	stream, err := policyv1.NewInspectionServiceClient(conn).WatchChanges(ctx, &policyv1.WatchChangesRequest{})
	if err != nil {
		f.t.Fatal(err)
	}
	return trail{f.t, stream, map[string]int64{}}
}

// next are the changes of the next message.
func (r trail) next() (lines []string, complete bool) {
	r.t.Helper()
	resp, err := r.stream.Recv()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, c := range resp.GetChanges() {
		var text []string
		if c.GetRemoved() {
			text = append(text, "gone")
		}
		for _, ip := range slices.Concat(c.GetEndpoint().GetIps(), c.GetService().GetIps()) {
			a, _ := netip.AddrFromSlice(ip)
			text = append(text, a.String())
		}
		if e := c.GetEndpoint(); e != nil {
			text = append(text, e.GetNamespace()+"/"+e.GetName(), e.GetWorkload())
		}
		if s := c.GetService(); s != nil {
			text = append(text, "service", s.GetNamespace()+"/"+s.GetName())
		}
		if v := c.GetVersion(); v != nil {
			text = append(text, v.GetKind(), v.GetNamespace()+"/"+v.GetName(), fmt.Sprintf("%d to %d Pods", c.GetPodsBefore(), c.GetPodsAfter()), string(v.GetManifest()))
		}
		lines = append(lines, strings.TrimSpace(strings.Join(text, " ")))
		r.times[lines[len(lines)-1]] = c.GetTimeUnixNano()
		if c.GetTimeUnixNano() == 0 {
			r.t.Errorf("%v has no time", c)
		}
	}
	return lines, resp.GetComplete()
}

// expect reads messages until they have said so much.
func (r trail) expect(want ...string) {
	r.t.Helper()
	var got []string
	for len(got) < len(want) {
		lines, _ := r.next()
		got = append(got, lines...)
	}
	if !slices.Equal(got, want) {
		r.t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestTheCollectorWatchesAFolder(t *testing.T) {
	f := newFixture(t)
	f.writeTo("node.yaml", "{apiVersion: v1, kind: Node, metadata: {name: n1}, status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}}")
	s, _ := f.run(Config{Listen: "127.0.0.1:0", ChangeTrail: true})
	f.addr = s.Addr()
	first := f.watch("auditd")
	const closed = `{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"closed","namespace":"x"},"spec":{"podSelector":{"matchLabels":{"app":"web"}},"policyTypes":["Ingress"]}}`
	there := []string{"192.0.2.1 /n1", "10.0.2.1 x/other", "10.0.1.1 x/web", "NetworkPolicy x/closed 1 to 1 Pods " + closed}
	got, complete := first.next()
	if !complete || !slices.Equal(got, there) {
		t.Errorf("got %v, %q", complete, got)
	}
	began := first.times["10.0.1.1 x/web"]

	f.writeTo("all.yaml", strings.Replace(manifest, "podSelector: {matchLabels: {app: web}}", "podSelector: {}", 1))
	all := strings.Replace(closed, `{"matchLabels":{"app":"web"}}`, "{}", 1)
	first.expect("NetworkPolicy x/closed 1 to 2 Pods " + all)
	// A second that begins now is told what there is now.
	second := f.watch("policyd")
	second.expect("192.0.2.1 /n1", "10.0.2.1 x/other", "10.0.1.1 x/web", "NetworkPolicy x/closed 2 to 2 Pods "+all)
	if at := second.times["10.0.1.1 x/web"]; at != began {
		t.Errorf("an address is told as of %d, was %d", at, began)
	}

	const owned = `{apiVersion: v1, kind: Pod, metadata: {namespace: x, name: s-0, ownerReferences: [{apiVersion: apps/v1, kind: StatefulSet, name: s, uid: u, controller: true}]}, spec: {nodeName: n1}, status: {podIPs: [{ip: 10.0.1.9}, {ip: "fd00::9"}]}}`
	f.writeTo("pod.yaml", owned)
	const came = "10.0.1.9 fd00::9 x/s-0 StatefulSet/s"
	for _, r := range []trail{first, second} {
		r.expect(came)
	}
	third := f.watch("operator")
	if lines, _ := third.next(); !slices.Contains(lines, came) || third.times[came] != first.times[came] || third.times[came] <= began {
		t.Errorf("got %q; an address is told as of %d, was %d", lines, third.times[came], first.times[came])
	}
	f.writeTo("pod.yaml", strings.Replace(owned, "nodeName: n1", "nodeName: n1, hostNetwork: true", 1))
	first.expect("gone x/s-0")
	const service = "\n---\n{apiVersion: v1, kind: Service, metadata: {name: db}, spec: {clusterIP: 10.96.0.9, externalIPs: [192.0.2.9], ports: [{port: 80}]}}"
	f.writeTo("pod.yaml", "# none"+service)
	first.expect("10.96.0.9 192.0.2.9 service default/db")
	f.writeTo("all.yaml", "# none")
	first.expect("gone x/other", "gone x/web", "gone NetworkPolicy x/closed 2 to 0 Pods "+all)

	if _, err := f.watch("node-n1").stream.Recv(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a node watches: %v", err)
	}
}

// Without the trail, whose addresses are is told all the same.
func TestNoTrailIsKeptUnasked(t *testing.T) {
	f := newFixture(t)
	f.watch("operator").expect("10.0.2.1 x/other", "10.0.1.1 x/web")
}

package shim

import (
	"context"
	"fmt"
	"regexp"
	"testing"
	"time"

	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/shim/bridge/ovstest"
	"github.com/weirnet/weir/shim/igmp"
	"github.com/weirnet/weir/shim/pipeline"
)

// Open vSwitch brings one packet to as many members as a group may have, each of
// them judged by both worlds, within what it lets one packet do.
func TestGroupOfManyMembers(t *testing.T) {
	ovstest.Require(t)
	n := newBenchNode(t, igmp.PortsOfGroup+1)
	judged := rejecting("staged", "none", true, false)
	judged.Staged, judged.AppliedTo = true, []api.Target{{NamespaceSelector: &api.Selector{}}}
	judged.Ingress[0].Peers = []api.Peer{{PodSelector: &api.Selector{MatchLabels: labels("none")}, NamespaceSelector: &api.Selector{}}}
	objects := []api.Object{judged}
	for _, p := range n.pods {
		objects = append(objects, p)
	}
	must(t, apply(t, n.shim, n.world, n.cut(append(objects, &api.Namespace{Name: "x"})...)))
	var members []igmp.Member
	var from uint32
	done := make(chan error)
	n.shim.turns <- func(ctx context.Context) {
		l := n.shim.loop
		sender, _, _ := l.compiler.OpenPort(pipeline.Pod{Namespace: "x", Name: "pod-0"})
		from = sender.OFPort
		for _, port := range l.compiler.CastPorts() {
			if port.Number == from {
				continue
			}
			if _, err := l.casts.members.Join(time.Now(), igmp.Member{Group: someGroup, Port: port}, igmp.ReportV2); err != nil {
				t.Error(err)
			}
		}
		l.bringMembers(ctx)
		members = l.casts.members.All()
		close(done)
	}
	<-done
	if len(members) != igmp.PortsOfGroup {
		t.Fatalf("%d members", len(members))
	}
	account, err := n.sw.Trace(t.Context(), fmt.Sprintf("in_port=%d,udp,dl_src=%s,dl_dst=01:00:5e:01:02:03,nw_src=%s,nw_dst=%s,udp_src=1,udp_dst=2", from, macText(benchMAC(0)), benchAddr(0), someGroup), "--ct-next", "trk,new")
	must(t, err)
	if got := len(regexp.MustCompile(`output:NXM_NX_REG1`).FindAllString(account, -1)); got != igmp.PortsOfGroup {
		if len(account) > 6000 {
			account = account[:3000] + "\n…\n" + account[len(account)-3000:]
		}
		t.Errorf("%d copies leave:\n%s", got, account)
	}
}

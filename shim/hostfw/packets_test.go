package hostfw

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/hostfw/fwtest"
)

// handleOf is the handle of the first rule of a chain that has a text in it.
func handleOf(t *testing.T, chain, text string) string {
	t.Helper()
	m := regexp.MustCompile(regexp.QuoteMeta(text) + `.* # handle (\d+)`).FindStringSubmatch(run(t, "nft", "-a", "list", "chain", "inet", table, chain))
	if m == nil {
		t.Fatalf("%s has no rule with %q", chain, text)
	}
	return m[1]
}

func setOf(t *testing.T, prefix string) string {
	t.Helper()
	name := regexp.MustCompile(prefix + "[0-9a-f]+").FindString(ruleset(t))
	if name == "" {
		t.Fatalf("there is no set %s", prefix)
	}
	return name
}

// lines are those of a ruleset, in no order: what came later is further down.
func lines(text string) []string {
	out := strings.Split(text, "\n")
	slices.Sort(out)
	return slices.DeleteFunc(out, func(l string) bool { return l == "" || strings.Contains(l, "comment") })
}

// translators are who may translate node ports, to port 80 of the backend.
var translators = map[string]func(t *testing.T, n *fwtest.Network, port uint16){
	"nobody": func(_ *testing.T, n *fwtest.Network, port uint16) { n.ServeHost(port) },
	"nftables": func(t *testing.T, n *fwtest.Network, port uint16) {
		for _, chain := range []string{
			"{ type nat hook prerouting priority dstnat ; }", "{ type nat hook postrouting priority srcnat ; }"} {
			name := strings.Fields(chain)[4]
			run(t, "nft", "add table inet kube-proxy; add chain inet kube-proxy "+name+" "+chain)
		}
		for _, protocol := range []string{"tcp", "udp"} {
			run(t, "nft", fmt.Sprintf("add rule inet kube-proxy prerouting fib daddr type local meta nfproto ipv4 %s dport %d dnat ip to %s:80", protocol, port, fwtest.Backend[0]))
			run(t, "nft", fmt.Sprintf("add rule inet kube-proxy prerouting fib daddr type local meta nfproto ipv6 %s dport %d dnat ip6 to [%s]:80", protocol, port, fwtest.Backend[1]))
		}
		run(t, "nft", "add rule inet kube-proxy postrouting oifname backend masquerade")
		n.ServeBackend(80)
	},
	"iptables": func(t *testing.T, n *fwtest.Network, port uint16) {
		for i, tool := range []string{"iptables", "ip6tables"} {
			if _, err := exec.LookPath(tool); err != nil {
				if os.Getenv("WEIR_REQUIRE_DATAPLANE") == "1" {
					t.Fatal(err)
				}
				t.Skip(err)
			}
			to := fwtest.Backend[i] + ":80"
			if i == 1 {
				to = "[" + fwtest.Backend[i] + "]:80"
			}
			for _, protocol := range []string{"tcp", "udp"} {
				run(t, tool, "-t", "nat", "-A", "PREROUTING", "-m", "addrtype", "--dst-type", "LOCAL", "-p", protocol, "--dport", fmt.Sprint(port), "-j", "DNAT", "--to-destination", to)
			}
			run(t, tool, "-t", "nat", "-A", "POSTROUTING", "-o", "backend", "-j", "MASQUERADE")
		}
		n.ServeBackend(80)
	},
}

// TestVerdictsAreOfTheSource sends packets to all addresses of a host, whoever
// translates them behind our chain.
func TestVerdictsAreOfTheSource(t *testing.T) {
	for name, translate := range translators {
		t.Run(name, func(t *testing.T) {
			isolate(t) // Says what is missing.
			n := fwtest.New(t)
			translate(t, n, 30080)
			ctx := context.Background()
			p := NewPolicies()
			apply := func(policies ...*policyv1.Policy) {
				t.Helper()
				if err := p.Apply(ctx, planOf(t, policies...)); err != nil {
					t.Fatal(err)
				}
			}
			try := func(what, client, stranger string) {
				t.Helper()
				var wait sync.WaitGroup
				for _, to := range fwtest.Host {
					family := 0
					if strings.Contains(to, ":") {
						family = 1
					}
					for _, network := range []string{"tcp", "udp"} {
						for from, want := range map[string]string{fwtest.Client[family]: client, fwtest.Stranger[family]: stranger} {
							wait.Go(func() {
								if got := n.Try(network, from, to, 30080, want); got != want {
									t.Errorf("%s: from %s to %s by %s: %s, not %s", what, from, to, network, got, want)
								}
							})
						}
					}
				}
				wait.Wait()
			}
			strangers := []string{"192.0.2.16/28", "2001:db8:1::20/124"}
			apply()
			try("no policy", fwtest.Open, fwtest.Open)
			apply(&policyv1.Policy{Rank: 100, Rules: []*policyv1.Rule{rule(drop, 30081)}}) // Has connections tracked, as who translates does.
			before, err := n.Dial("tcp", fwtest.Stranger[0], fwtest.Host[2], 30080)
			if err != nil {
				t.Fatal(err)
			}
			defer before.Close()
			if err := fwtest.Echo(before); err != nil {
				t.Fatal(err)
			}
			apply(&policyv1.Policy{Rank: 100, Rules: []*policyv1.Rule{rule(drop, 30080, strangers...)}})
			try("strangers dropped", fwtest.Open, fwtest.Silence)
			if err := fwtest.Echo(before); err != nil {
				t.Errorf("a connection from before the policy: %v", err)
			}
			apply(&policyv1.Policy{Rank: 100, Rules: []*policyv1.Rule{rule(reject, 30080, strangers...)}})
			try("strangers rejected", fwtest.Open, fwtest.Refused)
			apply(&policyv1.Policy{Rank: 100, Rules: []*policyv1.Rule{rule(allow, 30080, strangers...), rule(reject, 30080)}})
			try("all but strangers rejected", fwtest.Refused, fwtest.Open)
			apply(&policyv1.Policy{Rank: 100, Rules: []*policyv1.Rule{rule(pass, 30080, strangers...), rule(reject, 30080)}},
				&policyv1.Policy{Rank: 253, Rules: []*policyv1.Rule{rule(drop, 30080, append(strangers, "192.0.2.10/32")...)}})
			try("strangers passed on to the baseline", fwtest.Refused, fwtest.Silence)
			apply(&policyv1.Policy{Rank: 100, Staged: true, Rules: []*policyv1.Rule{rule(drop, 30080)}})
			try("a staged policy", fwtest.Open, fwtest.Open)
			apply(&policyv1.Policy{Rank: 100, Rules: []*policyv1.Rule{rule(drop, 30081)}})
			try("another port is the Service's", fwtest.Open, fwtest.Open)
			apply(&policyv1.Policy{Rank: 100, Rules: []*policyv1.Rule{rule(drop, 30080)}})
			try("and this one", fwtest.Silence, fwtest.Silence)
			if err := Remove(ctx); err != nil {
				t.Fatal(err)
			}
			try("uninstalled", fwtest.Open, fwtest.Open)
		})
	}
}

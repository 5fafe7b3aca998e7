package evaluate

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/weirnet/weir/services/policy/api"
)

// Pairs of policies, from which every difference comes.
var revisions = []string{
	"",
	np("web", `{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: 80, endPort: 90}, {port: http}]}]}`),
	np("web", `{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.2.0.0/16]}}]}]}`),
	acnp("x", `priority: 1, ingress: [{action: Drop, ports: [{port: 443}], from: [{namespaces: {match: Self}}]}, {action: Reject, protocols: [{icmp: {icmpType: 8}}]}]`),
	acnp("x", `priority: 1, ingress: [{action: Allow, ports: [{sourcePort: 4000, sourceEndPort: 5000}]}, {action: Drop, ports: [{protocol: UDP}], from: [{ipBlock: {cidr: 0.0.0.0/0}}]}]`),
	acnp("x", `priority: 1, egress: [{action: Drop, to: [{nodeSelector: {}}, {group: g}]}]`) + antrea("ClusterGroup", "name: g", "ipBlocks: [{cidr: 203.0.113.0/25}]"),
	staged(acnp("x", "priority: 1, ingress: [{action: Drop}]")),
}

// What Diff says, taken apart, is what one finds who asks about every
// connection; and nothing else.
func TestDiffIsExact(t *testing.T) {
	ports := []uint16{1, 79, 80, 81, 90, 91, 443, 444, 8080, 9090, 65535}
	for i, a := range revisions {
		for j, b := range revisions {
			if i != 0 && j != (i+1)%len(revisions) {
				continue // Some pairs will do.
			}
			old, new := load(t, tenants, a), load(t, tenants, b)
			said := map[string]bool{}
			for _, c := range Diff(old, new, 2, nil) {
				protocol, first, last, source, icmp := parseTraffic(t, c.Traffic)
				for _, from := range c.From {
					for _, to := range c.To {
						for _, port := range ports {
							for _, s := range sourcePorts {
								if protocol != "ICMP" && first <= port && port <= last && source[0] <= s && s <= source[1] {
									said[fmt.Sprint(from, to, protocol, port, " ", s)] = true
								}
							}
						}
						for kind, texts := range map[int][]string{8: {"ICMP", "ICMP type 8"}, 13: {"ICMP", "ICMP, other types"}} {
							if protocol == "ICMP" && slices.Contains(texts, icmp) {
								said[fmt.Sprint(from, to, "ICMP", kind)] = true
							}
						}
					}
				}
			}
			for _, from := range allEnds(old) {
				for _, to := range allEnds(old) {
					for _, c := range connections(from, to, ports) {
						before, err1 := old.Evaluate(c.Connection)
						after, err2 := new.Evaluate(c.Connection)
						if err1 != nil || err2 != nil || from == to {
							continue
						}
						if want := before.Verdict != after.Verdict; want != said[c.key] {
							t.Errorf("%d to %d: %s: changes: %v, and Diff says %v", i, j, c.key, want, said[c.key])
						}
					}
				}
			}
		}
	}
}

// allEnds are the Pods and Nodes that have an address.
func allEnds(s *State) (list []Endpoint) {
	for ref, p := range s.pods {
		if networked(p) {
			list = append(list, Endpoint{Namespace: ref.Namespace, Pod: ref.Name})
		}
	}
	for name := range s.nodes {
		list = append(list, Endpoint{Node: name})
	}
	return list
}

type keyed struct {
	Connection
	key string
}

func connections(from, to Endpoint, ports []uint16) (list []keyed) {
	for _, protocol := range []api.Protocol{api.ProtocolTCP, api.ProtocolUDP} {
		for _, port := range ports {
			for _, source := range sourcePorts {
				list = append(list, keyed{Connection{From: from, To: to, Protocol: protocol, Port: port, SourcePort: source},
					fmt.Sprint(describe(from), describe(to), protocol.String(), port, " ", source)})
			}
		}
	}
	for _, kind := range []uint8{8, 13} {
		list = append(list, keyed{Connection{From: from, To: to, Protocol: api.ProtocolICMP, ICMPType: &kind}, fmt.Sprint(describe(from), describe(to), "ICMP", kind)})
	}
	return list
}

var sourcePorts = []uint16{1, 3999, 4000, 5000, 5001}

func parseTraffic(t *testing.T, text string) (protocol string, first, last uint16, source [2]uint16, icmp string) {
	t.Helper()
	head, from, sourced := strings.Cut(text, " from ports ")
	protocol, ports, ported := strings.Cut(head, "/")
	if strings.HasPrefix(text, "ICMP") {
		return "ICMP", 0, 0, source, text
	}
	parse := func(text string, given bool) [2]uint16 {
		if !given {
			return [2]uint16{1, 65535}
		}
		a, b, isRange := strings.Cut(text, "-")
		if !isRange {
			b = a
		}
		var out [2]uint16
		for i, s := range []string{a, b} {
			n, err := strconv.ParseUint(s, 10, 16)
			if err != nil {
				t.Fatal(err)
			}
			out[i] = uint16(n)
		}
		return out
	}
	at := parse(ports, ported)
	return protocol, at[0], at[1], parse(from, sourced), icmp
}

func TestDiffNamesOutsideAddresses(t *testing.T) {
	old, new := load(t, tenants), load(t, tenants, acnp("x", `priority: 1, egress: [{action: Drop, to: [{ipBlock: {cidr: 203.0.113.0/24, except: [203.0.113.0/25]}}]}]`))
	var outside []string
	for _, c := range Diff(old, new, 1, nil) {
		for _, to := range c.To {
			if a, err := netip.ParseAddr(to); err == nil && !slices.Contains(outside, a.String()) {
				outside = append(outside, a.String())
			}
		}
	}
	if !slices.Equal(outside, []string{"203.0.113.128"}) {
		t.Errorf("%v", outside)
	}
}

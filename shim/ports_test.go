package shim

import (
	"testing"

	"github.com/weirnet/weir/shim/bridge"
)

func TestPortsAreKnownByTheConventionsInUse(t *testing.T) {
	const mac = "0a:58:0a:00:00:01"
	for _, tc := range []struct {
		name    string
		ids     map[string]string
		number  uint32
		known   bool
		pod     string
		problem bool
	}{
		{"ours and Antrea's", map[string]string{"pod-namespace": "ns", "pod-name": "p", "attached-mac": mac}, 1, true, "ns/p", false},
		{"ovn-kubernetes", map[string]string{"iface-id": "ns_p", "attached_mac": mac}, 1, true, "ns/p", false},
		{"Kube-OVN", map[string]string{"pod_namespace": "ns", "pod_name": "p", "mac_address": mac}, 1, true, "ns/p", false},
		{"no Pod's", map[string]string{"iface-id": "x"}, 1, false, "", false},
		{"no MAC", map[string]string{"pod-namespace": "ns", "pod-name": "p"}, 1, true, "", true},
		{"no Namespace", map[string]string{"pod-name": "p", "attached-mac": mac}, 1, true, "", true},
		{"no OpenFlow port", map[string]string{"pod-namespace": "ns", "pod-name": "p", "attached-mac": mac}, 0, true, "", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			port, known, problem := podPort(bridge.Port{Name: "veth", Number: tc.number, ExternalIDs: tc.ids})
			if known != tc.known || (problem != "") != tc.problem {
				t.Fatalf("known %v, problem %q", known, problem)
			}
			if tc.pod != "" && (port.Namespace+"/"+port.Name != tc.pod || port.MAC != [6]byte{0x0a, 0x58, 0x0a, 0, 0, 1}) {
				t.Errorf("got %+v", port)
			}
		})
	}
}

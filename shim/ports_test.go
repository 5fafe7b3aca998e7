package shim

import (
	"errors"
	"net"
	"slices"
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
		{"with the Pod's UID and addresses", map[string]string{"pod-namespace": "ns", "pod-name": "p", "attached-mac": mac, "pod-uid": "u", "ip-addresses": "10.0.0.1,fd00::1"}, 1, true, "ns/p", false},
		{"an address that is none", map[string]string{"pod-namespace": "ns", "pod-name": "p", "attached-mac": mac, "ip-address": "10.0.0"}, 1, true, "", true},
		{"no Pod's", map[string]string{"iface-id": "x"}, 1, false, "", false},
		{"no MAC", map[string]string{"pod-namespace": "ns", "pod-name": "p"}, 1, true, "", true},
		{"no Namespace", map[string]string{"pod-name": "p", "attached-mac": mac}, 1, true, "", true},
		{"no OpenFlow port", map[string]string{"pod-namespace": "ns", "pod-name": "p", "attached-mac": mac}, 0, true, "", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			port, known, problem := podPort(bridge.Port{Name: "veth", Number: tc.number, ExternalIDs: tc.ids}, nil)
			if known != tc.known || (problem != "") != tc.problem {
				t.Fatalf("known %v, problem %q", known, problem)
			}
			if tc.pod != "" && (port.Namespace+"/"+port.Name != tc.pod || port.MAC != [6]byte{0x0a, 0x58, 0x0a, 0, 0, 1}) {
				t.Errorf("got %+v", port)
			}
		})
	}
}

// ovs-cni says whose a port is on the port's row, and leaves the MAC to be read.
func TestPortsOfOVSCNIAreKnownByUID(t *testing.T) {
	ids := map[string]string{"owner": ovsCNI, "contPodUid": "u", "contNetns": "/run/netns/x", "contIface": "net1"}
	p := bridge.Port{Name: "veth", Number: 3, PortIDs: ids}
	port, known, problem := podPort(p, func(netns, device string) (net.HardwareAddr, error) {
		if netns != "/run/netns/x" || device != "net1" {
			t.Errorf("asked for %s in %s", device, netns)
		}
		return net.HardwareAddr{2, 0, 0, 0, 0, 9}, nil
	})
	if !known || problem != "" || port.UID != "u" || port.Name != "" || port.MAC != [6]byte{2, 0, 0, 0, 0, 9} {
		t.Errorf("got %+v, known %v, problem %q", port, known, problem)
	}
	gone := errors.New("no such namespace")
	if _, known, problem := podPort(p, func(string, string) (net.HardwareAddr, error) { return nil, gone }); !known || problem != gone.Error() {
		t.Errorf("a Pod that is gone: known %v, problem %q", known, problem)
	}
	p.PortIDs = map[string]string{"owner": ovsCNI}
	if _, known, problem := podPort(p, nil); !known || problem == "" {
		t.Errorf("no UID: known %v, problem %q", known, problem)
	}
}

func TestAddressesOfAPort(t *testing.T) {
	for ids, want := range map[string][]string{"ip-addresses": {"10.0.0.1", "fd00::1"}, "ip-address": {"10.0.0.1", "fd00::1"}} {
		port, _, _ := podPort(bridge.Port{Number: 1, ExternalIDs: map[string]string{"pod-namespace": "ns", "pod-name": "p", "attached-mac": "02:00:00:00:00:01",
			ids: "10.0.0.1,fd00::1"}}, nil)
		var got []string
		for _, ip := range port.IPs {
			got = append(got, ip.String())
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v", ids, got)
		}
	}
}

package shim

import (
	"net"
	"strings"

	"github.com/weirnet/weir/shim/bridge"
	"github.com/weirnet/weir/shim/pipeline"
)

// podPort reads which Pod an interface belongs to, by the external_ids of the
// conventions that are in use. Known is false for an interface of no Pod;
// problem says why a Pod's interface cannot be used.
//
//	pod-namespace, pod-name, attached-mac     weir-cni, Antrea
//	iface-id=NAMESPACE_NAME, attached_mac     ovn-kubernetes
//	pod_namespace, pod_name, mac_address      Kube-OVN
func podPort(p bridge.Port) (port pipeline.Port, known bool, problem string) {
	ids := p.ExternalIDs
	port = pipeline.Port{OFPort: p.Number, ID: p.ID, Interface: p.Name}
	mac := ""
	switch {
	case ids["pod-name"] != "":
		port.Namespace, port.Name, mac = ids["pod-namespace"], ids["pod-name"], ids["attached-mac"]
	case ids["pod_name"] != "":
		port.Namespace, port.Name, mac = ids["pod_namespace"], ids["pod_name"], ids["mac_address"]
	case ids["attached_mac"] != "":
		port.Namespace, port.Name, _ = strings.Cut(ids["iface-id"], "_")
		mac = ids["attached_mac"]
	default:
		return port, false, ""
	}
	if port.Namespace == "" || port.Name == "" {
		return port, true, "its external_ids do not name a Pod"
	}
	if p.Number == 0 {
		return port, true, "it has no OpenFlow port: " + p.Error
	}
	hw, err := net.ParseMAC(mac)
	if err != nil || len(hw) != 6 {
		return port, true, "its external_ids name no MAC of the Pod"
	}
	port.MAC = [6]byte(hw)
	return port, true, ""
}

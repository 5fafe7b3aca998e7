package shim

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/bridge"
	"github.com/weirnet/weir/shim/pipeline"
)

// ovsCNI is the owner of the port rows of ovs-cni.
const ovsCNI = "ovs-cni.network.kubevirt.io"

// podPort reads which Pod an interface belongs to, by the external_ids of the
// conventions that are in use. Known is false for an interface of no Pod;
// problem says why a Pod's interface cannot be used.
//
//	pod-namespace, pod-name, attached-mac, pod-uid, ip-addresses          weir-cni
//	pod-namespace, pod-name, attached-mac, ip-address                     Antrea
//	iface-id=NAMESPACE_NAME, attached_mac                                 ovn-kubernetes
//	pod_namespace, pod_name, mac_address                                  Kube-OVN
//	owner=ovs-cni…, contPodUid, contNetns, contIface, on the port's row   ovs-cni
//
// ovs-cni writes no MAC: peer reads it where the Pod has the other end.
func podPort(p bridge.Port, peer func(netns, device string) (net.HardwareAddr, error)) (port pipeline.Port, known bool, problem string) {
	ids := p.ExternalIDs
	port = pipeline.Port{OFPort: p.Number, ID: p.ID, Interface: p.Name}
	mac, ips := "", ""
	switch {
	case ids["pod-name"] != "":
		port.Namespace, port.Name, mac = ids["pod-namespace"], ids["pod-name"], ids["attached-mac"]
		port.UID, ips = ids["pod-uid"], ids["ip-addresses"]
		if ips == "" {
			ips = ids["ip-address"]
		}
	case ids["pod_name"] != "":
		port.Namespace, port.Name, mac = ids["pod_namespace"], ids["pod_name"], ids["mac_address"]
	case ids["attached_mac"] != "":
		port.Namespace, port.Name, _ = strings.Cut(ids["iface-id"], "_")
		mac = ids["attached_mac"]
	case p.PortIDs["owner"] == ovsCNI:
		if port.UID = p.PortIDs["contPodUid"]; port.UID == "" {
			return port, true, "its external_ids do not name a Pod"
		}
	default:
		return port, false, ""
	}
	if port.UID == "" && (port.Namespace == "" || port.Name == "") {
		return port, true, "its external_ids do not name a Pod"
	}
	for text := range strings.SplitSeq(ips, ",") {
		if text = strings.TrimSpace(text); text == "" {
			continue
		}
		ip, err := netip.ParseAddr(text)
		if err != nil {
			return port, true, "its external_ids name an address that is none: " + text
		}
		port.IPs = append(port.IPs, ip.Unmap())
	}
	if p.Number == 0 {
		return port, true, "it has no OpenFlow port: " + p.Error
	}
	hw, err := net.ParseMAC(mac)
	if mac == "" && port.Name == "" {
		if hw, err = peer(p.PortIDs["contNetns"], p.PortIDs["contIface"]); err != nil {
			return port, true, err.Error()
		}
	}
	if err != nil || len(hw) != 6 {
		return port, true, "its external_ids name no MAC of the Pod"
	}
	port.MAC = [6]byte(hw)
	return port, true, ""
}

// sortedPorts is what the ports of a bridge are.
type sortedPorts struct {
	local    [6]byte // MAC of the bridge's own. Zero: it is not there.
	uplink   uint32  // Zero: none is on the bridge.
	pods     []pipeline.Port
	unusable []unusablePort
	nobodys  []string // Names of what is no Pod's, the host's or its uplink.
}

type unusablePort struct {
	row  bridge.Port
	port pipeline.Port
	why  string
}

// sortPorts tells what ports are: see podPort. Uplink names the one; where it is
// empty, the first physical device is. Of a port, by its id, peer reads the MAC.
func sortPorts(list []bridge.Port, uplink string, peer func(id, netns, device string) (net.HardwareAddr, error)) (out sortedPorts) {
	for _, p := range list {
		if p.Local() {
			out.local = p.MAC
			continue
		}
		if p.Name == uplink {
			out.uplink = p.Number
			continue
		}
		port, known, problem := podPort(p, func(netns, device string) (net.HardwareAddr, error) { return peer(p.ID, netns, device) })
		switch {
		case problem != "":
			out.unusable = append(out.unusable, unusablePort{p, port, problem})
		case known:
			out.pods = append(out.pods, port)
		case uplink == "" && out.uplink == 0 && physical(p.Name):
			out.uplink = p.Number
		default:
			out.nobodys = append(out.nobodys, p.Name)
		}
	}
	return out
}

// physical says whether a network device is a machine's, and so leads out of it.
func physical(device string) bool {
	_, err := os.Stat(filepath.Join("/sys/class/net", filepath.Base(device), "device"))
	return err == nil
}

// portState is what is told of a port.
func portState(p pipeline.Port, reason string) *policyv1.PortState {
	st := &policyv1.PortState{Namespace: p.Namespace, Name: p.Name, Interface: p.Interface, Uid: p.UID, Open: reason == "", Reason: reason}
	for _, ip := range p.IPs {
		st.Ips = append(st.Ips, ip.AsSlice())
	}
	return st
}

// publish tells of the ports as they are after what was just done; err is why
// the bridge may not hold what the compiler wants. A port that was not open
// before does not count as open then.
func (l *loop) publish(err error) {
	states := make([]*policyv1.PortState, 0, len(l.ports)+len(l.unusable))
	was, opened := l.opened, make(map[string]bool)
	for _, p := range l.ports {
		reason := l.closed(p)
		if reason == "" && err != nil && !was[p.ID] {
			reason = "its flows are not in force yet: " + err.Error()
		}
		if reason == "" {
			opened[p.ID] = true
		}
		if l.compiler != nil && p.Name == "" {
			if ns, name, ok := l.compiler.PodOf(p); ok {
				p.Namespace, p.Name = ns, name
			}
		}
		states = append(states, portState(p, reason))
	}
	l.opened = opened
	l.shim.metrics.ports.Set(float64(len(opened)))
	l.shim.node.setPorts(append(states, l.unusable...))
}

// closed says why a port of a Pod is closed; empty where it is open.
func (l *loop) closed(p pipeline.Port) string {
	switch {
	case l.blocked != nil:
		return "the node's state cannot be put in force: " + l.blocked.Error()
	case l.waits():
		return "not adopted yet: others' flows serve it until there is a state of the policy service"
	case l.compiler == nil:
		return "the bridge cannot be read yet"
	case l.sharing() && !l.compiler.Open(p.OFPort):
		return "not adopted yet: others' flows serve it"
	case l.isHeld(p):
		return "held until other nodes know its address"
	case l.haunted[p.ID]:
		return "connections of the former owner of its address cannot be forgotten"
	}
	reason := l.compiler.Closed(p)
	switch {
	case reason == "":
	case l.refused != nil:
		return "the node's state cannot be put in force: " + l.refused.Error()
	case !l.complete:
		return "there is no state of the policy service yet"
	}
	return reason
}

package pipeline

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/weirnet/weir/storage"
)

// Port is a port of the bridge that belongs to a Pod.
type Port struct {
	OFPort    uint32
	ID        string // Of its Interface row: a re-added name is another port.
	Interface string
	Namespace string // Of the Pod.
	Name      string
	MAC       [6]byte // The Pod's.
	// What whoever made the port says of the Pod. Empty: it does not say, and is
	// not held to it. A port without a Pod's name belongs to the Pod of the UID.
	UID string
	IPs []netip.Addr
	// Doubt says that connections may be marked allowed that the rules for this
	// port have not judged: while others' flows served it, or before. So none
	// skips them, until those are forgotten.
	Doubt bool
}

func (p *Port) equal(o *Port) bool {
	return p.OFPort == o.OFPort && p.ID == o.ID && p.Interface == o.Interface && p.Namespace == o.Namespace && p.Name == o.Name &&
		p.MAC == o.MAC && p.UID == o.UID && p.Doubt == o.Doubt && slices.Equal(p.IPs, o.IPs)
}

// pod is the port's Pod, in words.
func (p *Port) pod() string {
	if p.Name == "" {
		return "of UID " + p.UID
	}
	return p.Namespace + "/" + p.Name
}

// endpointKey is the key of the endpoint that a port belongs to; empty where the
// state has none of its UID.
func (c *Compiler) endpointKey(p *Port) string {
	if p.Name == "" {
		return c.byUID[p.UID]
	}
	return storage.PodKey(p.Namespace, p.Name)
}

// unfit says why a port must not carry the traffic of the endpoint that the
// state has for its Pod; empty where it may. A Pod of the same name, or one that
// was given other addresses, is not the one that the port was made for.
func (ep *endpoint) unfit(p *Port) string {
	if uid := ep.wire.GetUid(); uid != "" && p.UID != "" && uid != p.UID {
		return fmt.Sprintf("its external_ids say Pod UID %s, the state has UID %s", p.UID, uid)
	}
	if len(p.IPs) == 0 {
		return ""
	}
	given, known := slices.Clone(p.IPs), slices.Clone(ep.ips)
	slices.SortFunc(given, netip.Addr.Compare)
	slices.SortFunc(known, netip.Addr.Compare)
	if !slices.Equal(slices.Compact(given), slices.Compact(known)) {
		return fmt.Sprintf("addresses %s of the interface are not those of the Pod's state: %s", join(p.IPs), join(ep.ips))
	}
	return ""
}

func join(list []netip.Addr) string {
	var parts []string
	for _, a := range list {
		parts = append(parts, a.String())
	}
	return strings.Join(parts, ", ")
}

// setPorts takes over which Pods have ports, of those that fit. Of two ports of
// one Pod, the one that it had stays, or else the lower has it.
func (c *Compiler) setPorts(ports []Port) {
	byPod := make(map[string]*Port)
	for i := range ports {
		p := &ports[i]
		key := c.endpointKey(p)
		ep, other := c.endpoints[key], byPod[key]
		if ep == nil || ep.unfit(p) != "" {
			continue
		}
		keeps := ep.port != nil && ep.port.equal(p)
		holds := other != nil && ep.port != nil && ep.port.equal(other)
		if other == nil || keeps || (!holds && p.OFPort < other.OFPort) {
			byPod[key] = p
		}
	}
	var changed []string
	for key, ep := range c.endpoints {
		p := byPod[key]
		if (p == nil) != (ep.port == nil) || (p != nil && !p.equal(ep.port)) {
			changed = append(changed, key)
		}
	}
	slices.Sort(changed)
	for _, key := range changed { // All go before any comes: a port number may change hands.
		c.detach(c.endpoints[key])
	}
	for _, key := range changed {
		c.attach(c.endpoints[key], byPod[key])
	}
}

// Open says whether a port carries traffic.
func (c *Compiler) Open(ofport uint32) bool { return c.ports[ofport] != nil }

// PodOf is the Pod that the state has for a port; not ok where it has none.
func (c *Compiler) PodOf(p Port) (namespace, name string, ok bool) {
	if ep := c.endpoints[c.endpointKey(&p)]; ep != nil {
		return ep.wire.GetNamespace(), ep.wire.GetName(), true
	}
	return "", "", false
}

// Closed says why a port that was given to the last Update is not open; empty
// where it is.
func (c *Compiler) Closed(p Port) string {
	if at := c.ports[p.OFPort]; at != nil && at.port.ID == p.ID {
		return ""
	}
	ep := c.endpoints[c.endpointKey(&p)]
	if ep == nil {
		return "the policy service does not know Pod " + p.pod() + " on this node yet"
	}
	if why := ep.unfit(&p); why != "" {
		return why
	}
	if ep.port != nil {
		return "Pod " + p.pod() + " has another port: " + ep.port.Interface
	}
	return "it has not been opened yet"
}

package evaluate

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/weirnet/weir/services/policy/api"
)

// Change is connections whose verdict is another in one State than in another.
type Change struct {
	From, To []string // Ends by name, sorted; every one of From with every other of To.
	Traffic  string   // Such as "TCP/80-90" or "ICMP type 8".
	Old, New Result   // Of one of the connections.
}

// Diff compares two States. It judges every kind of connection that a policy of
// either can tell from another: ends are taken together where no selector or
// block of either tells them apart, and ports where no rule does, and one of
// each is asked. So nothing is sampled: what is not in the answer is the same.
// Ends are the Pods and Nodes that both States have, and addresses outside of
// the cluster. Progress is told, from several goroutines, as classes of sources
// that are done; it may be nil.
func Diff(old, new *State, workers int, progress func(done, of int)) []Change {
	d := differ{old: old, new: new}
	d.collect()
	classes := d.classes()
	var mu sync.Mutex
	var out []Change
	done := 0
	work := make(chan *endClass)
	var wait sync.WaitGroup
	for range max(workers, 1) {
		wait.Go(func() {
			for from := range work {
				found := d.from(from, classes)
				mu.Lock()
				out = append(out, found...)
				done++
				if progress != nil {
					progress(done, len(classes))
				}
				mu.Unlock()
			}
		})
	}
	for _, from := range classes {
		work <- from
	}
	close(work)
	wait.Wait()
	slices.SortFunc(out, func(a, b Change) int {
		return cmp.Or(slices.Compare(a.From, b.From), slices.Compare(a.To, b.To), strings.Compare(a.Traffic, b.Traffic))
	})
	return out
}

// differ knows what the policies of two States tell apart.
type differ struct {
	old, new *State
	blocks   []netip.Prefix
	names    map[string]bool // Port names.
	ports    map[api.Protocol][]uint16
	sources  []uint16          // Source ports at which another range begins; zero alone where no rule names any.
	icmp     map[uint8][]uint8 // Codes that rules name, by type.
}

// collect reads all rules of both States.
func (d *differ) collect() {
	d.names, d.ports = map[string]bool{}, map[api.Protocol][]uint16{}
	d.icmp = map[uint8][]uint8{}
	for _, s := range []*State{d.old, d.new} {
		for _, p := range s.policies {
			for _, r := range slices.Concat(p.Ingress, p.Egress) {
				for _, port := range r.Ports {
					d.traffic(api.Traffic{Protocol: port.Protocol, Port: port.Port, EndPort: port.EndPort, PortName: port.PortName})
				}
				for _, peer := range r.Peers {
					d.block(peer.IPBlock)
				}
			}
		}
		for _, p := range s.ordered {
			for _, r := range slices.Concat(p.Ingress, p.Egress) {
				for _, t := range r.Traffic {
					d.traffic(t)
				}
				for i := range r.Peers {
					d.block(r.Peers[i].IPBlock)
				}
			}
		}
		for _, g := range s.groups {
			for i := range g.IPBlocks {
				d.block(&g.IPBlocks[i])
			}
		}
		for _, slice := range s.slices {
			d.control(slice)
		}
	}
	for _, s := range []*State{d.old, d.new} {
		for _, p := range s.pods {
			for _, c := range p.Ports {
				if d.names[c.Name] {
					d.ports[c.Protocol] = append(d.ports[c.Protocol], c.Port, c.Port+1)
				}
			}
		}
	}
	for protocol := range d.ports {
		d.ports[protocol] = steps16(d.ports[protocol])
	}
	for _, protocol := range []api.Protocol{api.ProtocolTCP, api.ProtocolUDP, api.ProtocolSCTP} {
		if d.ports[protocol] == nil {
			d.ports[protocol] = steps16(nil)
		}
	}
	if len(d.sources) > 0 {
		d.sources = steps16(d.sources)
	} else {
		d.sources = []uint16{0}
	}
	slices.SortFunc(d.blocks, func(a, b netip.Prefix) int { return cmp.Or(a.Addr().Compare(b.Addr()), a.Bits()-b.Bits()) })
	d.blocks = slices.Compact(d.blocks)
}

func (d *differ) traffic(t api.Traffic) {
	switch t.Protocol {
	case api.ProtocolICMP:
		if t.ICMPType != nil {
			d.icmp[*t.ICMPType] = append(d.icmp[*t.ICMPType], codes(t.ICMPCode)...)
		}
		return
	case api.ProtocolIGMP:
		return
	}
	if t.PortName != "" {
		d.names[t.PortName] = true
	}
	if t.Port != 0 {
		d.ports[t.Protocol] = append(d.ports[t.Protocol], t.Port, max(t.Port, t.EndPort)+1)
	}
	if t.SourcePort != 0 {
		d.sources = append(d.sources, t.SourcePort, max(t.SourcePort, t.SourceEndPort)+1)
	}
}

// control notes what tells the traffic apart that steers nodes.
func (d *differ) control(slice *api.EndpointSlice) {
	if !slice.Controls() {
		return
	}
	d.traffic(api.Traffic{Protocol: api.ProtocolTCP, Port: kubelet})
	for _, server := range slice.Servers() {
		d.traffic(api.Traffic{Protocol: api.ProtocolTCP, Port: server.Port()})
		d.block(&api.IPBlock{CIDR: netip.PrefixFrom(server.Addr(), server.Addr().BitLen())})
	}
}

func codes(code *uint8) []uint8 {
	if code == nil {
		return nil
	}
	return []uint8{*code}
}

func (d *differ) block(b *api.IPBlock) {
	if b != nil {
		d.blocks = append(append(d.blocks, b.CIDR), b.Except...)
	}
}

// steps16 are the ports at which another range begins, from one on. What begins
// past the last port has come round to zero.
func steps16(list []uint16) []uint16 {
	list = slices.DeleteFunc(append(list, 1), func(p uint16) bool { return p == 0 })
	slices.Sort(list)
	return slices.Compact(list)
}

// from are the changes of the connections from one class.
func (d *differ) from(from *endClass, classes []*endClass) []Change {
	var out []Change
	for _, to := range d.split(from, classes) {
		if from.members[0].Pod == "" && to.members[0].Pod == "" && from.members[0].Node == "" && to.members[0].Node == "" {
			continue // Neither end is guarded.
		}
		a, b, ok := distinct(from, to)
		if !ok {
			continue
		}
		base := Change{From: from.names, To: to.names}
		for i, source := range d.sources {
			base.Traffic = d.sourceText(i)
			for _, protocol := range []api.Protocol{api.ProtocolTCP, api.ProtocolUDP, api.ProtocolSCTP} {
				out = append(out, d.ranges(base, Connection{From: a, To: b, Protocol: protocol, SourcePort: source})...)
			}
		}
		for _, m := range d.messages() {
			c := Connection{From: a, To: b, Protocol: api.ProtocolICMP, ICMPType: &m.kind, ICMPCode: &m.code}
			if change, differs := d.ask(base, c); differs {
				change.Traffic = m.text
				out = append(out, change)
			}
		}
	}
	return out
}

// split takes the Pods of a Node apart from others where the Node is the
// source: they let their own host in.
func (d *differ) split(from *endClass, classes []*endClass) []*endClass {
	host := from.members[0].Node
	if host == "" {
		return classes
	}
	var out []*endClass
	for _, c := range classes {
		own, others := &endClass{}, &endClass{}
		for i, e := range c.members {
			side := others
			if d.onNode(e) == host {
				side = own
			}
			side.members, side.names = append(side.members, e), append(side.names, c.names[i])
		}
		for _, side := range []*endClass{own, others} {
			if len(side.members) > 0 {
				out = append(out, side)
			}
		}
	}
	return out
}

// distinct is a member of each of two classes that is not the other's.
func distinct(from, to *endClass) (a, b Endpoint, ok bool) {
	for _, a := range from.members[:min(len(from.members), 2)] {
		for _, b := range to.members[:min(len(to.members), 2)] {
			if a != b {
				return a, b, true
			}
		}
	}
	return a, b, false
}

// onNode is the node of a Pod.
func (d *differ) onNode(e Endpoint) string {
	if p := d.new.pods[api.Ref{Kind: api.KindPod, Namespace: e.Namespace, Name: e.Pod}]; p != nil {
		return p.Node
	}
	return ""
}

// ranges are the changes of one protocol, neighbours taken together where the
// same decides.
func (d *differ) ranges(base Change, c Connection) []Change {
	var out []Change
	starts := d.ports[c.Protocol]
	var began uint16
	var open *Change
	shut := func(end uint16) {
		if open == nil {
			return
		}
		open.Traffic = portText(c.Protocol, began, end) + base.Traffic
		out = append(out, *open)
		open = nil
	}
	for i, start := range starts {
		end := uint16(65535)
		if i+1 < len(starts) {
			end = starts[i+1] - 1
		}
		c.Port = start
		change, differs := d.ask(base, c)
		if open != nil && (!differs || !alike(open, &change)) {
			shut(start - 1)
		}
		if differs && open == nil {
			open, began = &change, start
		}
		if end == 65535 {
			shut(end)
		}
	}
	return out
}

// alike says whether the same decides in two changes.
func alike(a, b *Change) bool {
	decides := func(r *Result) string {
		d := r.Deciding()
		by := ""
		if d.Policy != nil {
			by = d.Policy.String() + " " + d.Rule
		}
		return fmt.Sprint(r.Verdict, by, d.IsolatedBy)
	}
	return decides(&a.Old) == decides(&b.Old) && decides(&a.New) == decides(&b.New)
}

// ask judges one connection in both States.
func (d *differ) ask(base Change, c Connection) (Change, bool) {
	var err error
	if base.Old, err = d.old.Evaluate(c); err != nil {
		return base, false // The ends have no address of one family.
	}
	if base.New, err = d.new.Evaluate(c); err != nil {
		return base, false
	}
	return base, base.Old.Verdict != base.New.Verdict
}

func portText(protocol api.Protocol, first, last uint16) string {
	switch {
	case first == 1 && last == 65535:
		return protocol.String()
	case first == last:
		return fmt.Sprintf("%s/%d", protocol, first)
	}
	return fmt.Sprintf("%s/%d-%d", protocol, first, last)
}

// sourceText names a range of source ports; all of them by nothing.
func (d *differ) sourceText(i int) string {
	last := uint16(65535)
	if i+1 < len(d.sources) {
		last = d.sources[i+1] - 1
	}
	if d.sources[i] == 0 {
		return ""
	}
	return fmt.Sprintf(" from ports %d-%d", d.sources[i], last)
}

// message is one of the ICMP messages that rules do not tell apart.
type message struct {
	kind, code uint8
	text       string
}

// messages are those of each type and code that rules name, and one that none names.
func (d *differ) messages() []message {
	var out []message
	types := slices.Sorted(maps.Keys(d.icmp))
	for _, kind := range types {
		named := slices.Clone(d.icmp[kind])
		slices.Sort(named)
		named = slices.Compact(named)
		for _, code := range named {
			out = append(out, message{kind, code, fmt.Sprintf("ICMP type %d code %d", kind, code)})
		}
		if code, free := unnamed(named); free {
			text := fmt.Sprintf("ICMP type %d", kind)
			if len(named) > 0 {
				text += ", other codes"
			}
			out = append(out, message{kind, code, text})
		}
	}
	if kind, free := unnamed(types); free {
		text := "ICMP"
		if len(types) > 0 {
			text += ", other types"
		}
		out = append(out, message{kind, 0, text})
	}
	return out
}

// unnamed is a number that is not in a list.
func unnamed(list []uint8) (n uint8, free bool) {
	for n := 255; n >= 0; n-- {
		if !slices.Contains(list, uint8(n)) {
			return uint8(n), true
		}
	}
	return 0, false
}

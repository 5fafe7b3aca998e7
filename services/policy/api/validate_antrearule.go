package api

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weirnet/weir/services/policy/api/antreav1beta1"
)

// ruleFindings gathers what validation has to say of one rule of a policy of
// crd.antrea.io.
type ruleFindings struct {
	*findings
	at       string // The rule's path.
	rule     *antreav1beta1.Rule
	egress   bool
	baseline bool    // The policy is in the baseline tier.
	target   applied // What the policy, or the rule, is applied to.
}

func (r *ruleFindings) action() Action { return antreaActions[orElse(r.rule.Action, "")] }

func (r *ruleFindings) check() {
	r.checkAction()
	r.checkPorts()
	r.checkProtocols()
	r.checkLayer7()
	r.checkAppliedTo() // Before the peers: what these may be depends on it.
	r.checkPeers()
	r.checkToServices()
	r.checkLogLabel()
}

func (r *ruleFindings) checkAction() {
	at := r.at + ".action"
	switch written := orElse(r.rule.Action, ""); {
	case written == "":
		r.refuse(at, "missing; write Allow, Drop, Reject or Pass")
	case r.action() == 0:
		r.refuse(at, "%q is unknown; write Allow, Drop, Reject or Pass", written)
	case written == "Deny":
		r.warn(at, "Deny is read as Drop; write Drop")
	}
	if !r.baseline {
		return
	}
	switch r.action() {
	case ActionPass:
		r.refuse(at, "Pass in the baseline tier has no later step to pass to; write Allow, Drop or Reject, or another tier")
	case ActionAllow:
		r.warn(at, "Allow in the baseline tier opens nothing that a NetworkPolicy closes, and what nothing denies is allowed anyway; it is of use only before a Drop of the same tier")
	}
}

func (r *ruleFindings) checkPorts() {
	for i, p := range r.rule.Ports {
		at := fmt.Sprintf("%s.ports[%d]", r.at, i)
		if p.Protocol != nil {
			r.protocol(at+".protocol", *p.Protocol)
			if *p.Protocol == "" {
				r.refuse(at+".protocol", "empty; write TCP, UDP or SCTP, or leave it out for TCP")
			}
		}
		named := p.Port != nil && p.Port.Type == intstr.String
		var first *int32
		switch {
		case named:
			r.portName(at+".port", p.Port.StrVal)
		case p.Port != nil:
			first = &p.Port.IntVal
		}
		if named && p.EndPort != nil {
			r.refuse(at+".endPort", "stands with the named port %q; write port as a number", p.Port.StrVal)
		} else {
			r.portRange(at, "port", "endPort", first, p.EndPort)
		}
		r.portRange(at, "sourcePort", "sourceEndPort", p.SourcePort, p.SourceEndPort)
	}
}

// portRange checks the first and last of a range, of which either may be absent.
func (r *ruleFindings) portRange(at, firstName, lastName string, first, last *int32) {
	valid := first != nil && r.port(at+"."+firstName, *first)
	switch {
	case last == nil:
	case first == nil:
		r.refuse(at+"."+lastName, "stands without %s; write %s, the first of the range, as a number", firstName, firstName)
	case !r.port(at+"."+lastName, *last):
	case valid && *last < *first:
		r.refuse(at+"."+lastName, "%d is below %s %d; write a number from %d to 65535", *last, firstName, *first, *first)
	}
}

func (r *ruleFindings) checkProtocols() {
	igmp, icmp := false, false
	for i, p := range r.rule.Protocols {
		at := fmt.Sprintf("%s.protocols[%d]", r.at, i)
		r.exactlyOne(at, map[string]bool{"icmp": p.ICMP != nil, "igmp": p.IGMP != nil})
		if p.ICMP != nil {
			icmp = true
			r.checkICMP(at+".icmp", p.ICMP)
		}
		if p.IGMP != nil {
			igmp = true
			r.checkIGMP(at+".igmp", p.IGMP)
		}
	}
	if !igmp {
		return
	}
	if a := r.action(); a == ActionPass || a == ActionReject {
		r.refuse(r.at+".action", "%s is not possible for IGMP, which is multicast; write Allow or Drop", a)
	}
	if icmp {
		r.refuse(r.at+".protocols", "IGMP stands beside another protocol; write a rule for each")
	}
	for _, other := range []struct {
		field string
		set   bool
	}{{"from", len(r.rule.From) > 0}, {"to", len(r.rule.To) > 0}, {"ports", len(r.rule.Ports) > 0}, {"toServices", len(r.rule.ToServices) > 0}} {
		if other.set {
			r.refuse(r.at+"."+other.field, "IGMP has none; remove it, or write a rule of its own for what it selects")
		}
	}
}

func (r *ruleFindings) checkICMP(at string, p *antreav1beta1.ICMP) {
	for _, n := range []struct {
		field string
		value *int32
	}{{"icmpType", p.Type}, {"icmpCode", p.Code}} {
		if n.value != nil && (*n.value < 0 || *n.value > 255) {
			r.refuse(at+"."+n.field, "%d; write a number from 0 to 255, or leave it out for any", *n.value)
		}
	}
	if p.Code != nil && p.Type == nil {
		r.refuse(at+".icmpCode", "stands without icmpType; write the type whose code it is")
	}
}

// The messages of IGMP that rules may name: queries in ingress, reports of its
// three versions in egress.
const igmpQuery = 0x11

var igmpReports = []int32{0x12, 0x16, 0x22}

// allHosts is the group to which general queries go.
var allHosts = netip.AddrFrom4([4]byte{224, 0, 0, 1})

func (r *ruleFindings) checkIGMP(at string, p *antreav1beta1.IGMP) {
	if t := p.Type; t != nil {
		report := slices.Contains(igmpReports, *t)
		switch {
		case *t != igmpQuery && !report:
			r.refuse(at+".igmpType", "%#x is not supported; write 0x11 in ingress, 0x12, 0x16 or 0x22 in egress", *t)
		case r.egress && *t == igmpQuery:
			r.refuse(at+".igmpType", "%#x is a query, which Pods receive; write it in an ingress rule, or the type of a report: 0x12, 0x16 or 0x22", *t)
		case !r.egress && report:
			r.refuse(at+".igmpType", "%#x is a report, which Pods send; write it in an egress rule, or the type of a query: 0x11", *t)
		}
	}
	if p.GroupAddress == "" {
		return
	}
	group, err := parseAddr(p.GroupAddress)
	switch {
	case err != nil || !group.Is4() || !group.IsMulticast():
		r.refuse(at+".groupAddress", "%q is no IPv4 multicast address; write one from 224.0.0.0 to 239.255.255.255, or leave it out for any", p.GroupAddress)
	case !r.egress && group != allHosts:
		r.refuse(at+".groupAddress", "%s; a query can be matched for %s only, write that or leave it out", group, allHosts)
	}
}

var httpMethods = []string{"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"}

func (r *ruleFindings) checkLayer7() {
	list := r.rule.L7Protocols
	if len(list) == 0 {
		return
	}
	at := r.at + ".l7Protocols"
	if a := r.action(); a != 0 && a != ActionAllow {
		r.refuse(r.at+".action", "%s; a rule with l7Protocols lets through what they say and drops the rest, write Allow", a)
	}
	if r.target.nodes {
		r.refuse(at, "Nodes have no layer 7 rules; remove it")
	}
	for i, p := range list {
		at := fmt.Sprintf("%s[%d]", at, i)
		r.exactlyOne(at, map[string]bool{"http": p.HTTP != nil, "tls": p.TLS != nil})
		if p.HTTP != nil && p.HTTP.Method != "" && !slices.Contains(httpMethods, p.HTTP.Method) {
			r.refuse(at+".http.method", "%q is unknown; write one of %s", p.HTTP.Method, strings.Join(httpMethods, ", "))
		}
	}
	for i, p := range r.rule.Ports {
		if t := orElse(p.Protocol, corev1.ProtocolTCP); t != corev1.ProtocolTCP {
			r.refuse(fmt.Sprintf("%s.ports[%d].protocol", r.at, i), "%s carries neither HTTP nor TLS; write TCP, or remove l7Protocols", t)
		}
	}
	if len(r.rule.Protocols) > 0 {
		r.refuse(r.at+".protocols", "neither ICMP nor IGMP carries HTTP or TLS; write a rule of their own")
	}
}

func (r *ruleFindings) checkAppliedTo() {
	if len(r.rule.AppliedTo) == 0 {
		return
	}
	at := r.at + ".appliedTo"
	r.target = r.appliedTo(at, r.rule.AppliedTo)
	if r.target.nodes {
		r.refuse(at, "nodeSelector stands on a rule; write it in spec.appliedTo of a policy for Nodes")
	}
	if r.target.services && r.egress {
		r.refuse(at, "an egress rule applies to a Service, which only receives; write an ingress rule, or apply it to Pods")
	}
}

func (r *ruleFindings) checkToServices() {
	list := r.rule.ToServices
	if len(list) == 0 {
		return
	}
	at := r.at + ".toServices"
	if !r.egress {
		r.refuse(at, "stands in an ingress rule; write it in an egress rule, or write from")
	}
	for _, other := range []struct {
		field string
		set   bool
	}{{"to", len(r.rule.To) > 0}, {"ports", len(r.rule.Ports) > 0}, {"protocols", len(r.rule.Protocols) > 0}} {
		if other.set {
			r.refuse(r.at+"."+other.field, "stands beside toServices, which says address and ports by itself; write a rule for each")
		}
	}
	if len(r.rule.L7Protocols) > 0 {
		r.refuse(r.at+".l7Protocols", "stands beside toServices; write to instead, or remove one of the two")
	}
	if r.target.nodes {
		r.refuse(at, "stands in a policy for Nodes, whose traffic to Services cannot be told; write to with ipBlock or nodeSelector")
	}
	for i, s := range list {
		at := fmt.Sprintf("%s[%d]", at, i)
		r.reference(at, &antreav1beta1.NamespacedName{Name: s.Name, Namespace: s.Namespace})
		r.scope(at, s.Scope)
	}
}

// scope checks that an entry is about this cluster.
func (f *findings) scope(at, scope string) {
	if scope != "" && scope != "Cluster" {
		f.refuse(at+".scope", "%q reaches beyond the cluster, which is not supported; write Cluster or leave it out", scope)
	}
}

var logLabel = regexp.MustCompile(`^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$`)

// hostLogLabel is how many characters of a log label a kernel's log line of a Node holds.
const hostLogLabel = 12

func (r *ruleFindings) checkLogLabel() {
	switch label := r.rule.LogLabel; {
	case !logLabel.MatchString(label):
		r.refuse(r.at+".logLabel", "%q; write at most 63 letters, digits, -, _ and ., the first and last a letter or digit", label)
	case r.target.nodes && len(label) > hostLogLabel:
		r.warn(r.at+".logLabel", "%q has more than %d characters, and the log of a Node holds no more; write a shorter one", label, hostLogLabel)
	}
}

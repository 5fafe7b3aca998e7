package api

import (
	"fmt"
	"net/netip"
	"regexp"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weirnet/weir/services/policy/api/antreav1beta1"
)

// checkPeers checks from and to, of which the one of the other direction must
// not be there.
func (r *ruleFindings) checkPeers() {
	if len(r.rule.From) > 0 && r.egress {
		r.refuse(r.at+".from", "stands in an egress rule; write to")
	}
	if len(r.rule.To) > 0 && !r.egress {
		r.refuse(r.at+".to", "stands in an ingress rule; write from")
	}
	list, peers := r.at+".from", r.rule.From
	if r.egress {
		list, peers = r.at+".to", r.rule.To
	}
	var kinds addressKinds
	for i := range peers {
		at := fmt.Sprintf("%s[%d]", list, i)
		kinds.add(r.checkPeer(at, &peers[i]))
		if r.target.services && peers[i].IPBlock == nil {
			r.refuse(at, "the rule applies to a Service, whose clients are known by address alone; write ipBlock")
		}
	}
	switch a := r.action(); {
	case !kinds.multicast:
	case !r.egress:
		r.warn(list, "no packet comes from a multicast address; write the group in an egress rule")
	default:
		if a == ActionPass || a == ActionReject {
			r.refuse(r.at+".action", "%s is not possible for multicast; write Allow or Drop", a)
		}
		if kinds.unicast {
			r.refuse(list, "multicast addresses stand beside unicast addresses or selectors; write a rule for each")
		}
	}
}

// checkPeer checks one entry of from or to. Selectors count as unicast.
func (r *ruleFindings) checkPeer(at string, p *antreav1beta1.Peer) addressKinds {
	r.combination(at, p)
	r.optionalSelector(at+".podSelector", p.PodSelector)
	r.optionalSelector(at+".namespaceSelector", p.NamespaceSelector)
	r.optionalSelector(at+".nodeSelector", p.NodeSelector)
	r.checkNamespaces(at+".namespaces", p)
	if p.ExternalEntitySelector != nil {
		r.refuse(at+".externalEntitySelector", "reaches beyond the cluster, which is not supported; write ipBlock, or remove the entry")
	}
	r.checkFQDN(at+".fqdn", p.FQDN)
	if p.ServiceAccount != nil && r.target.nodes {
		r.refuse(at+".serviceAccount", "stands in a policy for Nodes; write podSelector and namespaceSelector, or ipBlock")
	}
	r.reference(at+".serviceAccount", p.ServiceAccount)
	r.scope(at, p.Scope)
	if p.IPBlock != nil {
		return r.block(at+".ipBlock", p.IPBlock)
	}
	return addressKinds{unicast: true}
}

// combination checks which fields of a peer stand together.
func (r *ruleFindings) combination(at string, p *antreav1beta1.Peer) {
	alone := ""
	count := 0
	for _, field := range []struct {
		name string
		set  bool
	}{{"ipBlock", p.IPBlock != nil}, {"group", p.Group != ""}, {"fqdn", p.FQDN != ""}, {"serviceAccount", p.ServiceAccount != nil}, {"nodeSelector", p.NodeSelector != nil}} {
		if field.set {
			alone = field.name
			count++
		}
	}
	selects := p.PodSelector != nil || p.NamespaceSelector != nil || p.Namespaces != nil
	switch {
	case p.ExternalEntitySelector != nil: // Said by itself.
	case count == 0 && !selects:
		r.refuse(at, "names no peer; write podSelector, namespaceSelector, namespaces, ipBlock, group, fqdn, serviceAccount or nodeSelector, or remove the entry")
	case count > 1 || count == 1 && selects:
		r.refuse(at, "%s stands together with other fields; write an entry for each", alone)
	}
}

func (r *ruleFindings) checkNamespaces(at string, p *antreav1beta1.Peer) {
	n := p.Namespaces
	if n == nil {
		return
	}
	if r.object.Kind == KindAntreaNetworkPolicy {
		r.refuse(at, "a NetworkPolicy is of one Namespace; write namespaceSelector, leave it out for the policy's own Namespace, or write a ClusterNetworkPolicy")
	}
	if p.NamespaceSelector != nil {
		r.refuse(at, "stands beside namespaceSelector; write one of the two")
	}
	switch {
	case n.Match == "" && len(n.SameLabels) == 0:
		r.refuse(at, "empty; write match: Self, or sameLabels with label keys")
	case n.Match != "" && len(n.SameLabels) > 0:
		r.refuse(at, "match stands beside sameLabels; write one of the two")
	case n.Match != "" && n.Match != "Self":
		r.refuse(at+".match", "%q is unknown; write Self", n.Match)
	}
	for i, key := range n.SameLabels {
		r.labelKey(fmt.Sprintf("%s.sameLabels[%d]", at, i), key)
	}
}

var fqdnPattern = regexp.MustCompile(`^[-0-9a-zA-Z.*]+$`)

func (r *ruleFindings) checkFQDN(at, name string) {
	switch {
	case name == "":
		return
	case !fqdnPattern.MatchString(name):
		r.refuse(at, "%q is no name; write letters, digits, - and ., and * for any run of them", name)
	}
	if !r.egress {
		r.refuse(at, "a client is not known by its name; write ipBlock in from, or fqdn in an egress rule")
	}
	if r.target.nodes {
		r.refuse(at, "stands in a policy for Nodes, whose DNS is not watched; write ipBlock")
	}
	if a := r.action(); a == ActionDrop || a == ActionReject {
		r.warn(at, "stands in a rule that does not allow: an address that was not yet, or is no longer, known for the name gets past it; write Allow rules, and one that drops the rest")
	}
}

// addressKinds says whether there are multicast and other addresses.
type addressKinds struct{ multicast, unicast bool }

func (k *addressKinds) add(other addressKinds) {
	k.multicast = k.multicast || other.multicast
	k.unicast = k.unicast || other.unicast
}

var multicastPrefixes = []netip.Prefix{netip.MustParsePrefix("224.0.0.0/4"), netip.MustParsePrefix("ff00::/8")}

// block checks a block, and says which addresses it has.
func (f *findings) block(at string, b *antreav1beta1.IPBlock) addressKinds {
	f.ipBlock(at, (*networkingv1.IPBlock)(b))
	prefix, err := parsePrefix(b.CIDR)
	if err != nil {
		return addressKinds{}
	}
	for _, m := range multicastPrefixes {
		switch {
		case !m.Contains(prefix.Addr()):
		case prefix.Bits() >= m.Bits():
			return addressKinds{multicast: true}
		default:
			f.refuse(at+".cidr", "%s is more than the multicast addresses %s; write that, or prefixes of their own for the others", prefix, m)
			return addressKinds{}
		}
	}
	return addressKinds{unicast: true}
}

func (f *findings) optionalSelector(at string, s *metav1.LabelSelector) {
	if s != nil {
		f.selector(at, s)
	}
}

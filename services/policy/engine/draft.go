package engine

import (
	"strconv"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/api"
)

// draft is a policy item, compiled but for its groups. What is the same for all
// kinds of policies begins here; compileNetworkPolicy and plan end here. That of
// a Kubernetes NetworkPolicy, of which there are many, is made again from the
// object whenever it is needed, in memory that is used again. That of an ordered
// policy is kept: what it was made of may have changed since.
type draft struct {
	kind                            policyv1.PolicyKind
	namespace, name, uid, part      string
	generation, created             int64
	rank                            uint32
	priority                        float64
	isolatesIngress, isolatesEgress bool
	staged                          bool
	logIsolation                    bool
	allowLockout                    bool
	appliedTo                       []selection // Empty where each rule has its own.
	rules                           []draftRule

	// The annotation of the policy's Namespace decides whether rules and
	// isolation are recorded.
	logsAsNamespace bool
}

type draftRule struct {
	direction policyv1.Direction
	action    policyv1.Action
	index     uint32
	name      string
	logLabel  string
	log       bool
	anything  bool // Any traffic; services count for nothing.
	anyone    bool // Any peer; peers and blocks count for nothing.
	services  []service
	peers     []selection
	blocks    []*api.IPBlock
	appliedTo []selection
	named     []selection // Where port names are resolved beside peers.

	toServices []api.NamespacedName // As peers.
	names      []string             // As peers: domain names, with wildcards.
	nodePorts  bool                 // It is about ports of the node's own addresses.
	host       bool                 // It is about what the node's own host receives or sends.
}

// service is one of the services of a rule, as policyv1.Service has them.
type service struct {
	protocol                     policyv1.Protocol
	port, endPort                uint32
	portName                     string
	sourcePort, sourceEndPort    uint32
	icmpType, icmpCode, igmpType *uint32
	groupAddress                 []byte
}

// hasPort says whether a service is for a port, by its number.
func (s *service) hasPort(protocol policyv1.Protocol, port uint32) bool {
	if s.protocol != policyv1.Protocol_PROTOCOL_UNSPECIFIED && s.protocol != protocol {
		return false
	}
	return s.portName == "" && (s.port == 0 || s.port <= port && port <= max(s.port, s.endPort))
}

// reset empties a draft, and keeps its memory.
func (d *draft) reset() {
	*d = draft{appliedTo: d.appliedTo[:0], rules: d.rules[:0]}
}

// rule adds a rule, and gives it back empty.
func (d *draft) rule() *draftRule {
	if len(d.rules) == cap(d.rules) {
		d.rules = append(d.rules, draftRule{})
	} else {
		d.rules = d.rules[:len(d.rules)+1]
	}
	r := &d.rules[len(d.rules)-1]
	*r = draftRule{services: r.services[:0], peers: r.peers[:0], blocks: r.blocks[:0], appliedTo: r.appliedTo[:0], named: r.named[:0]}
	return r
}

// selections is how many selections there are in a draft.
func (d *draft) selections() int {
	n := len(d.appliedTo)
	for i := range d.rules {
		n += len(d.rules[i].peers) + len(d.rules[i].appliedTo) + len(d.rules[i].named)
	}
	return n
}

// key is storage.PolicyKey without a message.
func (d *draft) key() string {
	b := make([]byte, 0, 128)
	b = strconv.AppendInt(append(b, "policy/"...), int64(d.kind), 10)
	b = append(append(b, '/'), d.namespace...)
	b = append(append(b, '/'), d.name...)
	if d.part != "" {
		b = append(append(b, '/'), d.part...)
	}
	return string(b)
}

package pipeline

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/storage"
)

// Config of a Compiler: what is the same for a bridge's life.
type Config struct {
	// LocalMAC is that of the bridge's LOCAL port, the Pods' gateway.
	LocalMAC [6]byte
	// HostMAC is the source address that the host's own packets carry, by
	// which they are told from what it forwards. Zero: they cannot be told,
	// and the host's own traffic to its Pods is judged too.
	HostMAC [6]byte
	// Uplink is the port by which the node itself reaches its network, where
	// that is on the bridge: what comes by it is for the host, and what the host
	// sends to none of its Pods goes there. Zero: none.
	Uplink uint32
	// RuleLogRate is the log events a second that the meter of a rule lets through, and
	// RuleLogBurst how many at once.
	RuleLogRate, RuleLogBurst uint32
	// MeterLimit is the highest id that the switch takes for a meter. Zero: all that
	// logs has one meter.
	MeterLimit uint32
	// Observe are the Namespaces whose Pods' new connections are sampled, at
	// ObserveRate a second.
	Observe     []string
	ObserveRate uint32
	// RejectRate is the same for rejected packets that are to be answered.
	RejectRate uint32
	// LogIsolationAll records every isolation drop, asked for or not.
	LogIsolationAll bool
	// Node is the name of the node, by which Services know their endpoints here.
	Node string
	// Resolvers are DNS servers whose answers say where hosts are that rules name.
	// ResolverServices are Services of such, by Namespace and name.
	Resolvers        []netip.AddrPort
	ResolverServices []NamespacedName
	// BalanceServices sends what Pods send to Services to their endpoints, before
	// the egress rules. Otherwise something else does, and toServices matches nothing.
	BalanceServices bool
	// ClauseCap is how many conjunctions a clause flow may list before a rule
	// moves to the next lane. Zero: 200.
	ClauseCap int
}

const defaultClauseCap = 200

// Problem is an item that could not be compiled, or not wholly.
type Problem struct {
	Scope storage.ScopeID
	Key   string
	Err   error
}

// Compiler holds the desired flows of one bridge. It belongs to one goroutine.
type Compiler struct {
	cfg        Config
	flows      flowSet
	assignment Assignment
	ladders    map[uint8]*ladder // By rule table; Kubernetes rules need none.
	byConj     map[uint32]*part
	vacated    map[string]struct{} // Keys of places that may have no part, until the Update ends.
	bodies     map[bodyKey]*body
	orphaned   map[*body]struct{}  // Whose owner left, until the Update ends.
	reweighed  map[*level]struct{} // Whose form is to be looked at, at the end of the Update.
	counts     counts
	meters     logMeters

	groups       map[storage.ScopeID]map[string]*memberFacts
	policies     map[storage.ScopeID]map[string]*policy
	policiesHeld map[policyID]int // Items that a policy has.
	isolations   map[string]*isolation
	endpoints    map[string]*endpoint // By item key.
	byUID        map[string]string    // Keys of endpoints whose object is known, by its UID.
	nodeScope    map[string]storage.ScopeID
	ports        map[uint32]*endpoint

	peerOf   map[storage.ScopeID]map[*body]struct{}   // Bodies by the groups that they name.
	guards   map[storage.ScopeID]map[*policy]struct{} // Policies by applied-to group.
	inGroup  map[storage.ScopeID]map[*endpoint]struct{}
	reassess map[*endpoint]struct{} // To be worked out again: see assess.
	judged   int                    // Endpoints that are judged by the staged world.
	names    map[netip.Addr][]nameCount
	blocks   map[storage.ScopeID]map[string]struct{} // Keys of members that are blocks, or were lately, by group.
	first    uint64                                  // Of this compiler's, the first with a state: nothing is known of those before.
	revision uint64                                  // Of the last Update that changed what reports may mean. Zero: there was none.
	history  history
	naming   naming
	casting  casting
	verdicts verdicts
	sharing  *Sharing              // Nil: the bridge is ours alone.
	divided  []openflow.FlowKey    // Of hostFlows.
	gaveUp   map[netip.Addr]string // During an Update: addresses that a Pod may have given up, with its key.

	zone         string          // Of which the state tells.
	factsScope   storage.ScopeID // Where it does.
	services     map[serviceName]*service
	servicePorts map[uint32]*servicePort // By id.
	serviceScope storage.ScopeID
	serviceUsers map[serviceName]map[*body]struct{} // Bodies by the Services that they name.
	claimed      bool                               // Ids of Services' ports that are not there any more are dropped.
	balancers    map[uint32]openflow.Group
	regrouped    map[uint32]struct{} // Balancers that changed since the last Update.
	unserved     []Served            // During an Update.
}

// New returns a compiler that holds no state. With its first Update it puts the
// flows in that are there for every node.
func New(cfg Config, former Assignment) *Compiler {
	if cfg.ClauseCap == 0 {
		cfg.ClauseCap = defaultClauseCap
	}
	former.Rules = maps.Clone(former.Rules)
	if former.Rules == nil {
		former.Rules = make(map[string]RulePlace)
	}
	former.Services = maps.Clone(former.Services)
	if former.Services == nil {
		former.Services = make(map[string]uint32)
	}
	former.Next = max(former.Next, 1)
	former.Revision = max(former.Revision, 1)
	c := &Compiler{
		cfg:          cfg,
		first:        former.Revision,
		flows:        newFlowSet(),
		assignment:   former,
		byConj:       make(map[uint32]*part),
		vacated:      make(map[string]struct{}),
		bodies:       make(map[bodyKey]*body),
		orphaned:     make(map[*body]struct{}),
		reweighed:    make(map[*level]struct{}),
		counts:       newCounts(),
		meters:       newLogMeters(cfg.MeterLimit, heldMeters(former)),
		groups:       make(map[storage.ScopeID]map[string]*memberFacts),
		policies:     make(map[storage.ScopeID]map[string]*policy),
		policiesHeld: make(map[policyID]int),
		isolations:   make(map[string]*isolation),
		endpoints:    make(map[string]*endpoint),
		byUID:        make(map[string]string),
		nodeScope:    make(map[string]storage.ScopeID),
		ports:        make(map[uint32]*endpoint),
		peerOf:       make(map[storage.ScopeID]map[*body]struct{}),
		guards:       make(map[storage.ScopeID]map[*policy]struct{}),
		inGroup:      make(map[storage.ScopeID]map[*endpoint]struct{}),
		reassess:     make(map[*endpoint]struct{}),
		names:        make(map[netip.Addr][]nameCount),
		blocks:       make(map[storage.ScopeID]map[string]struct{}),
		history:      newHistory(),
		naming:       newNaming(),
		casting:      newCasting(),
		verdicts:     newVerdicts(),
		gaveUp:       make(map[netip.Addr]string),
		services:     make(map[serviceName]*service),
		servicePorts: make(map[uint32]*servicePort),
		serviceUsers: make(map[serviceName]map[*body]struct{}),
		balancers:    make(map[uint32]openflow.Group),
		regrouped:    make(map[uint32]struct{}),
	}
	for key := range former.Rules {
		c.vacated[key] = struct{}{}
	}
	c.ladders = newLadders(c.move)
	for table, places := range former.Levels {
		c.ladders[table].restore(places)
	}
	c.assignment.Levels, c.assignment.Meters = nil, nil
	c.staticFlows()
	return c
}

// Change is what a bridge must be told: flows to put in, in place of those of
// the same key, and flows to take out.
type Change struct {
	Upsert []openflow.Flow
	// More are all that are put in, in place of Upsert, where they are very many. They
	// are as they are to be until the next Update.
	More   *Flows
	Delete []openflow.FlowKey
	// PutGroups are put in, in place of those of the same id, before the flows;
	// DeleteGroups are taken out after them. PutMeters are put in before all else.
	PutGroups    []openflow.Group
	DeleteGroups []uint32
	PutMeters    []openflow.Meter
	// Unserved are endpoints that serve a port no more.
	Unserved []Served
	// Vacated are addresses that a Pod, here or elsewhere, had and has no more,
	// as far as the state told of them: connections that they have part in are
	// another's now, or nobody's.
	Vacated []netip.Addr
	// Recounted are ids whose counting flows were there before and may count for
	// other subjects from now on.
	Recounted []uint32
}

// Refused is why an Update was not taken over. The node is to keep what it has:
// a deny, or a Pass, would have been left out.
type Refused struct{ Problems []Problem }

func (r *Refused) Error() string {
	return fmt.Sprintf("the state is refused for %d rules that may not be left out, first %s: %v", len(r.Problems), r.Problems[0].Key, r.Problems[0].Err)
}

// Update takes over what a cut touched in the state, and the ports that there
// are now, and returns what that changes in the flows. An error is Refused: then
// nothing was taken over, neither state nor ports, and what was touched is to be
// given to the next Update too.
func (c *Compiler) Update(state *storage.Replica, touched storage.Touched, ports []Port) (Change, error) {
	defer func() { c.flows.unlisted = false }()
	policies := c.touchedPolicies(state, touched)
	if err := c.fits(policies); err != nil {
		return Change{}, err
	}
	c.revision = max(c.revision+1, c.first)
	if len(touched) > 0 && len(c.groups)+len(c.policies)+len(c.endpoints) == 0 {
		c.first = c.revision // Nothing was judged by what was before, of which all would be noted.
	}
	c.verdicts.forget()
	for id, ts := range touched {
		if c.kind(state, id) == storage.ScopeAddressGroup {
			c.setGroup(state, id, ts)
		}
	}
	c.setPolicies(policies)
	for id, ts := range touched {
		if kind := c.kind(state, id); kind == storage.ScopeNode {
			for _, key := range c.touchedKeys(state, id, ts) {
				if item := state.Item(id, key); item.GetNode() == nil && key != "node" {
					c.setEndpoint(id, key, item.GetEndpoint())
				}
			}
		}
	}
	c.setPorts(ports)
	changed := c.setServices(state, touched)
	c.balance(changed)
	c.forgetServices()
	c.takeNamed()
	c.assess()
	c.watchNames(len(changed) > 0)
	c.cast()
	c.passOn()
	c.settleForms()
	c.forgetPlaces()
	c.revise()
	up, more, del := c.flows.take()
	change := Change{Upsert: up, More: more, Delete: del, Vacated: c.takeVacated(), Recounted: c.counts.takeRecounted(), Unserved: c.unserved}
	change.PutGroups, change.DeleteGroups = c.takeGroups()
	for _, id := range c.meters.takeFresh() {
		change.PutMeters = append(change.PutMeters, c.logMeter(id))
	}
	c.unserved = nil
	return change, nil
}

// Unlisted has the next Update list no flows to put in: they are found by a Comparison.
func (c *Compiler) Unlisted() { c.flows.unlisted = true }

// takeGroups are the groups that changed, by id.
func (c *Compiler) takeGroups() (put []openflow.Group, remove []uint32) {
	for _, id := range slices.Sorted(maps.Keys(c.regrouped)) {
		if g, is := c.balancers[id]; is {
			put = append(put, g)
		} else {
			remove = append(remove, id)
		}
	}
	clear(c.regrouped)
	return put, remove
}

// Groups are all groups as of the last Update.
func (c *Compiler) Groups() []openflow.Group {
	return slices.SortedFunc(maps.Values(c.balancers), func(a, b openflow.Group) int { return cmp.Compare(a.ID, b.ID) })
}

// takeVacated are the addresses that Pods gave up in this Update and did not get back.
func (c *Compiler) takeVacated() []netip.Addr {
	var out []netip.Addr
	for a, key := range c.gaveUp {
		if !slices.ContainsFunc(c.names[a], func(n nameCount) bool { return n.key == key }) {
			out = append(out, a)
		}
	}
	clear(c.gaveUp)
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// Owned says whether the state tells of a Pod with this address.
func (c *Compiler) Owned(a netip.Addr) bool { return c.nameOf(a, c.revision) != "" }

// Whole touches everything that a replica holds, for a compiler's first Update.
func Whole(state *storage.Replica) storage.Touched {
	touched := make(storage.Touched)
	state.Scopes(func(id storage.ScopeID) { touched[id] = &storage.TouchedScope{All: true} })
	return touched
}

// Desired are all flows as of the last Update.
func (c *Compiler) Desired() []openflow.Flow {
	var out []openflow.Flow
	c.flows.all(func(f openflow.Flow) { out = append(out, f) })
	slices.SortFunc(out, func(a, b openflow.Flow) int { return CompareKeys(a.Key(), b.Key()) })
	return out
}

// FlowCounts is how many flows of Desired each table has, of those that have any.
func (c *Compiler) FlowCounts() map[uint8]int { return maps.Clone(c.flows.shown) }

// FlowCount is how many flows Desired are.
func (c *Compiler) FlowCount() (sum int) {
	for _, n := range c.flows.shown {
		sum += n
	}
	return sum
}

// Assignment is the present one. It must not be changed.
func (c *Compiler) Assignment() Assignment {
	a := c.assignment
	a.Revision = c.revision
	a.Meters = maps.Clone(c.meters.of)
	a.Levels = make(map[uint8][]LevelPlace)
	for table, l := range c.ladders {
		if places := l.save(); len(places) > 0 {
			a.Levels[table] = places
		}
	}
	return a
}

// Problems are the items that are not, or not wholly, compiled.
func (c *Compiler) Problems() []Problem {
	var out []Problem
	for id, policies := range c.policies {
		for key, p := range policies {
			for _, err := range p.problems {
				out = append(out, Problem{Scope: id, Key: key, Err: err})
			}
			for _, r := range p.rules {
				if len(r.toServices) > 0 && !c.cfg.BalanceServices {
					out = append(out, Problem{Scope: id, Key: key, Err: fmt.Errorf("%s rule %d: toServices matches nothing, since this node's shim does not balance Services (--service-lb=false)",
						directionName(r.direction), r.wire.GetIndex())})
				}
				for _, name := range c.full(r) {
					out = append(out, Problem{Scope: id, Key: key, Err: fmt.Errorf("%s rule %d: %s stands for more hosts than this node keeps: those beyond match nothing",
						directionName(r.direction), r.wire.GetIndex(), name)})
				}
				for _, in := range []*rule{r, r.twin} {
					if in != nil && in.level != nil && in.level.beyond {
						out = append(out, Problem{Scope: id, Key: key, Err: in.past(c.ladders[in.table()].limit)})
					}
				}
			}
		}
	}
	sortProblems(out)
	return out
}

func sortProblems(list []Problem) {
	slices.SortFunc(list, func(a, b Problem) int {
		return slices.Compare([]string{a.Key, a.Err.Error()}, []string{b.Key, b.Err.Error()})
	})
}

// kind is that of a scope in the state, or where it is gone, the one it had.
func (c *Compiler) kind(state *storage.Replica, id storage.ScopeID) storage.ScopeKind {
	if kind, held := state.Kind(id); held {
		return kind
	}
	if _, ok := c.groups[id]; ok {
		return storage.ScopeAddressGroup
	}
	if _, ok := c.policies[id]; ok {
		return storage.ScopePolicies
	}
	if id == c.serviceScope {
		return storage.ScopeServices
	}
	return storage.ScopeNode
}

// touchedKeys are the keys that may have changed in a scope, in order.
func (c *Compiler) touchedKeys(state *storage.Replica, id storage.ScopeID, ts *storage.TouchedScope) []string {
	keys := maps.Clone(ts.Keys)
	if ts.All {
		if keys == nil {
			keys = make(map[string]struct{})
		}
		state.Keys(id, func(key string) { keys[key] = struct{}{} })
		c.formerKeys(c.kind(state, id), id, keys)
	}
	return slices.Sorted(maps.Keys(keys))
}

// formerKeys adds the keys that the compiler holds of a scope.
func (c *Compiler) formerKeys(kind storage.ScopeKind, id storage.ScopeID, keys map[string]struct{}) {
	switch kind {
	case storage.ScopeAddressGroup:
		for key := range c.groups[id] {
			keys[key] = struct{}{}
		}
	case storage.ScopePolicies:
		for key := range c.policies[id] {
			keys[key] = struct{}{}
		}
	case storage.ScopeServices:
		for _, s := range c.services {
			s.itemKeys(keys)
		}
	case storage.ScopeNode:
		for key, scope := range c.nodeScope {
			if scope == id {
				keys[key] = struct{}{}
			}
		}
	}
}

// setGroup takes over what was touched in an address group.
func (c *Compiler) setGroup(state *storage.Replica, id storage.ScopeID, ts *storage.TouchedScope) {
	keys := c.touchedKeys(state, id, ts)
	if c.groups[id] == nil {
		c.groups[id] = make(map[string]*memberFacts)
	}
	_, held := state.Kind(id)
	for _, key := range keys {
		if former := c.groups[id][key]; held && former != nil && former.pod { // Of a group that goes, members may well be elsewhere.
			c.giveUp(key, former.ips)
		}
		c.setMember(id, key, c.newMember(state.Item(id, key).GetMember()))
	}
	if !held {
		delete(c.groups, id)
	}
}

// setMember puts a member of an address group in the place of its former
// content; nil takes it out.
func (c *Compiler) setMember(id storage.ScopeID, key string, m *memberFacts) {
	for r := range c.peerOf[id] {
		if former := c.groups[id][key]; former != nil {
			c.memberClauses(r, id, former, c.goes)
		}
		if m != nil {
			c.memberClauses(r, id, m, c.come)
		}
		c.weigh(r)
	}
	former := c.groups[id][key]
	c.history.changed = true
	if former != nil {
		remember(c, c.history.members, groupMember{id, key}, former)
	}
	c.named(key, former.addrs(), -1)
	c.named(key, m.addrs(), 1)
	if m.block() != nil {
		link(c.blocks, id, key)
	}
	if m == nil {
		delete(c.groups[id], key)
	} else {
		c.groups[id][key] = m
	}
}

func scopeIDs(list [][]byte) ([]storage.ScopeID, error) {
	ids := make([]storage.ScopeID, 0, len(list))
	for _, b := range list {
		id, ok := storage.ScopeIDFromBytes(b)
		if !ok {
			return nil, fmt.Errorf("a group id of %d bytes", len(b))
		}
		ids = append(ids, id)
	}
	return ids, nil
}

func link[K, V comparable](m map[K]map[V]struct{}, k K, v V) {
	if m[k] == nil {
		m[k] = make(map[V]struct{})
	}
	m[k][v] = struct{}{}
}

func unlink[K, V comparable](m map[K]map[V]struct{}, k K, v V) {
	delete(m[k], v)
	if len(m[k]) == 0 {
		delete(m, k)
	}
}

// Knows says whether the state places an endpoint on this node.
func (c *Compiler) Knows(endpoint string) bool { return c.endpoints[endpoint] != nil }

// OpenEndpoint are the addresses of an endpoint whose port may carry traffic;
// nil for one whose port may not.
func (c *Compiler) OpenEndpoint(endpoint string) []netip.Addr {
	if ep := c.endpoints[endpoint]; ep != nil && ep.port != nil {
		return ep.ips
	}
	return nil
}

// Touch is a flow that is always there, and the same for every state.
func (c *Compiler) Touch() openflow.Flow {
	return openflow.Flow{Table: TableOutput, Priority: prioMiss, Cookie: cookie(KindStatic, 0), Actions: actions(openflow.OutputRegister(regOutput))}
}

// OpenAddresses are the addresses that traffic can reach, each with the id of
// its port.
func (c *Compiler) OpenAddresses() map[netip.Addr]string {
	out := make(map[netip.Addr]string)
	for _, ep := range c.ports {
		for _, ip := range ep.ips {
			out[ip] = ep.port.ID
		}
	}
	return out
}

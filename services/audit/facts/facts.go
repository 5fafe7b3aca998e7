package facts

import (
	"net/netip"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/audit/record"
	"github.com/weirnet/weir/services/audit/trail"
)

// Defaults of Config.
const (
	DefaultKeep     = time.Hour
	DefaultSlack    = 2 * time.Second
	DefaultMaxSpans = 1 << 20
)

// Config of Facts.
type Config struct {
	Keep     time.Duration // How long spans that ended are kept. Zero: DefaultKeep.
	Slack    time.Duration // By how much clocks may differ. Zero: DefaultSlack.
	MaxSpans int           // Beyond, what ended is forgotten sooner. Zero: DefaultMaxSpans.
}

// Facts is what is known. It is safe for concurrent use.
type Facts struct {
	cfg Config

	mu       sync.RWMutex // Guards what follows.
	objects  map[object]*entry
	ends     map[netip.Addr]*history // Encoded PacketEnds.
	services map[netip.Addr]*history // "NAMESPACE/NAME".
	versions map[record.Policy]*history
	spans    int
	round    uint64 // Of the snapshot.
	telling  bool   // A snapshot is being told.
	pruned   int64  // When what ended long ago was forgotten,
	left     int    // and how many spans that left.
}

// object names what has addresses.
type object struct {
	kind            byte
	namespace, name string
}

const (
	kindEndpoint = 'e'
	kindService  = 's'
)

type entry struct {
	addresses []netip.Addr
	value     string
	round     uint64
}

// New returns Facts that know nothing.
func New(cfg Config) *Facts {
	if cfg.Keep == 0 {
		cfg.Keep = DefaultKeep
	}
	if cfg.Slack == 0 {
		cfg.Slack = DefaultSlack
	}
	if cfg.MaxSpans == 0 {
		cfg.MaxSpans = DefaultMaxSpans
	}
	return &Facts{cfg: cfg, objects: make(map[object]*entry), ends: make(map[netip.Addr]*history), services: make(map[netip.Addr]*history),
		versions: make(map[record.Policy]*history)}
}

// Known is how many endpoints and Services are known.
func (f *Facts) Known() int {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return len(f.objects)
}

// Begin begins a snapshot.
func (f *Facts) Begin() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.round++
	f.telling = true
}

// Complete ends a snapshot: endpoints and Services that were not told are gone.
func (f *Facts) Complete(now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for o, e := range f.objects {
		if e.round != f.round {
			f.forgetLocked(o, e, now.UnixNano())
		}
	}
	f.telling = false
	f.pruneLocked(now.UnixNano())
}

// Apply takes a change. Of versions of policies it notes what they are; whether
// they are gone is for who keeps the trail.
func (f *Facts) Apply(c *policyv1.ObjectChange) {
	f.mu.Lock()
	defer f.mu.Unlock()
	at := c.GetTimeUnixNano()
	switch o := c.GetObject().(type) {
	case *policyv1.ObjectChange_Endpoint:
		e := o.Endpoint
		f.putLocked(object{kindEndpoint, e.GetNamespace(), e.GetName()}, c, e.GetIps(), encodeEnd(e))
	case *policyv1.ObjectChange_Service:
		s := o.Service
		f.putLocked(object{kindService, s.GetNamespace(), s.GetName()}, c, s.GetIps(), s.GetNamespace()+"/"+s.GetName())
	case *policyv1.ObjectChange_Version:
		if p, ok := trail.PolicyOf(o.Version); ok {
			value := ""
			if !c.GetRemoved() {
				value = encodeVersion(o.Version)
			}
			f.spans += set(f.versions, p, at, value)
		}
	}
	if !f.telling && (at-f.pruned > int64(f.cfg.Keep)/8 || f.spans > f.cfg.MaxSpans && f.spans > f.left+f.cfg.MaxSpans/16) {
		f.pruneLocked(at)
	}
}

func (f *Facts) putLocked(o object, c *policyv1.ObjectChange, ips [][]byte, value string) {
	at := c.GetTimeUnixNano()
	e := f.objects[o]
	if c.GetRemoved() {
		if e != nil {
			f.forgetLocked(o, e, at)
		}
		return
	}
	var addresses []netip.Addr
	for _, b := range ips {
		if a, ok := netip.AddrFromSlice(b); ok {
			addresses = append(addresses, a.Unmap())
		}
	}
	if e != nil && e.value == value && slices.Equal(e.addresses, addresses) {
		e.round = f.round
		return
	}
	if e != nil {
		f.forgetLocked(o, e, at)
	}
	f.objects[o] = &entry{addresses, value, f.round}
	for _, a := range addresses {
		f.spans += set(f.of(o), a, at, value)
	}
}

// of is where an object's addresses are.
func (f *Facts) of(o object) map[netip.Addr]*history {
	if o.kind == kindService {
		return f.services
	}
	return f.ends
}

// forgetLocked ends what an object has, unless another has it by now.
func (f *Facts) forgetLocked(o object, e *entry, at int64) {
	delete(f.objects, o)
	for _, a := range e.addresses {
		if h := f.of(o)[a]; h != nil && h.now() == e.value {
			f.spans += h.set(at, "")
		}
	}
}

func set[K comparable](m map[K]*history, key K, at int64, value string) (more int) {
	h := m[key]
	if h == nil {
		if value == "" {
			return 0
		}
		h = &history{}
		m[key] = h
	}
	return h.set(at, value)
}

// pruneLocked forgets what ended long ago; with too many spans, what ended at all.
func (f *Facts) pruneLocked(now int64) {
	before := now - int64(f.cfg.Keep)
	f.pruned = now
	f.spans -= prune(f.ends, before) + prune(f.services, before) + prune(f.versions, before)
	if f.spans > f.cfg.MaxSpans {
		f.spans -= prune(f.ends, now) + prune(f.services, now) + prune(f.versions, now)
	}
	f.left = f.spans
}

func prune[K comparable](m map[K]*history, before int64) (dropped int) {
	for k, h := range m {
		dropped += h.prune(before)
		if len(h.spans) == 0 {
			delete(m, k)
		}
	}
	return dropped
}

// Numbers of PacketContext's fields, from audit.proto.
const (
	contextSource      = 1
	contextDestination = 2
	contextService     = 3
	contextPolicies    = 4
	// eventContext is the number of Event's field.
	eventContext = 5
)

// AppendContext appends Event's field "context" for a packet, or nothing where
// nothing is known. A message may be put together of parts: behind an encoded
// Event it completes it.
func (f *Facts) AppendContext(b []byte, p *record.Packet) []byte {
	t, slack := p.First.UnixNano(), int64(f.cfg.Slack)
	f.mu.RLock()
	defer f.mu.RUnlock()
	source := at(f.ends, p.Source, t, slack)
	destination := at(f.ends, p.Destination, t, slack)
	service := ""
	if destination == "" && p.Service == "" {
		service = at(f.services, p.Destination, t, slack)
	}
	size, known := 0, false
	var few [8]string
	versions := few[:0]
	for _, ref := range p.Policies {
		v := at(f.versions, ref, t, slack)
		known = known || v != ""
		versions = append(versions, v)
		size += fieldSize(v)
	}
	if !known {
		versions, size = nil, 0
	}
	for _, s := range [...]string{source, destination, service} {
		if s != "" {
			size += fieldSize(s)
		}
	}
	if size == 0 {
		return b
	}
	b = protowire.AppendTag(b, eventContext, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(size))
	for i, s := range [...]string{contextSource: source, contextDestination: destination, contextService: service} {
		if s != "" {
			b = appendField(b, protowire.Number(i), s)
		}
	}
	for _, v := range versions {
		b = appendField(b, contextPolicies, v)
	}
	return b
}

func at[K comparable](m map[K]*history, key K, t, slack int64) string {
	h := m[key]
	if h == nil {
		return ""
	}
	return h.at(t, slack)
}

func fieldSize(s string) int { return 1 + protowire.SizeBytes(len(s)) }

func appendField(b []byte, num protowire.Number, s string) []byte {
	return protowire.AppendString(protowire.AppendTag(b, num, protowire.BytesType), s)
}

// encodeEnd is an encoded PacketEnd.
func encodeEnd(e *policyv1.EndpointFact) string {
	end := &auditv1.PacketEnd{Node: e.GetName()}
	if e.GetNamespace() != "" {
		end = &auditv1.PacketEnd{Namespace: e.GetNamespace(), Pod: e.GetName(), Node: e.GetNode(), Workload: e.GetWorkload()}
	}
	return encode(end)
}

func encodeVersion(v *policyv1.ObjectVersion) string {
	return encode(&auditv1.PolicyVersion{Uid: v.GetUid(), Generation: v.GetGeneration()})
}

// encode encodes what cannot fail to be: messages of few fields, which came over
// the wire.
func encode(m proto.Message) string {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return ""
	}
	return string(b)
}

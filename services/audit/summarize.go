package audit

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/audit/record"
)

// Bounds of a summary.
const (
	defaultFlows    = 10_000
	maxFlows        = 100_000 // Beyond, flows of addresses that nobody is known to have are one for all.
	maxFlowPolicies = 16
	summaryRecords  = 4096 // Between two looks at the caller.
)

// otherAddresses stands for the addresses beyond maxFlows.
const otherAddresses = "other addresses"

// Summarize implements AuditService.
func (s *Service) Summarize(ctx context.Context, req *auditv1.SummarizeRequest) (*auditv1.SummarizeResponse, error) {
	if err := mayRead(ctx); err != nil {
		return nil, err
	}
	f := req.GetFilter()
	if f == nil {
		f = &auditv1.RecordFilter{}
	}
	filter, err := newFilter(f)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	filter.Losses = true
	reader, decoder, sum := s.log.NewReader(0), record.NewDecoder(), newSummary()
	_, newest := s.log.Range()
	var event record.Event
	for n := 1; ; n++ {
		e, ok, err := reader.Next()
		if err != nil {
			return nil, status.Error(codes.Unavailable, err.Error())
		}
		if !ok || e.Cursor > newest {
			return sum.response(int(cmp.Or(req.GetLimit(), defaultFlows))), nil
		}
		if err := decoder.DecodeInto(e.Data, &event); err != nil {
			return nil, status.Errorf(codes.DataLoss, "record %d: %v", e.Cursor, err)
		}
		if filter.Matches(e.Node, &event) {
			sum.add(&event)
		}
		if n%summaryRecords == 0 && ctx.Err() != nil {
			return nil, status.FromContextError(ctx.Err()).Err()
		}
	}
}

// flowKey is what makes one row.
type flowKey struct {
	source, destination, service string
	protocol                     uint8
	port                         uint32
	action, staged               policyv1.Action
	direction                    policyv1.Direction
	observed                     bool
}

type flow struct {
	packets, records uint64
	policies         map[string]bool
}

// summary is the packets of records, by who talked to whom.
type summary struct {
	flows         map[flowKey]*flow
	records, lost uint64
	packets       uint64
	from, to      time.Time
}

func newSummary() *summary { return &summary{flows: make(map[flowKey]*flow)} }

func (s *summary) add(e *record.Event) {
	if e.Kind == record.KindLoss {
		s.lost += e.Loss.Count
		return
	}
	p := &e.Packet
	k := flowKey{service: p.Service, protocol: p.Protocol, port: p.DestPort.Value, action: p.Action, direction: p.Direction, observed: p.Observed()}
	if p.Staged != nil && p.Staged.Action != p.Action {
		k.staged = p.Staged.Action
	}
	k.source, k.destination = ends(e)
	if e.Context != nil && k.service == "" {
		k.service = e.Context.Service
	}
	f := s.flows[k]
	if f == nil {
		if len(s.flows) >= maxFlows {
			k.fold()
			f = s.flows[k]
		}
		if f == nil {
			f = &flow{policies: make(map[string]bool)}
			s.flows[k] = f
		}
	}
	f.packets += p.Count
	f.records++
	for _, ref := range p.Policies {
		if len(f.policies) < maxFlowPolicies {
			f.policies[ref.String()] = true
		}
	}
	s.records++
	s.packets += p.Count
	if s.from.IsZero() || p.First.Before(s.from) {
		s.from = p.First
	}
	if p.Last.After(s.to) {
		s.to = p.Last
	}
}

// fold leaves out what a scan would make many rows of.
func (k *flowKey) fold() {
	for _, end := range []*string{&k.source, &k.destination} {
		if _, err := netip.ParseAddr(*end); err == nil {
			*end = otherAddresses
		}
	}
	k.port = 0
}

// ends are the workloads, Pods, Nodes or addresses of a packet.
func ends(e *record.Event) (source, destination string) {
	p := &e.Packet
	applied, peer := &destination, &source
	if p.Direction == policyv1.Direction_DIRECTION_EGRESS {
		applied, peer = peer, applied
	}
	if !strings.HasPrefix(p.AppliedTo, "service:") {
		*applied = p.AppliedTo
	}
	*peer = p.Peer
	if c := e.Context; c != nil {
		source, destination = cmp.Or(endText(&c.Source), source), cmp.Or(endText(&c.Destination), destination)
	}
	return cmp.Or(source, addressText(p.Source)), cmp.Or(destination, addressText(p.Destination))
}

// endText is as FlowSummary tells an end; empty where it is not known.
func endText(e *record.End) string {
	switch {
	case e.Workload != "":
		return e.Namespace + "/" + e.Workload
	case e.Pod != "":
		return e.Namespace + "/" + e.Pod
	case e.Node != "":
		return "node:" + e.Node
	}
	return ""
}

func addressText(a netip.Addr) string {
	if !a.IsValid() {
		return "no address"
	}
	return a.String()
}

func (s *summary) response(limit int) *auditv1.SummarizeResponse {
	out := &auditv1.SummarizeResponse{Records: s.records, Packets: s.packets, Lost: s.lost}
	if s.records > 0 {
		out.From, out.To = timestamppb.New(s.from), timestamppb.New(s.to)
	}
	for k, f := range s.flows {
		row := &auditv1.FlowSummary{Source: k.source, Destination: k.destination, Service: k.service, Protocol: uint32(k.protocol), Port: k.port,
			Action: k.action, Direction: k.direction, Staged: k.staged, Packets: f.packets, Records: f.records, Observed: k.observed}
		for p := range f.policies {
			row.Policies = append(row.Policies, p)
		}
		slices.Sort(row.Policies)
		out.Flows = append(out.Flows, row)
	}
	slices.SortFunc(out.Flows, func(a, b *auditv1.FlowSummary) int {
		return cmp.Or(cmp.Compare(b.Packets, a.Packets), cmp.Compare(a.Source, b.Source), cmp.Compare(a.Destination, b.Destination), cmp.Compare(a.Service, b.Service),
			cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Direction, b.Direction), cmp.Compare(a.Action, b.Action), cmp.Compare(a.Staged, b.Staged))
	})
	if n := len(out.Flows) - limit; n > 0 {
		out.More = uint64(n)
		out.Flows = out.Flows[:limit]
	}
	return out
}

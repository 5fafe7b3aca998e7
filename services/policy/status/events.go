package status

import (
	"context"
	"fmt"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/weirnet/weir/services/policy/api"
)

// Limits of Events: of one object, and of all.
const (
	eventInterval = 10 * time.Second
	eventRate     = 5 // A second.
	eventBurst    = 50
)

// events tells what has no status of its own: Kubernetes NetworkPolicies that come
// into force or do not, and objects that are not in force as they stand.
type events struct {
	api     kubernetes.Interface
	metrics *metrics
	logger  hclog.Logger
	limit   *rate.Limiter
	since   time.Time            // What has changed before, a former holder of the Lease has told.
	told    map[api.Ref]*tidings // Nil before the first look.
	// doubtful are policies of which the first look cannot tell whether they are new.
	doubtful map[api.Ref]bool
}

// tidings is what was told of an object last.
type tidings struct {
	uid, said string
	at        time.Time
}

func newEvents(a kubernetes.Interface, since time.Time, m *metrics, logger hclog.Logger) *events {
	return &events{api: a, since: since, metrics: m, logger: logger, limit: rate.NewLimiter(eventRate, eventBurst)}
}

// event is what there is to be told of an object.
type event struct {
	ref               api.Ref
	uid, kind, reason string
	message           string
	good              bool
}

// said is by what one event is told from another. Whose nodes change says the same.
func (e *event) said() string {
	if e.good {
		return fmt.Sprint(e.reason)
	}
	return e.reason + " " + e.kind
}

// about is what there is to tell of a NetworkPolicy; false while that is not known.
func about(p *Policy) (event, bool) {
	e := event{ref: p.Ref, uid: p.UID, kind: "NetworkPolicy"}
	if p.undecided() {
		return e, false
	}
	for _, c := range p.Conditions {
		if !c.Status && c.Message != "" {
			e.reason, e.message = c.Reason, c.Message
			return e, true
		}
	}
	e.good, e.reason, e.message = true, TypeRealized, fmt.Sprintf("%d of %d nodes enforce it", p.Realized, p.Nodes)
	return e, true
}

// tell tells what differs from what was told before. What holds when a holder of the
// Lease begins is told only where it is bad, or has changed since this replica can
// tell: a former one has told the rest.
func (s *events) tell(ctx context.Context, policies []Policy, problems map[api.Ref]Problem, now time.Time) {
	first, doubtful := s.told == nil, make(map[api.Ref]bool)
	next := make(map[api.Ref]*tidings, len(s.told))
	for i := range policies {
		if p := &policies[i]; p.Ref.Kind == api.KindNetworkPolicy && p.UID != "" {
			switch e, known := about(p); {
			case known && first && p.Nodes == 0 && p.Changed.IsZero():
				doubtful[p.Ref] = true // What was read a moment ago comes to nodes a moment later.
			case known:
				s.consider(ctx, &e, next, (first || s.doubtful[p.Ref]) && !p.Changed.After(s.since), now)
			case s.told[p.Ref] != nil:
				next[p.Ref] = s.told[p.Ref]
			}
		}
	}
	for ref, p := range problems {
		if kind := objectKind(ref.Kind); kind != "" && p.UID != "" {
			s.consider(ctx, &event{ref: ref, uid: p.UID, kind: kind, reason: "NotInForce", message: p.Message}, next, first, now)
		}
	}
	s.told, s.doubtful = next, doubtful
}

// objectKind is the kind of an object that has a problem to tell.
func objectKind(k api.Kind) string {
	switch k {
	case api.KindClusterGroup:
		return "ClusterGroup"
	case api.KindGroup:
		return "Group"
	}
	return ""
}

func (s *events) consider(ctx context.Context, e *event, next map[api.Ref]*tidings, old bool, now time.Time) {
	former := s.told[e.ref]
	if former == nil || former.uid != e.uid {
		former = &tidings{uid: e.uid}
	}
	next[e.ref] = former
	switch {
	case former.said == e.said():
		return
	case old && e.good:
		former.said = e.said()
		return
	case now.Sub(former.at) < eventInterval:
		return // Until the next look after that.
	case !s.limit.AllowN(now, 1):
		s.metrics.events.WithLabelValues("held").Inc()
		return
	}
	if err := s.create(ctx, e, now); err != nil {
		s.metrics.events.WithLabelValues("failed").Inc()
		s.logger.Warn("an event cannot be written", "object", e.ref, "err", err)
	} else {
		s.metrics.events.WithLabelValues("written").Inc()
	}
	former.said, former.at = e.said(), now
}

func (s *events) create(ctx context.Context, e *event, now time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	namespace, level, group := e.ref.Namespace, corev1.EventTypeNormal, "crd.antrea.io/v1beta1"
	if namespace == "" {
		namespace = metav1.NamespaceDefault
	}
	if !e.good {
		level = corev1.EventTypeWarning
	}
	if e.kind == "NetworkPolicy" {
		group = "networking.k8s.io/v1"
	}
	at := metav1.NewTime(now)
	_, err := s.api.CoreV1().Events(namespace).Create(ctx, &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Namespace: namespace, Name: fmt.Sprintf("%s.%x", e.ref.Name, now.UnixNano())},
		InvolvedObject: corev1.ObjectReference{APIVersion: group, Kind: e.kind, Namespace: e.ref.Namespace, Name: e.ref.Name, UID: types.UID(e.uid)},
		Reason:         e.reason, Message: e.message, Type: level, FirstTimestamp: at, LastTimestamp: at, Count: 1,
		Source: corev1.EventSource{Component: fieldManager}, ReportingController: "weir.dev/policyd",
	}, metav1.CreateOptions{FieldManager: fieldManager})
	return err
}

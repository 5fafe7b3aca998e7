package status

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/weirnet/weir/services/policy/api"
)

// Model is what is known of policies and groups. It is asked by one goroutine.
type Model interface {
	// Policies are all policies, as all replicas together know them.
	Policies(ctx context.Context) []Policy
	// Groups are all ClusterGroups and Groups.
	Groups() []Group
	// Problems are objects that are not in force as they stand, with why.
	Problems() map[api.Ref]Problem
	// Changed has a token when a policy has changed.
	Changed() <-chan struct{}
}

// Problem is why an object is not in force.
type Problem struct {
	UID        string
	Generation int64
	Message    string
}

// Config of a Controller. Kubeconfig or Rest may be left out, not both where the
// process runs in no Pod.
type Config struct {
	Kubeconfig string       // Empty: the service account of the Pod.
	Rest       *rest.Config // In place of Kubeconfig. Tests set it.
	Namespace  string       // Of the Lease.
	Identity   string       // Of this replica, by which it holds the Lease.
	Model      Model
	Registry   prometheus.Registerer
	Logger     hclog.Logger
}

// Controller writes statuses while it holds the Lease.
type Controller struct {
	cfg     Config
	clients *clients
	metrics *metrics
	ran     time.Time // When Run began.
}

// leaseName is that of the Lease.
const leaseName = "weir-policyd"

// How long the Lease holds, and within what it must be renewed: a holder that is cut
// off has ended before another begins.
const (
	leaseDuration = 15 * time.Second
	renewDeadline = 10 * time.Second
	retryPeriod   = 2 * time.Second
)

// How often everything is looked at, how soon again while a policy that has just
// changed is on its way, how much of the time that may take, and how often the API
// server is asked whether its statuses are what was written.
const (
	lookInterval  = time.Second
	soonInterval  = 200 * time.Millisecond
	restFactor    = 19 // One part in twenty.
	readInterval  = 5 * time.Minute
	retryInterval = 2 * time.Second
	callTimeout   = 10 * time.Second
	writers       = 8
	writeRate     = 100 // Objects a second.
)

// New asks nothing of the API server yet.
func New(cfg Config) (*Controller, error) {
	if cfg.Namespace == "" {
		return nil, errors.New("status of policies: no Namespace of the Lease is given (--namespace)")
	}
	config := cfg.Rest
	if config == nil {
		var err error
		if cfg.Kubeconfig == "" {
			config, err = rest.InClusterConfig()
		} else {
			config, err = clientcmd.BuildConfigFromFlags("", cfg.Kubeconfig)
		}
		if err != nil {
			return nil, fmt.Errorf("status of policies: %w", err)
		}
	}
	c := &Controller{cfg: cfg, metrics: newMetrics()}
	var err error
	if c.clients, err = newClients(config); err != nil {
		return nil, err
	}
	if cfg.Registry != nil {
		if err := c.metrics.register(cfg.Registry); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// Run competes for the Lease, and writes while it has it, until the context ends. All
// there is has been read once.
func (c *Controller) Run(ctx context.Context) error {
	c.ran = time.Now()
	for ctx.Err() == nil {
		var leading sync.WaitGroup
		leading.Add(1)
		var begun atomic.Bool
		elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
			Lock: &resourcelock.LeaseLock{LeaseMeta: metav1.ObjectMeta{Namespace: c.cfg.Namespace, Name: leaseName}, Client: c.clients.typed.CoordinationV1(),
				LockConfig: resourcelock.ResourceLockConfig{Identity: c.cfg.Identity}},
			LeaseDuration: leaseDuration, RenewDeadline: renewDeadline, RetryPeriod: retryPeriod, ReleaseOnCancel: true, Name: leaseName,
			Callbacks: leaderelection.LeaderCallbacks{
				OnStartedLeading: func(ctx context.Context) { begun.Store(true); defer leading.Done(); c.lead(ctx) },
				OnStoppedLeading: func() {},
			}})
		if err != nil {
			return fmt.Errorf("status of policies: %w", err)
		}
		elector.Run(ctx)
		// Before another life of it begins here. It ends without having begun only with
		// the context; what begins after that ends at once.
		if begun.Load() || ctx.Err() == nil {
			leading.Wait()
		}
	}
	return ctx.Err()
}

// lead writes until the context ends: the Lease is lost, or the process stops.
func (c *Controller) lead(ctx context.Context) {
	c.cfg.Logger.Info("this replica writes the status of policies")
	c.metrics.holder.Set(1)
	defer func() {
		c.metrics.holder.Set(0)
		c.metrics.forget()
	}()
	l := &leader{Controller: c, events: newEvents(c.clients.typed, c.ran, c.metrics, c.cfg.Logger)}
	// The former holder may have written just now.
	for wait := writeInterval; sleep(ctx, wait, nil); {
		began := time.Now()
		did, err := l.look(ctx, began)
		took := time.Since(began)
		c.metrics.look.Observe(took.Seconds())
		// This process rests by its own work. The API server has as long a rest as it was
		// at work for us, and is told of so many objects a second at the most.
		rest := max(soonInterval, restFactor*(took-did.asked), did.asked, time.Duration(did.writes)*time.Second/writeRate)
		wait = max(lookInterval, rest)
		if did.soon {
			wait = rest
		}
		if err != nil {
			if ctx.Err() == nil {
				l.say(err)
			}
			wait = max(wait, retryInterval)
		}
		if !sleep(ctx, min(rest, wait), nil) {
			return
		}
		wait -= min(rest, wait)
		if !sleep(ctx, wait, c.cfg.Model.Changed()) {
			return
		}
		wait = 0
	}
}

// sleep ends after a time, or with a token; false where the context has ended.
func sleep(ctx context.Context, d time.Duration, token <-chan struct{}) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-token:
	case <-ctx.Done():
	}
	return ctx.Err() == nil
}

// leader is what a holder of the Lease knows, for as long as it is one.
type leader struct {
	*Controller
	records records // Nil: they have not been read.
	read    time.Time
	events  *events
	said    string // The last error, to say it once.
}

func (l *leader) say(err error) {
	if text := err.Error(); text != l.said {
		l.said = text
		l.cfg.Logger.Error("status of policies cannot be kept", "err", err)
	}
}

// looked is what a look came to.
type looked struct {
	soon   bool          // A policy is on its way.
	asked  time.Duration // For how long the API server was asked and told.
	writes int
}

// look looks at everything once.
func (l *leader) look(ctx context.Context, now time.Time) (did looked, err error) {
	if l.records == nil || now.Sub(l.read) >= readInterval {
		err := l.readRecords(ctx, now)
		if did.asked = time.Since(now); err != nil {
			return did, err
		}
	}
	problems := l.cfg.Model.Problems()
	policies := append(l.cfg.Model.Policies(ctx), unreadable(problems)...)
	l.metrics.take(policies, now)
	for i := range policies {
		did.soon = did.soon || policies[i].Waiting > 0 && now.Sub(policies[i].Changed) < 2*lookInterval
	}
	writes := l.records.plan(policies, refused(l.cfg.Model.Groups(), problems), now)
	did.writes = len(writes)
	began := time.Now()
	err = l.write(ctx, writes)
	l.events.tell(ctx, policies, problems, now)
	if err == nil {
		l.said = ""
	}
	did.asked += time.Since(began)
	return did, err
}

// readRecords asks the API server what it has. When objects were written stays known.
func (l *leader) readRecords(ctx context.Context, now time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	there, err := l.clients.read(ctx)
	if err != nil {
		return err
	}
	for ref, r := range there {
		if former := l.records[ref]; former != nil && former.uid == r.uid {
			r.next, r.numbers, r.retry = former.next, former.numbers, former.retry
		}
	}
	l.records, l.read = there, now
	return nil
}

func (l *leader) write(ctx context.Context, writes []write) error {
	var g errgroup.Group
	g.SetLimit(writers)
	for i := range writes {
		w := &writes[i]
		g.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, callTimeout)
			defer cancel()
			gone, err := l.clients.write(ctx, w)
			switch now := time.Now(); {
			case err != nil:
				l.metrics.writes.WithLabelValues("failed").Inc()
				w.failed(now)
			case gone: // The source is about to tell.
				l.metrics.writes.WithLabelValues("gone").Inc()
				w.failed(now)
			default:
				l.metrics.writes.WithLabelValues("written").Inc()
				w.written(now)
			}
			return err
		})
	}
	return g.Wait()
}

// unreadable are policies that cannot be read: they are in force nowhere.
func unreadable(problems map[api.Ref]Problem) (out []Policy) {
	for ref, p := range problems {
		if ref.Kind == api.KindClusterGroup || ref.Kind == api.KindGroup || ref.Kind == api.KindTier || resourceOf(ref.Kind).Resource == "" && ref.Kind != api.KindNetworkPolicy {
			continue
		}
		out = append(out, Policy{Ref: ref, UID: p.UID, Generation: p.Generation, Absent: true, Unfaithful: true, Conditions: []Condition{
			{Type: "Realizable", Reason: "Invalid", Message: p.Message},
			{Type: TypeRealized, Reason: "NotRealizable", Message: "not as it is written: see the condition Realizable"}}})
	}
	return out
}

// refused adds the groups that are not in force at all.
func refused(groups []Group, problems map[api.Ref]Problem) []Group {
	there := make(map[api.Ref]bool, len(groups))
	for i := range groups {
		there[groups[i].Ref] = true
	}
	for ref, p := range problems {
		if (ref.Kind == api.KindClusterGroup || ref.Kind == api.KindGroup) && !there[ref] {
			groups = append(groups, Group{Ref: ref, UID: p.UID})
		}
	}
	return groups
}

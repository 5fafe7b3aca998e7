package shim

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/bridge"
	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/shim/client"
	"github.com/weirnet/weir/shim/credentials"
	"github.com/weirnet/weir/shim/hostfw"
	"github.com/weirnet/weir/shim/packetlog"
	"github.com/weirnet/weir/shim/pipeline"
	"github.com/weirnet/weir/storage"
	"github.com/weirnet/weir/storage/atomicfile"
)

// Shim is the agent of one node.
type Shim struct {
	cfg      Config
	logger   hclog.Logger
	bridge   Dataplane
	client   *client.Client
	reporter *packetlog.Reporter // Nil: no collector.
	ledger   *packetlog.Ledger   // Nil: no collector.
	log      *packetlog.Log
	metrics  *metrics
	loop     *loop
	counts   *counting
	http     net.Listener
	socket   net.Listener // Of the node's own service. Nil: none.

	applies      chan applyRequest
	holds        chan holdRequest
	checks       chan checkRequest
	turns        chan func(context.Context) // Run by the loop between changes.
	portsChanged <-chan struct{}
	reconnected  <-chan struct{}
	disturbed    <-chan struct{} // Nil: nobody tells.
	reports      *packetlog.Intake[logReport]
	samples      *packetlog.Intake[logReport] // Of what is observed.
	spoofIns     <-chan openflow.PacketIn
	recoveryIns  <-chan openflow.PacketIn
	probes       *probes

	token *credentials.Token // Nil: certificates are files, or there are none.
	node  *node
	pods  *pods // Nil: neither a Pod network nor CNI is asked for.
	host  *hostPolicies
	names *names

	multicast *multicast

	markOwn func(ctx context.Context, bridge string, mac [6]byte) error
}

// New checks the configuration, reads the checkpoint and starts nothing.
func New(cfg Config) (*Shim, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.StateDir, 0o700); err != nil {
		return nil, fmt.Errorf("state folder: %w", err)
	}
	if err := atomicfile.Clean(cfg.StateDir); err != nil {
		cfg.Logger.Warn("what a former shim left of files that it was writing cannot be removed", "err", err)
	}
	creds, token, err := cfg.credentials()
	if err != nil {
		return nil, err
	}
	s := &Shim{token: token, cfg: cfg, logger: cfg.Logger, log: packetlog.NewLog(0), metrics: newMetrics(), applies: make(chan applyRequest), holds: make(chan holdRequest), checks: make(chan checkRequest), turns: make(chan func(context.Context)), probes: newProbes(), node: newNode(), markOwn: hostfw.MarkOwn}
	if s.bridge = cfg.Dataplane; s.bridge == nil {
		if s.bridge, err = newBridge(&cfg, s.metrics.restored); err != nil {
			return nil, err
		}
	}
	s.portsChanged, s.reconnected = s.bridge.PortsChanged(), s.bridge.Reconnected()
	if d, ok := s.bridge.(interface{ Disturbed() <-chan struct{} }); ok {
		s.disturbed = d.Disturbed()
	}
	s.reports = packetlog.NewIntake[logReport](cfg.LogRate, cfg.logBurst())
	s.samples = packetlog.NewIntake[logReport](sampleRate, sampleRate)
	s.bridge.Deliver(pipeline.LogController, s.takeReport)
	s.bridge.Deliver(pipeline.ObserveController, s.takeSample)
	s.spoofIns, s.recoveryIns = s.bridge.PacketIns(pipeline.SpoofController), s.bridge.PacketIns(pipeline.RecoveryController)
	r := restore(&cfg)
	s.client, err = client.New(client.Config{Addresses: cfg.PolicyServers, Credentials: creds, Dial: cfg.Dial, Node: cfg.Node, Version: Version,
		Replica: r.replica, StatsInterval: cfg.StatsInterval, StatsChanged: s.node.told, Logger: cfg.Logger.Named("policy")})
	if err != nil {
		return nil, err
	}
	s.metrics.follow(s.client)
	if len(cfg.Collectors) > 0 {
		s.ledger = newLedger(cfg.StateDir, cfg.Logger.Named("audit"))
		s.reporter, err = packetlog.NewReporter(packetlog.ReporterConfig{Addresses: cfg.Collectors, Credentials: creds, Node: cfg.Node, Log: s.log, Ledger: s.ledger, Logger: cfg.Logger.Named("audit")})
		if err != nil {
			return nil, err
		}
	}
	s.counts = openCounting(cfg.StateDir, cfg.Node, cfg.Logger.Named("counters"))
	s.metrics.account(s.counts)
	s.loop = newLoop(s, s.bridge, s.client)
	s.loop.former, s.loop.complete, s.loop.addresses, s.loop.cache = r.assignment, r.complete, r.addresses, restoreNames(&cfg)
	s.names, s.multicast = newNames(s), newMulticast(s)
	s.loop.config = cfg.compiler()
	s.host = newHostPolicies(s)
	s.counts.host = s.host.counts
	if s.pods, err = newPods(s); err != nil {
		return nil, err
	}
	if cfg.Socket != "" {
		if s.socket, err = listenUnix(cfg.Socket); err != nil {
			return nil, err
		}
	}
	if cfg.MetricsListen != "" {
		if s.http, err = net.Listen("tcp", cfg.MetricsListen); err != nil {
			return nil, fmt.Errorf("listen for metrics: %w", err)
		}
	}
	return s, nil
}

// newBridge is the Open vSwitch bridge that a configuration names.
func newBridge(cfg *Config, mended func(string)) (*bridge.Bridge, error) {
	return bridge.New(bridge.Config{
		Name: cfg.Bridge, RunDir: cfg.RunDir, DatapathType: cfg.Datapath,
		Mark:        bridge.Mark{Value: pipeline.CookieMark, Mask: pipeline.CookieMask},
		Controllers: []bridge.Controller{{ID: pipeline.LogController}, {ID: pipeline.RejectController}, {ID: pipeline.SpoofController}, {ID: pipeline.WatchController}, {ID: pipeline.NameController}, {ID: pipeline.MulticastController}, {ID: pipeline.ObserveController}, {ID: pipeline.RecoveryController}},
		Mended:      mended, Passing: pipeline.Passing,
		Logger: cfg.Logger.Named("bridge"),
	})
}

// View lends the state that the node holds: see Holder.
func (s *Shim) View(fn func(state *storage.Replica)) bool { return s.client.View(fn) }

// Metrics are the shim's, also served at Config.MetricsListen.
func (s *Shim) Metrics() prometheus.Gatherer { return s.metrics.registry }

// Run sets the bridge up and serves until the context ends. What is in force
// then stays.
func (s *Shim) Run(ctx context.Context) error {
	held, err := lock(s.cfg.StateDir, false)
	if err != nil {
		return err
	}
	defer held.Close()
	if s.ledger != nil {
		s.ledger.Open()
	}
	if err := s.setUp(ctx); err != nil {
		return err
	}
	if s.loop.complete { // Else what a former shim left stands until there is a state.
		s.client.View(func(state *storage.Replica) { s.host.begin(ctx, state) })
	}
	g, ctx := errgroup.WithContext(ctx)
	bridgeCtx, stopBridge := context.WithCancel(context.WithoutCancel(ctx)) // The loop's last reading needs it.
	g.Go(func() error { return s.bridge.Run(bridgeCtx) })
	g.Go(func() error { defer stopBridge(); return s.loop.run(ctx) })
	g.Go(func() error { return s.probes.run(ctx, s.bridge.PacketIns(pipeline.WatchController)) })
	g.Go(func() error { return s.names.run(ctx, s.bridge.PacketIns(pipeline.NameController)) })
	g.Go(func() error { return s.multicast.run(ctx, s.bridge.PacketIns(pipeline.MulticastController)) })
	g.Go(func() error { return s.client.Run(ctx, s) })
	g.Go(func() error { return s.answer(ctx) })
	if s.token != nil {
		g.Go(func() error { return s.token.Run(ctx) })
	}
	if s.reporter != nil {
		g.Go(func() error { return s.reporter.Run(ctx) })
	} else {
		g.Go(func() error { return s.discard(ctx) })
	}
	if s.pods != nil {
		s.client.View(s.pods.look) // What a checkpoint says holds until there is better.
		g.Go(func() error { return s.pods.run(ctx) })
	}
	g.Go(func() error { return s.host.run(ctx) })
	if s.socket != nil {
		g.Go(func() error { return s.serveNode(ctx) })
	}
	if s.http != nil {
		web := &http.Server{Handler: s.handler(), ReadHeaderTimeout: 5 * time.Second}
		g.Go(func() error { return web.Serve(s.http) })
		g.Go(func() error { <-ctx.Done(); return web.Close() })
	}
	err = g.Wait()
	if errors.Is(err, context.Canceled) || errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// setUp makes the bridge, or finds one to adopt, and tries again for as long as
// the switch is away.
func (s *Shim) setUp(ctx context.Context) error {
	for said := ""; ; {
		err := s.prepare(ctx)
		var unfit *bridge.UnfitError
		var occupied *OccupiedError
		if err == nil || errors.As(err, &unfit) || errors.As(err, &occupied) {
			return err
		}
		if err.Error() != said {
			said = err.Error()
			s.logger.Error("bridge cannot be set up; trying on", "err", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
	}
}

func (s *Shim) prepare(ctx context.Context) error {
	err := s.unoccupied(ctx)
	var occupied *OccupiedError
	switch {
	case err == nil:
	case s.cfg.TakeOver && errors.As(err, &occupied):
		s.logger.Warn("taking over a node of Antrea's agent, as told", "found", occupied.Found)
	default:
		return err
	}
	f, ok := s.bridge.(finder)
	if !ok {
		return s.bridge.SetUp(ctx)
	}
	standing, err := f.Find(ctx, s.loop.complete)
	if err != nil {
		return err
	}
	s.loop.until, s.loop.recovery.until = standing.EstablishedUntil, standing.RecoveryUntil
	s.loop.recovery.ours = standing.Ours || s.loop.complete
	if !standing.Adopting {
		return s.bridge.SetUp(ctx)
	}
	s.loop.adopting = &adoption{bridge: f, begun: s.loop.complete}
	s.logger.Info("the bridge is to be adopted: it is left as it is until there is a state of the policy service", "bridge", s.cfg.Bridge, "connections", s.cfg.Adopt)
	return nil
}

// discard empties the log where there is no collector.
func (s *Shim) discard(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.log.Wake():
			for len(s.log.Take(1024)) > 0 {
			}
		}
	}
}

// Apply implements client.Handler: the loop does it.
func (s *Shim) Apply(ctx context.Context, state *storage.Replica, touched storage.Touched) ([]*policyv1.ItemError, error) {
	req := applyRequest{ctx: ctx, state: state, touched: touched, done: make(chan applyResult, 1)}
	select {
	case s.applies <- req:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	// Once handed over, the state must not change until the loop is done with it.
	r := <-req.done
	if problems := s.host.cut(ctx, state, touched); r.err == nil { // Of a cut that is refused they are no causes.
		r.problems = append(r.problems, problems...)
	}
	if s.pods != nil && touchesPods(state, touched) {
		s.pods.look(state)
	}
	return r.problems, r.err
}

// Stats implements client.Handler.
func (s *Shim) Stats() *policyv1.NodeStats {
	_, dropped := s.log.Counts()
	named, total := s.node.names()
	return &policyv1.NodeStats{PacketInsLost: dropped, Ports: s.node.ports(), Named: named, NamedTotal: total}
}

// Counters implements client.Handler.
func (s *Shim) Counters(after uint64) ([]*policyv1.NodeStats, uint64) {
	return s.counts.report(after, s.Stats)
}

func (s *Shim) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(s.metrics.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !s.client.Synced() {
			http.Error(w, "the policy service's state is not in force yet", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	return mux
}

// metrics of a shim.
type metrics struct {
	registry     *prometheus.Registry
	apply        prometheus.Histogram
	flows        prometheus.Counter
	mended       prometheus.Counter
	mendedShared prometheus.Counter
	unparsed     prometheus.Counter
	lost         *prometheus.CounterVec
	ports        prometheus.Gauge

	hostRules    prometheus.Gauge
	hostLockouts prometheus.Gauge
	hostMended   prometheus.Counter

	rejected *prometheus.CounterVec
	names    *prometheus.CounterVec
	igmp     *prometheus.CounterVec
	queries  *prometheus.CounterVec

	settings  *prometheus.CounterVec
	forgotten prometheus.Counter
	recovered *prometheus.CounterVec

	spoofed   *prometheus.CounterVec
	strangers prometheus.Counter

	barrierTimeouts prometheus.Counter
}

func newMetrics() *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		apply: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "weir_shim_apply_seconds",
			Help: "Time to apply one bundle to the bridge.", Buckets: prometheus.ExponentialBuckets(0.0001, 2, 16)}),
		flows:        prometheus.NewCounter(prometheus.CounterOpts{Name: "weir_shim_flow_changes_total", Help: "Flows put in or taken out."}),
		mended:       prometheus.NewCounter(prometheus.CounterOpts{Name: "weir_shim_flows_mended_total", Help: "Flows that the bridge did not hold as it should, put right."}),
		mendedShared: prometheus.NewCounter(prometheus.CounterOpts{Name: "weir_shim_groups_mended_total", Help: "Groups and meters that the bridge did not hold as it should, put right."}),
		unparsed:     prometheus.NewCounter(prometheus.CounterOpts{Name: "weir_shim_packet_ins_unparsed_total", Help: "Reported packets that could not be read."}),
		lost:         prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weir_shim_log_events_lost_total", Help: "Log events lost, by stage, and by reason: spoof, of forged packets; empty, of all else."}, []string{"stage", "reason"}),
		spoofed: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weir_shim_spoofed_packets_total",
			Help: "Packets that a Pod sent from other addresses than its own, all dropped."}, []string{"namespace", "pod"}),
		strangers: prometheus.NewCounter(prometheus.CounterOpts{Name: "weir_shim_closed_port_packets_total",
			Help: "Packets from ports that are no Pod's, or not open, all dropped."}),
		barrierTimeouts: prometheus.NewCounter(prometheus.CounterOpts{Name: "weir_shim_peer_barrier_timeouts_total",
			Help: "Ports that opened before all nodes concerned were known to have the Pod's address."}),
		rejected: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weir_shim_rejected_packets_total",
			Help: "Packets that Reject rules dropped, by what became of the answer."}, []string{"answer"}),
		names: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weir_shim_dns_answers_total",
			Help: "Answers of DNS servers to Pods whose policies name hosts, by what became of them."}, []string{"outcome"}),
		igmp: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weir_shim_igmp_messages_total",
			Help: "Messages of IGMP that Pods sent, by what became of them."}, []string{"outcome"}),
		queries: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weir_shim_igmp_queries_total",
			Help: "Queries of IGMP to Pods, by what became of them."}, []string{"outcome"}),
		settings: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weir_shim_bridge_settings_mended_total",
			Help: "Settings of the bridge that others had changed, restored."}, []string{"setting"}),
		forgotten: prometheus.NewCounter(prometheus.CounterOpts{Name: "weir_shim_switch_losses_total",
			Help: "Times that the bridge had forgotten all of its flows, put back."}),
		recovered: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weir_shim_recovery_packets_total",
			Help: "TCP segments in the midst of connections that the switch had forgotten, by what became of them."}, []string{"outcome"}),
		ports: prometheus.NewGauge(prometheus.GaugeOpts{Name: "weir_shim_ports_open", Help: "Pod ports that carry traffic."}),
		hostRules: prometheus.NewGauge(prometheus.GaugeOpts{Name: "weir_shim_host_rules",
			Help: "Policies' rules in force in the node's own firewall."}),
		hostLockouts: prometheus.NewGauge(prometheus.GaugeOpts{Name: "weir_shim_host_lockouts",
			Help: "Policies' rules for the node that are overruled where they would have cut it off from what steers it."}),
		hostMended: prometheus.NewCounter(prometheus.CounterOpts{Name: "weir_shim_host_rules_mended_total",
			Help: "Times that others had changed policies' rules in the node's own firewall, put right."}),
	}
	m.registry.MustRegister(m.apply, m.flows, m.mended, m.mendedShared, m.unparsed, m.lost, m.ports, m.rejected, m.names, m.igmp, m.queries, m.barrierTimeouts, m.spoofed, m.strangers, m.settings, m.forgotten, m.recovered, m.hostRules, m.hostLockouts, m.hostMended)
	return m
}

// restored counts what others had changed of the bridge.
func (m *metrics) restored(setting string) { m.settings.WithLabelValues(setting).Inc() }

// follow registers what the client counts itself.
func (m *metrics) follow(c *client.Client) {
	for _, x := range []struct {
		name, help string
		count      func() uint64
	}{
		{"weir_shim_digest_mismatches_total", "Cuts whose digest did not come out; they are repaired and not applied.", c.Mismatches},
		{"weir_shim_repairs_total", "Times that the service was told what is held, to get what differs.", c.Repairs},
		{"weir_shim_position_rollbacks_total", "Streams that began with the state of an earlier position than was held.", c.Rollbacks},
	} {
		m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: x.name, Help: x.help},
			func() float64 { return float64(x.count()) }))
	}
}

// account registers what the accounts say of themselves.
func (m *metrics) account(c *counting) {
	m.registry.MustRegister(
		prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "weir_shim_counters_uncounted_seconds_total",
			Help: "Seconds in which what rules matched may not have been counted, over the lives of the shim."},
			func() float64 { return c.totals().Lost.Seconds() }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "weir_shim_counters_read_timestamp_seconds",
			Help: "Unix time of the last reading of what rules matched; zero where there was none."},
			func() float64 {
				if last := c.totals().Last; !last.IsZero() {
					return float64(last.UnixMilli()) / 1000
				}
				return 0
			}))
}

func (m *metrics) applied(flows int, took time.Duration) {
	m.apply.Observe(took.Seconds())
	m.flows.Add(float64(flows))
}

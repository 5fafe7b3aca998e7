package differential

import (
	"context"
	"flag"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/shim/bridge/ovstest"
	"github.com/weirnet/weir/shim/pipeline"
)

var (
	firstSeed = flag.Uint64("differential.seed", 1, "first seed of the random clusters")
	clusters  = flag.Int("differential.clusters", 2000, "how many clusters to compare")
	traced    = flag.Int("differential.traced", 60, "how many clusters to compare with Open vSwitch too")
	duration  = flag.Duration("differential.for", 0, "compare for so long in each test, whatever their number")
)

// fail reports a difference, as small as it can be made.
func fail(t *testing.T, cmp *Comparer, d *Difference) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	t.Errorf("%s", cmp.Shrink(ctx, d))
}

// explore compares clusters of ascending seeds, a number of them or for a
// time, until one differs. It returns how many it took.
func explore(t *testing.T, cmp *Comparer, seeds *atomic.Uint64, number int, end time.Time) Stats {
	var stats Stats
	for !t.Failed() {
		seed := seeds.Add(1) - 1
		if *duration == 0 && seed >= *firstSeed+uint64(number) || *duration != 0 && time.Now().After(end) {
			break
		}
		c := Generate(seed)
		s, d, err := cmp.Compare(context.Background(), &c)
		stats.Add(s)
		if err != nil {
			t.Errorf("seed %d: %v", seed, err)
		}
		if d != nil {
			fail(t, cmp, d)
		}
	}
	return stats
}

// Evaluator, flows and packets agree on clusters of fixed seeds. To go on for
// longer and elsewhere:
//
//	go test ./e2e/differential -run 'Agree$' -timeout 0 -differential.for=30m -differential.seed=1000000
func TestEvaluatorAndFlowsAgree(t *testing.T) {
	var seeds atomic.Uint64
	seeds.Store(*firstSeed)
	end := time.Now().Add(*duration)
	var mu sync.Mutex
	var total Stats
	var workers sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			s := explore(t, &Comparer{}, &seeds, *clusters, end)
			mu.Lock()
			defer mu.Unlock()
			total.Add(s)
		})
	}
	workers.Wait()
	t.Logf("%+v", total)
	if total.Connections < 10*total.Clusters || total.Denied < total.Connections/5 || total.Denied > total.Connections*4/5 || total.Staged < total.Connections/100 ||
		total.Balanced < total.Connections/10 || total.Hairpins < total.Balanced/10 || total.Unserved < total.Clusters || total.NodePorts < total.Clusters/10 || total.HostsJudged < total.Clusters/10 {
		t.Errorf("the clusters test little: %+v", total)
	}
}

// Open vSwitch takes each packet the same way through the tables.
func TestSwitchAndFakeAgree(t *testing.T) {
	sw := newSwitch(t)
	var seeds atomic.Uint64
	seeds.Store(*firstSeed)
	total := explore(t, &Comparer{Switch: sw}, &seeds, *traced, time.Now().Add(*duration))
	t.Logf("%+v", total)
	if total.Traces < 10*total.Clusters {
		t.Errorf("few packets were traced: %+v", total)
	}
}

func newSwitch(t *testing.T) *Switch {
	t.Helper()
	ovstest.Require(t)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	sw, err := StartSwitch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sw.Stop(); err != nil {
			t.Error(err)
		}
	})
	return sw
}

// What is generated is what a user may write, and its text says it all.
func TestManifestsAreRead(t *testing.T) {
	for seed := range uint64(50) {
		c := Generate(seed)
		for i, s := range c.Steps[:1] { // A later step may bring one object twice.
			var want []api.Object
			for _, e := range s.Events {
				if e.Object != nil {
					o, err := Convert(e.Object)
					if err != nil {
						t.Fatalf("seed %d: %v", seed, err)
					}
					want = append(want, o)
				}
			}
			one := Case{Steps: []Step{s}}
			m, err := api.Decode([]byte(one.String()))
			if err != nil {
				t.Fatalf("seed %d, step %d: %v", seed, i+1, err)
			}
			if len(m.Objects) != len(want) {
				t.Fatalf("seed %d, step %d: %d objects are read of %d", seed, i+1, len(m.Objects), len(want))
			}
			for j, d := range m.Objects {
				if diff := cmp.Diff(want[j], d.Object, cmpopts.EquateEmpty(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
					t.Errorf("seed %d, step %d: %s", seed, i+1, diff)
				}
			}
		}
	}
}

// A fault is found, and little is left of the cluster in which it was: the
// policy, the Pod that it isolates, and perhaps the other end and a Service.
func TestFaultIsFoundAndShrunk(t *testing.T) {
	for name, fault := range map[string]func(*pipeline.Change){
		"isolation of egress is left out": func(c *pipeline.Change) { dropFlows(c, pipeline.TableEgressDefaultRule, pipeline.KindIsolation) },
		"rules of ingress are left out":   func(c *pipeline.Change) { dropFlows(c, pipeline.TableIngressRule, pipeline.KindRule) },
		"a rule's last clause is left out": func(c *pipeline.Change) {
			dropFlows(c, pipeline.TableEgressRule, pipeline.KindClause)
		},
	} {
		t.Run(name, func(t *testing.T) {
			cmp := &Comparer{tamper: fault}
			for seed := range uint64(100) {
				c := Generate(seed)
				_, d, err := cmp.Compare(t.Context(), &c)
				if err != nil {
					t.Fatal(err)
				}
				if d == nil {
					continue
				}
				d = cmp.Shrink(t.Context(), d)
				if n := len(d.Case.Steps[0].Events); len(d.Case.Steps) > 1 || n > 4 {
					t.Errorf("%d steps and %d objects are left:\n%s", len(d.Case.Steps), n, d)
				}
				text := d.String()
				for _, want := range []string{"kind: NetworkPolicy", "kind: Pod", "connection: ", "evaluator: ", "Classifier"} {
					if !strings.Contains(text, want) {
						t.Errorf("the report lacks %q:\n%s", want, text)
					}
				}
				return
			}
			t.Error("the fault was not found")
		})
	}
}

// Faults in how Services are balanced are found as well.
func TestFaultsOfServicesAreFound(t *testing.T) {
	served := func(f openflow.Flow) bool {
		kind, _, ours := pipeline.ParseCookie(f.Cookie)
		return ours && kind == pipeline.KindService && f.Table == pipeline.TableServiceEndpoint
	}
	for name, fault := range map[string]func(*pipeline.Change){
		"Services are not balanced": func(c *pipeline.Change) { dropFlows(c, pipeline.TableServiceLB, pipeline.KindService) },
		"endpoints are at another port": func(c *pipeline.Change) {
			for i, f := range c.Upsert {
				if served(f) {
					c.Upsert[i].Actions = withActions(f, func(a openflow.Action) openflow.Action {
						if ct, is := a.(openflow.CT); is {
							ct.NAT.MinPort, ct.NAT.MaxPort = ct.NAT.MinPort^1, ct.NAT.MinPort^1
							return ct
						}
						return a
					})
				}
			}
		},
		"what nobody serves is dropped": func(c *pipeline.Change) {
			for i, f := range c.Upsert {
				if served(f) {
					c.Upsert[i].Actions = withActions(f, func(a openflow.Action) openflow.Action {
						if _, is := a.(openflow.Controller); is {
							return nil
						}
						return a
					})
				}
			}
		},
		"connections do not keep their Service": func(c *pipeline.Change) {
			for i, f := range c.Upsert {
				if f.Table == pipeline.TableServiceLB {
					c.Upsert[i].Actions = withActions(f, func(a openflow.Action) openflow.Action {
						if _, is := a.(openflow.Move); is {
							return nil
						}
						return a
					})
				}
			}
		},
		"rules for Services match nothing": func(c *pipeline.Change) {
			c.Upsert = slices.DeleteFunc(c.Upsert, func(f openflow.Flow) bool {
				_, is := f.Match.Field(openflow.FieldMetadata)
				return is && f.Table == pipeline.TableAntreaPolicyEgressRule
			})
		},
		"a Pod's own endpoint is as another's": func(c *pipeline.Change) {
			c.Upsert = slices.DeleteFunc(c.Upsert, func(f openflow.Flow) bool { return f.Table == pipeline.TableOutput && f.Priority > 0 })
		},
	} {
		t.Run(name, func(t *testing.T) {
			cmp := &Comparer{tamper: fault}
			for seed := range uint64(400) {
				c := Generate(seed)
				_, d, err := cmp.Compare(t.Context(), &c)
				if err != nil {
					t.Fatal(err)
				}
				if d != nil {
					return
				}
			}
			t.Error("the fault was not found")
		})
	}
}

// withActions are a flow's actions, each as change has it. Nil: it is left out.
func withActions(f openflow.Flow, change func(openflow.Action) openflow.Action) openflow.Actions {
	var list []openflow.Action
	for _, a := range f.Actions.List() {
		if a = change(a); a != nil {
			list = append(list, a)
		}
	}
	return openflow.NewActions(list...)
}

// dropFlows leaves flows of a table and kind out of a change.
func dropFlows(c *pipeline.Change, table uint8, kind pipeline.CookieKind) {
	kept := c.Upsert[:0]
	for _, f := range c.Upsert {
		if k, _, _ := pipeline.ParseCookie(f.Cookie); f.Table != table || k != kind {
			kept = append(kept, f)
		}
	}
	c.Upsert = kept
}

// FuzzAgreement lets the fuzzer choose the cluster. It wants -fuzzminimizetime=1x:
// what is interesting is small anyway, and minimising takes a minute each.
func FuzzAgreement(f *testing.F) {
	f.Add([]byte{})
	for seed := range byte(8) {
		data := make([]byte, 400)
		for i := range data {
			data[i] = byte(i*(2*int(seed)+1)*37>>3) ^ seed
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c := GenerateFrom(data)
		cmp := &Comparer{}
		_, d, err := cmp.Compare(t.Context(), &c)
		if err != nil {
			t.Fatal(err)
		}
		if d != nil {
			fail(t, cmp, d)
		}
	})
}

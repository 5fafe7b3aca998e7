package differential

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/weirnet/weir/shim/bridge"
	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/shim/bridge/ovstest"
	"github.com/weirnet/weir/shim/pipeline"
)

// Switch is an Open vSwitch with a bridge for each node of a Case.
type Switch struct {
	instance *ovstest.Instance
	bridges  []*bridge.Bridge // By the order of a Case's nodes.
	byNode   map[string]*bridge.Bridge
	stop     context.CancelFunc
	ended    []chan error

	// The control socket, on which traces are asked for: starting a process
	// for each would take most of the time.
	control net.Conn
	replies *json.Decoder
}

// switchError says that Open vSwitch itself failed, and not that it differs.
type switchError struct{ error }

// StartSwitch starts an Open vSwitch with all ports that a Case may have.
func StartSwitch(ctx context.Context) (*Switch, error) {
	in, err := ovstest.Start(ctx, ovstest.Config{})
	if err != nil {
		return nil, err
	}
	s := &Switch{instance: in}
	if err := s.setUp(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("set up bridges: %w", err), s.Stop())
	}
	return s, nil
}

func (s *Switch) setUp(ctx context.Context) error {
	running, stop := context.WithCancel(context.Background())
	s.stop = stop
	for i := range maxNodes {
		name := fmt.Sprint("diff", i)
		b, err := bridge.New(bridge.Config{Name: name, RunDir: s.instance.Dir, DatapathType: "netdev",
			Mark: bridge.Mark{Value: pipeline.CookieMark, Mask: pipeline.CookieMask}})
		if err != nil {
			return err
		}
		if err := b.SetUp(ctx); err != nil {
			return err
		}
		var args []string
		for n := range maxPorts {
			port := fmt.Sprintf("%sp%d", name, n+1)
			args = append(args, "--", "add-port", name, port, "--", "set", "interface", port, "type=internal", fmt.Sprint("ofport_request=", n+1))
		}
		if _, err := s.instance.Vsctl(ctx, args[1:]...); err != nil {
			return err
		}
		end := make(chan error, 1)
		go func() { end <- b.Run(running) }()
		s.ended = append(s.ended, end)
		if err := b.WaitConnected(ctx); err != nil {
			return err
		}
		s.bridges = append(s.bridges, b)
	}
	var d net.Dialer
	var err error
	if s.control, err = d.DialContext(ctx, "unix", filepath.Join(s.instance.Dir, "vswitchd.ctl")); err != nil {
		return err
	}
	s.replies = json.NewDecoder(s.control)
	return nil
}

// Stop ends the Open vSwitch.
func (s *Switch) Stop() error {
	if s.control != nil {
		s.control.Close()
	}
	s.stop()
	for _, end := range s.ended {
		<-end
	}
	return s.instance.Stop()
}

// begin empties the bridges for a Case and gives each node one.
func (s *Switch) begin(ctx context.Context, cl *cluster) error {
	s.byNode = make(map[string]*bridge.Bridge)
	for i, name := range slices.Sorted(maps.Keys(cl.nodes)) {
		if i == len(s.bridges) {
			return &switchError{fmt.Errorf("a case of %d nodes, where there are %d bridges", len(cl.nodes), len(s.bridges))}
		}
		s.byNode[name] = s.bridges[i]
	}
	for name, b := range s.byNode {
		state, err := b.Read(ctx)
		if err != nil {
			return &switchError{err}
		}
		if err := b.Apply(ctx, bridge.Diff(cl.nodes[name].desired, state)); err != nil {
			return &switchError{err}
		}
	}
	return nil
}

// apply makes the changes that the Fakes took, and looks whether the bridges
// then hold what they should. That they refuse a change is a difference.
func (s *Switch) apply(ctx context.Context, cl *cluster, changes map[string]bridge.Change) error {
	for name, b := range s.byNode {
		if err := b.Apply(ctx, changes[name]); err != nil {
			if refused := (*bridge.ChangeError)(nil); errors.As(err, &refused) {
				return fmt.Errorf("node %s: the switch refuses what the fake takes: %w", name, err)
			}
			return &switchError{err}
		}
		state, err := b.Read(ctx)
		if err != nil {
			return &switchError{err}
		}
		if d := bridge.Diff(cl.nodes[name].desired, state); !d.IsEmpty() {
			return fmt.Errorf("node %s: the switch does not hold what it was given: %+v", name, d)
		}
	}
	return nil
}

// ask has the switch carry out a command of its control socket.
func (s *Switch) ask(ctx context.Context, method string, params ...string) (string, error) {
	deadline, ok := ctx.Deadline()
	if limit := time.Now().Add(10 * time.Second); !ok || limit.Before(deadline) {
		deadline = limit
	}
	if err := s.control.SetDeadline(deadline); err != nil {
		return "", &switchError{err}
	}
	request, err := json.Marshal(map[string]any{"id": 1, "method": method, "params": append([]string{}, params...)})
	if err != nil {
		return "", &switchError{err}
	}
	if _, err := s.control.Write(request); err != nil {
		return "", &switchError{fmt.Errorf("%s: %w", method, err)}
	}
	var reply struct {
		Result, Error *string
	}
	if err := s.replies.Decode(&reply); err != nil {
		return "", &switchError{fmt.Errorf("%s: %w", method, err)}
	}
	if reply.Error != nil {
		return "", &switchError{fmt.Errorf("%s %v: %s", method, params, *reply.Error)}
	}
	if reply.Result == nil {
		return "", nil
	}
	return *reply.Result, nil
}

// trace asks what a bridge would do with a first packet.
func (s *Switch) trace(ctx context.Context, node string, p bridge.Packet) (text string, o bridge.Outcome, err error) {
	if text, err = s.ask(ctx, "ofproto/trace", s.byNode[node].Name(), p.String()); err != nil {
		return "", o, err
	}
	if o, err = bridge.ParseTrace(text); err != nil {
		return "", o, &switchError{err}
	}
	return text, o, nil
}

// anyRule is a cookie less the rule that it names: where the clauses of several
// rules of one priority hold, which of them is hit is up to the switch.
func anyRule(cookie uint64) uint64 {
	if kind, id, ok := pipeline.ParseCookie(cookie); ok && (kind == pipeline.KindRule || kind == pipeline.KindStaged || kind == pipeline.KindCount) {
		return cookie - uint64(id)
	}
	return cookie
}

// decisive leaves out of a way what depends on which of several rules was hit:
// their ids, and that those of staged policies count what they would decide.
func decisive(tables []uint8, cookies []uint64) (t []uint8, c []uint64) {
	for i := range min(len(tables), len(cookies)) {
		if tables[i] == pipeline.TableRuleMetric && i > 0 && tables[i-1] >= pipeline.TableStagedAntreaPolicyEgressRule {
			continue
		}
		t, c = append(t, tables[i]), append(c, anyRule(cookies[i]))
	}
	return t, c
}

// trace holds the Fake's way of each hop's first packet against Open vSwitch's.
func (r *run) trace(way []hop) (*Difference, error) {
	if r.cmp.Switch == nil {
		return nil, nil
	}
	for _, h := range way {
		w := r.cluster.nodes[h.node].fake.Walk(h.packet, bridge.WalkOptions{CtNext: []uint32{}})
		if slices.ContainsFunc(w.Trail, func(hit bridge.Hit) bool { return pipeline.Passing(hit.Flow.Cookie) }) {
			continue // Traces teach the switch nothing.
		}
		text, o, err := r.cmp.Switch.trace(r.ctx, h.node, h.packet)
		if err != nil {
			return nil, err
		}
		r.stats.Traces++
		var all []uint64
		for _, hit := range w.Trail {
			all = append(all, hit.Flow.Cookie)
		}
		tables, cookies := decisive(w.Tables(), all)
		o.Tables, o.Cookies = decisive(o.Tables, o.Cookies)
		ports := []string{}
		for _, p := range w.Ports() {
			if p == openflow.PortLocal {
				ports = append(ports, "LOCAL")
			} else {
				ports = append(ports, strconv.Itoa(int(p)))
			}
		}
		slices.Sort(ports)
		// A trace does not go on behind a group for which the datapath hashes.
		if n := len(o.Tables); h.chosen.IsValid() && n < len(tables) && len(o.Tables) == len(o.Cookies) && o.Tables[n-1] == pipeline.TableServiceEndpoint {
			tables, cookies, ports = tables[:n], cookies[:n], []string{}
		}
		var problem string
		switch {
		case !slices.Equal(ports, o.Outputs):
			problem = fmt.Sprintf("on %s, the fake lets the packet leave by %v, Open vSwitch by %v", h.node, ports, o.Outputs)
		case !slices.Equal(tables, o.Tables):
			problem = fmt.Sprintf("on %s, the fake looks the packet up in tables %v, Open vSwitch in %v", h.node, tables, o.Tables)
		case !slices.Equal(cookies, o.Cookies):
			problem = fmt.Sprintf("on %s, the fake hits flows of cookies %#x, Open vSwitch %#x", h.node, cookies, o.Cookies)
		default:
			continue
		}
		r.walks = append(r.walks, Walked{h.node, h.packet, w})
		d := r.differ("%s", problem)
		d.Trace = text
		return d, nil
	}
	return nil, nil
}

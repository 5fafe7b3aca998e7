package e2e

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weirnet/weir/e2e/harness"
	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
)

// Points at which the collector and a shim die while packets flow, in the order in which
// they do; services/audit/DESIGN.md says where they are.
var (
	auditdPoints = []string{"auditd.report.received:3", "auditd.store.checked:3", "auditd.store.synced:3", "auditd.report.stored:3", "auditd.report.acknowledged:3",
		"auditd.sink.line:40", "auditd.sink.flushed", "auditd.sink.synced", "auditd.sink.announced", "auditd.sink.stored:2", "auditd.cursor.written:2", "auditd.cursor.renamed:2",
		"auditd.rotate.synced", "auditd.rotate.renamed", "auditd.rotate.reopened", "auditd.rotate.compressed", "auditd.rotate.replaced"}
	shimPoints = []string{"shim.log.queued:20", "shim.log.taken:5", "shim.log.journaled:5", "shim.log.sent:5", "shim.log.acked:5", "shim.log.settled", "shim.log.rewritten", "shim.log.stated:2"}
)

// loggedRules are rules that log, each of a Pod of its own.
var loggedRules = []struct{ name, action, target, node, from string }{
	{"drop-near", "Drop", "10.9.1.2", "node-1", "client"},
	{"allow-near", "Allow", "10.9.1.3", "node-1", "client"},
	{"drop-far", "Drop", "10.9.2.1", "node-2", "client"},
	{"allow-far", "Allow", "10.9.2.2", "node-2", "other"},
}

// logTraffic sends one packet after another to each rule's Pod, until it is stopped.
type logTraffic struct {
	sent [4]atomic.Int64
	stop func()
}

func startLogTraffic(t *testing.T, c *harness.Cluster) *logTraffic {
	l := new(logTraffic)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for i, r := range loggedRules {
		var conn *net.UDPConn
		must(t, c.Pod("default/"+r.from).NS.Do(func() (err error) { conn, err = net.ListenUDP("udp", nil); return err }))
		wg.Go(func() {
			defer conn.Close()
			tick := time.NewTicker(10 * time.Millisecond)
			defer tick.Stop()
			for n := 0; ctx.Err() == nil; n++ {
				if _, err := conn.WriteToUDPAddrPort([]byte("logged"), netip.AddrPortFrom(ip(r.target), uint16(1024+n%60000))); err != nil {
					t.Error(err)
				}
				l.sent[i].Add(1)
				<-tick.C
			}
		})
	}
	l.stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(l.stop)
	return l
}

// storedRecords are all records of the collector.
func storedRecords(ctx context.Context, c *harness.Cluster) ([]*auditv1.Record, error) {
	stream, err := c.Audit().Tail(ctx, &auditv1.TailRequest{})
	if err != nil {
		return nil, err
	}
	var out []*auditv1.Record
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		out = append(out, resp.GetRecord())
	}
}

// onceAndWithoutGap says which records of a boot are there twice, or are missing
// though nothing says so.
func onceAndWithoutGap(records []*auditv1.Record) error {
	type origin struct{ node, boot string }
	next, gaps := make(map[origin]uint64), make(map[origin]uint64)
	for _, r := range records {
		o := origin{r.GetNode(), r.GetBoot()}
		if loss := r.GetEvent().GetLoss(); r.GetSequence() == 0 && loss.GetStage() == auditv1.LossStage_LOSS_STAGE_TRANSPORT {
			gaps[o] += loss.GetCount()
			continue
		}
		if r.GetSequence() == 0 {
			continue // The collector's own.
		}
		if want := next[o] + 1 + gaps[o]; r.GetSequence() != want {
			return fmt.Errorf("record %d: sequence %d of node %s, boot %s, follows %d, and %d are stated as missing", r.GetCursor(), r.GetSequence(), o.node, o.boot, next[o], gaps[o])
		}
		next[o], gaps[o] = r.GetSequence(), 0
	}
	return nil
}

// ruleSums are the packets of each rule: on record, and stated as lost.
func ruleSums(records []*auditv1.Record) (kept, lost map[string]int64, err error) {
	kept, lost = make(map[string]int64), make(map[string]int64)
	for _, r := range records {
		if p := r.GetEvent().GetPacket(); p != nil {
			kept[p.GetRule()] += int64(p.GetCount())
		}
		if l := r.GetEvent().GetLoss(); l != nil {
			if l.GetCount() == 0 {
				err = fmt.Errorf("a loss of unknown size: %v", l)
			}
			lost[l.GetRule()] += int64(l.GetCount())
		}
	}
	return kept, lost, err
}

// readRotated reads a file and those that were set aside of it, oldest first.
func readRotated(path string) (string, error) {
	ext := filepath.Ext(path)
	files, err := filepath.Glob(strings.TrimSuffix(path, ext) + "-*")
	if err != nil {
		return "", err
	}
	slices.Sort(files)
	var out strings.Builder
	for _, name := range append(files, path) {
		b, err := os.ReadFile(name)
		if err != nil {
			return "", err
		}
		switch {
		case strings.HasSuffix(name, ".new"):
			continue // A compression that did not end.
		case strings.HasSuffix(name, ".gz"):
			z, err := gzip.NewReader(bytes.NewReader(b))
			if err != nil {
				return "", err
			}
			if b, err = io.ReadAll(z); err != nil {
				return "", err
			}
		}
		out.Write(b)
	}
	return out.String(), nil
}

// compareJSON holds the lines of the JSON file to the log: each loss and change has one
// line, in order, and each packet is in one.
func compareJSON(text string, records []*auditv1.Record) error {
	type line struct {
		Cursor, Sequence uint64
		Node             string
		Packet           struct {
			Count uint64
			Rule  string
		}
	}
	of, packets := make(map[uint64]*auditv1.Record), make(map[string]int64)
	others := 0
	for _, r := range records {
		of[r.GetCursor()] = r
		if p := r.GetEvent().GetPacket(); p != nil {
			packets[r.GetNode()+" "+p.GetRule()] += int64(p.GetCount())
		} else {
			others++
		}
	}
	for text := range strings.Lines(text) {
		var l line
		if err := json.Unmarshal([]byte(text), &l); err != nil {
			return fmt.Errorf("line %q: %w", text, err)
		}
		r := of[l.Cursor]
		if r == nil {
			return fmt.Errorf("record %d has two lines, or is not in the log: %s", l.Cursor, text)
		}
		delete(of, l.Cursor)
		if r.GetNode() != l.Node || r.GetSequence() != l.Sequence {
			return fmt.Errorf("record %d is %d of %s: %s", l.Cursor, r.GetSequence(), r.GetNode(), text)
		}
		if r.GetEvent().GetPacket() == nil {
			others--
			continue
		}
		packets[l.Node+" "+l.Packet.Rule] -= int64(max(1, l.Packet.Count))
	}
	for rule, left := range packets {
		if left != 0 {
			return fmt.Errorf("JSON lacks %d packets of %s", left, rule)
		}
	}
	if others != 0 {
		return fmt.Errorf("JSON lacks %d records that are no packets", others)
	}
	return nil
}

// npLogSums are the packets of each rule in an np.log.
func npLogSums(text string) (map[string]int64, error) {
	out := make(map[string]int64)
	for line := range strings.Lines(text) {
		f, n := strings.Fields(line), int64(1)
		if len(f) < 15 {
			return nil, fmt.Errorf("line %q", line)
		}
		if _, folded, is := strings.Cut(line, " ["); is {
			if _, err := fmt.Sscanf(folded, "%d packets", &n); err != nil {
				return nil, fmt.Errorf("line %q: %w", line, err)
			}
		}
		out[f[4]] += n
	}
	return out, nil
}

// dies starts a process that ends at its fault point, as often as there are points.
func dies(t *testing.T, p *harness.Process, points []string) {
	t.Helper()
	p.Kill()
	for _, point := range points {
		p.Faultpoint = point
		must(t, p.Start())
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		err := p.Died(ctx)
		cancel()
		must(t, err)
	}
	must(t, p.Start())
}

// loggedCluster has two nodes, the loggedRules and their Pods.
func loggedCluster(t *testing.T, auditdArgs ...string) *harness.Cluster {
	t.Helper()
	c := startCluster(t, harness.Config{Nodes: []harness.NodeConfig{{Name: "node-1", IPs: []netip.Addr{ip("192.0.2.1")}}, {Name: "node-2", IPs: []netip.Addr{ip("192.0.2.2")}}},
		AuditdArgs: auditdArgs})
	pods := []harness.PodConfig{{Namespace: "default", Name: "client", Node: "node-1", IPs: []netip.Addr{ip("10.9.1.1")}}, {Namespace: "default", Name: "other", Node: "node-2", IPs: []netip.Addr{ip("10.9.2.9")}}}
	objects := "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: default}\n"
	for i, n := range []string{"node-1", "node-2"} {
		objects += fmt.Sprintf("---\napiVersion: v1\nkind: Node\nmetadata: {name: %s, annotations: {weir.dev/gateway-addresses: '169.254.1.1'}}\nstatus: {addresses: [{type: InternalIP, address: 192.0.2.%d}]}\n", n, i+1)
	}
	for _, r := range loggedRules {
		pods = append(pods, harness.PodConfig{Namespace: "default", Name: r.name, Node: r.node, IPs: []netip.Addr{ip(r.target)}})
		objects += fmt.Sprintf("---\napiVersion: crd.antrea.io/v1beta1\nkind: ClusterNetworkPolicy\nmetadata: {name: %s}\nspec:\n  tier: securityops\n  priority: 5\n  appliedTo: [{podSelector: {matchLabels: {app: %s}}}]\n  ingress: [{name: %s, action: %s, enableLogging: true, ports: [{protocol: UDP}]}]\n", r.name, r.name, r.name, r.action)
	}
	for _, p := range pods {
		objects += fmt.Sprintf("---\napiVersion: v1\nkind: Pod\nmetadata: {name: %s, labels: {app: %s}}\nspec: {nodeName: %s, containers: [{name: c, image: c}]}\nstatus: {podIPs: [{ip: %s}]}\n", p.Name, p.Name, p.Node, p.IPs[0])
	}
	must(t, c.SetPods(t.Context(), pods))
	set(t, c, objects)
	return c
}

// addUp waits until everything that was sent is on record or stated as lost, by rule and
// to the packet, once and without a gap.
func addUp(t *testing.T, c *harness.Cluster, traffic *logTraffic) (records []*auditv1.Record) {
	t.Helper()
	eventually(t, func() (err error) {
		if records, err = storedRecords(t.Context(), c); err != nil {
			return err
		}
		kept, lost, err := ruleSums(records)
		if err != nil {
			return err
		}
		for i, r := range loggedRules {
			flows, err := matched(t, c.Nodes[r.node], 20)
			if err != nil {
				return err
			}
			counted := flows[registerOf(t, c.Nodes[r.node], r.name)]
			if sent := traffic.sent[i].Load(); kept[r.name]+lost[r.name] != int64(counted) || kept[r.name] == 0 || int64(counted) != sent {
				return fmt.Errorf("%s: %d packets on record and %d stated as lost; its flows matched %d of %d", r.name, kept[r.name], lost[r.name], counted, sent)
			}
		}
		if lost[""] != 0 {
			return fmt.Errorf("%d packets of nobody are stated as lost", lost[""])
		}
		return onceAndWithoutGap(records)
	})
	return records
}

// The collector and the shims die at every point of the path, one after another, while
// packets of several rules flow to Pods of two nodes. At the end everything that flows
// matched is on record or stated as lost, by rule and to the packet; nothing is there
// twice; and the files say what the log says.
func TestAuditPathOverDeaths(t *testing.T) {
	t.Parallel()
	requireFaultpoints(t)
	c := loggedCluster(t, "--rotate-size", "30k", "--rotate-keep", "0")
	traffic := startLogTraffic(t, c)

	dies(t, c.Auditd, auditdPoints)
	var wg sync.WaitGroup
	for _, n := range c.Nodes {
		wg.Go(func() { dies(t, n.Shim, shimPoints) })
	}
	wg.Wait()
	// Both at once: what the shim asks when it comes back, a collector answers that came
	// back itself.
	wg.Go(func() { dies(t, c.Auditd, []string{"auditd.store.checked:2", "auditd.store.synced:2"}) })
	wg.Go(func() { dies(t, c.Nodes["node-1"].Shim, []string{"shim.log.sent:5", "shim.log.settled"}) })
	wg.Wait()
	time.Sleep(100 * time.Millisecond) // A little more flows.
	traffic.stop()

	records := addUp(t, c, traffic)
	kept, lost, _ := ruleSums(records)
	t.Logf("%d records: kept %v, lost %v", len(records), kept, lost)
	eventually(t, func() error {
		st, err := c.Audit().Stats(t.Context(), &auditv1.StatsRequest{})
		if err != nil {
			return err
		}
		for _, s := range st.GetSinks() {
			if s.GetCursor() < st.GetNewestCursor() {
				return fmt.Errorf("sink %s is at %d of %d", s.GetName(), s.GetCursor(), st.GetNewestCursor())
			}
		}
		return nil
	})
	c.Auditd.Terminate()
	text, err := readRotated(c.JSONLog())
	must(t, err)
	must(t, compareJSON(text, records))
	for _, r := range loggedRules {
		text, err := readRotated(filepath.Join(c.Dir, "audit", r.node, "np.log"))
		must(t, err)
		sums, err := npLogSums(text)
		must(t, err)
		if sums[r.name] != kept[r.name] {
			t.Errorf("%s: np.log has %d packets, the log %d", r.name, sums[r.name], kept[r.name])
		}
	}
}

// The network between one shim and the collector is cut so that nothing comes through, not
// even an end of the connection. The shim notices, keeps what it can meanwhile, and goes
// on when the network is back; the other node does not notice. Nothing is lost in silence,
// or there twice.
func TestCollectorUnreachable(t *testing.T) {
	t.Parallel()
	c := loggedCluster(t)
	traffic := startLogTraffic(t, c)
	stored := func(node string) (n uint64, err error) {
		st, err := c.Audit().Stats(t.Context(), &auditv1.StatsRequest{})
		for _, s := range st.GetNodes() {
			if s.GetNode() == node {
				n = s.GetKept()
			}
		}
		return n, err
	}
	grows := func(node string, than uint64) {
		t.Helper()
		eventually(t, func() error {
			n, err := stored(node)
			if err == nil && n <= than {
				err = fmt.Errorf("%d events of %s are stored, as before", n, node)
			}
			return err
		})
	}
	grows("node-1", 0)
	far := c.Nodes["node-1"]
	cut := fmt.Sprintf("table ip cut {\n chain in {\n type filter hook input priority -10\n ip saddr { %[1]s, %[2]s } tcp dport %[3]d drop\n }\n chain out {\n type filter hook output priority -10\n ip daddr { %[1]s, %[2]s } tcp sport %[3]d drop\n }\n}\n",
		far.Via(), far.IPs[0], netip.MustParseAddrPort(c.AuditAddress()).Port())
	nft := func(text string) {
		t.Helper()
		cmd := c.Fabric.Command(t.Context(), "nft", "-f", "-")
		cmd.Stdin = strings.NewReader(text)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("nft: %v: %s", err, out)
		}
	}
	nft(cut)
	before, err := stored("node-1")
	must(t, err)
	beside, err := stored("node-2")
	must(t, err)
	begun := time.Now()
	eventually(t, func() error {
		for _, line := range far.Shim.Lines() {
			if strings.Contains(line, "report to "+c.AuditAddress()) {
				return nil
			}
		}
		return errors.New("the shim does not notice")
	})
	t.Logf("noticed after %s", time.Since(begun).Round(100*time.Millisecond))
	grows("node-2", beside)
	if n, err := stored("node-1"); err != nil || n > before {
		t.Errorf("%d events of node-1 are stored, before the cut %d: it is none, %v", n, before, err)
	}
	nft("delete table ip cut\n")
	begun = time.Now()
	grows("node-1", before)
	t.Logf("going on after %s", time.Since(begun).Round(100*time.Millisecond))
	traffic.stop()
	kept, lost, _ := ruleSums(addUp(t, c, traffic))
	t.Logf("kept %v, lost %v", kept, lost)
}

var (
	reachedPoint = regexp.MustCompile(`faultpoint\.Reach\("((?:auditd|shim\.log)\.[^"]+)"\)`)
	listedPoint  = regexp.MustCompile("`((?:auditd|shim)\\.[a-z]+\\.[a-z]+)`")
)

// Every fault point of the audit path is in the design's list, and a test dies at it.
func TestFaultPointsAreListed(t *testing.T) {
	t.Parallel()
	inCode := make(map[string]bool)
	for _, root := range []string{"../services/audit", "../storage/eventlog", "../shim"} {
		must(t, filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			text, err := os.ReadFile(path)
			for _, m := range reachedPoint.FindAllStringSubmatch(string(text), -1) {
				inCode[m[1]] = true
			}
			return err
		}))
	}
	read := func(path string) string {
		text, err := os.ReadFile(path)
		must(t, err)
		return string(text)
	}
	listed := make(map[string]bool)
	_, section, _ := strings.Cut(read("../services/audit/DESIGN.md"), "### Fault points")
	section, _, _ = strings.Cut(section, "\n## ")
	for _, m := range listedPoint.FindAllStringSubmatch(section, -1) {
		listed[m[1]] = true
	}
	if len(inCode) < 20 || !maps.Equal(inCode, listed) {
		t.Errorf("the code has %v, the list %v", slices.Sorted(maps.Keys(inCode)), slices.Sorted(maps.Keys(listed)))
	}
	upkeep := read("../services/audit/faults_test.go")
	for point := range inCode {
		dies := func(at string) bool { name, _, _ := strings.Cut(at, ":"); return name == point }
		if !slices.ContainsFunc(auditdPoints, dies) && !slices.ContainsFunc(shimPoints, dies) && !strings.Contains(upkeep, `"`+point+`"`) {
			t.Errorf("no test dies at %s", point)
		}
	}
}

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/e2e/harness"
)

// BenchmarkRules is about traffic between two Pods of one node of which so many
// rules guard the one that is called: each lets in an address of its own to the
// ports in use, and the last of all the caller's. They are of one priority, or
// of one each. One operation is a pair: no rules, then so many, on the same
// Pods, through the policy service and the shim; and on each for a second the
// throughput that iperf3 finds (Mbit/s), and for another how many new TCP
// connections there are (conns/s). Medians; ratio and conns-ratio are those of
// the pairs, and Rules/0 says how equal two of the same are. What else runs on
// the machine bears on all of these; cpu-ratio is that of the switch's CPU time a
// bit, on which it does not.
func BenchmarkRules(b *testing.B) {
	if _, err := exec.LookPath("iperf3"); err != nil {
		b.Skip("no iperf3: make bench installs it")
	}
	for _, rules := range []int{0, 100, 1000, 10000} {
		b.Run(fmt.Sprint(rules), func(b *testing.B) { benchRules(b, rules, onePriority) })
		if rules > 0 {
			b.Run(fmt.Sprint(rules, "-priorities"), func(b *testing.B) { benchRules(b, rules, prioritiesEach) })
		}
	}
}

const iperfPort, connectPort = 5201, 5202

// fewestPairs is how many pairs the medians are of, at the least.
const fewestPairs = 10

func benchRules(b *testing.B, rules int, write func(rules int) string) {
	c := startCluster(b, harness.Config{Nodes: []harness.NodeConfig{{Name: "node-1", IPs: []netip.Addr{ip("192.0.2.1")}}}})
	must(b, c.SetPods(b.Context(), []harness.PodConfig{
		{Namespace: "default", Name: "client", Node: "node-1", IPs: []netip.Addr{ip("10.9.1.1")}},
		{Namespace: "default", Name: "nginx", Node: "node-1", IPs: []netip.Addr{ip("10.9.1.2")}},
	}))
	server := c.Pod("default/nginx")
	iperf := server.NS.Command(b.Context(), "iperf3", "--server", "--port", fmt.Sprint(iperfPort))
	must(b, iperf.Start())
	b.Cleanup(func() { _ = iperf.Wait() }) // It ends with the context.
	var l net.Listener
	must(b, server.NS.Do(func() (err error) { l, err = net.Listen("tcp", fmt.Sprintf("10.9.1.2:%d", connectPort)); return err }))
	b.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()

	var throughput, connections, ratios, connRatios, cpuRatios []float64
	pair := func() {
		b.StopTimer()
		defer b.StartTimer()
		var found [2][3]float64
		for i, n := range []int{0, rules} {
			must(b, c.SetManifests(b.Context(), []byte(smallObjects(false)+write(n))))
			flows, err := c.Nodes["node-1"].OVS.Ofctl(b.Context(), "dump-aggregate", harness.Bridge)
			must(b, err)
			var installed int
			if _, after, _ := strings.Cut(flows, "flow_count="); n > 0 {
				if fmt.Sscan(after, &installed); installed < n {
					b.Fatalf("%d flows for %d rules", installed, n)
				}
			}
			b.StartTimer()
			before := switchCPU(b, c.Nodes["node-1"])
			found[i][0] = iperf3(b, c.Pod("default/client"))
			found[i][2] = (switchCPU(b, c.Nodes["node-1"]) - before).Seconds() / found[i][0]
			found[i][1] = connect(b, c.Pod("default/client"))
			b.StopTimer()
		}
		throughput, connections = append(throughput, found[1][0]), append(connections, found[1][1])
		ratios, connRatios = append(ratios, found[1][0]/found[0][0]), append(connRatios, found[1][1]/found[0][1])
		cpuRatios = append(cpuRatios, found[1][2]/found[0][2])
	}
	for b.Loop() {
		pair()
	}
	for len(ratios) < fewestPairs {
		pair()
	}
	b.StopTimer()
	b.ReportMetric(median(throughput), "Mbit/s")
	b.ReportMetric(median(connections), "conns/s")
	b.ReportMetric(median(ratios), "ratio")
	b.ReportMetric(median(connRatios), "conns-ratio")
	b.ReportMetric(median(cpuRatios), "cpu-ratio")
	b.ReportMetric(0, "ns/op") // Of no meaning: it is always two seconds and two.
}

// switchCPU is the CPU time of all threads of a node's ovs-vswitchd.
func switchCPU(b *testing.B, n *harness.Node) (total time.Duration) {
	b.Helper()
	pid, err := os.ReadFile(filepath.Join(n.OVS.Dir, "ovs-vswitchd.pid"))
	must(b, err)
	files, err := filepath.Glob("/proc/" + strings.TrimSpace(string(pid)) + "/task/*/schedstat")
	must(b, err)
	for _, file := range files {
		text, err := os.ReadFile(file)
		must(b, err)
		var ns int64
		if _, err := fmt.Sscan(string(text), &ns); err != nil {
			b.Fatalf("%s: %v", file, err)
		}
		total += time.Duration(ns)
	}
	return total
}

func median(values []float64) float64 {
	slices.Sort(values)
	return (values[(len(values)-1)/2] + values[len(values)/2]) / 2
}

// ruleSource is whom the i-th rule lets in; the last is the client.
func ruleSource(i, rules int) string {
	if i == rules-1 {
		return "10.9.1.1/32"
	}
	return netip.AddrFrom4([4]byte{10, 100, byte(i >> 8), byte(i)}).String() + "/32"
}

// onePriority are policies of one rule each, of one priority.
func onePriority(rules int) string {
	var b strings.Builder
	for i := range rules {
		b.WriteString(policy(fmt.Sprint("rule-", i), fmt.Sprintf("{podSelector: {matchLabels: {app: nginx}}, ingress: [{from: [{ipBlock: {cidr: %s}}], ports: [{port: %d, endPort: %d}]}]}",
			ruleSource(i, rules), iperfPort, connectPort)))
	}
	return b.String()
}

// prioritiesEach are policies of one rule each, of a priority each, and behind
// them the isolation of what they let in to.
func prioritiesEach(rules int) string {
	if rules == 0 {
		return ""
	}
	var b strings.Builder
	for i := range rules {
		fmt.Fprintf(&b, "---\napiVersion: crd.antrea.io/v1beta1\nkind: ClusterNetworkPolicy\nmetadata: {name: rule-%d}\nspec: {tier: application, priority: %d, appliedTo: [{podSelector: {matchLabels: {app: nginx}}}], "+
			"ingress: [{name: in, action: Allow, from: [{ipBlock: {cidr: %s}}], ports: [{protocol: TCP, port: %d, endPort: %d}]}]}\n", i, i+1, ruleSource(i, rules), iperfPort, connectPort)
	}
	return b.String() + policy("isolation", "{podSelector: {matchLabels: {app: nginx}}, ingress: []}")
}

// iperf3 is the throughput of one TCP connection over a second, in Mbit/s.
func iperf3(b *testing.B, from *harness.Host) float64 {
	b.Helper()
	out, err := from.NS.Command(b.Context(), "iperf3", "--client", "10.9.1.2", "--port", fmt.Sprint(iperfPort), "--time", "1", "--json", "--connect-timeout", "5000").Output()
	var report struct {
		Error string
		End   struct {
			Received struct {
				Bits float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		}
	}
	if jsonErr := json.Unmarshal(out, &report); err != nil || jsonErr != nil || report.Error != "" || report.End.Received.Bits == 0 {
		b.Fatalf("iperf3: %v, %v: %s", err, jsonErr, out)
	}
	return report.End.Received.Bits / 1e6
}

// connect is how many TCP connections are made one after another by eight
// callers, each closed by the server, over a second.
func connect(b *testing.B, from *harness.Host) float64 {
	b.Helper()
	const callers = 8
	var made atomic.Int64
	errs := make([]error, callers)
	var wait sync.WaitGroup
	start := time.Now()
	for i := range callers {
		wait.Go(func() {
			errs[i] = from.NS.Do(func() error {
				for time.Since(start) < time.Second {
					if err := connectOnce(); err != nil {
						return err
					}
					made.Add(1)
				}
				return nil
			})
		})
	}
	wait.Wait()
	must(b, errors.Join(errs...))
	return float64(made.Load()) / time.Since(start).Seconds()
}

// connectOnce connects and resets, so that no port is kept waiting.
func connectOnce() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		return err
	}
	return unix.Connect(fd, &unix.SockaddrInet4{Addr: ip("10.9.1.2").As4(), Port: connectPort})
}

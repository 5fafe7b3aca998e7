// Command demo shows Weir's main job on one machine: a cluster of two nodes in
// network namespaces, with the real services, real Open vSwitch and real
// packets; policies applied, connections tried, and what the audit trail says
// of them. It ends by itself, leaves nothing behind, and fails if a verdict is
// not the expected one or a denial is not on record.
package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/weirnet/weir/e2e/harness"
	"github.com/weirnet/weir/services/policy/api"
)

//go:embed cluster.yaml
var manifests []byte

// attempt is one connection, and what must become of it.
type attempt struct {
	from, to string // Pods, NAMESPACE/NAME; or an address outside.
	protocol api.Protocol
	port     uint16
	want     string
	because  string
}

const outside = "203.0.113.7"

var attempts = []attempt{
	{"default/frontend", "default/nginx", api.ProtocolTCP, 80, harness.Drop, "access-nginx denies everyone"},
	{outside, "default/nginx", api.ProtocolTCP, 80, harness.Drop, "from outside too"},
	{"default/frontend", "default/backend", api.ProtocolTCP, 8080, harness.Allow, "allow-frontend"},
	{"default/mysql", "default/backend", api.ProtocolTCP, 8080, harness.Drop, "allow-frontend allows the frontend alone"},
	{"default/api-server", "default/mysql", api.ProtocolTCP, 3306, harness.Allow, "mysql-allow-api, block-egress"},
	{"default/frontend", "default/mysql", api.ProtocolTCP, 3306, harness.Drop, "mysql-allow-api allows the API server alone"},
	{"default/api-server", "kube-system/coredns", api.ProtocolUDP, 53, harness.Allow, "block-egress leaves DNS open"},
	{"default/api-server", outside, api.ProtocolTCP, 443, harness.Drop, "block-egress"},
	{"default/frontend", outside, api.ProtocolTCP, 443, harness.Allow, "no policy isolates its egress"},
	{"monitoring/prometheus", "payments/ledger", api.ProtocolTCP, 9100, harness.Allow, "allow-monitoring"},
	{"monitoring/prometheus", "payments/ledger", api.ProtocolTCP, 8080, harness.Drop, "guard-payments, before anything that the Namespace allows"},
	{"monitoring/prometheus", "payments/ledger", api.ProtocolTCP, 22, harness.Drop, "guard-payments passes; allow-monitoring allows its port alone"},
	{"default/frontend", "monitoring/prometheus", api.ProtocolTCP, 9090, harness.Drop, "own-namespace, in the baseline"},
	{"default/frontend", "payments/ledger", api.ProtocolTCP, 9100, harness.Drop, "deny-all"},
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	if why := harness.Missing(); why != "" {
		return errors.New(why)
	}
	say("Building the binaries.")
	bin, err := harness.Build(ctx)
	if err != nil {
		return err
	}
	defer os.RemoveAll(bin)
	say("Starting two nodes with Open vSwitch, the policy service and the audit collector, in namespaces of their own.")
	cluster, err := harness.Start(ctx, harness.Config{Bin: bin, Nodes: []harness.NodeConfig{
		{Name: "node-1", IPs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}},
		{Name: "node-2", IPs: []netip.Addr{netip.MustParseAddr("192.0.2.2")}},
	}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cluster.Stop()) }()

	m, err := api.Decode(manifests)
	if err != nil {
		return err
	}
	say("Attaching the Pods and applying e2e/demo/cluster.yaml.")
	if err := cluster.SetPods(ctx, pods(m)); err != nil {
		return err
	}
	if err := cluster.SetManifests(ctx, manifests); err != nil {
		return err
	}
	if err := try(ctx, cluster); err != nil {
		return err
	}
	if err := showRecord(ctx, cluster); err != nil {
		return err
	}
	server := append([]string{"--server", cluster.PolicyAddress()}, cluster.OperatorArgs()...)
	order := []string{"get", "policies", "--sort-by=effectivePriority"}
	if err := weirctl(ctx, cluster, bin, "In which order are the policies judged?", append(order, server...), len(order)); err != nil {
		return err
	}
	explain := []string{"explain", "--from", "default/frontend", "--to", "default/nginx", "--port", "80", "--protocol", "TCP"}
	return weirctl(ctx, cluster, bin, "Why was the first one denied?", append(explain, server...), len(explain))
}

func say(format string, args ...any) { fmt.Printf("\n# "+format+"\n", args...) }

// pods are the Pods of the manifests, with what they listen on.
func pods(m api.Manifest) []harness.PodConfig {
	var out []harness.PodConfig
	for _, d := range m.Objects {
		p, ok := d.Object.(*api.Pod)
		if !ok {
			continue
		}
		pc := harness.PodConfig{Namespace: p.Namespace, Name: p.Name, Node: p.Node, IPs: p.IPs}
		served := make(map[harness.Service]bool)
		for _, a := range attempts {
			s := harness.Service{Protocol: a.protocol, Port: a.port}
			if a.to == p.Namespace+"/"+p.Name && !served[s] {
				served[s] = true
				pc.Serves = append(pc.Serves, s)
			}
		}
		out = append(out, pc)
	}
	return out
}

// try makes the connections and prints what became of them.
func try(ctx context.Context, cluster *harness.Cluster) error {
	host, err := cluster.Outside(ctx, netip.MustParseAddr(outside))
	if err != nil {
		return err
	}
	if err := host.Serve(harness.Service{Protocol: api.ProtocolTCP, Port: 443}); err != nil {
		return err
	}
	at := func(name string) *harness.Host {
		if name == outside {
			return host
		}
		return cluster.Pod(name)
	}
	var probes []harness.Probe
	for _, a := range attempts {
		probes = append(probes, harness.Probe{From: at(a.from), To: at(a.to).Addr(false), Protocol: a.protocol, Port: a.port, Answered: a.want != harness.Drop})
	}
	say("Trying %d connections.", len(probes))
	got, err := harness.Run(ctx, probes)
	if err != nil {
		return err
	}
	wrong := 0
	w := tabwriter.NewWriter(os.Stdout, 2, 0, 3, ' ', 0)
	fmt.Fprintln(w, "FROM\tTO\tPORT\tEXPECTED\tOBSERVED\t\tBECAUSE")
	for i, a := range attempts {
		mark := "ok"
		if got[i] != a.want {
			mark, wrong = "WRONG", wrong+1
		}
		fmt.Fprintf(w, "%s\t%s\t%s/%d\t%s\t%s\t%s\t%s\n", a.from, a.to, a.protocol, a.port, a.want, got[i], mark, a.because)
	}
	w.Flush()
	if wrong > 0 {
		return fmt.Errorf("%d of %d verdicts are wrong", wrong, len(attempts))
	}
	return nil
}

// showRecord waits until every denial of a logged Namespace is on record, and
// prints the lines.
func showRecord(ctx context.Context, cluster *harness.Cluster) error {
	want := []string{
		"Ingress Drop <nil> default/nginx 10.10.2.11", "Ingress Drop <nil> default/nginx " + outside, "Ingress Drop <nil> default/backend 10.10.2.10",
		"Ingress Drop <nil> default/mysql 10.10.2.11", "Egress Drop <nil> default/api-server 10.10.1.12", "Ingress Drop <nil> payments/ledger 10.10.2.20",
		"Ingress Drop <nil> payments/ledger 10.10.2.11", "K8sNetworkPolicy:default/allow-frontend <nil> Ingress Allow",
		"AntreaPolicyIngressRule AntreaClusterNetworkPolicy:guard-payments no-admin Ingress Drop", " TCP 60 pci",
		"IngressDefaultRule AntreaClusterNetworkPolicy:own-namespace others Ingress Drop",
	}
	var lines string
	err := harness.Eventually(ctx, 20*time.Second, func() error {
		lines = ""
		for _, n := range []string{"node-1", "node-2"} {
			b, err := os.ReadFile(cluster.NPLog(n))
			if err != nil && !os.IsNotExist(err) {
				return err
			}
			lines += string(b)
		}
		for _, s := range want {
			if !strings.Contains(lines, s) {
				return fmt.Errorf("np.log has no line with %q:\n%s\n%s", s, lines, cluster.Auditd.Tail())
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	say("What np.log says, of both nodes:")
	fmt.Print(lines)
	text, err := os.ReadFile(cluster.JSONLog())
	if err != nil {
		return err
	}
	say("The first of them as JSON, with every policy that isolates the Pod:")
	for _, line := range strings.SplitAfter(string(text), "\n") {
		if strings.Contains(line, "access-nginx") {
			fmt.Print(line)
			break
		}
	}
	return nil
}

// weirctl runs weirctl where the services can be reached, and shows the first
// of its arguments, which a reader would type.
func weirctl(ctx context.Context, cluster *harness.Cluster, bin, title string, args []string, shown int) error {
	say("%s  (weirctl %s)", title, strings.Join(args[:shown], " "))
	var cmd *exec.Cmd = cluster.Fabric.Command(ctx, bin+"/weirctl", args...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("weirctl: %w", err)
	}
	return nil
}

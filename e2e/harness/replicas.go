package harness

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

// replicas is how many policy services there are.
func (c *Cluster) replicas() int { return max(1, c.cfg.Replicas) }

// servingAddress is that of the i-th policy service, which reads a folder.
func servingAddress(i int) netip.Addr {
	if i == 0 {
		return fabric4
	}
	return replicaAddress(i)
}

// replicaName is the name of the i-th policy service, and of its log.
func replicaName(i int) string {
	if i == 0 {
		return "policyd"
	}
	return fmt.Sprintf("policyd-%d", i)
}

// Processes are the services' and the shims', by name.
func (c *Cluster) Processes() map[string]*Process {
	out := map[string]*Process{c.Auditd.Name: c.Auditd}
	for _, p := range c.Policyds {
		out[p.Name] = p
	}
	for _, n := range c.Nodes {
		out[n.Shim.Name] = n.Shim
	}
	return out
}

// Hangup asks the process to open its files anew.
func (p *Process) Hangup() error { return p.cmd.Process.Signal(syscall.SIGHUP) }

// PutManifests makes the text the whole content of the manifest folder, whether
// or not anybody reads it. The folder changes once: what is read of it after a
// change, and told by its position, is the text.
func (c *Cluster) PutManifests(text []byte) error {
	beside := c.Manifests() + ".new"
	if err := os.WriteFile(beside, text, 0o644); err != nil {
		return err
	}
	return os.Rename(beside, filepath.Join(c.Manifests(), "cluster.yaml"))
}

// InForce waits until every node is in sync with a policy service that has read a
// policy of this name, and every port is open that ought to be.
func (c *Cluster) InForce(ctx context.Context, limit time.Duration, policy string) error {
	return Eventually(ctx, limit, func() error {
		synced, errs := make(map[string]*policyv1.NodeSummary), []error(nil)
		for _, conn := range c.conns {
			nodes, err := nodesBy(ctx, policyv1.NewInspectionServiceClient(conn), policy)
			errs = append(errs, err)
			for _, n := range nodes {
				if n.GetInSync() {
					synced[n.GetName()] = n
				}
			}
		}
		for name, n := range c.Nodes {
			if synced[name] == nil {
				return fmt.Errorf("node %s is not in sync: %w\n%s", name, errors.Join(errs...), n.Shim.Tail())
			}
			if err := n.portsOpen(int(synced[name].GetEndpoints())); err != nil {
				return err
			}
		}
		return nil
	})
}

// nodesBy are the nodes of a policy service that has read a policy of this name.
func nodesBy(ctx context.Context, c policyv1.InspectionServiceClient, policy string) ([]*policyv1.NodeSummary, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second) // It may hang.
	defer cancel()
	list, err := c.ListPolicies(ctx, &policyv1.ListPoliciesRequest{})
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(list.GetPolicies(), func(p *policyv1.PolicySummary) bool { return p.GetRef().GetName() == policy }) {
		return nil, fmt.Errorf("policy %s is not read yet", policy)
	}
	resp, err := c.ListNodes(ctx, &policyv1.ListNodesRequest{Local: true})
	return resp.GetNodes(), err
}

// HostBack gives the node's host, once a switch has come back, what went with the
// bridge's own port: its addresses, and the routes to the node's Pods.
func (n *Node) HostBack(ctx context.Context) error {
	if err := Eventually(ctx, 20*time.Second, func() error { return n.bridgeMade(ctx) }); err != nil {
		return err
	}
	lines := []string{"link set " + Bridge + " up", "addr replace " + Gateway + "/32 dev " + Bridge, "addr replace " + gateLL + "/64 dev " + Bridge + " nodad"}
	for _, h := range n.cluster.pods {
		if h.pod.Node != n.Name {
			continue
		}
		for _, ip := range h.IPs {
			lines = append(lines, fmt.Sprintf("route replace %s/%d dev %s", ip, ip.BitLen(), Bridge))
		}
	}
	return n.NS.IP(ctx, lines...)
}

// StateDir is the folder of the shim's checkpoint and accounts.
func (n *Node) StateDir() string { return n.dir + "/state" }

// Check is what weir-shim check finds on the node's bridge, empty for nothing.
func (n *Node) Check(ctx context.Context) (string, error) {
	cmd := n.NS.Command(ctx, n.Shim.bin, "check", "--node", n.Name, "--socket", n.Socket(), "--bridge", Bridge, "--ovs-rundir", n.OVS.Dir,
		"--datapath", "netdev", "--state-dir", n.StateDir())
	out, err := cmd.CombinedOutput()
	if err == nil {
		return "", nil
	}
	if cmd.ProcessState != nil && cmd.ProcessState.ExitCode() == 1 {
		return string(out), nil
	}
	return "", fmt.Errorf("check of %s: %w\n%s", n.Name, err, out)
}

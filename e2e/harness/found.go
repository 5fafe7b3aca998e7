package harness

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

// findBridge makes the node's bridge as somebody else had it before Weir came:
// it forwards by itself.
func (n *Node) findBridge(ctx context.Context) error {
	if _, err := n.OVS.Vsctl(ctx, "add-br", Bridge, "--", "set", "bridge", Bridge, "datapath_type=netdev"); err != nil {
		return err
	}
	return n.gateway(ctx)
}

// gateway makes the bridge's own port that of the Pods' gateway.
func (n *Node) gateway(ctx context.Context) error {
	return n.NS.IP(ctx, "link set "+Bridge+" up", "addr replace "+Gateway+"/32 dev "+Bridge, "addr replace "+gateLL+"/64 dev "+Bridge+" nodad")
}

// Uninstall is weir-shim's uninstallation, with the flags of the node's shim and
// more.
func (n *Node) Uninstall(more ...string) *Process {
	name := "uninstall-" + n.Name
	return n.cluster.process(n.NS, name, "weir-shim", slices.Concat([]string{"uninstall"}, n.Shim.args, more))
}

// Flows are the bridge's, one a line, without what changes by itself; those that
// a filter of ovs-ofctl names.
func (n *Node) Flows(ctx context.Context, filter string) ([]string, error) {
	out, err := n.OVS.Run(ctx, "ovs-ofctl", "-O", "OpenFlow15", "--no-stats", "dump-flows", Bridge, filter)
	var lines []string
	for line := range strings.Lines(string(out)) {
		if line = strings.TrimSpace(line); line != "" && !strings.Contains(line, "OFPST_FLOW") {
			lines = append(lines, line)
		}
	}
	return lines, err
}

// Wait waits until the process has ended by itself, and says whether all was well.
func (p *Process) Wait(ctx context.Context) (ok bool, err error) {
	select {
	case <-p.done:
		return p.cmd.ProcessState.Success(), nil
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

// ShimArgs adds flags to those that the node's shim is started with next.
func (n *Node) ShimArgs(more ...string) { n.Shim.args = slices.Concat(n.Shim.args, more) }

// ManifestsRead waits until the policy service has read what WriteManifests wrote.
func (c *Cluster) ManifestsRead(ctx context.Context) error {
	return Eventually(ctx, 10*time.Second, func() error {
		resp, err := c.Inspection().ListNodes(ctx, &policyv1.ListNodesRequest{})
		if seq := resp.GetPosition().GetSources()["manifests"]; err == nil && seq < c.sequence {
			return fmt.Errorf("manifests are read up to %d of %d", seq, c.sequence)
		}
		return err
	})
}

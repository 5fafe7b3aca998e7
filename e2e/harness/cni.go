package harness

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containernetworking/cni/pkg/types"
)

// cniArgs are the shim's flags where it makes the Pod network.
func (n *Node) cniArgs() []string {
	if n.cluster.cfg.PodNetwork == "" {
		return nil
	}
	return []string{"--pod-network", n.cluster.cfg.PodNetwork, "--cni-conf-dir", n.CNIConf(), "--cni-bin-dir", n.CNIBin()}
}

// CNIConf and CNIBin are the folders of the node's container runtime.
func (n *Node) CNIConf() string { return filepath.Join(n.dir, "net.d") }

// CNIBin is where the runtime looks for plugins.
func (n *Node) CNIBin() string { return filepath.Join(n.dir, "bin") }

// Sandbox is a network namespace for a Pod whose network the CNI plugin makes.
func (c *Cluster) Sandbox(ctx context.Context) (*Host, error) {
	c.podSerial++
	ns, err := newNetNS(ctx, fmt.Sprintf("%sp%d", c.prefix, c.podSerial))
	if err != nil {
		return nil, err
	}
	h := &Host{NS: ns, remove: ns.remove}
	c.sandboxes = append(c.sandboxes, h)
	return h, nil
}

// CNIConfig is the configuration of the plugin, as a runtime makes it of the
// list that the shim wrote, with leases kept on this node alone.
func (n *Node) CNIConfig() (map[string]any, error) {
	text, err := os.ReadFile(filepath.Join(n.CNIConf(), "10-weir.conflist"))
	if err != nil {
		return nil, err
	}
	var list struct {
		Name    string
		Plugins []map[string]any
	}
	if err := json.Unmarshal(text, &list); err != nil {
		return nil, err
	}
	if len(list.Plugins) == 0 {
		return nil, fmt.Errorf("no plugins in %s", text)
	}
	conf := list.Plugins[0]
	conf["cniVersion"], conf["name"] = "1.1.0", list.Name
	conf["ipam"].(map[string]any)["dataDir"] = filepath.Join(n.dir, "leases")
	delete(conf, "capabilities")
	return conf, nil
}

// CNICall is one call of a plugin.
type CNICall struct {
	Command     string
	ContainerID string
	NetNS       string // Path.
	Args        string // CNI_ARGS.
	Config      map[string]any
}

// CNI calls the plugin on the node. An error of the plugin's is a *types.Error.
func (n *Node) CNI(ctx context.Context, call CNICall) ([]byte, error) {
	stdin, err := json.Marshal(call.Config)
	if err != nil {
		return nil, err
	}
	cmd := n.NS.Command(ctx, filepath.Join(n.CNIBin(), "weir-cni"))
	cmd.Env = append(os.Environ(), "CNI_COMMAND="+call.Command, "CNI_CONTAINERID="+call.ContainerID, "CNI_NETNS="+call.NetNS,
		"CNI_IFNAME=eth0", "CNI_ARGS="+call.Args, "CNI_PATH="+n.CNIBin()+":"+n.cluster.cfg.Bin)
	cmd.Stdin = bytes.NewReader(stdin)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err == nil {
		return out, nil
	}
	said := &types.Error{}
	if json.Unmarshal(out, said) == nil && said.Msg != "" {
		return nil, said
	}
	return nil, fmt.Errorf("weir-cni %s: %w: %s%s", call.Command, err, out, stderr.String())
}

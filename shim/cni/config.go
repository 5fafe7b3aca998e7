package cni

import (
	"encoding/json"
	"fmt"
	"net"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
)

// Config is the plugin's configuration, beside what all plugins have.
type Config struct {
	types.PluginConf
	Bridge    string `json:"bridge,omitempty"`    // Empty: br-weir.
	MTU       int    `json:"mtu,omitempty"`       // Of the Pod's link. Zero: the bridge's.
	Socket    string `json:"socket,omitempty"`    // Of the shim. Empty: /run/weir/shim.sock.
	OVSRunDir string `json:"ovsRunDir,omitempty"` // Empty: Open vSwitch's own default.
	Timeout   string `json:"timeout,omitempty"`   // How long ADD waits for the port to open: "10s" if empty.

	RuntimeConfig struct {
		MAC string `json:"mac,omitempty"` // Capability "mac". IPAM reads "ips" itself.
	} `json:"runtimeConfig,omitempty"`

	timeout time.Duration
	mac     net.HardwareAddr // Nil: made from the address.
}

const (
	defaultBridge  = "br-weir"
	defaultSocket  = "/run/weir/shim.sock"
	defaultTimeout = 10 * time.Second
)

// parse reads a configuration.
func parse(stdin []byte) (*Config, error) {
	c := &Config{timeout: defaultTimeout}
	if err := json.Unmarshal(stdin, c); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "network configuration: "+err.Error(), "")
	}
	invalid := func(format string, args ...any) error {
		return types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf(format, args...), "")
	}
	if c.Bridge == "" {
		c.Bridge = defaultBridge
	}
	if c.Socket == "" {
		c.Socket = defaultSocket
	}
	if c.IPAM.Type == "" {
		return nil, invalid("ipam: no type given")
	}
	if c.MTU < 0 || c.MTU > 65535 {
		return nil, invalid("mtu: %d is none", c.MTU)
	}
	if c.Timeout != "" {
		var err error
		if c.timeout, err = time.ParseDuration(c.Timeout); err != nil || c.timeout <= 0 {
			return nil, invalid("timeout: %q is no time above zero", c.Timeout)
		}
	}
	if c.RuntimeConfig.MAC != "" {
		var err error
		if c.mac, err = net.ParseMAC(c.RuntimeConfig.MAC); err != nil || len(c.mac) != 6 || c.mac[0]&1 != 0 {
			return nil, invalid("runtimeConfig: %q is no MAC of an interface", c.RuntimeConfig.MAC)
		}
	}
	if err := version.ParsePrevResult(&c.PluginConf); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "prevResult: "+err.Error(), "")
	}
	return c, nil
}

// pod is what the runtime says of the Pod, in CNI_ARGS.
type pod struct {
	namespace, name, uid string
}

func (p pod) String() string { return p.namespace + "/" + p.name }

func parsePod(args string) (pod, error) {
	var a struct {
		types.CommonArgs
		K8S_POD_NAMESPACE, K8S_POD_NAME, K8S_POD_UID types.UnmarshallableString
	}
	a.IgnoreUnknown = true
	if err := types.LoadArgs(args, &a); err != nil {
		return pod{}, types.NewError(types.ErrInvalidEnvironmentVariables, "CNI_ARGS: "+err.Error(), "")
	}
	p := pod{namespace: string(a.K8S_POD_NAMESPACE), name: string(a.K8S_POD_NAME), uid: string(a.K8S_POD_UID)}
	if p.namespace == "" || p.name == "" {
		return p, types.NewError(types.ErrInvalidEnvironmentVariables, "CNI_ARGS: K8S_POD_NAMESPACE and K8S_POD_NAME name no Pod", "")
	}
	return p, nil
}

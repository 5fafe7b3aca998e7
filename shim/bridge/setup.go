package bridge

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/digitalocean/go-openvswitch/ovs"
)

// commandTimeout bounds every command that Open vSwitch brings.
const commandTimeout = 10 * time.Second

// client is the go-openvswitch client for our database; its commands end with
// the context.
func (b *Bridge) client(ctx context.Context) *ovs.Client {
	return ovs.New(ovs.Exec(func(name string, args ...string) ([]byte, error) {
		return b.command(ctx, name, append(b.vsctlFlags(), args...)...)
	}))
}

// command runs a command of Open vSwitch and returns its output.
func (b *Bridge) command(ctx context.Context, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "OVS_RUNDIR="+b.cfg.RunDir)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return out, fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(stderr.String()))
	}
	return out, nil
}

// SetUp makes the bridge, if there is none, and keeps it closed: datapath type,
// fail_mode=secure, and the OpenFlow version that we speak. It changes nothing
// on a bridge that is as it should be. From then on that is guarded: see guarding. One
// that is to be adopted is not for it: see Find.
func (b *Bridge) SetUp(ctx context.Context) error {
	if err := b.setUp(ctx); err != nil {
		return err
	}
	b.guarding.guard()
	return nil
}

func (b *Bridge) setUp(ctx context.Context) error {
	vsctl := b.client(ctx).VSwitch
	there, err := vsctl.ListBridges()
	if err != nil {
		return fmt.Errorf("list bridges: %w", err)
	}
	if !slices.Contains(there, b.cfg.Name) {
		return b.add(ctx, randomAddress())
	}
	if err := vsctl.SetFailMode(b.cfg.Name, ovs.FailModeSecure); err != nil {
		return fmt.Errorf("set fail mode of bridge %s: %w", b.cfg.Name, err)
	}
	if err := vsctl.Set.Bridge(b.cfg.Name, ovs.BridgeOptions{Protocols: protocols}); err != nil {
		return fmt.Errorf("set protocols of bridge %s: %w", b.cfg.Name, err)
	}
	if _, err := b.vsctl(ctx, "set", "bridge", b.cfg.Name, "datapath_type="+b.cfg.DatapathType, "external_ids:"+idAdoption+"="+adoptionDone); err != nil {
		return fmt.Errorf("set datapath type of bridge %s: %w", b.cfg.Name, err)
	}
	return b.keepAddress(ctx)
}

// add makes the bridge, with an address of its own.
func (b *Bridge) add(ctx context.Context, address string) error {
	// In one transaction, or the bridge would forward before it is closed;
	// the client makes bridges without properties only.
	_, err := b.vsctl(ctx, "add-br", b.cfg.Name, "--", "set", "bridge", b.cfg.Name, "fail_mode=secure",
		"datapath_type="+b.cfg.DatapathType, "protocols="+strings.Join(protocols, ","), "other_config:hwaddr="+quote(address),
		"external_ids:"+idMade+"=true", "external_ids:"+idAdoption+"="+adoptionDone)
	if err != nil {
		return fmt.Errorf("add bridge %s: %w", b.cfg.Name, err)
	}
	return nil
}

// randomAddress is a random, locally administered address for the bridge's
// own port. Without one the switch takes the lowest of its ports' addresses,
// and changes it as ports come and go, under the Pods whose gateway it is.
func randomAddress() string {
	mac := make(net.HardwareAddr, 6)
	rand.Read(mac)
	mac[0] = mac[0]&^1 | 2
	return mac.String()
}

// keepAddress fixes the address that an existing bridge has.
func (b *Bridge) keepAddress(ctx context.Context) error {
	out, err := b.vsctl(ctx, "get", "bridge", b.cfg.Name, "other_config")
	if err != nil {
		return fmt.Errorf("read configuration of bridge %s: %w", b.cfg.Name, err)
	}
	if strings.Contains(string(out), "hwaddr=") {
		return nil
	}
	mac, err := b.vsctl(ctx, "get", "interface", b.cfg.Name, "mac_in_use")
	if err != nil {
		return fmt.Errorf("read address of bridge %s: %w", b.cfg.Name, err)
	}
	if _, err := b.vsctl(ctx, "set", "bridge", b.cfg.Name, "other_config:hwaddr="+strings.TrimSpace(string(mac))); err != nil {
		return fmt.Errorf("fix address of bridge %s: %w", b.cfg.Name, err)
	}
	return nil
}

// protocols are what the bridge speaks: ours, and what operators' tools use.
var protocols = []string{ovs.ProtocolOpenFlow10, ovs.ProtocolOpenFlow13, ovs.ProtocolOpenFlow14, ovs.ProtocolOpenFlow15}

// vsctl runs what the client cannot say.
func (b *Bridge) vsctl(ctx context.Context, args ...string) ([]byte, error) {
	return b.command(ctx, "ovs-vsctl", append(b.vsctlFlags(), args...)...)
}

func (b *Bridge) vsctlFlags() []string {
	return []string{"--db=" + b.cfg.OVSDB, fmt.Sprintf("--timeout=%d", int(commandTimeout.Seconds()))}
}

// AddPort puts a network interface on the bridge and gives its row external
// ids, in one transaction; that it is there already is no error.
func (b *Bridge) AddPort(ctx context.Context, name string, externalIDs map[string]string) error {
	args := []string{"--may-exist", "add-port", b.cfg.Name, name}
	if len(externalIDs) > 0 {
		args = append(args, "--", "set", "interface", name)
		for key, value := range externalIDs {
			args = append(args, fmt.Sprintf("external_ids:%s=%s", quote(key), quote(value)))
		}
	}
	if _, err := b.vsctl(ctx, args...); err != nil {
		return fmt.Errorf("add port %s to bridge %s: %w", name, b.cfg.Name, err)
	}
	return nil
}

// addPort puts an interface on the bridge as it was on a former one.
func (b *Bridge) addPort(ctx context.Context, p Port) error {
	args := []string{"--may-exist", "add-port", b.cfg.Name, p.Name}
	for table, ids := range map[string]map[string]string{"port": p.PortIDs, "interface": p.ExternalIDs} {
		for key, value := range ids {
			args = append(args, "--", "set", table, p.Name, fmt.Sprintf("external_ids:%s=%s", quote(key), quote(value)))
		}
	}
	if _, err := b.vsctl(ctx, args...); err != nil {
		return fmt.Errorf("put port %s back on bridge %s: %w", p.Name, b.cfg.Name, err)
	}
	return nil
}

// ReadDatapathType reads what kind of datapath the bridge has: "system" or
// "netdev".
func (b *Bridge) ReadDatapathType(ctx context.Context) (string, error) {
	out, err := b.vsctl(ctx, "get", "bridge", b.cfg.Name, "datapath_type")
	if err != nil {
		return "", fmt.Errorf("read datapath type of bridge %s: %w", b.cfg.Name, err)
	}
	if kind := strings.Trim(strings.TrimSpace(string(out)), `"`); kind != "" {
		return kind, nil
	}
	return "system", nil
}

// quote writes a string as OVSDB's command line reads it back.
func quote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}

// RemovePort takes an interface off the bridge; that it is not there is no
// error.
func (b *Bridge) RemovePort(ctx context.Context, name string) error {
	if err := b.client(ctx).VSwitch.DeletePort(b.cfg.Name, name); err != nil {
		return fmt.Errorf("remove port %s from bridge %s: %w", name, b.cfg.Name, err)
	}
	return nil
}

// Remove removes the bridge with its ports.
func (b *Bridge) Remove(ctx context.Context) error {
	if err := b.client(ctx).VSwitch.DeleteBridge(b.cfg.Name); err != nil {
		return fmt.Errorf("remove bridge %s: %w", b.cfg.Name, err)
	}
	return nil
}

// appctl runs ovs-appctl on the switch.
func (b *Bridge) appctl(ctx context.Context, args ...string) (string, error) {
	target, err := b.controlSocket()
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	out, err := b.command(ctx, "ovs-appctl", append([]string{"-t", target}, args...)...)
	return string(out), err
}

// controlSocket finds the switch's control socket: one of a fixed name, or the
// one that bears the switch's process id.
func (b *Bridge) controlSocket() (string, error) {
	fixed := filepath.Join(b.cfg.RunDir, "vswitchd.ctl")
	if _, err := os.Stat(fixed); err == nil {
		return fixed, nil
	}
	pid, err := os.ReadFile(filepath.Join(b.cfg.RunDir, "ovs-vswitchd.pid"))
	if err != nil {
		return "", fmt.Errorf("find the switch's control socket: %w", err)
	}
	return filepath.Join(b.cfg.RunDir, "ovs-vswitchd."+strings.TrimSpace(string(pid))+".ctl"), nil
}

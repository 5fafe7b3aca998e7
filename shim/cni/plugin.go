package cni

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/weirnet/weir/shim/bridge"
	"github.com/weirnet/weir/shim/veth"
)

// Version is the build's, set by the linker.
var Version = "dev"

// Main is the plugin's process.
func Main() {
	skel.PluginMainFuncs(skel.CNIFuncs{Add: add, Del: del, Check: check, GC: collect, Status: state},
		version.PluginSupports("0.3.1", "0.4.0", "1.0.0", "1.1.0"), "weir-cni "+Version)
}

// Limits of what is not waiting for a port.
const (
	commandTime = 30 * time.Second // A command but ADD, and taking back what ADD made.
	askTime     = 2 * time.Second  // A question to the shim.
)

func defaultRoute(a veth.Address) *types.Route {
	return &types.Route{Dst: net.IPNet{IP: make(net.IP, a.IP.BitLen()/8), Mask: net.CIDRMask(0, a.IP.BitLen())}, GW: a.Gateway.AsSlice()}
}

func (c *Config) open() (*bridge.Bridge, error) {
	return bridge.New(bridge.Config{Name: c.Bridge, RunDir: c.OVSRunDir})
}

// add implements ADD.
func add(args *skel.CmdArgs) (err error) {
	cfg, err := parse(args.StdinData)
	if err != nil {
		return err
	}
	p, err := parsePod(args.Args)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = about(err, "Pod "+p.String()+": ")
		}
	}()
	ctx, cancel := context.WithTimeout(context.Background(), cfg.timeout+commandTime)
	defer cancel()
	node, err := dial(cfg.Socket)
	if err != nil {
		return err
	}
	defer node.close()
	if err := node.ready(ctx, types.ErrTryAgainLater); err != nil { // Before anything is made.
		return err
	}
	var undo undoing
	defer func() { err = undo.unless(err) }()
	given, err := delegateAdd(cfg, args.StdinData)
	if err != nil { // What it did, it has taken back itself; what it refuses may be another ADD's.
		return err
	}
	undo.add(func(context.Context) error { return delegateDel(cfg, args.StdinData) })
	a, sw, err := cfg.attachment(ctx, args, p, given)
	if err != nil {
		return err
	}
	made, err := veth.Make(a.link)
	if err != nil {
		return err
	}
	undo.add(func(context.Context) error { return veth.Remove(a.link.Host) })
	// Before the port is there: what the host kept for the addresses while nobody
	// had them, and was judged then, must not reach the Pod.
	if err := veth.SetNeighbours(cfg.Bridge, a.link.MAC, a.ips()); err != nil {
		return err
	}
	undo.add(func(context.Context) error { return veth.RemoveNeighbours(cfg.Bridge, a.ips()) })
	undo.add(func(ctx context.Context) error { return sw.RemovePort(ctx, a.link.Host) })
	if err := sw.AddPort(ctx, a.link.Host, a.externalIDs()); err != nil {
		return types.NewError(types.ErrTryAgainLater, err.Error(), "")
	}
	if err := node.await(ctx, a.link.Host, cfg.timeout); err != nil {
		return err
	}
	return types.PrintResult(a.result(cfg, given, made.HostMAC), cfg.CNIVersion)
}

// attachment is what ADD makes of the addresses that IPAM gave.
func (c *Config) attachment(ctx context.Context, args *skel.CmdArgs, p pod, given *current.Result) (*attachment, *bridge.Bridge, error) {
	addrs, err := addresses(given)
	if err != nil {
		return nil, nil, types.NewError(types.ErrInternal, "IPAM plugin "+c.IPAM.Type+": "+err.Error(), "")
	}
	sw, err := c.open()
	if err != nil {
		return nil, nil, err
	}
	kind, err := sw.ReadDatapathType(ctx)
	if err != nil {
		return nil, nil, types.NewError(types.ErrTryAgainLater, err.Error(), "")
	}
	a := &attachment{network: c.Name, containerID: args.ContainerID, pod: p, link: veth.Config{
		Host: HostName(args.ContainerID, args.IfName), Pod: args.IfName, NetNS: args.Netns, MAC: c.mac, MTU: c.MTU,
		Addresses: addrs, NoChecksumOffload: kind == "netdev"}}
	if a.link.MAC == nil {
		a.link.MAC = macOf(addrs[0].IP)
	}
	if a.link.MTU == 0 {
		if a.link.MTU, err = veth.MTU(c.Bridge); err != nil {
			return nil, nil, err
		}
	}
	return a, sw, nil
}

// undoing are the steps that take back what was done, the last first.
type undoing []func(context.Context) error

func (u *undoing) add(fn func(context.Context) error) { *u = append(*u, fn) }

// unless takes everything back where there was an error.
func (u undoing) unless(err error) error {
	if err == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), commandTime)
	defer cancel()
	for i := len(u) - 1; i >= 0; i-- {
		if failed := u[i](ctx); failed != nil {
			err = about(err, "")
			err.(*types.Error).Details = joinDetails(err.(*types.Error).Details, "not taken back: "+failed.Error())
		}
	}
	return err
}

func joinDetails(a, b string) string {
	if a == "" {
		return b
	}
	return a + "; " + b
}

// about is an error of CNI's with a subject before it.
func about(err error, subject string) error {
	var e *types.Error
	if !errors.As(err, &e) {
		e = types.NewError(types.ErrInternal, err.Error(), "")
	}
	return &types.Error{Code: e.Code, Msg: subject + e.Msg, Details: e.Details}
}

func delegateAdd(cfg *Config, stdin []byte) (*current.Result, error) {
	r, err := invoke.DelegateAdd(context.Background(), cfg.IPAM.Type, stdin, nil)
	if err == nil {
		var given *current.Result
		if given, err = current.NewResultFromResult(r); err == nil {
			return given, nil
		}
	}
	return nil, about(err, "IPAM plugin "+cfg.IPAM.Type+": ")
}

func delegateDel(cfg *Config, stdin []byte) error {
	if err := invoke.DelegateDel(context.Background(), cfg.IPAM.Type, stdin, nil); err != nil {
		return about(err, "IPAM plugin "+cfg.IPAM.Type+": ")
	}
	return nil
}

// del implements DEL. What is gone already is no error.
func del(args *skel.CmdArgs) error {
	cfg, err := parse(args.StdinData)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), commandTime)
	defer cancel()
	// Whatever else fails, the Pod is off the network.
	host := HostName(args.ContainerID, args.IfName)
	if err := veth.Remove(host); err != nil {
		return err
	}
	if err := cfg.removePorts(ctx, func(p bridge.Port) bool { return p.Name == host }); err != nil {
		return err
	}
	return delegateDel(cfg, args.StdinData)
}

// removePorts takes ports off the bridge, and their links away. On a machine
// without Open vSwitch there are none.
func (c *Config) removePorts(ctx context.Context, which func(bridge.Port) bool) error {
	sw, err := c.open()
	if err != nil {
		return err
	}
	if c.switchMissing() {
		return nil
	}
	ports, err := sw.ReadPorts(ctx)
	if err != nil {
		return types.NewError(types.ErrTryAgainLater, err.Error(), "")
	}
	var errs []error
	for _, p := range ports {
		if p.Local() || !which(p) {
			continue
		}
		if err := sw.RemovePort(ctx, p.Name); err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, veth.Remove(p.Name), veth.RemoveNeighbours(c.Bridge, portAddresses(p)))
	}
	if err := errors.Join(errs...); err != nil {
		return types.NewError(types.ErrTryAgainLater, err.Error(), "")
	}
	return nil
}

// switchMissing says that there is no Open vSwitch here, as after it was
// uninstalled.
func (c *Config) switchMissing() bool {
	dir := c.OVSRunDir
	if dir == "" {
		dir = "/var/run/openvswitch"
	}
	_, err := os.Stat(filepath.Join(dir, "db.sock"))
	return errors.Is(err, os.ErrNotExist)
}

// check implements CHECK.
func check(args *skel.CmdArgs) error {
	cfg, err := parse(args.StdinData)
	if err != nil {
		return err
	}
	p, err := parsePod(args.Args)
	if err != nil {
		return err
	}
	if err := cfg.check(args, p); err != nil {
		return about(err, "Pod "+p.String()+": ")
	}
	return nil
}

func (c *Config) check(args *skel.CmdArgs, p pod) error {
	if c.PrevResult == nil {
		return types.NewError(types.ErrInvalidNetworkConfig, "no prevResult to check", "")
	}
	former, err := current.NewResultFromResult(c.PrevResult)
	if err != nil {
		return types.NewError(types.ErrDecodingFailure, "prevResult: "+err.Error(), "")
	}
	if err := invoke.DelegateCheck(context.Background(), c.IPAM.Type, args.StdinData, nil); err != nil {
		return about(err, "IPAM plugin "+c.IPAM.Type+": ")
	}
	ctx, cancel := context.WithTimeout(context.Background(), commandTime)
	defer cancel()
	a, sw, err := c.attachment(ctx, args, p, former)
	if err != nil {
		return err
	}
	for _, i := range former.Interfaces {
		if i.Sandbox == args.Netns && i.Name == args.IfName {
			if a.link.MAC, err = net.ParseMAC(i.Mac); err != nil {
				return types.NewError(types.ErrDecodingFailure, "prevResult: "+err.Error(), "")
			}
			if i.Mtu != 0 {
				a.link.MTU = i.Mtu
			}
		}
	}
	if err := veth.Check(a.link); err != nil {
		return err
	}
	ports, err := sw.ReadPorts(ctx)
	if err != nil {
		return types.NewError(types.ErrTryAgainLater, err.Error(), "")
	}
	if err := a.onBridge(ports, c.Bridge); err != nil {
		return err
	}
	node, err := dial(c.Socket)
	if err != nil {
		return err
	}
	defer node.close()
	return node.await(ctx, a.link.Host, askTime)
}

// collect implements GC: what is not among the valid attachments goes.
func collect(args *skel.CmdArgs) error {
	cfg, err := parse(args.StdinData)
	if err != nil {
		return err
	}
	valid := make(map[string]bool)
	for _, a := range cfg.ValidAttachments {
		valid[HostName(a.ContainerID, a.IfName)] = true
	}
	ctx, cancel := context.WithTimeout(context.Background(), commandTime)
	defer cancel()
	errs := []error{cfg.removePorts(ctx, func(p bridge.Port) bool { return p.ExternalIDs[idNetwork] == cfg.Name && !valid[p.Name] })}
	if err := invoke.DelegateGC(ctx, cfg.IPAM.Type, args.StdinData, nil); err != nil {
		errs = append(errs, fmt.Errorf("IPAM plugin %s: %w", cfg.IPAM.Type, err))
	}
	return errors.Join(errs...)
}

// state implements STATUS: whether an ADD could succeed.
func state(args *skel.CmdArgs) error {
	cfg, err := parse(args.StdinData)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), commandTime)
	defer cancel()
	node, err := dial(cfg.Socket)
	if err != nil {
		return err
	}
	defer node.close()
	if err := node.ready(ctx, types.ErrPluginNotAvailable); err != nil {
		return err
	}
	if err := invoke.DelegateStatus(ctx, cfg.IPAM.Type, args.StdinData, nil); err != nil {
		return about(err, "IPAM plugin "+cfg.IPAM.Type+": ")
	}
	return nil
}

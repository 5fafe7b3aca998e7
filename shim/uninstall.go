package shim

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/weirnet/weir/shim/bridge"
	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/shim/cni"
	"github.com/weirnet/weir/shim/credentials"
	"github.com/weirnet/weir/shim/hostfw"
	"github.com/weirnet/weir/shim/pipeline"
	"github.com/weirnet/weir/storage/atomicfile"
)

// Uninstall takes from a node what the shim of this configuration put there, in
// an order in which Pods' traffic always has flows to go by:
//
//	flows and groups   one bundle: plain forwarding in their place
//	meters             which nothing names any more
//	the bridge         as it was found
//	nftables
//	the container runtime's configuration, weir-cni, the state folder
//	the bridge itself, where we made it and it has no port any more
//
// What is not there is no error, so that it can be run again. While a shim runs
// it refuses, unless forced. The Pod network's routes and tunnel stay: they
// carry the Pods' traffic.
func Uninstall(ctx context.Context, cfg Config, force bool) error {
	if cfg.Bridge == "" || cfg.StateDir == "" {
		return errors.New("uninstall: no bridge or no state folder named (--bridge, --state-dir)")
	}
	if !force {
		if cfg.Socket != "" && answers(cfg.Socket) {
			return fmt.Errorf("uninstall: %w (it answers at %s)", errRunning, cfg.Socket)
		}
		if _, err := os.Stat(cfg.StateDir); err == nil {
			held, err := lock(cfg.StateDir, true)
			if err != nil {
				return fmt.Errorf("uninstall: %w", err)
			}
			defer held.Close()
		}
	}
	b, err := newBridge(&cfg, nil)
	if err != nil {
		return err
	}
	there, err := b.Exists(ctx)
	if err != nil {
		return fmt.Errorf("uninstall: %w", err)
	}
	made := false
	if there {
		if err := withdraw(ctx, b); err != nil {
			return fmt.Errorf("uninstall: %w", err)
		}
		if made, err = b.Restore(ctx); err != nil {
			return fmt.Errorf("uninstall: %w", err)
		}
		cfg.Logger.Info("bridge forwards by itself", "bridge", cfg.Bridge)
	}
	// One is no reason to leave the other.
	err = errors.Join(hostfw.Remove(ctx), removeFiles(&cfg))
	if made {
		err = errors.Join(err, removeBridge(ctx, &cfg, b))
	}
	if err != nil {
		return fmt.Errorf("uninstall: %w", err)
	}
	cfg.Logger.Info("uninstalled", "bridge", cfg.Bridge)
	return nil
}

// plain is how a switch forwards by itself; it bears no mark of ours.
var plain = openflow.Flow{Actions: openflow.NewActions(openflow.OutputPort(openflow.PortNormal))}

// withdraw takes our flows, groups and meters off the bridge.
func withdraw(ctx context.Context, b *bridge.Bridge) error {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { defer close(done); _ = b.Run(ctx) }()
	defer func() { cancel(); <-done }()
	wait, end := context.WithTimeout(ctx, withdrawTime)
	defer end()
	if err := b.WaitConnected(wait); err != nil {
		return err
	}
	actual, err := b.Read(wait)
	if err != nil {
		return err
	}
	if change := withdrawal(actual); !change.IsEmpty() {
		if err := b.Apply(wait, change); err != nil {
			return err
		}
		if len(change.Upsert) > 0 {
			if err := b.Settle(wait, plain); err != nil {
				return err
			}
		}
	}
	if len(actual.Flows) == 0 {
		return nil // What meters there are are not ours.
	}
	var meters []uint32
	for id := range actual.Meters {
		if pipeline.OwnsMeter(id) {
			meters = append(meters, id)
		}
	}
	return b.Apply(wait, bridge.Change{DeleteMeters: meters})
}

const withdrawTime = 30 * time.Second

// withdrawal replaces our flows by plain forwarding. Where others' flows still
// serve the bridge, which we were about to adopt, they do so alone.
func withdrawal(actual bridge.State) (c bridge.Change) {
	if len(actual.Flows) == 0 {
		return c
	}
	served := slices.ContainsFunc(slices.Collect(maps.Keys(actual.Foreign)), func(k openflow.FlowKey) bool { return k.Table == plain.Table })
	if !served {
		c.Upsert = []openflow.Flow{plain}
		c.DeleteGroups = slices.Sorted(maps.Keys(actual.Groups))
	}
	for key := range actual.Flows {
		if key != plain.Key() || served {
			c.Delete = append(c.Delete, key)
		}
	}
	return c
}

// removeFiles removes the files that a shim of this configuration wrote.
func removeFiles(cfg *Config) error {
	var paths []string
	if cfg.CNIConfDir != "" {
		paths = append(paths, filepath.Join(cfg.CNIConfDir, cni.ConflistName))
	}
	if cfg.CNIBinDir != "" {
		paths = append(paths, filepath.Join(cfg.CNIBinDir, "weir-cni"))
	}
	if cfg.Socket != "" {
		paths = append(paths, cfg.Socket)
	}
	for _, name := range []string{filepath.Base(cfg.checkpoint()), stateName, ownersName, namesFile, countersName, journalName, hostCountsName, ledgerName, credentials.KeptFile, lockName} {
		paths = append(paths, filepath.Join(cfg.StateDir, name))
	}
	errs := []error{atomicfile.Clean(cfg.StateDir)}
	for _, path := range paths {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	_ = os.Remove(cfg.StateDir) // Where something else is in it, or mounted on it, it stays.
	return errors.Join(errs...)
}

// removeBridge removes a bridge that we made, once nothing is connected by it.
func removeBridge(ctx context.Context, cfg *Config, b *bridge.Bridge) error {
	ports, err := b.ReadPorts(ctx)
	if err != nil {
		return err
	}
	for _, p := range ports {
		if !p.Local() && p.Name != cfg.Bridge {
			cfg.Logger.Info("bridge stays, for it has ports", "bridge", cfg.Bridge, "ports", len(ports)-1)
			return nil
		}
	}
	return b.Remove(ctx)
}

// Idle answers at Config.MetricsListen that all is well, until the context ends:
// for whoever runs an uninstallation as if it were a shim.
func Idle(ctx context.Context, cfg Config) error {
	if cfg.MetricsListen == "" {
		<-ctx.Done()
		return nil
	}
	mux := http.NewServeMux()
	for _, path := range []string{"/healthz", "/readyz"} {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "uninstalled") })
	}
	web := &http.Server{Addr: cfg.MetricsListen, Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	stop := context.AfterFunc(ctx, func() { web.Close() })
	defer stop()
	if err := web.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("listen for probes: %w", err)
	}
	return nil
}

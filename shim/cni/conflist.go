package cni

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
)

// Network is what a node's container runtime is to know of its Pod network.
type Network struct {
	Bridge    string
	MTU       int // Zero: the bridge's.
	Socket    string
	OVSRunDir string
	// Ranges are the prefixes of which each Pod gets an address, at most one of a
	// family, and the gateways; the zero Addr for the first address.
	Ranges []Range
}

// Range is a prefix of Pods' addresses.
type Range struct {
	Prefix  netip.Prefix
	Gateway netip.Addr
}

// ConflistName is the name of the file in the runtime's folder.
const ConflistName = "10-weir.conflist"

// Conflist is the configuration for the container runtime: of the oldest version
// of CNI that has all that is in it, for runtimes that know no newer one.
func (n Network) Conflist() []byte {
	type object = map[string]any
	ranges := make([][]object, 0, len(n.Ranges))
	for _, r := range n.Ranges {
		o := object{"subnet": r.Prefix.String()}
		if r.Gateway.IsValid() {
			o["gateway"] = r.Gateway.String()
		}
		ranges = append(ranges, []object{o})
	}
	plugin := object{"type": "weir-cni", "bridge": n.Bridge, "socket": n.Socket, "capabilities": object{"mac": true, "ips": true},
		"ipam": object{"type": "host-local", "ranges": ranges}}
	if n.MTU != 0 {
		plugin["mtu"] = n.MTU
	}
	if n.OVSRunDir != "" {
		plugin["ovsRunDir"] = n.OVSRunDir
	}
	out, err := json.MarshalIndent(object{"cniVersion": "1.0.0", "cniVersions": []string{"0.4.0", "1.0.0", "1.1.0"}, "name": "weir", "plugins": []object{plugin}}, "", "  ")
	if err != nil {
		panic(fmt.Sprintf("conflist: %v", err)) // Nothing in it can fail.
	}
	return append(out, '\n')
}

// WriteConflist makes the file in the folder hold the configuration, at once or
// not at all. It says whether that changed anything.
func WriteConflist(dir string, n Network) (changed bool, err error) {
	if changed, err = put(filepath.Join(dir, ConflistName), n.Conflist(), 0o644); err != nil {
		return false, fmt.Errorf("configuration of CNI: %w", err)
	}
	return changed, nil
}

// RemoveConflist takes the file away, for a node that is to take no Pods by Weir
// any more; that it is not there is no error.
func RemoveConflist(dir string) error {
	if err := os.Remove(filepath.Join(dir, ConflistName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("configuration of CNI: %w", err)
	}
	return nil
}

// Install copies programs from one folder to another where they differ. Those
// that are not in the first are left out; required is not.
func Install(from, to, required string, others ...string) (installed []string, err error) {
	for _, name := range append([]string{required}, others...) {
		content, err := os.ReadFile(filepath.Join(from, name))
		if name != required && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		var changed bool
		if err == nil {
			changed, err = put(filepath.Join(to, name), content, 0o755)
		}
		if err != nil {
			return installed, fmt.Errorf("install %s: %w", name, err)
		}
		if changed {
			installed = append(installed, name)
		}
	}
	return installed, nil
}

// put gives a file its content by renaming a whole one into its place.
func put(path string, content []byte, mode fs.FileMode) (changed bool, err error) {
	if has, err := os.ReadFile(path); err == nil && bytes.Equal(has, content) {
		return false, nil
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return false, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(content)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return false, err
	}
	return true, os.Rename(f.Name(), path)
}

package shim

import (
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"

	"github.com/weirnet/weir/shim/pipeline"
	"github.com/weirnet/weir/storage/atomicfile"
)

// owners is whose connections the switch may know: what has to outlive a shim, so
// that the next forgets what the next owner of an address must not have. It is on
// disk before the bundle that it goes with. Like the connections themselves, it
// need not outlive the machine.
type owners struct {
	Open     map[netip.Addr]string `json:"open"` // As loop.open.
	Vacated  []netip.Addr          `json:"vacated,omitempty"`
	Unserved []pipeline.Served     `json:"unserved,omitempty"`
}

const ownersName = "owners"

var ownersFormat = atomicfile.Format{Magic: "WEIROWNR", Version: 1}

// keepOwners writes them if they are others than before.
func (l *loop) keepOwners() {
	same := maps.Equal(l.open, l.kept.Open) && len(l.vacated)+len(l.unserved)+len(l.kept.Vacated)+len(l.kept.Unserved) == 0
	if l.open == nil || same {
		return
	}
	now := owners{Open: l.open, Vacated: slices.Collect(maps.Keys(l.vacated)), Unserved: slices.Collect(maps.Keys(l.unserved))}
	content, err := json.Marshal(now)
	if err != nil {
		panic("shim: encode owners: " + err.Error())
	}
	if l.stored(atomicfile.WriteVolatile(filepath.Join(l.shim.cfg.StateDir, ownersName), ownersFormat, content)) {
		l.kept = now
	}
}

// restoreOwners begins with those that a former shim knew. Where they cannot be
// read, connections are taken for those of whoever has the addresses now.
func (l *loop) restoreOwners() {
	content, err := atomicfile.Read(filepath.Join(l.shim.cfg.StateDir, ownersName), ownersFormat)
	if err == nil {
		err = json.Unmarshal(content, &l.kept)
	}
	if err != nil {
		l.kept = owners{}
		if !errors.Is(err, fs.ErrNotExist) {
			l.shim.logger.Warn("whose the addresses were before cannot be read: connections that they have are left to them", "err", err)
		}
		return
	}
	l.open = l.kept.Open
	for _, a := range l.kept.Vacated {
		l.vacated[a] = struct{}{}
	}
	for _, s := range l.kept.Unserved {
		l.unserved[s] = struct{}{}
	}
}

package shim

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/weirnet/weir/shim/dns"
	"github.com/weirnet/weir/shim/pipeline"
	"github.com/weirnet/weir/storage"
	"github.com/weirnet/weir/storage/atomicfile"
	"github.com/weirnet/weir/storage/checkpoint"
)

// save writes the checkpoint if something changed, at most once an interval.
func (l *loop) save(now bool) {
	if l.compiler == nil || !l.unsaved && l.compiler.Revision() == l.savedAs || (!now && time.Since(l.saved) < checkpointInterval) {
		return
	}
	state := l.holder.Snapshot()
	if state == nil {
		return
	}
	err := checkpoint.Save(l.shim.cfg.checkpoint(), checkpoint.Checkpoint{
		Node: l.shim.cfg.Node, State: state, Assignment: l.compiler.Assignment().Encode()})
	if err != nil {
		l.failed(err)
		return
	}
	l.unsaved, l.saved, l.savedAs = false, time.Now(), l.compiler.Revision()
}

// restore reads the checkpoint; without one the shim begins with nothing.
func restore(cfg *Config) (*storage.Replica, pipeline.Assignment, bool) {
	replica := &storage.Replica{}
	c, err := checkpoint.Load(cfg.checkpoint(), cfg.Node)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			cfg.Logger.Warn("starting without a checkpoint; unknown Pods stay closed", "err", err)
		}
		return replica, pipeline.Assignment{}, false
	}
	if _, _, err := replica.Apply(c.State); err != nil {
		cfg.Logger.Warn("starting without a checkpoint; unknown Pods stay closed", "err", err)
		return &storage.Replica{}, pipeline.Assignment{}, false
	}
	assignment, err := pipeline.DecodeAssignment(c.Assignment)
	if err != nil {
		cfg.Logger.Warn("the checkpoint's assignment cannot be used; flows get new ids", "err", err)
	}
	return replica, assignment, true
}

// What names stand for is a file of its own: it changes where the state does not.
var namesFormat = atomicfile.Format{Magic: "WEIRNAME", Version: 1}

const namesFile = "names"

// saveNames writes what names stand for.
func (l *loop) saveNames() {
	if err := atomicfile.Write(filepath.Join(l.shim.cfg.StateDir, namesFile), namesFormat, l.cache.Encode()); err != nil {
		l.failed(fmt.Errorf("store what names stand for: %w", err))
	}
}

// restoreNames reads what saveNames wrote; without it, names are learned anew.
func restoreNames(cfg *Config) *dns.Cache {
	cache := dns.NewCache(cfg.NameMinTTL)
	b, err := atomicfile.Read(filepath.Join(cfg.StateDir, namesFile), namesFormat)
	if err == nil {
		err = cache.Decode(b, time.Now())
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		cfg.Logger.Warn("what names stand for is learned anew", "err", err)
		return dns.NewCache(cfg.NameMinTTL)
	}
	return cache
}

package shim

import (
	"errors"
	"io/fs"
	"time"

	"github.com/weirnet/weir/shim/dns"
	"github.com/weirnet/weir/shim/pipeline"
	"github.com/weirnet/weir/storage"
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
		Node: l.shim.cfg.Node, State: state, Assignment: l.compiler.Assignment().Encode(), Names: l.cache.Encode()})
	if err != nil {
		l.failed(err)
		return
	}
	l.unsaved, l.saved, l.savedAs = false, time.Now(), l.compiler.Revision()
}

// restore reads the checkpoint; without one the shim begins with nothing.
func restore(cfg *Config, names *dns.Cache) (*storage.Replica, pipeline.Assignment, bool) {
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
	if len(c.Names) > 0 {
		if err := names.Decode(c.Names, time.Now()); err != nil {
			cfg.Logger.Warn("what names stand for is to be learned anew", "err", err)
		}
	}
	return replica, assignment, true
}

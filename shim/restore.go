package shim

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/weirnet/weir/shim/dns"
	"github.com/weirnet/weir/shim/pipeline"
	"github.com/weirnet/weir/storage"
	"github.com/weirnet/weir/storage/atomicfile"
	"github.com/weirnet/weir/storage/checkpoint"
	"github.com/weirnet/weir/storage/faultpoint"
)

// save writes the checkpoint if something changed, at most once an interval.
func (l *loop) save(now bool) {
	if l.compiler == nil || !l.unsaved && l.compiler.Revision() == l.savedAs || (!now && time.Since(l.saved) < checkpointInterval) {
		return
	}
	var encoded []byte
	var digest storage.Digest
	l.holder.View(func(state *storage.Replica) {
		if state.Revision() != 0 {
			encoded, digest = state.EncodedSnapshot(), state.Digest()
		}
	})
	if encoded == nil {
		return
	}
	if !l.stored(checkpoint.SaveEncoded(l.shim.cfg.checkpoint(), l.shim.cfg.Node, encoded, l.compiler.Assignment().Encode())) {
		return
	}
	l.noteState(digest) // It may be ahead of what is in force, and is what a restart is to bring.
	faultpoint.Reach("shim.checkpoint.saved")
	l.unsaved, l.saved, l.savedAs = false, time.Now(), l.compiler.Revision()
}

// stored logs once for as long as it lasts why a file of the state folder cannot
// be written, and says whether it was.
func (l *loop) stored(err error) bool {
	switch {
	case err == nil:
		l.unstored = ""
	case err.Error() != l.unstored:
		l.unstored = err.Error()
		l.shim.logger.Error("a shim that begins now may not know what is in force, and waits for the policy service; trying on", "err", err)
	}
	return err == nil
}

// restored is what a shim begins with.
type restored struct {
	replica    *storage.Replica
	assignment pipeline.Assignment
	complete   bool               // It is what is in force. Else there is neither state nor assignment.
	addresses  pipeline.Addresses // That Pods had by the checkpoint, in any case.
}

// restore reads the checkpoint. Without one, or with one that is older than what
// is in force, the shim begins with nothing: what is in force stays as it is until
// there is a state of the policy service.
func restore(cfg *Config) (r restored) {
	replica, assignment, err := readCheckpoint(cfg)
	if err == nil {
		r.addresses = pipeline.AddressesOf(replica)
		err = behind(cfg, replica.Digest())
	}
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			cfg.Logger.Warn("starting without a checkpoint; what is in force stays, and unknown Pods stay closed", "err", err)
		}
		r.replica = &storage.Replica{}
		return r
	}
	r.replica, r.assignment, r.complete = replica, assignment, true
	return r
}

// readCheckpoint is the state that a checkpoint has, and the assignment, if it has
// one that can be used.
func readCheckpoint(cfg *Config) (*storage.Replica, pipeline.Assignment, error) {
	state, places, err := checkpoint.LoadEncoded(cfg.checkpoint(), cfg.Node)
	if err != nil {
		return nil, pipeline.Assignment{}, err
	}
	replica := &storage.Replica{}
	if _, _, err := replica.ApplyEncoded(state); err != nil {
		return nil, pipeline.Assignment{}, fmt.Errorf("checkpoint %s: %w", cfg.checkpoint(), err)
	}
	assignment, err := pipeline.DecodeAssignment(places)
	if err != nil {
		cfg.Logger.Warn("the checkpoint's assignment cannot be used; flows get new ids", "err", err)
	}
	return replica, assignment, nil
}

// The checkpoint is up to a second behind what is in force, and an older one may
// be put in its place. To go on from that would undo what the policy service was
// told to be in force. So the digest of each state is noted, in a file of its own,
// before it comes to the bridge. It is not synced: when the machine itself fails,
// the flows are gone that it is about.
const stateName = "state.digest"

// noteState notes which state is brought to the bridge.
func (l *loop) noteState(d storage.Digest) {
	var err error
	if l.state == nil {
		l.state, err = os.OpenFile(filepath.Join(l.shim.cfg.StateDir, stateName), os.O_CREATE|os.O_WRONLY, 0o600)
	}
	if err == nil {
		_, err = l.state.WriteAt(d.Bytes(), 0)
	}
	if err != nil {
		l.stored(fmt.Errorf("note the state in force: %w", err))
	}
	faultpoint.Reach("shim.apply.noted")
}

// behind is an error where another state than this one was brought to the bridge
// last.
func behind(cfg *Config, held storage.Digest) error {
	path := filepath.Join(cfg.StateDir, stateName)
	noted, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("read the state in force: %w", err)
	}
	if last, ok := storage.DigestFromBytes(noted); !ok || last != held {
		return fmt.Errorf("checkpoint %s has the state %s, and by %s the one in force is %x", cfg.checkpoint(), held, path, noted)
	}
	return nil
}

// What names stand for is a file of its own: it changes where the state does not.
var namesFormat = atomicfile.Format{Magic: "WEIRNAME", Version: 1}

const namesFile = "names"

// saveNames writes what names stand for.
func (l *loop) saveNames() {
	if err := atomicfile.Write(filepath.Join(l.shim.cfg.StateDir, namesFile), namesFormat, l.cache.Encode()); err != nil {
		l.stored(fmt.Errorf("store what names stand for: %w", err))
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

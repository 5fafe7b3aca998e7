package manifests

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/hashicorp/go-hclog"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/json"

	"github.com/weirnet/weir/services/policy/api"
)

// Config of a Source.
type Config struct {
	Dir    string       // The folder. Required, and it must exist.
	Logger hclog.Logger // Nil: nothing is logged.
	// Debounce is how long the folder must be quiet before it is read. Zero: 50 ms.
	Debounce time.Duration
	// Versions has batches say what policies, tiers and groups are as they are
	// written.
	Versions bool
	// Rescan is how often the folder is read without notice of a change, since
	// some file systems give none. Zero: 10 s.
	Rescan time.Duration
}

// Batch is one reading of the folder.
type Batch struct {
	// Events are what differs from the batch before, each object at most once.
	// Empty where only problems or the position changed.
	Events []api.Event
	// Sequence counts the batches that had events, the first batch being 1.
	Sequence uint64
	// Position is how far the folder has been read: when a file or folder in it
	// last changed, in Unix nanoseconds. It never goes back, and readers of one
	// folder that have read the same say the same.
	Position uint64
	// Synced says that the folder has been read as a whole: true from the
	// first batch on.
	Synced bool
	// Problems are all that are known at this reading.
	Problems []Problem
}

// Source watches a folder.
type Source struct {
	cfg     Config
	log     hclog.Logger
	batches chan Batch

	// Owned by Run.
	catalog  *catalog
	stamps   map[string]stamp // Of the files as they were read.
	watched  map[string]bool
	warnings []Problem
	judged   time.Time     // When objects were last judged beside each other,
	judging  time.Duration // and how long that took.
	sequence uint64
	position uint64
	sent     bool

	mu       sync.Mutex // Guards problems.
	problems []Problem
}

// maxDebounces bounds how long a folder that never rests delays its reading.
const maxDebounces = 20

// New checks the configuration.
func New(cfg Config) (*Source, error) {
	if cfg.Dir == "" {
		return nil, errors.New("manifest folder: no path given")
	}
	info, err := os.Stat(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("manifest folder: %w", err)
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("manifest folder: %s is a file", cfg.Dir)
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	if cfg.Debounce <= 0 {
		cfg.Debounce = 50 * time.Millisecond
	}
	if cfg.Rescan <= 0 {
		cfg.Rescan = 10 * time.Second
	}
	s := &Source{
		cfg:     cfg,
		log:     cfg.Logger,
		batches: make(chan Batch),
		catalog: newCatalog(),
		stamps:  map[string]stamp{},
		watched: map[string]bool{},
	}
	if cfg.Versions {
		s.catalog.record = s.record
	}
	return s, nil
}

// record makes the version of an object. An entry of a list may not say what
// kind it is.
func (s *Source) record(ref api.Ref, raw []byte, former *api.Version) *api.Version {
	var o unstructured.Unstructured
	err := json.Unmarshal(raw, &o.Object)
	var v *api.Version
	if err == nil {
		apiVersion, kind := api.Written(ref.Kind)
		o.SetAPIVersion(apiVersion)
		o.SetKind(kind)
		v, err = api.RecordVersion(&o, former, time.Now())
	}
	if err != nil {
		s.log.Error("what an object says cannot be kept", "object", ref, "err", err)
	}
	return v
}

// Batches is where the batches come. While nobody receives, changes gather in
// the folder and arrive as one batch. It is closed when Run returns.
func (s *Source) Batches() <-chan Batch { return s.batches }

// Problems are what is wrong with the folder's files now.
func (s *Source) Problems() []Problem {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Problem(nil), s.problems...)
}

// Run reads the folder and watches it until the context ends. Losing the
// folder is not the end of it.
func (s *Source) Run(ctx context.Context) error {
	defer close(s.batches)
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch manifest folder: %w", err)
	}
	defer watcher.Close()
	ticker := time.NewTicker(s.cfg.Rescan)
	defer ticker.Stop()

	if err := s.read(ctx, watcher); err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-watcher.Events:
			s.settle(ctx, watcher)
		case err := <-watcher.Errors:
			s.log.Warn("watching the manifest folder failed, it is read anew", "dir", s.cfg.Dir, "err", err)
			s.settle(ctx, watcher)
		case <-ticker.C:
		}
		if err := s.read(ctx, watcher); err != nil {
			return err
		}
	}
}

// settle waits until the folder has been quiet for the debounce, but not for ever.
func (s *Source) settle(ctx context.Context, watcher *fsnotify.Watcher) {
	quiet := time.NewTimer(s.cfg.Debounce)
	defer quiet.Stop()
	limit := time.NewTimer(maxDebounces * s.cfg.Debounce)
	defer limit.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-watcher.Events:
			quiet.Reset(s.cfg.Debounce)
		case <-watcher.Errors:
		case <-quiet.C:
			return
		case <-limit.C:
			return
		}
	}
}

// read takes in the folder, and hands on what changed. It returns an error
// only when the context has ended before the hand-over.
func (s *Source) read(ctx context.Context, watcher *fsnotify.Watcher) error {
	var found *listing
	for try := 0; ; try++ {
		before, err := list(s.cfg.Dir)
		if err != nil {
			return s.publish(ctx, []Problem{{Path: ".", Violation: api.Violation{Message: err.Error() + "; everything that was in force stays"}}}, false)
		}
		s.watch(watcher, before.folders)
		writing := s.writing(&before)
		if last := try == maxDebounces; last || writing == "" {
			s.take(&before)
			// Agreeing listings before and after reading show that what was read stood together.
			after, err := list(s.cfg.Dir)
			if err == nil && before.same(&after) || last {
				found = &before
				break
			}
			writing = s.writing(&after)
		}
		if writing != "" {
			s.log.Debug("a file is being written; it is read once it rests", "file", writing)
		}
		s.settle(ctx, watcher)
		if ctx.Err() != nil {
			return nil
		}
	}
	s.catalog.keep(func(path string) bool {
		_, there := found.files[path]
		return there || found.covers(path)
	})
	before := s.position
	s.position = max(s.position, uint64(found.newest))
	moved := s.position > before
	for path := range s.stamps {
		if _, there := found.files[path]; !there {
			delete(s.stamps, path)
		}
	}
	var problems []Problem
	for path, err := range found.failed {
		problems = append(problems, problemsOf(path, err)...)
	}
	return s.publish(ctx, problems, moved)
}

// writing is a file that differs from what was read of it and was written to
// within the debounce, if there is one: the writer may be in the middle of it.
func (s *Source) writing(l *listing) (path string) {
	for path, now := range l.files {
		if s.stamps[path] != now && now.age() < s.cfg.Debounce {
			return path
		}
	}
	return ""
}

// take reads the files that differ from what was read of them before.
func (s *Source) take(l *listing) {
	for path, now := range l.files {
		if old, read := s.stamps[path]; read && old == now {
			continue
		}
		// A clock tick may hide a second write behind the same stamp: what
		// changed a moment ago is read again next time.
		if now.age() > s.cfg.Debounce/2 {
			s.stamps[path] = now
		}
		text, err := os.ReadFile(filepath.Join(s.cfg.Dir, path))
		if err != nil {
			delete(s.stamps, path)
			s.catalog.fail(path, err)
			continue
		}
		s.catalog.set(path, text)
	}
}

// watch follows the folders of a listing.
func (s *Source) watch(watcher *fsnotify.Watcher, folders []string) {
	now := map[string]bool{}
	for _, dir := range folders {
		now[dir] = true
		// Adding again is no error, and needed where a folder was replaced by one of its name.
		if err := watcher.Add(dir); err != nil && !s.watched[dir] {
			s.log.Warn("folder cannot be watched, it is read at intervals", "dir", dir, "err", err)
		}
	}
	for dir := range s.watched {
		if !now[dir] {
			_ = watcher.Remove(dir) // It is gone, and mostly its watch with it.
		}
	}
	s.watched = now
}

// publish hands on what changed, if anything did, be it the position alone.
func (s *Source) publish(ctx context.Context, extra []Problem, moved bool) error {
	events, problems, warnings := s.catalog.diff()
	problems = append(problems, extra...)
	sortProblems(problems)

	s.mu.Lock()
	changed := !reflect.DeepEqual(problems, s.problems) && len(problems)+len(s.problems) > 0
	former := s.problems
	s.problems = problems
	s.mu.Unlock()

	s.report(problems, former)
	// Warnings come last: nothing that is to be enforced waits for them.
	defer func() {
		s.judge()
		s.warn(append(warnings, s.catalog.judged()...))
	}()
	if len(events) == 0 && !changed && !moved && s.sent {
		return nil
	}
	if len(events) > 0 || !s.sent {
		s.sequence++
	}
	s.sent = true
	select {
	case s.batches <- Batch{Events: events, Sequence: s.sequence, Position: s.position, Synced: true, Problems: problems}:
	case <-ctx.Done():
	}
	return nil
}

// report logs the problems that are new, and says when all are gone.
func (s *Source) report(problems, former []Problem) {
	known := map[Problem]bool{}
	for _, p := range former {
		known[p] = true
	}
	for _, p := range problems {
		switch {
		case known[p]:
		case p.alone:
			s.log.Error("object cannot stand beside others and is not in force as it is written",
				"file", p.Path, "document", p.Document, "line", p.Line, "object", p.Name(), "field", p.Field, "err", p.Message)
		default:
			s.log.Error("manifest has a problem, its last good content stays in force",
				"file", p.Path, "document", p.Document, "line", p.Line, "object", p.Name(), "field", p.Field, "err", p.Message)
		}
	}
	if len(former) > 0 && len(problems) == 0 {
		s.log.Info("manifests have no problems any more", "dir", s.cfg.Dir)
	}
}

// judge looks for warnings between objects, in a twentieth of the time at most:
// what it passes over while much changes is looked at by a later reading, of
// which there is one at every Rescan.
func (s *Source) judge() {
	begin := time.Now()
	if begin.Sub(s.judged) < 20*s.judging {
		return
	}
	s.catalog.judge()
	s.judged = time.Now()
	s.judging = s.judged.Sub(begin)
}

// mostWarnings bounds what is logged of one reading: a folder may have a
// hundred thousand selectors that match nothing.
const mostWarnings = 100

// warn logs the warnings that are new.
func (s *Source) warn(warnings []Problem) {
	known := make(map[Problem]bool, len(s.warnings))
	for _, p := range s.warnings {
		known[p] = true
	}
	told, more := 0, 0
	for _, p := range warnings {
		switch {
		case known[p]:
		case told == mostWarnings:
			more++
		default:
			told++
			s.log.Warn("manifest has a warning", "file", p.Path, "document", p.Document, "line", p.Line, "object", p.Name(), "field", p.Field, "warning", p.Message)
		}
	}
	if more > 0 {
		s.log.Warn("manifests have more warnings, which weirctl validate shows", "dir", s.cfg.Dir, "more", more)
	}
	s.warnings = warnings
}

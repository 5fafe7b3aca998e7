package manifests

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/weirnet/weir/services/policy/api"
)

// folder is a watched folder under test. Its paths are relative.
type folder struct {
	t      *testing.T
	dir    string
	source *Source
	log    *lines

	position uint64 // Of the last batch expected.
}

// watch starts a source on a folder that holds some files already.
func watch(t *testing.T, files map[string]string, rescan time.Duration) *folder {
	t.Helper()
	return watchSlowly(t, files, rescan, 40*time.Millisecond)
}

func watchSlowly(t *testing.T, files map[string]string, rescan, debounce time.Duration) *folder {
	t.Helper()
	f := &folder{t: t, dir: t.TempDir(), log: newLines()}
	for path, text := range files {
		f.write(path, text)
	}
	var err error
	f.source, err = New(Config{Dir: f.dir, Debounce: debounce, Rescan: rescan,
		Logger: hclog.New(&hclog.LoggerOptions{Output: f.log, Level: hclog.Debug})})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.source.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	return f
}

// lines are what a source logs.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
	more chan struct{} // Holds a token since the last line.
}

func newLines() *lines { return &lines{more: make(chan struct{}, 1)} }

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case l.more <- struct{}{}:
	default:
	}
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// unread waits until the log has the part behind its first bytes. Until then no
// batch may tell of more than the position.
func (f *folder) unread(first int, part string) {
	f.t.Helper()
	limit := time.After(20 * time.Second)
	for !strings.Contains(f.log.String()[first:], part) {
		select {
		case <-f.log.more:
		case b := <-f.source.Batches():
			if len(b.Events)+len(b.Problems) > 0 {
				f.t.Fatalf("got %q and %v before the log had %q", told(b.Events), b.Problems, part)
			}
		case <-limit:
			f.t.Fatalf("the log never had %q:\n%s", part, f.log)
		}
	}
}

func (f *folder) path(rel string) string { return filepath.Join(f.dir, rel) }

func (f *folder) must(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

// write replaces a file at once: half a file must not be read however slow the machine.
func (f *folder) write(rel, text string) {
	f.t.Helper()
	f.must(os.MkdirAll(filepath.Dir(f.path(rel)), 0o755))
	temporary := filepath.Join(filepath.Dir(f.path(rel)), ".half")
	f.must(os.WriteFile(temporary, []byte(text), 0o644))
	f.must(os.Rename(temporary, f.path(rel)))
}

// next waits for a batch.
func (f *folder) next() Batch {
	f.t.Helper()
	select {
	case b := <-f.source.Batches():
		return b
	case <-time.After(20 * time.Second):
		f.t.Fatal("no batch came")
	}
	return Batch{}
}

// expect waits for a batch with certain events. Batches before it that tell of
// nothing but the position are passed over.
func (f *folder) expect(events string, sequence uint64) Batch {
	f.t.Helper()
	b := f.next()
	for events != "" && len(b.Events) == 0 && len(b.Problems) == 0 {
		b = f.next()
	}
	if b.Position < f.position {
		f.t.Fatalf("the position went from %d back to %d", f.position, b.Position)
	}
	f.position = b.Position
	if got := told(b.Events); got != events || b.Sequence != sequence || !b.Synced {
		f.t.Fatalf("got %q as %d (synced %v), want %q as %d; problems %v", got, b.Sequence, b.Synced, events, sequence, b.Problems)
	}
	return b
}

func TestSourceReadsAndFollows(t *testing.T) {
	f := watch(t, map[string]string{"a.yaml": namespace("a", "1"), "sub/deep/b.yml": namespace("b", "1"), ".hidden.yaml": namespace("x", "1"),
		".git/c.yaml": namespace("x", "1"), "notes.txt": "no manifest", "j.json": `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"j"}}`}, time.Hour)
	f.expect("+a=1 +b=1 +j=", 1)
	f.write("a.yaml", namespace("a", "2"))
	f.expect("+a=2", 2)
	f.write("sub/deep/b.yml", namespace("b", "2"))
	f.expect("+b=2", 3)
	f.write("new/er/c.yaml", namespace("c", "1"))
	f.expect("+c=1", 4)
	f.write("new/er/c.yaml", namespace("c", "2"))
	f.expect("+c=2", 5)
	f.must(os.RemoveAll(f.path("new")))
	f.expect("-c", 6)
	f.must(os.Rename(f.path("a.yaml"), f.path(".a.yaml")))
	f.expect("-a", 7)
}

// Readers of one folder come to the same position, whenever they began.
func TestPositionsOfTwoReadersAgree(t *testing.T) {
	f := watch(t, map[string]string{"a.yaml": namespace("a", "1")}, time.Hour)
	first := f.expect("+a=1", 1)
	f.write("sub/b.yaml", namespace("b", "1"))
	second := f.expect("+b=1", 2)
	other, err := New(Config{Dir: f.dir})
	f.must(err)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go other.Run(ctx)
	if b := <-other.Batches(); b.Position != second.Position || b.Position <= first.Position {
		t.Errorf("positions %d, then %d; of the other reader %d", first.Position, second.Position, b.Position)
	}
}

func TestSourceSendsAnEmptyFolderToo(t *testing.T) {
	f := watch(t, nil, time.Hour)
	f.expect("", 1)
	f.write("a.yaml", namespace("a", "1"))
	f.expect("+a=1", 2)
}

func TestManyFilesAreOneBatch(t *testing.T) {
	// The debounce is long enough that no pause between the writes ends it.
	f := watchSlowly(t, map[string]string{"a.yaml": namespace("a", "1"), "b.yaml": namespace("b", "1")}, time.Hour, time.Second)
	f.expect("+a=1 +b=1", 1)
	// What a tool does that writes beside and renames.
	for _, name := range []string{"a", "b", "c"} {
		f.write(name+".yaml", namespace(name, "2"))
	}
	f.expect("+a=2 +b=2 +c=2", 2)
}

// A mounted ConfigMap: files are links through ..data, which is swapped.
func TestConfigMapMount(t *testing.T) {
	mount := map[string]string{"..1/a.yaml": namespace("a", "1"), "..1/b.yaml": namespace("b", "1"), "..2/a.yaml": namespace("a", "2"), "..2/b.yaml": namespace("b", "2")}
	f := watch(t, mount, time.Hour)
	f.must(os.Symlink("..1", f.path("..data")))
	f.must(os.Symlink("..data/a.yaml", f.path("a.yaml")))
	f.must(os.Symlink("..data/b.yaml", f.path("b.yaml")))
	var got string
	var before uint64
	for got != "+a=1 +b=1" { // The links may be made before or behind the first reading.
		b := f.next()
		got, before = strings.TrimSpace(got+" "+told(b.Events)), b.Sequence
	}
	f.must(os.Symlink("..2", f.path("..tmp")))
	f.must(os.Rename(f.path("..tmp"), f.path("..data")))
	f.expect("+a=2 +b=2", before+1)
}

func TestABadFileIsToldOf(t *testing.T) {
	f := watch(t, map[string]string{"a.yaml": namespace("a", "1")}, time.Hour)
	f.expect("+a=1", 1)
	f.write("a.yaml", namespace("a", "2")+"---\napiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {nodNme: n}\n")
	b := f.expect("", 1)
	want := "a.yaml:6: Pod p: spec.nodNme: unknown field"
	if len(b.Problems) != 1 || !strings.HasPrefix(b.Problems[0].String(), want) {
		t.Errorf("problems of the batch: %v", b.Problems)
	}
	if p := f.source.Problems(); len(p) != 1 || p[0] != b.Problems[0] {
		t.Errorf("problems: %v", p)
	}
	f.write("a.yaml", namespace("a", "3"))
	if b := f.expect("+a=3", 2); len(b.Problems) > 0 {
		t.Errorf("problems stay: %v", b.Problems)
	}
	// The log is complete once the batch behind it is out.
	for _, part := range []string{"file=a.yaml", "document=2", `object="Pod p"`, "field=spec.nodNme", "manifests have no problems any more"} {
		if !strings.Contains(f.log.String(), part) {
			t.Errorf("the log lacks %s:\n%s", part, f.log)
		}
	}
}

// Without notice of changes, as on some network file systems, the rescan finds them.
func TestRescan(t *testing.T) {
	outside := &folder{t: t, dir: t.TempDir()}
	outside.write("real.yaml", namespace("a", "1"))
	f := watch(t, nil, 30*time.Millisecond)
	f.expect("", 1)
	// The link's target lies in no watched folder.
	f.must(os.Symlink(outside.path("real.yaml"), f.path("a.yaml")))
	f.expect("+a=1", 2)
	outside.write("real.yaml", namespace("a", "2"))
	f.expect("+a=2", 3)
}

// A file that is being written in place is not read before it has rested, also
// where no notice of the change came: half of it would withdraw objects.
func TestHalfAFileIsNotRead(t *testing.T) {
	outside := &folder{t: t, dir: t.TempDir()}
	outside.write("real.yaml", namespace("a", "1")+namespace("b", "1"))
	f := watchSlowly(t, nil, 30*time.Millisecond, 2*time.Second)
	f.expect("", 1)
	f.must(os.Symlink(outside.path("real.yaml"), f.path("a.yaml")))
	f.expect("+a=1 +b=1", 2)
	logged := len(f.log.String())
	file, err := os.OpenFile(outside.path("real.yaml"), os.O_WRONLY|os.O_TRUNC, 0)
	f.must(err)
	_, err = file.WriteString(namespace("a", "2"))
	f.must(err)
	f.unread(logged, "a file is being written; it is read once it rests: file=a.yaml") // A rescan has seen half of it.
	_, err = file.WriteString(namespace("b", "1"))
	f.must(err)
	f.must(file.Close())
	f.expect("+a=2", 3)
}

func TestTheFolderItselfGoes(t *testing.T) {
	f := watch(t, map[string]string{"in/a.yaml": namespace("a", "1")}, 50*time.Millisecond)
	f.expect("+a=1", 1)
	f.must(os.Rename(f.dir, f.dir+".away"))
	b := f.expect("", 1)
	if len(b.Problems) != 1 || !strings.Contains(b.Problems[0].String(), "everything that was in force stays") {
		t.Errorf("problems: %v", b.Problems)
	}
	f.must(os.Rename(f.dir+".away", f.dir))
	if b := f.expect("", 1); len(b.Problems) > 0 {
		t.Errorf("problems: %v", b.Problems)
	}
}

func TestLinksInACircle(t *testing.T) {
	f := watch(t, map[string]string{"sub/a.yaml": namespace("a", "1")}, time.Hour)
	f.expect("+a=1", 1)
	f.must(os.Symlink("..", f.path("sub/up")))
	f.write("b.yaml", namespace("b", "1"))
	f.expect("+b=1", 2)
}

func TestNewRefuses(t *testing.T) {
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]string{"": "no path given", "/nowhere/at/all": "no such file", file: "is a file"} {
		if _, err := New(Config{Dir: dir}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", dir, err, want)
		}
	}
}

func TestLoad(t *testing.T) {
	f := &folder{t: t, dir: t.TempDir()}
	f.write("a.yaml", namespace("a", "1"))
	f.write("sub/b.yaml", namespace("b", "1")+namespace("a", "2")+namespace("BAD", "1"))
	f.write("odd.name", namespace("odd", "1"))
	l, err := Load(f.dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(l.Objects) != 2 || l.Files != 2 || len(l.Problems) != 2 {
		t.Errorf("got %d objects of %d files, problems %v", len(l.Objects), l.Files, l.Problems)
	}
	if l, err := Load(f.path("odd.name")); err != nil || len(l.Objects) != 1 || len(l.Problems) > 0 {
		t.Errorf("a single file of any name: %+v, %v", l, err)
	}
	if _, err := Load(f.path("absent")); err == nil {
		t.Error("an absent file is no error")
	}
}

// One object is refused beside another, and the rest of its file is in force.
func TestRefusedObjectsAreTold(t *testing.T) {
	f := watch(t, map[string]string{"a.yaml": tier("one", 1) + tier("two", 1) + dropIn("p", "two", "")}, time.Hour)
	b := f.next()
	told := slices.ContainsFunc(b.Events, func(ev api.Event) bool {
		return ev.Ref.Name == "two" && ev.Object == nil && ev.Fault == "spec.priority: 1 is the priority of Tier one too; write another"
	})
	if len(b.Events) != 3 || !told || len(b.Problems) != 1 || !strings.Contains(b.Problems[0].String(), "a.yaml:7: Tier two: spec.priority") {
		t.Errorf("got %v, problems %v", b.Events, b.Problems)
	}
	f.write("a.yaml", tier("one", 1)+tier("two", 2)+dropIn("p", "two", ""))
	if b = f.next(); len(b.Events) != 1 || len(b.Problems) > 0 {
		t.Errorf("got %v, problems %v", b.Events, b.Problems)
	}
	// The batch after says that what is logged of the first has been logged.
	for _, want := range []string{"object cannot stand beside others and is not in force", "Tier two does not exist; the policy is held back"} {
		if log := f.log.String(); !strings.Contains(log, want) {
			t.Errorf("%q is missing in the log:\n%s", want, log)
		}
	}
}

func TestLoadJudgesAllPathsTogether(t *testing.T) {
	f := &folder{t: t, dir: t.TempDir()}
	f.write("tiers/a.yaml", tier("one", 1))
	f.write("policies/b.yaml", dropIn("p", "one", ""))
	f.write("more/c.yaml", tier("two", 1))
	if l, err := Load(f.path("tiers"), f.path("policies")); err != nil || len(l.Objects) != 2 || l.Files != 2 || len(l.Problems)+len(l.Warnings) > 0 {
		t.Errorf("got %+v, %v", l, err)
	}
	if l, err := Load(f.path("policies")); err != nil || len(l.Problems) > 0 || len(l.Warnings) != 1 || !strings.Contains(l.Warnings[0].String(), "b.yaml:2: AntreaClusterNetworkPolicy p: spec.tier: Tier one does not exist") {
		t.Errorf("got %+v, %v", l, err)
	}
	if l, err := Load(f.path("tiers"), f.path("more")); err != nil || len(l.Objects) != 1 || len(l.Problems) != 1 || !strings.Contains(l.Problems[0].String(), "c.yaml:2: Tier two: spec.priority: 1") {
		t.Errorf("got %+v, %v", l, err)
	}
}

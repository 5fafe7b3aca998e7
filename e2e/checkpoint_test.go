package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/e2e/harness"
	"github.com/weirnet/weir/storage/checkpoint"
)

// checkpointed is a node whose shim is killed, and what goes on there.
type checkpointed struct {
	*dying
	client, remote *harness.Host
	path           string
}

func newCheckpointed(t *testing.T) *checkpointed {
	t.Helper()
	c := smallCluster(t)
	n := c.Nodes["node-1"]
	return &checkpointed{dying: &dying{c: c, node: n}, client: c.Pod("default/client"), remote: c.Pod("default/remote"), path: filepath.Join(n.OVS.Dir, "state", "checkpoint")}
}

// change has the policy service know of a policy more, of that number, that lets
// client in to nginx, and of none that lets remote in from number 1 on.
func (c *checkpointed) change(t *testing.T, number int) {
	t.Helper()
	from := "[{podSelector: {matchLabels: {app: client}}}]"
	if number == 0 {
		from = "[{podSelector: {}}]"
	}
	set(t, c.c, smallObjects(false), policy("nginx", "{podSelector: {matchLabels: {app: nginx}}, ingress: [{from: "+from+", ports: [{port: 80}, {port: 8000, protocol: UDP}]}]}"),
		policy(fmt.Sprint("more-", number), fmt.Sprintf("{podSelector: {matchLabels: {app: nginx}}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: %d}]}]}", 9000+number)))
}

// saved waits until the checkpoint has what is in force.
func (c *checkpointed) saved(t *testing.T) {
	t.Helper()
	eventually(t, func() error {
		held, err := checkpoint.Load(c.path, "node-1")
		if err != nil {
			return err
		}
		noted, err := os.ReadFile(filepath.Join(filepath.Dir(c.path), "state.digest"))
		if err == nil && !slices.Equal(noted, held.State.GetDigest()) {
			err = errors.New("the checkpoint is behind")
		}
		return err
	})
}

// enforced fails unless what the policies say is so.
func (c *checkpointed) enforced(t *testing.T) {
	t.Helper()
	outcomes(t, []harness.Probe{tcp(c.client, "10.9.1.2"), tcp(c.client, "fd09:1::2"), tcp(c.remote, "10.9.1.2")}, harness.Allow, harness.Allow, harness.Drop)
}

// untouched fails where a shim without a state touched a flow, but for the number
// of the revision.
func (c *checkpointed) untouched(t *testing.T, before map[string]time.Time) {
	t.Helper()
	after := births(t, c.node)
	for f, born := range before {
		if now, there := after[f]; (!there || now.Sub(born) > 200*time.Millisecond) && !strings.HasPrefix(f, "table=9,") {
			t.Errorf("without a policy service the shim touched %s", f)
		}
	}
}

// labelled are the ids of rules that connections carry.
func labelled(t *testing.T, n *harness.Node) map[uint64]bool {
	t.Helper()
	out, err := n.OVS.Appctl(t.Context(), "dpctl/dump-conntrack")
	must(t, err)
	ids := make(map[uint64]bool)
	for _, m := range regexp.MustCompile(`labels=0x([0-9a-f]+)`).FindAllStringSubmatch(out, -1) {
		for text := m[1]; text != ""; text = text[:max(0, len(text)-8)] {
			id, err := strconv.ParseUint(text[max(0, len(text)-8):], 16, 64)
			must(t, err)
			ids[id] = true
		}
	}
	delete(ids, 0)
	return ids
}

// ruled are the ids of rules that flows decide by.
func ruled(t *testing.T, n *harness.Node) map[uint64]bool {
	t.Helper()
	ids := make(map[uint64]bool)
	for _, f := range flows(t, n, "cookie=0x5700040000000000/0xff00ff0000000000") {
		var cookie uint64
		_, err := fmt.Sscanf(f, "cookie=%v,", &cookie)
		must(t, err)
		ids[cookie&0xffffffff] = true
	}
	return ids
}

// A checkpoint that cannot be used costs nothing that is in force: without the
// policy service all stays as it was, to the flow; with it the state is in force,
// by ids that no connection carries, and the checkpoint is a good one again.
func TestBadCheckpointsCostNothing(t *testing.T) {
	t.Parallel()
	requireDataplane(t)
	c := newCheckpointed(t)
	c.change(t, 0)
	c.saved(t)
	older, err := os.ReadFile(c.path)
	must(t, err)
	c.change(t, 1)
	numbers := numbered(t, harness.DatagramsConfig{From: c.client, To: c.c.Pod("default/nginx"), Ports: []uint16{8000}, V4: true, V6: true, Every: 5 * time.Millisecond})
	talk := stream(t, c.client, "10.9.1.2")
	edit := func(do func(b []byte) []byte) func() error {
		return func() error {
			b, err := os.ReadFile(c.path)
			if err != nil {
				return err
			}
			return os.WriteFile(c.path, do(b), 0o600)
		}
	}
	version := func(n uint32) func() error {
		return edit(func(b []byte) []byte { binary.BigEndian.PutUint32(b[8:], n); return b })
	}
	for i, bad := range []struct {
		name, says string
		do         func() error
	}{
		{"older", "the one in force is", func() error { return os.WriteFile(c.path, older, 0o600) }},
		{"missing", "", func() error { return os.Remove(c.path) }},
		{"empty", "file is corrupt: no header", edit(func([]byte) []byte { return nil })},
		{"torn in the header", "file is corrupt", edit(func(b []byte) []byte { return b[:20] })},
		{"torn", "file is corrupt", edit(func(b []byte) []byte { return b[:len(b)-1] })},
		{"altered", "file is corrupt: hash differs", edit(func(b []byte) []byte { b[len(b)/2] ^= 4; return b })},
		{"another node's", "checkpoint is of another node", func() error {
			held, err := checkpoint.Load(c.path, "node-1")
			held.Node = "node-2"
			return errors.Join(err, checkpoint.Save(c.path, held))
		}},
		{"of an older version", "file is of another version: 0, not 1", version(0)},
		{"of a newer version", "file is of another version: 2, not 1", version(2)},
		{"a folder", "is a directory", func() error { return errors.Join(os.Remove(c.path), os.Mkdir(c.path, 0o700)) }},
	} {
		c.saved(t)
		c.node.Shim.Kill()
		must(t, bad.do())
		must(t, c.c.Policyd.Pause())
		before, carried := births(t, c.node), labelled(t, c.node)
		if len(carried) == 0 {
			t.Fatal("no connection carries a rule's id")
		}
		lines := len(c.node.Shim.Lines())
		must(t, c.node.Shim.Start())
		eventually(t, func() error {
			if now := strings.Join(c.node.Shim.Lines()[lines:], "\n"); !strings.Contains(now, "connected to switch") || !strings.Contains(now, bad.says) {
				return fmt.Errorf("%s: it does not say %q:\n%s", bad.name, bad.says, now)
			}
			return nil
		})
		c.enforced(t)
		c.untouched(t, before)
		must(t, c.c.Policyd.Resume())
		if bad.name == "a folder" {
			must(t, os.Remove(c.path))
		}
		c.change(t, 2+i)
		c.enforced(t)
		c.intended(t)
		for id := range ruled(t, c.node) {
			if carried[id] {
				t.Errorf("%s: a rule has id %d, which a connection carries of before", bad.name, id)
			}
		}
		if err := numbers.Complete(t.Context(), 2*time.Second); err != nil {
			t.Errorf("%s: %v", bad.name, err)
		}
		if t.Failed() {
			t.FailNow()
		}
	}
	c.saved(t)
	lives(t, "in the end", talk)
}

// Where the state folder is full, policies come into force all the same, the shim
// says so, and neither it nor the next undoes anything; with room again, the
// checkpoint is written.
func TestFullStateFolderStopsNoPolicy(t *testing.T) {
	t.Parallel()
	requireDataplane(t)
	c := newCheckpointed(t)
	c.change(t, 0)
	dir := filepath.Dir(c.path)
	c.node.Shim.Terminate()
	must(t, unix.Mount("weir-test", dir, "tmpfs", 0, "size=256k"))
	t.Cleanup(func() {
		c.node.Shim.Kill()
		must(t, unix.Unmount(dir, unix.MNT_DETACH))
	})
	must(t, c.node.Shim.Start())
	must(t, c.c.Settled(t.Context()))
	c.saved(t)
	filler := filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, make([]byte, 1<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("fill the folder: %v", err)
	}
	c.change(t, 1)
	c.enforced(t)
	eventually(t, func() error {
		if tail := c.node.Shim.Tail(); !strings.Contains(tail, "save checkpoint") || !strings.Contains(tail, "no space left on device") {
			return fmt.Errorf("it does not say why the checkpoint is not written:\n%s", tail)
		}
		return nil
	})
	must(t, c.c.Policyd.Pause())
	c.node.Shim.Kill()
	before := births(t, c.node)
	must(t, c.node.Shim.Start())
	eventually(t, func() error {
		if tail := c.node.Shim.Tail(); !strings.Contains(tail, "starting without a checkpoint") || !strings.Contains(tail, "connected to switch") {
			return fmt.Errorf("it goes on from what is not in force:\n%s", tail)
		}
		return nil
	})
	c.enforced(t)
	c.untouched(t, before)
	must(t, c.c.Policyd.Resume())
	must(t, c.c.Settled(t.Context()))
	c.enforced(t)
	must(t, os.Remove(filler))
	c.saved(t)
	c.intended(t)
	if left, err := filepath.Glob(filepath.Join(dir, ".*")); err != nil && !errors.Is(err, fs.ErrNotExist) || len(left) > 0 {
		t.Errorf("unfinished files are left: %v, %v", left, err)
	}
}

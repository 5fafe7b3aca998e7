package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weirnet/weir/e2e/harness"
)

// checkBridge runs weir-shim check on a node, and returns its exit status and
// what it wrote.
func checkBridge(t *testing.T, n *harness.Node, args ...string) (code int, out string) {
	t.Helper()
	args = append([]string{"check", "--node", n.Name, "--socket", n.Socket(), "--bridge", harness.Bridge, "--ovs-rundir", n.OVS.Dir, "--datapath", "netdev",
		"--state-dir", filepath.Join(filepath.Dir(filepath.Dir(n.Socket())), "state")}, args...)
	cmd := n.NS.Command(t.Context(), filepath.Join(bin, "weir-shim"), args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	} else if err != nil {
		code = exit.ExitCode()
	}
	return code, stdout.String() + stderr.String()
}

// checked is the JSON of weir-shim check.
type checked struct {
	Differences []struct {
		Kind, Object, TableName, Match, Intended, Installed string
		ID, Table, Priority                                 int
		Meaning                                             struct {
			Kind, Pod string
			Rules     []struct {
				Policy struct{ Namespace, Name string }
				Rule   string
			}
		}
	}
	Missing, Changed, Unexpected, Flows, Meters int
	DigestDiffers, Checkpoint                   bool
	Notes                                       []string
}

// weir-shim check finds each flow and meter that somebody removed, changed or
// added, and says what it stood for; with a shim and, by the checkpoint, without.
func TestCheckFindsWhatSomebodyChanged(t *testing.T) {
	t.Parallel()
	c := smallCluster(t, "--reconcile", "1h")
	set(t, c, smallObjects(true), policy("access-nginx", "{podSelector: {matchLabels: {app: nginx}}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}"))
	n := c.Nodes["node-1"]
	ofctl := func(args ...string) string {
		t.Helper()
		out, err := n.OVS.Ofctl(t.Context(), args...)
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	asJSON := func(want int) checked {
		t.Helper()
		code, out := checkBridge(t, n, "-o", "json")
		var r checked
		if err := json.Unmarshal([]byte(out), &r); err != nil || code != want {
			t.Fatalf("status %d, want %d: %v\n%s", code, want, err, out)
		}
		return r
	}
	if r := asJSON(0); r.Flows < 100 || r.Meters < 2 || len(r.Differences)+r.Missing+r.Changed+r.Unexpected > 0 || r.DigestDiffers || r.Checkpoint || len(r.Notes) > 0 {
		t.Fatalf("an untouched bridge: %+v", r)
	}
	if code, out := checkBridge(t, n); code != 0 || !strings.Contains(out, "0 missing, 0 changed, 0 unexpected; the bridge ought to hold ") ||
		!strings.Contains(out, "the node's state is what the policy service sent: digest ") {
		t.Errorf("status %d:\n%s", code, out)
	}

	// Nothing is left of the isolation of nginx; the allow rule lets through what it
	// does not record; a flow of nobody's; a meter that lets everything through.
	rule := ofctl("dump-flows", harness.Bridge, "table=21,cookie=0x5700040000000000/0xff00ff0000000000")
	_, match, _ := strings.Cut(rule, "conj_id=")
	match, _, _ = strings.Cut(match, " ")
	tamper := func(ctx context.Context) {
		for _, args := range [][]string{
			{"del-flows", harness.Bridge, "table=22,cookie=0x5700050000000000/0xff00ff0000000000"},
			{"--strict", "mod-flows", harness.Bridge, "table=21,priority=190,conj_id=" + match + ",actions=goto_table:23"},
			{"add-flow", harness.Bridge, "table=20,priority=65534,ip,nw_src=10.9.9.9,actions=goto_table:23"},
			{"-O", "OpenFlow15", "mod-meter", harness.Bridge, "meter=1,pktps,burst,stats,band=type=drop,rate=1,burst_size=1"},
		} {
			if _, err := n.OVS.Ofctl(ctx, args...); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
		}
	}

	verify := func(r checked) error {
		if r.Missing != 1 || r.Changed != 2 || r.Unexpected != 1 || len(r.Differences) != 4 || r.DigestDiffers {
			return fmt.Errorf("differences %+v", r)
		}
		for i, want := range []struct{ kind, table, meaning, pod, policy, rule string }{
			{"DIFFERENCE_KIND_UNEXPECTED", "AntreaPolicyIngressRule", "foreign", "", "", ""},
			{"DIFFERENCE_KIND_CHANGED", "IngressRule", "rule", "", "access-nginx", "ingress[0]"},
			{"DIFFERENCE_KIND_MISSING", "IngressDefaultRule", "isolation", "default/nginx", "access-nginx", ""},
			{"DIFFERENCE_KIND_CHANGED", "", "", "", "", ""},
		} {
			d := r.Differences[i]
			name, rule := "", ""
			if len(d.Meaning.Rules) > 0 {
				name, rule = d.Meaning.Rules[0].Policy.Name, d.Meaning.Rules[0].Rule
			}
			if d.Kind != want.kind || d.TableName != want.table || d.Meaning.Kind != want.meaning || d.Meaning.Pod != want.pod || name != want.policy || rule != want.rule {
				return fmt.Errorf("difference %d is %+v, want %+v", i, d, want)
			}
		}
		if d := r.Differences[1]; !strings.Contains(d.Intended, "controller(") || strings.Contains(d.Installed, "controller(") {
			return fmt.Errorf("another action: %+v", d)
		}
		if d := r.Differences[3]; d.Object != "meter" || d.ID != 1 || !strings.Contains(d.Intended, "rate=100,") || !strings.Contains(d.Installed, "rate=1,") {
			return fmt.Errorf("another meter: %+v", d)
		}
		return nil
	}
	// Again and again, for the shim puts it right.
	ctx, cancel := context.WithCancel(t.Context())
	var tampering sync.WaitGroup
	tampering.Go(func() {
		for ctx.Err() == nil {
			tamper(ctx)
		}
	})
	defer func() { cancel(); tampering.Wait() }()
	eventually(t, func() error {
		code, out := checkBridge(t, n, "-o", "json")
		var r checked
		if err := json.Unmarshal([]byte(out), &r); err != nil || code != 1 {
			return fmt.Errorf("status %d, want 1: %v\n%s", code, err, out)
		}
		return verify(r)
	})
	eventually(t, func() error {
		code, out := checkBridge(t, n)
		for _, want := range []string{"DIFFERENCE   WHERE", "missing      IngressDefaultRule (22)", "isolation of default/nginx of K8sNetworkPolicy:default/access-nginx",
			"rule of K8sNetworkPolicy:default/access-nginx ingress[0]", "1 missing, 2 changed, 1 unexpected"} {
			if code != 1 || !strings.Contains(out, want) {
				return fmt.Errorf("status %d, and %q is not in:\n%s", code, want, out)
			}
		}
		return nil
	})
	cancel()
	tampering.Wait()

	n.Shim.Terminate()
	tamper(t.Context())
	r := asJSON(1)
	if err := verify(r); err != nil || !r.Checkpoint || len(r.Notes) != 1 {
		t.Errorf("without a shim: %v: %+v", err, r)
	}
	if code, out := checkBridge(t, n, "--state-dir", t.TempDir()); code != 2 || !strings.Contains(out, "no checkpoint") {
		t.Errorf("without a shim or a checkpoint: status %d:\n%s", code, out)
	}
	// A shim that begins mends all of it.
	if err := n.Shim.Start(); err != nil {
		t.Fatal(err)
	}
	err := harness.Eventually(t.Context(), 20*time.Second, func() error {
		if code, out := checkBridge(t, n); code != 0 {
			return errors.New(out)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

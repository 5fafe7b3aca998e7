package manifests

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"

	"github.com/weirnet/weir/services/policy/api"
)

func namespace(name, label string) string {
	return fmt.Sprintf("---\napiVersion: v1\nkind: Namespace\nmetadata: {name: %s, labels: {v: %q}}\n", name, label)
}

// told is events in short: "+a=1" sets Namespace a with label v=1, "-a" removes it.
func told(events []api.Event) string {
	var list []string
	for _, e := range events {
		if e.Object == nil {
			list = append(list, "-"+e.Ref.Name)
			continue
		}
		v, _ := e.Object.(*api.Namespace).Labels.Get("v")
		list = append(list, "+"+e.Ref.Name+"="+v)
	}
	return strings.Join(list, " ")
}

// Each step changes files, then says what follows.
func TestCatalog(t *testing.T) {
	const bad = "apiVersion: v1\nkind: Namespace\nmetadata: {name: x, lables: {}}\n"
	type files map[string]string // Empty text: the file goes.
	for _, test := range []struct {
		name  string
		steps []files
		want  []string
		// Parts of the problems after the last step.
		problems []string
	}{
		{"objects come, change and go",
			[]files{{"f.yaml": namespace("a", "1") + namespace("b", "1")}, {"f.yaml": namespace("a", "2") + namespace("b", "1")}, {"f.yaml": namespace("b", "1")}, {"f.yaml": ""}},
			[]string{"+a=1 +b=1", "+a=2", "-a", "-b"}, nil},
		{"an object moves between files without a trace",
			[]files{{"f.yaml": namespace("a", "1")}, {"f.yaml": "# none", "g.yaml": namespace("a", "1")}},
			[]string{"+a=1", ""}, nil},
		{"a bad file keeps its last good content",
			[]files{{"f.yaml": namespace("a", "1")}, {"f.yaml": namespace("a", "2") + "---\n" + bad}},
			[]string{"+a=1", ""}, []string{"f.yaml:6: Namespace x: metadata.lables: unknown field"}},
		{"a bad file is mended",
			[]files{{"f.yaml": namespace("a", "1")}, {"f.yaml": bad}, {"f.yaml": namespace("a", "3")}},
			[]string{"+a=1", "", "+a=3"}, nil},
		{"a bad file goes, and what it last held with it",
			[]files{{"f.yaml": namespace("a", "1")}, {"f.yaml": bad}, {"f.yaml": ""}},
			[]string{"+a=1", "", "-a"}, nil},
		{"a file that was never good holds nothing",
			[]files{{"f.yaml": bad, "g.yaml": namespace("a", "1")}},
			[]string{"+a=1"}, []string{"f.yaml"}},
		{"the first path wins",
			[]files{{"b.yaml": namespace("a", "b") + namespace("c", "b")}, {"a.yaml": namespace("a", "a")}},
			[]string{"+a=b +c=b", "+a=a"}, []string{"b.yaml:2: Namespace a: defined already in a.yaml"}},
		{"when the first goes, the second takes effect",
			[]files{{"a.yaml": namespace("a", "a"), "b.yaml": namespace("a", "b")}, {"a.yaml": ""}},
			[]string{"+a=a", "+a=b"}, nil},
		{"an object twice in one file makes the file bad",
			[]files{{"a.yaml": namespace("a", "1")}, {"a.yaml": namespace("a", "2") + namespace("a", "3")}},
			[]string{"+a=1", ""}, []string{"defined already by document 1"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := newCatalog()
			present := map[string]bool{}
			var problems []Problem
			for i, step := range test.steps {
				for path, text := range step {
					present[path] = text != ""
					if text != "" {
						c.set(path, []byte(text))
					}
				}
				c.keep(func(path string) bool { return present[path] })
				var events []api.Event
				events, problems, _ = c.diff()
				if got := told(events); got != test.want[i] {
					t.Errorf("step %d: got %q, want %q", i, got, test.want[i])
				}
			}
			if len(problems) != len(test.problems) {
				t.Fatalf("problems: %v, want %q", problems, test.problems)
			}
			for i, p := range problems {
				if !strings.Contains(p.String(), test.problems[i]) {
					t.Errorf("problem %q, want %q", p, test.problems[i])
				}
			}
		})
	}
}

func tier(name string, priority int) string {
	return fmt.Sprintf("---\napiVersion: crd.antrea.io/v1beta1\nkind: Tier\nmetadata: {name: %s}\nspec: {priority: %d}\n", name, priority)
}

func dropIn(name, tier, more string) string {
	return fmt.Sprintf("---\napiVersion: crd.antrea.io/v1beta1\nkind: ClusterNetworkPolicy\nmetadata: {name: %s}\nspec: {tier: %s, priority: 1, appliedTo: [{podSelector: {}}], ingress: [{action: Drop, name: r%s}]}\n", name, tier, more)
}

// What cannot stand beside other objects fails alone, wherever these are, and
// takes effect when it can.
func TestObjectsAreJudgedBesideEachOther(t *testing.T) {
	c := newCatalog()
	step := func(files map[string]string, wantEvents, wantProblems, wantWarnings string) {
		t.Helper()
		for path, text := range files {
			c.set(path, []byte(text))
		}
		events, problems, warnings := c.diff()
		var told, wrong, warned []string
		for _, e := range events {
			sign := "+"
			if e.Object == nil {
				sign = "-"
			}
			if e.Fault != "" {
				sign += "(" + e.Fault + ") "
			}
			told = append(told, sign+e.Ref.String())
		}
		for _, p := range problems {
			wrong = append(wrong, p.String())
		}
		c.judge()
		for _, p := range append(warnings, c.judged()...) {
			warned = append(warned, p.String())
		}
		for what, pair := range map[string][2]string{"events": {strings.Join(told, ", "), wantEvents}, "problems": {strings.Join(wrong, "\n"), wantProblems}, "warnings": {strings.Join(warned, "\n"), wantWarnings}} {
			if pair[0] != pair[1] && (pair[1] == "" || !strings.Contains(pair[0], pair[1])) {
				t.Errorf("%s: got %q, want %q", what, pair[0], pair[1])
			}
		}
	}
	step(map[string]string{"a.yaml": tier("one", 1), "b.yaml": namespace("a", "1") + tier("two", 1) + dropIn("p", "two", "")},
		"+Namespace a, +Tier one, -(spec.priority: 1 is the priority of Tier one too; write another) Tier two, +AntreaClusterNetworkPolicy p",
		"b.yaml:6: Tier two: spec.priority: 1 is the priority of Tier one too; write another",
		"b.yaml:11: AntreaClusterNetworkPolicy p: spec.tier: Tier two does not exist; the policy is held back")
	step(map[string]string{"c.yaml": namespace("b", "1")}, "+Namespace b", "b.yaml:6: Tier two", "the policy is held back")
	step(map[string]string{"a.yaml": tier("one", 2)}, "+Tier one, +Tier two", "", "")
	step(map[string]string{"c.yaml": dropIn("q", "one", "")}, "-Namespace b, +AntreaClusterNetworkPolicy q", "",
		`c.yaml:2: AntreaClusterNetworkPolicy q: spec.ingress[0]: the rule "r" decides nothing: all that it matches is decided before, by rule "r" (spec.ingress[0]) of AntreaClusterNetworkPolicy p`)
	step(map[string]string{"b.yaml": namespace("a", "1")}, "-Tier two, -AntreaClusterNetworkPolicy p", "", "")
	// A group that nests twice is in force by the children of its children, and follows them.
	nested := "spec.childGroups[0]: ClusterGroup child has children of its own (leaf%s), and groups nest once; write these instead"
	step(map[string]string{"c.yaml": parent("top", "child") + parent("child", "leaf")},
		"-AntreaClusterNetworkPolicy q, +ClusterGroup child, +("+fmt.Sprintf(nested, "")+") ClusterGroup top", "c.yaml:2: ClusterGroup top: spec.childGroups[0]", "c.yaml:2: ClusterGroup top: spec.childGroups[0]: ClusterGroup leaf does not exist")
	if got := c.inForce[api.Ref{Kind: api.KindClusterGroup, Name: "top"}].(*api.Group).Children; !slices.Equal(got, []string{"leaf"}) {
		t.Errorf("the children in force are %q", got)
	}
	step(map[string]string{"c.yaml": parent("top", "child") + parent("child", "leaf, other")},
		"+ClusterGroup child, +("+fmt.Sprintf(nested, ", other")+") ClusterGroup top", "c.yaml:2: ClusterGroup top", "ClusterGroup other does not exist")
	step(map[string]string{"c.yaml": parent("top", "leaf") + parent("child", "leaf, other")}, "+ClusterGroup top", "", "ClusterGroup other does not exist")
}

func parent(name, children string) string {
	return fmt.Sprintf("---\napiVersion: crd.antrea.io/v1beta1\nkind: ClusterGroup\nmetadata: {name: %s}\nspec: {childGroups: [%s]}\n", name, children)
}

// Versions are told of what is defined, in force or not, and of a change that
// says nothing to us; not of what did not change.
func TestVersionsAreToldOfWhatIsDefined(t *testing.T) {
	c := newCatalog()
	c.record = (&Source{log: hclog.NewNullLogger()}).record
	one := tier("one", 1)
	step := func(want string, files map[string]string) {
		t.Helper()
		for path, text := range files {
			c.set(path, []byte(text))
		}
		events, _, _ := c.diff()
		var told []string
		for _, e := range events {
			text := e.Ref.String()
			if e.Object != nil {
				text += " in force"
			}
			if e.Version != nil {
				manifest, err := e.Version.Manifest()
				if err != nil {
					t.Fatal(err)
				}
				text += " " + string(manifest)
			}
			told = append(told, text)
		}
		if got := strings.Join(told, "\n"); got != want {
			t.Errorf("got\n%s, want\n%s", got, want)
		}
	}
	const manifest = `{"apiVersion":"crd.antrea.io/v1beta1","kind":"Tier","metadata":{%s"name":"%s"},"spec":{"priority":1}}`
	first, second := fmt.Sprintf(manifest, "", "one"), fmt.Sprintf(manifest, "", "two")
	step("Namespace a in force\nTier one in force "+first, map[string]string{"a.yaml": one, "n.yaml": namespace("a", "1")})
	step("Tier two "+second, map[string]string{"b.yaml": tier("two", 1)})
	step("", map[string]string{"a.yaml": one + "# a comment\n"})
	step("Tier one in force "+fmt.Sprintf(manifest, `"labels":{"a":"b"},`, "one"), map[string]string{"a.yaml": strings.Replace(one, "name: one", "name: one, labels: {a: b}", 1)})
	step("", map[string]string{"b.yaml": "apiVersion: crd.antrea.io/v1beta1\nkind: TierList\nitems: [{metadata: {name: two}, spec: {priority: 1}}]\n"})
	step("Tier one\nTier two in force "+second, map[string]string{"a.yaml": "# none"})
}

package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	"github.com/weirnet/weir/e2e/harness"
)

// overlay is what is rendered of one, as far as it is judged here.
type overlay struct {
	workloads map[string]corev1.PodTemplateSpec // By KIND/NAME.
	replicas  map[string]int32
	budgets   []policyv1.PodDisruptionBudget
	services  []corev1.Service
}

func renderOverlay(t *testing.T, name string) overlay {
	t.Helper()
	kube, err := harness.BuildKube(t.Context())
	must(t, err)
	text, err := (*harness.NetNS)(nil).Command(t.Context(), filepath.Join(kube, "kubectl"), "kustomize", filepath.Join("..", "deploy", "overlays", name)).Output()
	must(t, err)
	o := overlay{workloads: make(map[string]corev1.PodTemplateSpec), replicas: make(map[string]int32)}
	documents := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text)))
	for {
		raw, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return o
		}
		must(t, err)
		var meta metav1.PartialObjectMetadata
		must(t, yaml.Unmarshal(raw, &meta))
		id := meta.Kind + "/" + meta.Name
		switch meta.Kind {
		case "Deployment":
			d := strict[appsv1.Deployment](t, id, raw)
			o.workloads[id], o.replicas[id] = d.Spec.Template, *d.Spec.Replicas
		case "StatefulSet":
			o.workloads[id] = strict[appsv1.StatefulSet](t, id, raw).Spec.Template
		case "DaemonSet":
			o.workloads[id] = strict[appsv1.DaemonSet](t, id, raw).Spec.Template
		case "PodDisruptionBudget":
			o.budgets = append(o.budgets, strict[policyv1.PodDisruptionBudget](t, id, raw))
		case "Service":
			o.services = append(o.services, strict[corev1.Service](t, id, raw))
		}
		// kubectl apply keeps what was applied in an annotation.
		if asJSON, err := yaml.YAMLToJSON(raw); err != nil || len(asJSON) > 200<<10 {
			t.Errorf("%s has %d bytes, %v: kubectl apply takes 256 KiB of annotations", id, len(asJSON), err)
		}
	}
}

// strict reads an object, all of whose fields must be known.
func strict[T any](t *testing.T, id string, raw []byte) (o T) {
	t.Helper()
	if err := yaml.UnmarshalStrict(raw, &o); err != nil {
		t.Errorf("%s: %v", id, err)
	}
	return o
}

// TestManifests holds what every overlay renders to what every container must
// have.
func TestManifests(t *testing.T) {
	entries, err := os.ReadDir(filepath.Join("..", "deploy", "overlays"))
	must(t, err)
	for _, e := range entries {
		t.Run(e.Name(), func(t *testing.T) {
			o := renderOverlay(t, e.Name())
			for id, w := range o.workloads {
				for _, c := range w.Spec.InitContainers {
					judgeContainer(t, id, c)
				}
				for _, c := range w.Spec.Containers {
					judgeContainer(t, id, c)
					if c.LivenessProbe == nil || c.ReadinessProbe == nil {
						t.Errorf("%s/%s has not all probes", id, c.Name)
					}
					judgeArguments(t, id, c)
				}
				if w.Spec.ServiceAccountName == "" || w.Spec.PriorityClassName == "" {
					t.Errorf("%s has no service account or no priority", id)
				}
				if auto := w.Spec.AutomountServiceAccountToken; id != "Deployment/weir-policyd" && (auto == nil || *auto) {
					t.Errorf("%s gets a token for the API server, which it does not call", id)
				}
			}
			judgeSelectors(t, o)
		})
	}
}

var image = regexp.MustCompile(`^weir-(policyd|auditd|shim|ovs):[a-z0-9.-]+$`)

func judgeContainer(t *testing.T, id string, c corev1.Container) {
	t.Helper()
	if !image.MatchString(c.Image) || strings.HasSuffix(c.Image, ":latest") {
		t.Errorf("%s/%s has the image %s", id, c.Name, c.Image)
	}
	if c.Resources.Requests.Cpu().IsZero() || c.Resources.Requests.Memory().IsZero() || c.Resources.Limits.Memory().IsZero() {
		t.Errorf("%s/%s has not all requests and limits", id, c.Name)
	}
	s := c.SecurityContext
	if s == nil || s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem {
		t.Errorf("%s/%s may write its file system", id, c.Name)
		return
	}
	if s.Privileged != nil && *s.Privileged {
		if id != "DaemonSet/weir-ovs" || c.Name != "ovs-vswitchd" {
			t.Errorf("%s/%s is privileged", id, c.Name)
		}
		return
	}
	if s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation || s.Capabilities == nil || !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) {
		t.Errorf("%s/%s does not drop its privileges", id, c.Name)
	}
	want := map[string][]corev1.Capability{"DaemonSet/weir-shim/shim": {"NET_ADMIN"}, "DaemonSet/weir-ovs/ovs-vswitchd": {"NET_ADMIN", "NET_RAW", "NET_BROADCAST", "IPC_LOCK"}}[id+"/"+c.Name]
	if !slices.Equal(s.Capabilities.Add, want) {
		t.Errorf("%s/%s has the capabilities %v", id, c.Name, s.Capabilities.Add)
	}
}

var variable = regexp.MustCompile(`\$\(([A-Z_]+)\)`)

// judgeArguments finds variables that nothing sets.
func judgeArguments(t *testing.T, id string, c corev1.Container) {
	t.Helper()
	for _, a := range c.Args {
		for _, m := range variable.FindAllStringSubmatch(a, -1) {
			if m[1] != "WEIR_POLICYD_SERVICE_HOST" && !slices.ContainsFunc(c.Env, func(e corev1.EnvVar) bool { return e.Name == m[1] }) {
				t.Errorf("%s/%s: nothing sets %s of %s", id, c.Name, m[1], a)
			}
		}
	}
}

// judgeSelectors holds Services and disruption budgets to the Pods that they are
// for.
func judgeSelectors(t *testing.T, o overlay) {
	t.Helper()
	pods := func(of labels.Selector) (ids []string) {
		for id, w := range o.workloads {
			if of.Matches(labels.Set(w.Labels)) {
				ids = append(ids, id)
			}
		}
		return ids
	}
	for _, s := range o.services {
		got := pods(labels.SelectorFromSet(s.Spec.Selector))
		if len(got) != 1 || !strings.HasPrefix(s.Name, strings.SplitAfter(got[0], "/")[1]) {
			t.Errorf("Service %s is of %v", s.Name, got)
			continue
		}
		w := o.workloads[got[0]]
		for _, p := range s.Spec.Ports {
			if !slices.ContainsFunc(w.Spec.Containers[0].Ports, func(c corev1.ContainerPort) bool { return c.Name == p.TargetPort.String() && c.ContainerPort == p.Port }) {
				t.Errorf("Service %s: no container has the port %s", s.Name, p.Name)
			}
		}
	}
	const policyd = "Deployment/weir-policyd"
	if n := o.replicas[policyd]; (n > 1) != (len(o.budgets) == 1) {
		t.Errorf("%d replicas with %d disruption budgets", n, len(o.budgets))
	}
	for _, b := range o.budgets {
		selector, err := metav1.LabelSelectorAsSelector(b.Spec.Selector)
		must(t, err)
		if got := pods(selector); !slices.Equal(got, []string{policyd}) || int32(b.Spec.MinAvailable.IntValue()) >= o.replicas[policyd] {
			t.Errorf("disruption budget %s keeps %v of %v", b.Name, b.Spec.MinAvailable, got)
		}
	}
}

// Rules name metrics that there are.
func TestAlertRules(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "deploy", "monitoring", "weir.rules.yaml"))
	must(t, err)
	var rules struct {
		Groups []struct {
			Name  string `json:"name"`
			Rules []struct {
				Alert       string            `json:"alert"`
				Expr        string            `json:"expr"`
				For         string            `json:"for,omitempty"`
				Labels      map[string]string `json:"labels"`
				Annotations map[string]string `json:"annotations"`
			} `json:"rules"`
		} `json:"groups"`
	}
	must(t, yaml.UnmarshalStrict(text, &rules))
	metrics := metricNames(t)
	seen := make(map[string]bool)
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			if !regexp.MustCompile(`^Weir[A-Za-z]+$`).MatchString(r.Alert) || seen[r.Alert] {
				t.Errorf("%s: alert %q", g.Name, r.Alert)
			}
			seen[r.Alert] = true
			if !regexp.MustCompile(`^([0-9]+[smh])?$`).MatchString(r.For) {
				t.Errorf("%s: for %q", r.Alert, r.For)
			}
			if !slices.Contains([]string{"critical", "warning", "info"}, r.Labels["severity"]) || r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
				t.Errorf("%s has no severity, summary or description", r.Alert)
			}
			for _, pair := range []string{"()", "[]", "{}"} {
				if strings.Count(r.Expr, pair[:1]) != strings.Count(r.Expr, pair[1:]) {
					t.Errorf("%s: %s in %s do not match", r.Alert, pair, r.Expr)
				}
			}
			used := regexp.MustCompile(`weir_[a-z_]+`).FindAllString(r.Expr, -1)
			if len(used) == 0 {
				t.Errorf("%s: no metric in %s", r.Alert, r.Expr)
			}
			for _, m := range used {
				if !metrics[m] {
					t.Errorf("%s: nothing exports %s", r.Alert, m)
				}
			}
		}
	}
	if !seen["WeirNodeStuck"] {
		t.Error("no rule for a node that is stuck")
	}
}

// TestDashboard: what the dashboard shows is exported, and its panels lie beside
// each other.
func TestDashboard(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "deploy", "monitoring", "weir.dashboard.json"))
	must(t, err)
	var dashboard struct {
		Title, UID string
		Panels     []struct {
			ID      int
			Type    string
			Title   string
			GridPos struct{ H, W, X, Y int }
			Targets []struct{ Expr, RefID string }
		}
	}
	must(t, json.Unmarshal(text, &dashboard))
	metrics := metricNames(t)
	ids, places := make(map[int]bool), make(map[[2]int]string)
	for _, p := range dashboard.Panels {
		if p.Title == "" || ids[p.ID] || p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("panel %d %q has no title, no targets, or an id that another has", p.ID, p.Title)
		}
		ids[p.ID] = true
		for x := range p.GridPos.W {
			for y := range p.GridPos.H {
				at := [2]int{p.GridPos.X + x, p.GridPos.Y + y}
				if other := places[at]; other != "" || at[0] >= 24 {
					t.Fatalf("panel %q lies on %q, or beyond the edge", p.Title, other)
				}
				places[at] = p.Title
			}
		}
		for _, target := range p.Targets {
			used := regexp.MustCompile(`weir_[a-z_]+`).FindAllString(target.Expr, -1)
			if len(used) == 0 {
				t.Errorf("%s: no metric in %s", p.Title, target.Expr)
			}
			for _, m := range used {
				if !metrics[strings.TrimSuffix(m, "_bucket")] {
					t.Errorf("%s: nothing exports %s", p.Title, m)
				}
			}
		}
	}
	if dashboard.UID == "" || len(ids) < 12 {
		t.Errorf("%d panels of dashboard %q", len(ids), dashboard.UID)
	}
}

// metricNames are all that the code exports.
func metricNames(t *testing.T) map[string]bool {
	t.Helper()
	names := make(map[string]bool)
	for _, dir := range []string{"services", "shim"} {
		err := filepath.WalkDir(filepath.Join("..", dir), func(path string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			text, err := os.ReadFile(path)
			for _, m := range regexp.MustCompile(`"(weir_[a-z_]+)"`).FindAllSubmatch(text, -1) {
				names[string(m[1])] = true
			}
			return err
		})
		must(t, err)
	}
	return names
}

// What images are made of is what the stage before them makes.
func TestDockerfile(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "deploy", "docker", "Dockerfile"))
	must(t, err)
	makefile, err := os.ReadFile(filepath.Join("..", "Makefile"))
	must(t, err)
	made := map[string]bool{}
	for _, pattern := range []string{"../services/cmd/*", "../shim/cmd/*"} { // make build.
		dirs, err := filepath.Glob(pattern)
		must(t, err)
		for _, d := range dirs {
			made["/src/bin/"+filepath.Base(d)] = true
		}
	}
	var stages, arguments []string
	joined := strings.ReplaceAll(string(text), "\\\n", " ")
	for _, line := range strings.Split(joined, "\n") {
		words := strings.Fields(line)
		if len(words) == 0 || strings.HasPrefix(words[0], "#") {
			continue
		}
		switch words[0] {
		case "ARG":
			for _, a := range words[1:] {
				name, value, _ := strings.Cut(a, "=")
				arguments = append(arguments, name)
				if host, _, is := strings.Cut(value, "/"); strings.Contains(value, "latest") || is && strings.ContainsAny(host, ".:") {
					t.Errorf("%s names a registry, or no version", line)
				}
			}
		case "FROM":
			from, as := words[len(words)-3], words[len(words)-1]
			if name := strings.Trim(from, "${}"); words[len(words)-2] != "AS" || !slices.Contains(arguments, name) {
				t.Errorf("%s: the base is no argument, or the stage has no name", line)
			}
			stages = append(stages, as)
		case "COPY":
			if from, is := strings.CutPrefix(words[1], "--from="); is {
				if !slices.Contains(stages, from) {
					t.Errorf("%s: there is no such stage", line)
				}
				for _, path := range words[2 : len(words)-1] {
					if !made[path] {
						t.Errorf("%s: nothing makes %s", line, path)
					}
				}
			}
		case "RUN":
			if _, targets, is := strings.Cut(line, " make "); is {
				for _, target := range strings.Fields(targets) {
					if !strings.Contains(target, "=") && !bytes.Contains(makefile, []byte("\n"+target+":")) {
						t.Errorf("%s: there is no target %s", line, target)
					}
					made["/src/bin/"+target] = true
				}
			}
		case "WORKDIR", "USER", "ENTRYPOINT":
		default:
			t.Errorf("instruction %q", words[0])
		}
	}
	if want := []string{"build", "policyd", "auditd", "weirctl", "shim", "ovs"}; !slices.Equal(stages, want) {
		t.Errorf("stages are %q, want %q", stages, want)
	}
}

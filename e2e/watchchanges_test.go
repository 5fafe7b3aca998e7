package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/weirnet/weir/e2e/harness"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	policyd "github.com/weirnet/weir/services/policy"
)

const watchedObjects = `
apiVersion: v1
kind: Node
metadata: {name: n1, annotations: {weir.dev/gateway-addresses: 10.0.0.1}}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Pod
metadata:
  {name: web-6d5f8-x2, namespace: shop, labels: {app: web, pod-template-hash: 6d5f8},
   ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: web-6d5f8, uid: 11111111-2222-3333-4444-555555555555, controller: true}]}
spec: {nodeName: n1, containers: [{name: c, image: i}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.7.7, externalIPs: [192.0.2.77], ports: [{port: 80}]}
`

const watchedPolicy = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny, namespace: shop, annotations: {weir.dev/changed-by: alice}}
spec: {podSelector: {matchLabels: {app: web}}}
`

// change is a line of weirctl get changes -o json.
type change struct {
	Time                              time.Time
	Removed                           bool
	APIVersion, Kind, Namespace, Name string
	UID, Manager, User                string
	Generation                        int64
	PodsBefore, PodsAfter             int
	Manifest                          json.RawMessage
}

// TestWatchChanges changes a policy at a real API server by several managers,
// and reads the trail by gRPC and by weirctl.
func TestWatchChanges(t *testing.T) {
	t.Parallel()
	requireDataplane(t)
	k := startKube(t, harness.KubeConfig{})
	must(t, k.ApplyWeirCRDs(t.Context()))
	kubectl(t, k, watchedObjects, "apply", "-f", "-")
	kubectl(t, k, "", "patch", "node", "n1", "--subresource=status", "-p", `{"status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}}`)
	kubectl(t, k, "", "patch", "pod", "-n", "shop", "web-6d5f8-x2", "--subresource=status", "-p", `{"status": {"podIP": "10.0.0.2", "podIPs": [{"ip": "10.0.0.2"}, {"ip": "fd00::2"}]}}`)
	s, err := policyd.New(policyd.Config{Kubernetes: true, Kubeconfig: k.AdminKubeconfig(), ChangeTrail: true, Listen: "127.0.0.1:0",
		Logger: hclog.New(&hclog.LoggerOptions{Level: hclog.Warn, Output: testWriter{t}})})
	must(t, err)
	w := &changeWatch{t: t, reader: follow(t, s)}
	w.open()

	for _, want := range []string{"/n1: 192.0.2.1 10.0.0.1", "shop/web-6d5f8-x2 Deployment/web: 10.0.0.2 fd00::2", "service shop/web: 10.96.7.7 192.0.2.77"} {
		w.until(func(c *policyv1.ObjectChange) bool { return factLine(c) == want })
	}
	before := time.Now()
	kubectl(t, k, watchedPolicy, "apply", "-f", "-")
	created := w.version("deny", func(v *policyv1.ObjectVersion) bool { return v.GetGeneration() == 1 })
	at := time.Unix(0, created.GetTimeUnixNano())
	if v := created.GetVersion(); v.GetManager() != "kubectl-client-side-apply" || v.GetUser() != "alice" || v.GetUid() == "" || created.GetPodsBefore() != 0 || created.GetPodsAfter() != 1 ||
		at.Before(before) || at.After(time.Now()) {
		t.Errorf("created: %v", created)
	}
	manifest := string(created.GetVersion().GetManifest())
	if !strings.HasPrefix(manifest, `{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"annotations":{"weir.dev/changed-by":"alice"}`) ||
		!strings.HasSuffix(manifest, `"spec":{"podSelector":{"matchLabels":{"app":"web"}},"policyTypes":["Ingress"]}}`) {
		t.Errorf("the manifest is %s", manifest)
	}
	kubectl(t, k, "", "patch", "networkpolicy", "-n", "shop", "deny", "--type=merge", "--field-manager=x", "-p", `{"spec": {"podSelector": {"matchLabels": {"app": "none"}}}}`)
	patched := w.version("deny", func(v *policyv1.ObjectVersion) bool { return v.GetGeneration() == 2 })
	if patched.GetVersion().GetManager() != "x" || patched.GetPodsBefore() != 1 || patched.GetPodsAfter() != 0 {
		t.Errorf("patched: %v", patched)
	}
	kubectl(t, k, sourceACNP, "apply", "--server-side", "--field-manager=ops", "-f", "-")
	if guard := w.version("guard", func(*policyv1.ObjectVersion) bool { return true }); guard.GetVersion().GetManager() != "ops" || guard.GetVersion().GetApiVersion() != "crd.antrea.io/v1beta1" || guard.GetPodsAfter() != 1 {
		t.Errorf("guard: %v", guard)
	}
	// Its status is no change of it; an annotation is, which nothing is enforced by.
	kubectl(t, k, "", "patch", "clusternetworkpolicies.crd.antrea.io", "guard", "--subresource=status", "--type=merge", "-p", `{"status": {"phase": "Realized"}}`)
	kubectl(t, k, "", "annotate", "clusternetworkpolicies.crd.antrea.io", "guard", "--field-manager=z", "note=b")
	if guard := w.version("guard", func(*policyv1.ObjectVersion) bool { return true }); guard.GetVersion().GetManager() != "z" || guard.GetVersion().GetGeneration() != 1 {
		t.Errorf("guard with an annotation: %v", guard)
	}

	w.listed(s.Addr(), "guard", "z")
	w.open() // Who comes again is told what there is.
	again := w.version("deny", func(*policyv1.ObjectVersion) bool { return true })
	if again.GetTimeUnixNano() != patched.GetTimeUnixNano() || again.GetVersion().GetManager() != "x" {
		t.Errorf("told again as %v, was %v", again, patched)
	}
	kubectl(t, k, "", "delete", "networkpolicy", "-n", "shop", "deny")
	gone := w.until((*policyv1.ObjectChange).GetRemoved)
	if v := gone.GetVersion(); v.GetName() != "deny" || gone.GetPodsAfter() != 0 || v.GetGeneration() != 2 || v.GetUid() != created.GetVersion().GetUid() {
		t.Errorf("deleted: %v", gone)
	}
}

// changeWatch reads one stream of WatchChanges after another.
type changeWatch struct {
	t       *testing.T
	reader  reader
	stream  policyv1.InspectionService_WatchChangesClient
	pending []*policyv1.ObjectChange
}

// open begins a stream, once the service has read its sources.
func (w *changeWatch) open() {
	w.t.Helper()
	must(w.t, harness.Eventually(w.t.Context(), 20*time.Second, func() error {
		ctx, cancel := context.WithTimeout(w.t.Context(), 60*time.Second)
		w.t.Cleanup(cancel)
		stream, err := w.reader.WatchChanges(ctx, &policyv1.WatchChangesRequest{})
		if err != nil {
			return err
		}
		first, err := stream.Recv()
		w.stream, w.pending = stream, first.GetChanges()
		return err
	}))
}

func (w *changeWatch) next() *policyv1.ObjectChange {
	w.t.Helper()
	for len(w.pending) == 0 {
		resp, err := w.stream.Recv()
		must(w.t, err)
		w.pending = resp.GetChanges()
	}
	c := w.pending[0]
	w.pending = w.pending[1:]
	return c
}

// until is the first change that is as wanted.
func (w *changeWatch) until(wanted func(*policyv1.ObjectChange) bool) *policyv1.ObjectChange {
	w.t.Helper()
	for {
		if c := w.next(); wanted(c) {
			return c
		}
	}
}

func (w *changeWatch) version(name string, wanted func(*policyv1.ObjectVersion) bool) *policyv1.ObjectChange {
	w.t.Helper()
	return w.until(func(c *policyv1.ObjectChange) bool {
		return c.GetVersion().GetName() == name && !c.GetRemoved() && wanted(c.GetVersion())
	})
}

// listed says what weirctl lists of an object.
func (w *changeWatch) listed(server, name, manager string) {
	w.t.Helper()
	cmd := exec.CommandContext(w.t.Context(), filepath.Join(bin, "weirctl"), "get", "changes", "--server", server, "-o", "json")
	cmd.Stderr = testWriter{w.t}
	out, err := cmd.Output()
	must(w.t, err)
	for line := range bytes.Lines(out) {
		var c change
		must(w.t, json.Unmarshal(line, &c))
		if c.Name == name {
			if c.Manager != manager || c.Generation != 1 || c.PodsAfter != 1 || len(c.Manifest) == 0 || c.Time.IsZero() {
				w.t.Errorf("weirctl says %s", line)
			}
			return
		}
	}
	w.t.Errorf("weirctl does not list %s:\n%s", name, out)
}

// factLine is a fact in short.
func factLine(c *policyv1.ObjectChange) string {
	line := func(name string, ips [][]byte) string {
		for _, ip := range ips {
			a, _ := netip.AddrFromSlice(ip)
			name += " " + a.String()
		}
		return name
	}
	switch {
	case c.GetService() != nil:
		return line("service "+c.GetService().GetNamespace()+"/"+c.GetService().GetName()+":", c.GetService().GetIps())
	case c.GetEndpoint() != nil:
		e := c.GetEndpoint()
		return line(strings.TrimSpace(fmt.Sprintf("%s/%s %s", e.GetNamespace(), e.GetName(), e.GetWorkload()))+":", e.GetIps())
	}
	return ""
}

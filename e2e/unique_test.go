package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	"github.com/weirnet/weir/e2e/harness"
	"github.com/weirnet/weir/services/policy/api"
)

// uniqueness is a cluster whose API server asks three replicas, one or another.
type uniqueness struct {
	*testing.T
	c      *harness.Cluster
	client *dynamic.DynamicClient
}

// TestUniqueness has three replicas asked at the same time about changes that are
// right one by one and wrong together. What comes of it is the same at every replica,
// and said by the objects concerned. Where nobody asks the webhooks everything comes
// of it, which needs no luck.
func TestUniqueness(t *testing.T) {
	t.Parallel()
	c := admitted(t, 3)
	config, err := c.Kube.Config()
	must(t, err)
	client, err := dynamic.NewForConfig(config)
	must(t, err)
	run := func(name string, test func(u *uniqueness)) {
		t.Run(name, func(t *testing.T) { test(&uniqueness{t, c, client}) })
	}
	run("tiers", (*uniqueness).testTiers)
	run("tiers that go", (*uniqueness).testTiersThatGo)
	run("groups", (*uniqueness).testGroups)
	run("all replicas", (*uniqueness).allAsked)
	kubectl(t, c.Kube, "", "delete", "validatingwebhookconfiguration,mutatingwebhookconfiguration", "weir")
	run("unasked", (*uniqueness).testUnasked)
}

// resource is where objects of a text are.
func (u *uniqueness) resource(o *unstructured.Unstructured) dynamic.ResourceInterface {
	r := u.client.Resource(schema.GroupVersionResource{Group: "crd.antrea.io", Version: "v1beta1", Resource: plurals[o.GetKind()]})
	if ns := o.GetNamespace(); ns != "" {
		return r.Namespace(ns)
	}
	return r
}

func (u *uniqueness) create(text string) error {
	o := objects(u.T, text)[0]
	_, err := u.resource(o).Create(u.Context(), o, metav1.CreateOptions{})
	return err
}

// replace writes an object over the one of its name.
func (u *uniqueness) replace(text string) error {
	o := objects(u.T, text)[0]
	former, err := u.resource(o).Get(u.Context(), o.GetName(), metav1.GetOptions{})
	if err != nil {
		return err
	}
	o.SetResourceVersion(former.GetResourceVersion())
	_, err = u.resource(o).Update(u.Context(), o, metav1.UpdateOptions{})
	return err
}

func (u *uniqueness) delete(text string) error {
	o := objects(u.T, text)[0]
	return u.resource(o).Delete(u.Context(), o.GetName(), metav1.DeleteOptions{})
}

// atOnce does some things at the same time, and says what each came to.
func atOnce(do ...func() error) []error {
	errs := make([]error, len(do))
	begin := make(chan struct{})
	var wg sync.WaitGroup
	for i, fn := range do {
		wg.Go(func() { <-begin; errs[i] = fn() })
	}
	close(begin)
	wg.Wait()
	return errs
}

// said is what a replica says of a policy or group, by its condition.
func (u *uniqueness) said(replica int, what, list, name, condition string) (string, error) {
	out, err := u.c.Weirctl(replica, "get", what, "-o", "json")
	if err != nil {
		return "", err
	}
	type object struct {
		Name       string
		Ref        struct{ Name string }
		Members    int
		Conditions []struct {
			Type, Reason, Message string
			Status                bool
		}
	}
	var all map[string]json.RawMessage
	var objects []object
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	if err := json.Unmarshal(all[list], &objects); err != nil {
		return "", fmt.Errorf("%s: %w: %s", list, err, out)
	}
	for _, o := range objects {
		if o.Name != name && o.Ref.Name != name {
			continue
		}
		for _, c := range o.Conditions {
			if c.Type == condition {
				return strings.TrimSpace(fmt.Sprintf("%t %s %s", c.Status, c.Reason, c.Message)), nil
			}
		}
	}
	return "", fmt.Errorf("replica %d knows no %s with the condition %s: %s", replica, name, condition, out)
}

// saidByAll waits until every replica says something of an object.
func (u *uniqueness) saidByAll(what, list, name, condition, want string) {
	u.Helper()
	for i := range 3 {
		must(u, harness.Eventually(u.Context(), 20*time.Second, func() error {
			got, err := u.said(i, what, list, name, condition)
			if err == nil && got != want {
				err = fmt.Errorf("replica %d says of %s %q, want %q", i, name, got, want)
			}
			return err
		}))
	}
}

func (u *uniqueness) policySays(name, want string) {
	u.Helper()
	u.saidByAll("policies", "policies", name, "Realizable", want)
}

func (u *uniqueness) groupSays(name, want string) {
	u.Helper()
	u.saidByAll("groups", "definitions", name, "GroupMembersComputed", want)
}

// judged waits until what is asked for of a policy in a tier, by many at once so that
// every replica is asked, is that it is refused or not.
func (u *uniqueness) judged(text string, refusal string) {
	u.Helper()
	o := objects(u.T, text)[0]
	ask := func() error {
		_, err := u.resource(o).Create(u.Context(), o.DeepCopy(), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		return err
	}
	must(u, harness.Eventually(u.Context(), 20*time.Second, func() error {
		for _, err := range atOnce(slices.Repeat([]func() error{ask}, 12)...) {
			switch {
			case err == nil && refusal != "":
				return fmt.Errorf("%s is admitted, and not refused for %q", o.GetName(), refusal)
			case err != nil && (refusal == "" || !strings.Contains(err.Error(), refusal)):
				return err
			}
		}
		return nil
	}))
}

// allAsked has the API server ask until every replica was asked.
func (u *uniqueness) allAsked() {
	u.Helper()
	asked := make(map[int]bool)
	for try := 0; len(asked) < 3; try++ {
		for i := range 3 {
			metrics, err := u.c.PolicydMetrics(i)
			must(u, err)
			if strings.Contains(metrics, `weir_policy_admission_reviews_total{outcome="allowed",webhook="validate"}`) {
				asked[i] = true
			}
		}
		if len(asked) == 3 {
			return
		}
		if try == 40 {
			u.Fatalf("replicas that have admitted something: %v", slices.Sorted(maps.Keys(asked)))
		}
		// The API server takes any replica for a connection, and keeps it. A webhook of
		// another name has one of its own.
		kubectl(u, u.c.Kube, "", "patch", "validatingwebhookconfiguration", "weir", "--type=json", "-p", fmt.Sprintf(`[{"op": "replace", "path": "/webhooks/0/name", "value": "again-%d.weir.dev"}]`, try))
		name := fmt.Sprint("again-", try)
		must(u, u.create(groupNamed(name, "podSelector: {}")))
		must(u, u.delete(groupNamed(name, "podSelector: {}")))
	}
}

func policyIn(name, tier string) string {
	return antreaObject("ClusterNetworkPolicy", "name: "+name, "tier: "+tier+", priority: 5, appliedTo: [{podSelector: {}}], ingress: [{name: r, action: Drop}]")
}

func groupNamed(name, spec string) string {
	return antreaObject("ClusterGroup", "name: "+name, spec)
}

// rounds does something anew until it says that the race was lost by somebody, a
// hundred times at the most.
func (u *uniqueness) rounds(round func(i int) (lost bool)) {
	u.Helper()
	lost := 0
	begin := time.Now()
	for i := range 100 {
		if round(i) {
			lost++
		}
		if lost == 3 || time.Since(begin) > 40*time.Second {
			u.Logf("%d of %d rounds had both", lost, i+1)
			return
		}
	}
	u.Logf("%d of 100 rounds had both", lost)
}

// Of tiers of one priority that are made at once at least one is there, and one
// alone is in force: the oldest.
func (u *uniqueness) testTiers() {
	const most = 6
	u.rounds(func(round int) bool {
		var texts []string
		var do []func() error
		for i := range most {
			text := tierOf(fmt.Sprintf("t%d-%c", round, 'a'+i), 20)
			texts = append(texts, text)
			do = append(do, func() error { return u.create(text) })
		}
		var made []*unstructured.Unstructured
		for i, err := range atOnce(do...) {
			switch {
			case err == nil:
				o := objects(u.T, texts[i])[0]
				o, err := u.resource(o).Get(u.Context(), o.GetName(), metav1.GetOptions{})
				must(u, err)
				made = append(made, o)
			case !strings.Contains(err.Error(), "spec.priority: 20 is the priority of Tier"):
				u.Error(err)
			}
		}
		if len(made) == 0 {
			u.Fatal("of several tiers none was made")
		}
		first := made[0] // By name, as they are.
		for _, o := range made {
			if at := o.GetCreationTimestamp(); at.Time.Before(first.GetCreationTimestamp().Time) {
				first = o
			}
		}
		for _, o := range made {
			refusal := ""
			if o.GetName() != first.GetName() {
				refusal = "spec.tier: Tier " + o.GetName() + " does not exist"
			}
			u.judged(policyIn("p", o.GetName()), refusal)
		}
		for _, o := range made {
			must(u, u.resource(o).Delete(u.Context(), o.GetName(), metav1.DeleteOptions{}))
		}
		return len(made) > 1
	})
}

// A tier goes while a policy comes: one of the two is refused, or the policy is held
// back, and says so, until there is such a tier.
func (u *uniqueness) testTiersThatGo() {
	u.rounds(func(round int) bool {
		tier := tierOf(fmt.Sprint("g", round), 21)
		policy := policyIn(fmt.Sprint("in-g", round), fmt.Sprint("g", round))
		must(u, harness.Eventually(u.Context(), 20*time.Second, func() error { return u.create(tier) })) // Of the last round's the replicas may not know yet that it is gone.
		u.judged(policy, "")
		errs := atOnce(func() error { return u.delete(tier) }, func() error { return u.create(policy) })
		switch {
		case errs[0] != nil && errs[1] != nil:
			u.Fatalf("both were refused: %v", errs)
		case errs[0] != nil && !strings.Contains(errs[0].Error(), "1 of the policies refer to it"), errs[1] != nil && !strings.Contains(errs[1].Error(), "does not exist"):
			u.Errorf("refused for another reason: %v", errs)
		case errs[0] == nil && errs[1] == nil:
			u.policySays(fmt.Sprint("in-g", round), fmt.Sprintf("false TierNotFound tier g%d is not there; the policy is held back until it is", round))
			must(u, u.create(tier))
			u.policySays(fmt.Sprint("in-g", round), "true")
		}
		if errs[1] == nil {
			must(u, u.delete(policy))
		}
		if errs[0] != nil || errs[1] == nil {
			must(u, harness.Eventually(u.Context(), 20*time.Second, func() error {
				if err := u.delete(tier); err != nil && !strings.Contains(err.Error(), "not found") {
					return err
				}
				return nil
			}))
		}
		return errs[0] == nil && errs[1] == nil
	})
}

// A group becomes a child while it is given children.
func (u *uniqueness) testGroups() {
	u.rounds(func(round int) bool {
		name := func(of string) string { return fmt.Sprint(of, round) }
		plain, child := "podSelector: {matchLabels: {a: b}}", func(of string) string { return "childGroups: [" + name(of) + "]" }
		for _, of := range []string{"parent", "child", "leaf"} {
			must(u, u.create(groupNamed(name(of), plain)))
		}
		for _, of := range []string{"parent", "child", "leaf"} {
			u.groupSays(name(of), "true")
		}
		errs := atOnce(func() error { return u.replace(groupNamed(name("parent"), child("child"))) }, func() error { return u.replace(groupNamed(name("child"), child("leaf"))) })
		both := errs[0] == nil && errs[1] == nil
		switch {
		case errs[0] != nil && errs[1] != nil:
			u.Fatalf("both were refused: %v", errs)
		case both:
			u.groupSays(name("parent"), fmt.Sprintf("true  spec.childGroups[0]: ClusterGroup %s has children of its own (%s), and groups nest once; write these instead", name("child"), name("leaf")))
		default:
			u.groupSays(name("parent"), "true")
		}
		u.groupSays(name("child"), "true")
		return both
	})
}

// What the webhooks would have refused is there, and what of it is in force is the
// same at every replica.
func (u *uniqueness) testUnasked() {
	ctx, cancel := context.WithTimeout(u.Context(), time.Minute)
	defer cancel()
	must(u, harness.Eventually(ctx, 30*time.Second, func() error { return u.create(tierOf("early", 30)) }))
	// Creation is known to the second, and within one the first by name is older.
	for _, text := range []string{tierOf("late", 30), policyIn("of-early", "early"), policyIn("of-late", "late"), policyIn("of-none", "none"),
		groupNamed("top", "childGroups: [middle, bottom]"), groupNamed("middle", "childGroups: [bottom, absent]"), groupNamed("bottom", "ipBlocks: [{cidr: 10.1.0.0/16}, {cidr: 10.2.0.0/16}]"),
		antreaObject("ClusterNetworkPolicy", "name: by-top", "priority: 5, appliedTo: [{podSelector: {}}], ingress: [{name: r, action: Drop, from: [{group: top}]}]")} {
		must(u, harness.Eventually(ctx, 30*time.Second, func() error { return u.create(text) }))
	}
	u.policySays("of-early", "true")
	u.policySays("of-late", "false TierNotFound tier late is not in force (spec.priority: 30 is the priority of Tier early too; write another); the policy is held back until it is")
	u.policySays("of-none", "false TierNotFound tier none is not there; the policy is held back until it is")
	u.policySays("by-top", "true")
	u.groupSays("top", "true  spec.childGroups[0]: ClusterGroup middle has children of its own (bottom, absent), and groups nest once; write these instead; ClusterGroup absent is not there, and adds nothing")
	for i := range 3 {
		out, err := u.c.Weirctl(i, "get", "groups", "-o", "json")
		must(u, err)
		var list struct {
			Definitions []struct {
				Name   string
				Blocks int
			}
		}
		must(u, json.Unmarshal([]byte(out), &list))
		for _, d := range list.Definitions {
			if want := map[string]int{"top": 2, "middle": 2, "bottom": 2}[d.Name]; want > 0 && d.Blocks != want {
				u.Errorf("at replica %d ClusterGroup %s has %d blocks, want %d", i, d.Name, d.Blocks, want)
			}
		}
	}
	// One tier too many: the oldest are in force.
	for i := range api.MostTiers - len(api.StaticTiers()) {
		must(u, u.create(tierOf(fmt.Sprintf("z-%02d", i), 60+i)))
	}
	must(u, u.create(policyIn("of-last", fmt.Sprintf("z-%02d", api.MostTiers-len(api.StaticTiers())-1))))
	u.policySays("of-last", fmt.Sprintf("false TierNotFound tier z-%02d is not in force (there are %d tiers already, the %d static ones included, and there may be no more; move its policies to another tier, or remove one that is not used); the policy is held back until it is",
		api.MostTiers-len(api.StaticTiers())-1, api.MostTiers, len(api.StaticTiers())))
	// The winner goes, and its priority is free.
	must(u, u.delete(policyIn("of-early", "early")))
	must(u, u.delete(tierOf("early", 30)))
	u.policySays("of-late", "true")
}

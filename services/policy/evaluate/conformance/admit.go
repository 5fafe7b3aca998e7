package conformance

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/services/policy/validate"
)

// admit runs an admission case against validation, on what the operations
// before have left: as an API server with the webhook would answer.
func (c *Case) admit(r *CaseReport) {
	a := admission{index: validate.NewIndex(), exists: map[api.Ref]bool{}}
	for i, op := range c.Operations {
		got, why := "accept", ""
		if err := a.apply(op); err != nil {
			got, why = "reject", err.Error()
		}
		r.report.Totals.Verdicts++
		if got != op.Expected {
			r.Fail(nil, fmt.Sprintf("operations[%d]: expected %s, got %s %s", i, op.Expected, got, why))
			continue
		}
		if len(op.ExpectMutated) > 0 {
			r.report.Totals.Verdicts++
			if why := mutated(op); why != "" {
				r.Fail(nil, fmt.Sprintf("operations[%d].expectMutated: %s", i, why))
			}
		}
	}
}

// admission is what exists while a case runs.
type admission struct {
	index  *validate.Index
	exists map[api.Ref]bool
}

// apply does an operation, or says why it is rejected.
func (a *admission) apply(op Operation) error {
	if op.Op == "delete" {
		return a.remove(op.Object)
	}
	m, err := api.Decode(op.Object)
	if err != nil {
		return err
	}
	for _, d := range m.Objects {
		o, old := d.Object, a.index.Get(d.Object.Ref())
		switch there := old != nil || a.exists[o.Ref()]; {
		case op.Op == "create" && there:
			return fmt.Errorf("%s exists already", o.Ref())
		case op.Op == "update" && !there:
			return fmt.Errorf("%s does not exist", o.Ref())
		}
		if violations, _ := a.index.Change(old, o); len(violations) > 0 {
			return &api.Invalid{Violations: violations}
		}
		a.index.Set(o)
		a.exists[o.Ref()] = true
	}
	return nil
}

// remove deletes the object that a text names. Nothing else of it counts.
func (a *admission) remove(text []byte) error {
	var named struct {
		APIVersion, Kind string
		Metadata         struct{ Name, Namespace string }
	}
	if err := json.Unmarshal(text, &named); err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	ref := api.Ref{Kind: api.KindOf(named.APIVersion, named.Kind), Namespace: named.Metadata.Namespace, Name: named.Metadata.Name}
	switch ref.Kind {
	case api.KindAntreaNetworkPolicy, api.KindGroup, api.KindNetworkPolicy:
		if ref.Namespace == "" {
			ref.Namespace = "default"
		}
	}
	old := a.index.Get(ref)
	if old == nil && !a.exists[ref] {
		return fmt.Errorf("%s does not exist", ref)
	}
	if old != nil {
		if violations, _ := a.index.Change(old, nil); len(violations) > 0 {
			return &api.Invalid{Violations: violations}
		}
	}
	a.index.Remove(ref)
	delete(a.exists, ref)
	return nil
}

// mutated says what of an operation's expected fields defaulting has not set.
func mutated(op Operation) string {
	text, err := api.Default(op.Object)
	if err != nil {
		return err.Error()
	}
	var got, want any
	if err := json.Unmarshal(text, &got); err != nil {
		return err.Error()
	}
	if err := json.Unmarshal(op.ExpectMutated, &want); err != nil {
		return err.Error()
	}
	return lacks(got, want, "object")
}

// lacks says where what is wanted is not in a tree: a mapping must have the
// fields that are wanted, and may have others; a list must begin with the
// entries that are wanted. A field may be a path: spec.ingress[0].name.
func lacks(got, want any, at string) string {
	switch want := want.(type) {
	case map[string]any:
		for key, w := range want {
			g, there := find(got, key)
			if !there {
				return at + "." + key + " is not there"
			}
			if why := lacks(g, w, at+"."+key); why != "" {
				return why
			}
		}
	case []any:
		list, is := got.([]any)
		if !is || len(list) < len(want) {
			return fmt.Sprintf("%s is %v, want %v", at, got, want)
		}
		for i := range want {
			if why := lacks(list[i], want[i], fmt.Sprintf("%s[%d]", at, i)); why != "" {
				return why
			}
		}
	default:
		if got != want {
			return fmt.Sprintf("%s is %v, want %v", at, got, want)
		}
	}
	return ""
}

// find is the field of a name, or at the end of a path.
func find(tree any, path string) (any, bool) {
	if fields, is := tree.(map[string]any); is {
		if value, there := fields[path]; there {
			return value, true
		}
	}
	path = strings.ReplaceAll(strings.ReplaceAll(path, "[", "."), "]", "")
	for _, name := range strings.Split(path, ".") {
		switch t := tree.(type) {
		case map[string]any:
			value, there := t[name]
			if !there {
				return nil, false
			}
			tree = value
		case []any:
			i, err := strconv.Atoi(name)
			if err != nil || i < 0 || i >= len(t) {
				return nil, false
			}
			tree = t[i]
		default:
			return nil, false
		}
	}
	return tree, true
}

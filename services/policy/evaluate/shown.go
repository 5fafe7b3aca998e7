package evaluate

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/api"
)

// Hidden says that a connection cannot be explained to who sees some Namespaces
// alone.
type Hidden struct {
	Field     string // Of the request. Empty: neither end is a Pod that is seen.
	Namespace string // That must be seen. Empty: all must be.
}

func (e *Hidden) Error() string {
	switch {
	case e.Field == "":
		return "neither end is a Pod of a Namespace that the caller sees"
	case e.Namespace == "":
		return e.Field + ": it is of no Namespace that the caller sees"
	}
	return fmt.Sprintf("%s: the caller does not see Namespace %s", e.Field, e.Namespace)
}

// AnswerTo is Answer to who sees some Namespaces alone. One end must be a Pod of
// these. Of the other one, unless it is too, nothing is told but the address that was
// asked for, or that a Service which is seen leads to: at that end what is done is
// told, and why only where a cluster-scoped policy does it. What is named in the
// request must be seen, whether it exists or not. An error wraps Hidden, or is as
// those of Answer.
func (s *State) AnswerTo(req *policyv1.ExplainRequest, sees func(namespace string) bool) (*policyv1.ExplainResponse, error) {
	c, err := connectionOf(req)
	if err != nil {
		return nil, err
	}
	if err := s.mayName(c, sees); err != nil {
		return nil, err
	}
	flows, err := s.resolve(c)
	if err != nil {
		return nil, withoutNode(err, c.From, sees)
	}
	var worst *Result
	for _, f := range flows {
		f.from.hidden, f.to.hidden = !f.from.seen(sees), !f.to.seen(sees)
		if f.from.hidden && f.to.hidden {
			return nil, &Hidden{}
		}
		if r := s.result(f, true); worst == nil || r.Verdict > worst.Verdict {
			r.redact(f, sees)
			worst = &r
		}
	}
	return worst.wire(), nil
}

// mayName refuses ends that are named and are not seen.
func (s *State) mayName(c Connection, sees func(string) bool) error {
	for i, e := range []Endpoint{c.From, c.To} {
		field, namespace := []string{"from", "to"}[i], e.Namespace
		if labels := strings.Split(strings.ToLower(e.Domain), "."); len(labels) >= 3 && labels[2] == "svc" {
			namespace = labels[1]
		}
		if e.Node != "" {
			return &Hidden{Field: field}
		}
		if namespace != "" && !sees(namespace) {
			return &Hidden{Field: field, Namespace: namespace}
		}
	}
	// An address may be a Service's.
	if svc, _, err := s.serviceOf(c.To); err == nil && svc != nil && !sees(svc.Namespace) {
		return &Hidden{Field: "to"}
	}
	return nil
}

// withoutNode takes out of an error where a source is that may be anybody's.
func withoutNode(err error, from Endpoint, sees func(string) bool) error {
	var none *NoEndpoint
	if errors.As(err, &none) && !sees(from.Namespace) {
		return &NoEndpoint{Service: none.Service}
	}
	return err
}

// seen says whether a party is a Pod that may be told of. Of several Pods at one
// address all must be.
func (p *party) seen(sees func(string) bool) bool {
	return p.pod != nil && sees(p.pod.Namespace) && !slices.ContainsFunc(p.at, func(at *api.Pod) bool { return !sees(at.Namespace) })
}

// redact takes out what is of a hidden end, and of policies that are not seen.
func (r *Result) redact(f *flow, sees func(string) bool) {
	r.Egress.redact(f.from, sees)
	r.Ingress.redact(f.to, sees)
	if r.Staged != nil {
		r.Staged.redact(f, sees)
	}
}

func (d *Decision) redact(subject party, sees func(string) bool) {
	if subject.hidden {
		shown := Decision{Action: d.Action, Reason: "why is not shown: that end is of no Namespace that the caller sees"}
		if d.Policy != nil && d.Policy.Namespace == "" {
			shown.Policy, shown.Rule, shown.Reason = d.Policy, d.Rule, fmt.Sprintf("%s of %s decides", d.Rule, *d.Policy)
		}
		*d = shown
		return
	}
	steps := d.Steps
	d.Steps = nil
	for _, step := range steps {
		others := len(step.Others)
		step.Others = slices.DeleteFunc(step.Others, func(ref api.Ref) bool { return ref.Namespace != "" && !sees(ref.Namespace) })
		if len(step.Others) == 0 && others > 0 && len(step.Rules) == 0 {
			continue // Nothing but what is not seen is in it.
		}
		d.Steps = append(d.Steps, step)
	}
}

package api

import (
	"bytes"
	"encoding/json"
	"fmt"

	kjson "sigs.k8s.io/json"

	"github.com/weirnet/weir/services/policy/api/antreav1beta1"
)

// Default writes into an object what its author left out and the API promises
// to fill in: of policies of crd.antrea.io the tier application, and the names
// of rules. It takes an object as JSON or YAML and returns it as JSON, with
// everything else as it was; objects of other kinds change in nothing. What
// cannot be read is an error: Decode says then what is wrong with it.
func Default(text []byte) ([]byte, error) {
	raw, err := toJSON(text)
	if err != nil {
		return nil, fmt.Errorf("default an object: %w", err)
	}
	t := peek(raw)
	if k := KindOf(t.APIVersion, t.Kind); k != KindAntreaClusterNetworkPolicy && k != KindAntreaNetworkPolicy {
		return raw, nil
	}
	var typed struct {
		Spec antreav1beta1.PolicySpec `json:"spec"`
	}
	// Fields count by their exact names, as everywhere.
	if err := kjson.UnmarshalCaseSensitivePreserveInts(raw, &typed); err != nil {
		return nil, fmt.Errorf("default %s: %w", t.subject(), err)
	}
	var tree map[string]any
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if err := d.Decode(&tree); err != nil {
		return nil, fmt.Errorf("default %s: %w", t.subject(), err)
	}
	spec, is := tree["spec"].(map[string]any)
	if !is {
		return raw, nil // Without a spec there is nothing to complete.
	}
	if typed.Spec.Tier == "" {
		spec["tier"] = TierApplication
	}
	for i, rules := range [][]antreav1beta1.Rule{typed.Spec.Ingress, typed.Spec.Egress} {
		list, _ := spec[directions[i]].([]any)
		for j, entry := range list {
			if rule, is := entry.(map[string]any); is && rules[j].Name == "" {
				rule["name"] = GenerateRuleName(directions[i], rules[j])
			}
		}
	}
	out, err := json.Marshal(tree)
	if err != nil {
		return nil, fmt.Errorf("default %s: %w", t.subject(), err)
	}
	return out, nil
}

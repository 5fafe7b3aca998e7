package sink

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/audit/record"
)

// Spec is one sink of a configuration file: what all have, and the settings of
// its type.
type Spec struct {
	Name   string      `json:"name"`
	Type   string      `json:"type"`
	Format string      `json:"format,omitempty"` // Empty: the type's own, or json.
	Filter *FilterSpec `json:"filter,omitempty"`

	settings settings
}

// settings are those of a type.
type settings interface {
	// output makes the output, which Run opens.
	output(s *Spec, env *Env) (Output, Format, error)
}

// Types of outputs.
const (
	TypeFile    = "file"
	TypeSyslog  = "syslog"
	TypeOTLP    = "otlp"
	TypeHTTP    = "http"
	TypeNATS    = "nats"
	TypeForward = "forward"
)

func newSettings(kind string) (settings, error) {
	switch kind {
	case TypeFile:
		return &fileSettings{}, nil
	case TypeSyslog:
		return &syslogSettings{}, nil
	case TypeOTLP:
		return &otlpSettings{}, nil
	case TypeHTTP:
		return &httpSettings{}, nil
	case TypeNATS:
		return &natsSettings{}, nil
	}
	return nil, fmt.Errorf("type %q: write file, syslog, otlp, http or nats", kind)
}

// FilterSpec picks records, as a record.Filter does.
type FilterSpec struct {
	Nodes      []string `json:"nodes,omitempty"`
	Namespaces []string `json:"namespaces,omitempty"`
	Pods       []string `json:"pods,omitempty"`
	Policies   []string `json:"policies,omitempty"`
	Actions    []string `json:"actions,omitempty"`
	Directions []string `json:"directions,omitempty"`
	Prefixes   []string `json:"prefixes,omitempty"`
	Ports      []uint16 `json:"ports,omitempty"`
	Staged     bool     `json:"staged,omitempty"`
	Losses     bool     `json:"losses,omitempty"`
	Changes    bool     `json:"changes,omitempty"`
}

// ReadSpecs reads a configuration file.
func ReadSpecs(path string) ([]*Spec, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read sinks: %w", err)
	}
	specs, err := ParseSpecs(text)
	if err != nil {
		return nil, fmt.Errorf("read sinks: %s: %w", path, err)
	}
	return specs, nil
}

// ParseSpecs reads a configuration, YAML or JSON. What is not known is an error.
func ParseSpecs(text []byte) ([]*Spec, error) {
	data, err := yaml.YAMLToJSONStrict(text)
	if err != nil {
		return nil, err
	}
	var file struct {
		Sinks []json.RawMessage `json:"sinks"`
	}
	if err := strict(data, &file); err != nil {
		return nil, err
	}
	names := make(map[string]bool)
	var out []*Spec
	for i, raw := range file.Sinks {
		s, err := parseSpec(raw)
		switch {
		case s.Name == "":
			return nil, fmt.Errorf("sinks[%d]: %w", i, errors.Join(errors.New("name: missing"), err))
		case err != nil:
			return nil, errorOf(s, err)
		case names[s.Name]:
			return nil, fmt.Errorf("sink %s: name: another sink has it, and so its cursor", s.Name)
		}
		names[s.Name] = true
		out = append(out, s)
	}
	return out, nil
}

// parseSpec returns what it could read of the name in any case.
func parseSpec(raw []byte) (*Spec, error) {
	s := &Spec{}
	var fields map[string]json.RawMessage
	if err := strict(raw, &fields); err != nil {
		return s, err
	}
	// Those of all sinks are read first, the rest is the type's.
	common := make(map[string]json.RawMessage)
	for _, name := range []string{"name", "type", "format", "filter"} {
		if v, ok := fields[name]; ok {
			common[name] = v
			delete(fields, name)
		}
	}
	if err := json.Unmarshal(common["name"], &s.Name); err != nil && common["name"] != nil {
		return s, fmt.Errorf("name: %w", err)
	}
	if err := strictFields(common, s); err != nil {
		return s, err
	}
	var err error
	if s.settings, err = newSettings(s.Type); err != nil {
		return s, err
	}
	if err := strictFields(fields, s.settings); err != nil {
		return s, err
	}
	if _, err := s.Filter.filter(); err != nil {
		return s, err
	}
	return s, nil
}

func strictFields(fields map[string]json.RawMessage, to any) error {
	data, err := json.Marshal(fields)
	if err != nil {
		return err
	}
	return strict(data, to)
}

// strict tells all unknown fields, with their paths.
func strict(data []byte, to any) error {
	unknown, err := kjson.UnmarshalStrict(data, to)
	return errors.Join(append(unknown, err)...)
}

func (f *FilterSpec) filter() (*record.Filter, error) {
	if f == nil {
		return nil, nil
	}
	out := &record.Filter{Nodes: f.Nodes, Namespaces: f.Namespaces, Pods: f.Pods, Policies: f.Policies, Staged: f.Staged, Losses: f.Losses, Changes: f.Changes}
	for _, pod := range f.Pods {
		if strings.Count(pod, "/") != 1 {
			return nil, fmt.Errorf("filter.pods: %q: write NAMESPACE/NAME", pod)
		}
	}
	for _, name := range f.Actions {
		v := policyv1.Action_value["ACTION_"+strings.ToUpper(name)]
		if v == 0 {
			return nil, fmt.Errorf("filter.actions: %q: write allow, drop, reject or pass", name)
		}
		out.Actions = append(out.Actions, policyv1.Action(v))
	}
	for _, name := range f.Directions {
		v := policyv1.Direction_value["DIRECTION_"+strings.ToUpper(name)]
		if v == 0 {
			return nil, fmt.Errorf("filter.directions: %q: write ingress or egress", name)
		}
		out.Directions = append(out.Directions, policyv1.Direction(v))
	}
	for _, s := range f.Prefixes {
		prefix, err := record.ParsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("filter.prefixes: %q: not a CIDR or address", s)
		}
		out.Prefixes = append(out.Prefixes, prefix)
	}
	for _, port := range f.Ports {
		out.Ports = append(out.Ports, uint32(port))
	}
	return out, nil
}

// Duration is written as Go does, such as 30s or 24h.
type Duration time.Duration

// UnmarshalJSON implements json.Unmarshaler.
func (d *Duration) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return fmt.Errorf("%s: write a duration such as 30s or 24h", b)
	}
	v, err := time.ParseDuration(s)
	if err != nil || v < 0 {
		return fmt.Errorf("%q: write a duration such as 30s or 24h", s)
	}
	*d = Duration(v)
	return nil
}

// Size is written as 500Mi, 10Gi or 1000000.
type Size int64

// UnmarshalJSON implements json.Unmarshaler.
func (s *Size) UnmarshalJSON(b []byte) error {
	q, err := resource.ParseQuantity(strings.Trim(string(b), `"`))
	if err != nil || q.Sign() < 0 {
		return fmt.Errorf("%s: write a size such as 500Mi", b)
	}
	*s = Size(q.Value())
	return nil
}

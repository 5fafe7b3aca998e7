package conformance

import (
	"encoding/json"
)

// The schemas of case files.
const (
	SchemaCase      = "weir-conformance/v1"
	SchemaAdmission = "weir-conformance/v1-admission"
)

// Case is one case file.
type Case struct {
	Path       string      `json:"-"` // Of the file.
	Schema     string      `json:"schema"`
	Suite      string      `json:"suite"`
	Name       string      `json:"case"`
	Title      string      `json:"title"`
	Source     string      `json:"source"`
	Licence    string      `json:"licence"`
	Notes      string      `json:"notes"`
	Tags       []string    `json:"tags"`
	DenyMode   string      `json:"denyMode"` // "drop" or "any".
	Fixture    Fixture     `json:"fixture"`
	Steps      []Step      `json:"steps"`
	Operations []Operation `json:"operations"` // Of admission cases.
}

// Fixture is a cluster, or what a step sets of one.
type Fixture struct {
	Namespaces []Namespace `json:"namespaces"`
	Nodes      []Node      `json:"nodes"`
	Pods       []Pod       `json:"pods"`
	Services   []Service   `json:"services"`
}

// Namespace of a fixture.
type Namespace struct {
	Name        string            `json:"name"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
}

// Node of a fixture. IPs, where given, stand for IP.
type Node struct {
	Name   string            `json:"name"`
	IP     string            `json:"ip"`
	IPs    []string          `json:"ips"`
	Labels map[string]string `json:"labels"`
}

// Addresses are the Node's addresses.
func (n Node) Addresses() []string {
	if len(n.IPs) == 0 && n.IP != "" {
		return []string{n.IP}
	}
	return n.IPs
}

// Pod of a fixture.
type Pod struct {
	Name           string            `json:"name"`
	Namespace      string            `json:"namespace"`
	Labels         map[string]string `json:"labels"`
	IPs            []string          `json:"ips"`
	Node           string            `json:"node"`
	ServiceAccount string            `json:"serviceAccount"`
	HostNetwork    bool              `json:"hostNetwork"`
	Phase          string            `json:"phase"`  // Empty: Running.
	Ports          []Port            `json:"ports"`  // As declared.
	Listen         []Port            `json:"listen"` // As served, where that differs.
}

// Serves are the ports on which the Pod listens.
func (p Pod) Serves() []Port {
	if p.Listen != nil {
		return p.Listen
	}
	return p.Ports
}

// Port of a Pod.
type Port struct {
	Port     uint16 `json:"port"`
	Protocol string `json:"protocol"` // Empty: TCP.
	Name     string `json:"name"`
}

// Service of a fixture.
type Service struct {
	Name       string            `json:"name"`
	Namespace  string            `json:"namespace"`
	Type       string            `json:"type"`
	ClusterIP  string            `json:"clusterIP"`
	ClusterIPs []string          `json:"clusterIPs"`
	Selector   map[string]string `json:"selector"`
	Ports      []ServicePort     `json:"ports"`
}

// ServicePort of a Service.
type ServicePort struct {
	Name       string          `json:"name"`
	Protocol   string          `json:"protocol"` // Empty: TCP.
	Port       uint16          `json:"port"`
	TargetPort json.RawMessage `json:"targetPort"` // Number or name. Absent: Port.
	NodePort   uint16          `json:"nodePort"`
}

// Step is one state of a case, and what must hold in it.
type Step struct {
	Name          string            `json:"name"`
	Actions       []string          `json:"actions"` // What changed, in words.
	FixtureSet    Fixture           `json:"fixtureSet"`
	FixtureRemove Removal           `json:"fixtureRemove"`
	Policies      []json.RawMessage `json:"policies"` // All that are in force, as objects.
	Tables        []Table           `json:"tables"`
	Probes        []Probe           `json:"probes"`
	Evaluations   []Evaluation      `json:"evaluations"`
	Traffic       []Probe           `json:"traffic"`
	AuditLogs     []AuditLog        `json:"auditLogs"`
}

// Removal is what a step removes of the fixture.
type Removal struct {
	Namespaces []string `json:"namespaces"`
	Nodes      []string `json:"nodes"`
	Pods       []string `json:"pods"`     // NAMESPACE/NAME
	Services   []string `json:"services"` // NAMESPACE/NAME
}

// Table holds the verdicts of some flows from each row to each column.
type Table struct {
	Flows []Flow            `json:"flows"`
	Order []string          `json:"order"` // Columns: NAMESPACE/NAME.
	Rows  map[string]string `json:"rows"`  // By source: one letter a column.
}

// Flow is a destination port and protocol.
type Flow struct {
	Port     uint16 `json:"port"`
	Protocol string `json:"protocol"`
}

// Probe is one connection. Sources: From, or FromIP, which hangs off the node
// of the Pod Via where that is given. Destinations: To, ToIP, ToNode,
// ToService or ToFQDN; ToIP beside ToNode or ToService says which address of it.
type Probe struct {
	From       string `json:"from"` // NAMESPACE/POD
	FromIP     string `json:"fromIP"`
	Via        string `json:"via"` // NAMESPACE/POD
	To         string `json:"to"`  // NAMESPACE/POD
	ToIP       string `json:"toIP"`
	ToNode     string `json:"toNode"`
	ToService  string `json:"toService"` // NAMESPACE/NAME
	ToFQDN     string `json:"toFQDN"`
	DNSOver    string `json:"dnsOver"`
	Port       uint16 `json:"port"`
	SourcePort uint16 `json:"sourcePort"`
	Protocol   string `json:"protocol"` // Empty: TCP.
	Expected   string `json:"expected"` // "allow", "deny" or "reject"; empty in traffic.
}

// Evaluation says which policy must be named as deciding.
type Evaluation struct {
	From   string `json:"from"`
	To     string `json:"to"`
	Policy string `json:"policy"`
	Action string `json:"action"`
}

// AuditLog says what a node's np.log must hold after a step's traffic.
type AuditLog struct {
	Node        string   `json:"node"`
	ExpectRegex []string `json:"expectRegex"`
}

// Operation of an admission case.
type Operation struct {
	Op            string          `json:"op"` // "create", "update" or "delete".
	Object        json.RawMessage `json:"object"`
	Expected      string          `json:"expected"` // "accept" or "reject".
	ExpectMutated json.RawMessage `json:"expectMutated"`
}

// Source names where the probe comes from, for reports.
func (p Probe) Source() string {
	if p.From != "" {
		return p.From
	}
	if p.FromIP != "" {
		return p.FromIP
	}
	return p.Via
}

// Destination names where the probe goes, for reports.
func (p Probe) Destination() string {
	for _, s := range []string{p.To, p.ToFQDN, p.ToService, p.ToNode, p.ToIP} {
		if s != "" {
			return s
		}
	}
	return ""
}

package sink

import (
	"bytes"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
)

const goodSpecs = `
sinks:
- name: siem
  type: syslog
  target: tls://siem.example.net
  tls: {serverName: siem}
  filter: {namespaces: [shop], actions: [drop, reject], prefixes: [10.0.0.0/8, 192.0.2.1], ports: [443], losses: true}
- name: nodes
  type: file
  format: np.log
  path: /var/log/weir/{node}/np.log
  maxSize: 10Mi
  maxAge: 24h
  keep: 3
  gzip: false
`

func TestSpecs(t *testing.T) {
	specs, err := ParseSpecs([]byte(goodSpecs))
	if err != nil || len(specs) != 2 {
		t.Fatal(specs, err)
	}
	env := &Env{Formats: formats, Rotation: Rotation{MaxBytes: 1, Gzip: true, KeepAge: 9}, Logger: hclog.NewNullLogger()}
	out, format, err := specs[1].settings.output(specs[1], env)
	if err != nil || format.Name != FormatNPLog || out.(*Files).Rotation != (Rotation{10 << 20, 24 * 3600e9, 3, 9, false}) {
		t.Error(out, format.Name, err)
	}
	out, format, err = specs[0].settings.output(specs[0], env)
	if err != nil || format.Name != FormatSyslog || out.(*Syslog).Name() != "syslog tls://siem.example.net:6514" {
		t.Error(out, format.Name, err)
	}
	filter, err := specs[0].Filter.filter()
	if err != nil || !filter.Losses || len(filter.Actions) != 2 || filter.Prefixes[1] != netip.MustParsePrefix("192.0.2.1/32") || filter.Ports[0] != 443 {
		t.Error(filter, err)
	}
}

// TestSpecsRefused: errors name the sink and the field.
func TestSpecsRefused(t *testing.T) {
	for text, want := range map[string]string{
		"sinks: [{type: file}]":                                                     "sinks[0]: name: missing",
		"sinks: [{name: a}]":                                                        `sink a: type ""`,
		"sinks: [{name: a, type: ftp}]":                                             `sink a: type "ftp": write file`,
		"sinks: [{name: a, type: file, pth: /x}]":                                   `sink a: unknown field "pth"`,
		"sinks: [{name: a, type: file, Path: /x}]":                                  `sink a: unknown field "Path"`,
		"sinks: [{name: a, type: file, path: /x, path: /y}]":                        `"path" already set`,
		"sinks: [{name: a, type: file, filter: {pot: 1}}]":                          `sink a: unknown field "filter.pot"`,
		"sinks: [{name: a, type: syslog, target: tls://h, tls: {ca: /x, crt: /y}}]": `sink a: unknown field "tls.crt"`,
		"sinks: [{name: a, type: file, path: /x, filter: {actions: [dropped]}}]":    `sink a: filter.actions: "dropped"`,
		"sinks: [{name: a, type: file, path: /x, filter: {directions: [in]}}]":      `sink a: filter.directions: "in"`,
		"sinks: [{name: a, type: file, path: /x, filter: {prefixes: [ten]}}]":       `sink a: filter.prefixes: "ten"`,
		"sinks: [{name: a, type: file, path: /x, filter: {pods: [web]}}]":           `sink a: filter.pods: "web"`,
		"sinks: [{name: a, type: file, path: x}]":                                   `sink a: path "x": write an absolute path`,
		"sinks: [{name: a, type: file, path: '/x/{pod}'}]":                          `sink a: path "/x/{pod}"`,
		"sinks: [{name: a, type: file, path: /x, format: xml}]":                     `sink a: format "xml": write one of`,
		"sinks: [{name: a, type: file, path: /x, keep: -1}]":                        "sink a: keep",
		"sinks: [{name: a, type: file, path: /x, maxSize: big}]":                    "write a size",
		"sinks: [{name: a, type: file, path: /x, maxAge: 3}]":                       "write a duration",
		"sinks: [{name: a, type: syslog, target: tcp://h, tls: {}}]":                "sink a: syslog target",
		"sinks: [{name: a, type: syslog, target: tls://h, tls: {ca: /nothing}}]":    "sink a: tls: ca: open /nothing",
		"sinks: [{name: a, type: syslog, target: tls://h, tls: {cert: /nothing}}]":  "sink a: tls: cert and key belong together",
		"sinks: [{name: a, type: file, path: /x}, {name: a, type: file, path: /y}]": "sink a: name: another sink has it",
		"sink: []": `unknown field "sink"`,
	} {
		err := func() error {
			specs, err := ParseSpecs([]byte(text))
			for _, s := range specs {
				if _, _, err := s.settings.output(s, &Env{Formats: formats}); err != nil {
					return errorOf(s, err)
				}
			}
			return err
		}()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
}

// TestDeployedSpecs: the sample for deployments is one that is taken.
func TestDeployedSpecs(t *testing.T) {
	text, err := os.ReadFile("../../../deploy/components/sinks/sinks.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"siem-ca.crt", "tls.crt", "tls.key", "otel-ca.crt"} { // Which only the deployment has.
		text = bytes.ReplaceAll(text, []byte(": /etc/weir/secrets/"+path), []byte(`: ""`))
	}
	specs, err := ParseSpecs(text)
	if err != nil || len(specs) != 5 {
		t.Fatal(len(specs), err)
	}
	for _, s := range specs {
		if _, _, err := s.settings.output(s, &Env{Formats: formats, DeadDir: t.TempDir(), Logger: hclog.NewNullLogger()}); err != nil {
			t.Errorf("%s: %v", s.Name, err)
		}
	}
}

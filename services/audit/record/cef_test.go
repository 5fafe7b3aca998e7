package record

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"
)

// cefEvent is a line as a reader of CEF understands it.
type cefEvent struct {
	header    []string // Version to severity.
	extension map[string]string
}

var cefKey = regexp.MustCompile(`(?:^| )([A-Za-z0-9_.]+)=`)

// parseCEF reads by the rules of the standard: seven fields of the header end
// with a bar, the extension is of pairs whose values may hold spaces. A
// backslash takes the next character's meaning: bar and backslash in the
// header; equals sign, backslash, n and r in values.
func parseCEF(line string) (e cefEvent, err error) {
	rest, ok := strings.CutPrefix(line, "CEF:")
	if !ok || strings.ContainsAny(line, "\n\r") || !utf8.ValidString(line) {
		return e, errors.New("no line of CEF")
	}
	var field strings.Builder
	for len(e.header) < 7 {
		switch {
		case rest == "":
			return e, errors.New("the header ends early")
		case strings.HasPrefix(rest, `\\`), strings.HasPrefix(rest, `\|`):
			field.WriteByte(rest[1])
			rest = rest[2:]
		case rest[0] == '\\':
			return e, errors.New("an escape that is none, in the header")
		case rest[0] == '|':
			e.header = append(e.header, field.String())
			field.Reset()
			rest = rest[1:]
		default:
			field.WriteByte(rest[0])
			rest = rest[1:]
		}
	}
	e.extension = map[string]string{}
	keys := cefKey.FindAllStringSubmatchIndex(rest, -1)
	if len(keys) == 0 || keys[0][0] != 0 {
		return e, errors.New("the extension begins without a key")
	}
	for i, at := range keys {
		end := len(rest)
		if i+1 < len(keys) {
			end = keys[i+1][0]
		}
		key := rest[at[2]:at[3]]
		if _, twice := e.extension[key]; twice {
			return e, fmt.Errorf("%s is given twice", key)
		}
		if e.extension[key], err = unescapeCEF(rest[at[1]:end]); err != nil {
			return e, fmt.Errorf("%s: %w", key, err)
		}
	}
	return e, nil
}

func unescapeCEF(s string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '=':
			return "", errors.New("an equals sign that is not escaped")
		case s[i] != '\\':
			b.WriteByte(s[i])
		case i+1 < len(s) && strings.IndexByte(`\=nr`, s[i+1]) >= 0:
			i++
			b.WriteByte(map[byte]byte{'\\': '\\', '=': '=', 'n': '\n', 'r': '\r'}[s[i]])
		default:
			return "", errors.New("an escape that is none")
		}
	}
	return b.String(), nil
}

// cefDictionary has the keys of the standard's dictionary that are used here,
// with what their values must be.
var cefDictionary = func() map[string]func(string) bool {
	text := func(s string) bool { return s != "" }
	number := func(bits int) func(string) bool {
		return func(s string) bool { _, err := strconv.ParseInt(s, 10, bits); return err == nil }
	}
	port := func(s string) bool { n, err := strconv.Atoi(s); return err == nil && n >= 0 && n <= 65535 }
	v4 := func(s string) bool { a, err := netip.ParseAddr(s); return err == nil && a.Is4() }
	v6 := func(s string) bool { a, err := netip.ParseAddr(s); return err == nil && a.Is6() }
	d := map[string]func(string) bool{
		"act": text, "cat": text, "cnt": number(32), "deviceDirection": regexp.MustCompile(`^[01]$`).MatchString, "deviceExternalId": text, "dvchost": text, "externalId": text,
		"rt": number(64), "start": number(64), "end": number(64), "msg": text, "reason": text, "proto": text, "suser": text,
		"src": v4, "dst": v4, "c6a2": v6, "c6a3": v6, "spt": port, "dpt": port, "shost": text, "dhost": text, "sntdom": text, "dntdom": text,
		"smac": regexp.MustCompile(`^([0-9a-f]{2}:){5}[0-9a-f]{2}$`).MatchString, "sourceServiceName": text, "destinationServiceName": text,
		"cn1": number(64), "cn2": number(64), "cn3": number(64), "flexNumber1": number(64), "flexNumber2": number(64),
		"cs1": text, "cs2": text, "cs3": text, "cs4": text, "cs5": text, "cs6": text, "flexString1": text, "flexString2": text,
	}
	for _, key := range slices.Collect(maps.Keys(d)) {
		if strings.HasPrefix(key, "c6") || strings.HasPrefix(key, "cs") || strings.HasPrefix(key, "flex") || len(key) == 3 && strings.HasPrefix(key, "cn") && key != "cnt" {
			d[key+"Label"] = text
		}
	}
	return d
}()

// checkCEF judges one line, and returns it as it was read.
func checkCEF(line []byte) (cefEvent, error) {
	text, ok := strings.CutSuffix(string(line), "\n")
	if !ok {
		return cefEvent{}, errors.New("no newline")
	}
	e, err := parseCEF(text)
	if err != nil {
		return e, err
	}
	if h := e.header; h[0] != "0" || h[1] != "Weir" || h[2] != "weir-auditd" || h[4] == "" || h[5] == "" {
		return e, fmt.Errorf("header %q", h)
	}
	if n, err := strconv.Atoi(e.header[6]); err != nil || n < 0 || n > 10 {
		return e, fmt.Errorf("severity %s", e.header[6])
	}
	for key, v := range e.extension {
		valid, known := cefDictionary[key]
		if !known && !strings.HasPrefix(key, "WeirAudit") {
			return e, fmt.Errorf("%s is not of the dictionary", key)
		}
		if known && !valid(v) {
			return e, fmt.Errorf("%s may not be %q", key, v)
		}
		if _, labelled := cefDictionary[key+"Label"]; labelled && e.extension[key+"Label"] == "" {
			return e, fmt.Errorf("%s has no label", key)
		}
	}
	return e, nil
}

func TestCEF(t *testing.T) {
	for name, l := range samples(t) {
		line := AppendCEF(nil, l)
		if _, err := checkCEF(line); err != nil {
			t.Errorf("%s: %v\n%s", name, err, line)
		}
	}
}

// TestCEFMapping: where things stand.
func TestCEFMapping(t *testing.T) {
	all := samples(t)
	for name, want := range map[string]map[string]string{
		"isolation": {"signature": "packet-drop", "severity": "4", "cat": "packet", "act": "Drop", "deviceDirection": "0", "src": "10.10.1.13", "spt": "57050", "dst": "10.10.1.7", "dpt": "80",
			"proto": "TCP", "cnt": "3", "start": "1688474005221", "end": "1688474005521", "rt": "1688474006221", "dvchost": "n1", "externalId": "7", "reason": "isolation",
			"cs1": "K8sNetworkPolicy:default/a-deny-all,K8sNetworkPolicy:default/web", "cs1Label": "Policies", "shost": "client", "sntdom": "default", "dhost": "nettool", "dntdom": "default",
			"cn2": "60", "cn2Label": "Length", "msg": "Drop ingress TCP 10.10.1.13 57050 to 10.10.1.7 80"},
		"allow":  {"signature": "packet-allow", "severity": "1", "cs2": "r", "cs3": "web", "cs3Label": "LogLabel", "cn1": "14000"},
		"reject": {"signature": "packet-reject", "deviceDirection": "1", "shost": "nettool", "dhost": "client"},
		"ipv6":   {"c6a2": "fd00::1", "c6a2Label": "Source IPv6 Address", "c6a3": "fd00::2", "c6a3Label": "Destination IPv6 Address", "src": "", "dst": "", "flexNumber1": "128"},
		"node":   {"shost": "n2", "dhost": "n1", "sntdom": ""},
		"context": {"sntdom": "shop", "shost": "web-1", "dhost": "n1", "sourceServiceName": "Deployment/web", "destinationServiceName": "shop/db", "WeirAuditSourceNode": "n2",
			"flexString2": "0b1e-2@3,@0", "flexString2Label": "PolicyVersions"},
		"forged":                {"signature": "packet-forged", "severity": "8", "smac": "02:00:00:00:00:ab", "msg": "forged TCP from default/nettool"},
		"staged":                {"severity": "2", "cs4": "allow", "cs4Label": "StagedAction", "WeirAuditStagedPolicy": "AntreaNetworkPolicy:default/open"},
		"overflow":              {"WeirAuditOverflow": "true", "src": "", "dhost": "nettool", "shost": "", "cn2": ""},
		"loss meter":            {"signature": "loss", "severity": "7", "cnt": "9", "cs4": "meter", "cs4Label": "Stage", "cat": "loss"},
		"loss of a rule":        {"cs1": "AntreaNetworkPolicy:default/p", "cs2": "r", "deviceDirection": "0", "reason": "isolation", "cnt": "", "msg": "lost an unknown count at rule_meter of AntreaNetworkPolicy:default/p rule r ingress"},
		"loss of the collector": {"cnt": "2147483647", "WeirAuditCount": "9223372036854775808"},
		"change updated":        {"signature": "change", "act": "updated", "suser": "eve@example.net", "cs1": "shop/deny", "cs4": "u-1", "cs5": "spec.ingress,metadata.labels", "cn1": "4", "cn2": "2", "cn3": "3"},
		"test":                  {"signature": "test", "severity": "0", "cs1": "siem", "cs2": "4711", "cs2Label": "TestID"},
	} {
		e, err := checkCEF(AppendCEF(nil, all[name]))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		e.extension["signature"], e.extension["severity"] = e.header[4], e.header[6]
		for key, v := range want {
			if e.extension[key] != v {
				t.Errorf("%s: %s is %q, want %q", name, key, e.extension[key], v)
			}
		}
	}
}

// TestCEFEscapes: names come back as they were, and make no keys of their own.
func TestCEFEscapes(t *testing.T) {
	for _, s := range []string{`a=b`, `a src=1.2.3.4`, `a\`, `\\=`, `a|b|c`, ` x `, `\n`, "é"} {
		l := sample(t)
		l.Packet.Rule = s
		e, err := checkCEF(AppendCEF(nil, l))
		if err != nil || e.extension["cs2"] != s || e.extension["src"] != "10.10.1.13" {
			t.Errorf("%q: %v, %q", s, err, e.extension)
		}
	}
	l := sample(t)
	l.Packet.Rule = "a\nCEF:0|\r\x00\u2028\xff"
	if e, err := checkCEF(AppendCEF(nil, l)); err != nil || e.extension["cs2"] != "a?CEF:0|????" {
		t.Errorf("%v %q", err, e.extension["cs2"])
	}
}

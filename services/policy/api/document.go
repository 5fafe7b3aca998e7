package api

import (
	"bytes"
	"encoding/json"
	"strings"

	"sigs.k8s.io/yaml"
)

// document is one document of a YAML text.
type document struct {
	index int // From one, among the documents that hold something.
	line  int // Where it begins, from one.
	text  []byte
}

// split cuts a text at its document markers. Documents of comments and blank
// lines alone are left out.
func split(text []byte) []document {
	var docs []document
	start, line := 0, 1
	add := func(end, from int) {
		body := text[start:end]
		if blank(body) {
			return
		}
		docs = append(docs, document{index: len(docs) + 1, line: from, text: body})
	}
	from := 1
	for at := 0; at < len(text); {
		end := bytes.IndexByte(text[at:], '\n')
		if end < 0 {
			end = len(text)
		} else {
			end += at + 1
		}
		switch rest, kind := marker(text[at:end]); kind {
		case "---":
			add(at, from)
			start, from = at+rest, line
			if blank(text[start:end]) {
				start, from = end, line+1
			}
		case "...":
			add(at, from)
			start, from = end, line+1
		}
		at = end
		line++
	}
	add(len(text), from)
	return docs
}

// marker recognises a document marker at the beginning of a line, and says
// where what follows it begins.
func marker(line []byte) (rest int, kind string) {
	for _, m := range []string{"---", "..."} {
		if !bytes.HasPrefix(line, []byte(m)) {
			continue
		}
		if len(line) == 3 || strings.ContainsRune(" \t\r\n", rune(line[3])) {
			return 3, m
		}
	}
	return 0, ""
}

func blank(text []byte) bool {
	for line := range bytes.Lines(text) {
		line = bytes.TrimSpace(line)
		if len(line) > 0 && line[0] != '#' && line[0] != '%' {
			return false
		}
	}
	return true
}

// typeMeta is what tells the kind of an object.
type typeMeta struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Metadata   struct {
		Name      string `json:"name"`
		Namespace string `json:"namespace"`
	} `json:"metadata"`
}

// subject names an object of any kind.
func (t typeMeta) subject() string {
	kind, name := t.Kind, t.Metadata.Name
	if kind == "" {
		kind = "object"
	}
	if name == "" {
		name = "(no name)"
	}
	if t.Metadata.Namespace != "" {
		name = t.Metadata.Namespace + "/" + name
	}
	return kind + " " + name
}

// peek reads the kind and name of an object as far as they can be read.
func peek(raw []byte) typeMeta {
	var t typeMeta
	if json.Unmarshal(raw, &t) != nil {
		// The name may be what is malformed; the kind alone then.
		var k struct {
			APIVersion string `json:"apiVersion"`
			Kind       string `json:"kind"`
		}
		_ = json.Unmarshal(raw, &k) // An empty kind is reported as such.
		t = typeMeta{APIVersion: k.APIVersion, Kind: k.Kind}
	}
	return t
}

// toJSON turns a document into JSON. Duplicate keys are an error.
func toJSON(text []byte) ([]byte, error) {
	return yaml.YAMLToJSONStrict(text)
}

package conformance

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// FileError says that one case file cannot be read.
type FileError struct {
	Path string
	Err  error
}

// Error names the file.
func (e *FileError) Error() string { return e.Path + ": " + e.Err.Error() }

// Unwrap is the cause.
func (e *FileError) Unwrap() error { return e.Err }

// Load reads the cases below a folder, or one file, in the order of their
// paths. Files that cannot be read are told of by a joined error of *FileError,
// beside the cases that can.
func Load(path string) ([]Case, error) {
	var files []string
	err := filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if !d.IsDir() && (p == path || filepath.Ext(p) == ".yaml" || filepath.Ext(p) == ".yml") {
			files = append(files, p)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list conformance cases: %w", err)
	}
	slices.Sort(files)
	var cases []Case
	var errs []error
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err == nil {
			var c Case
			if c, err = Parse(text); err == nil {
				c.Path = file
				cases = append(cases, c)
				continue
			}
		}
		errs = append(errs, &FileError{Path: file, Err: err})
	}
	return cases, errors.Join(errs...)
}

// Parse reads one case. YAML is read as version 1.2 has it, in which the
// Namespace names y and n are strings.
func Parse(text []byte) (Case, error) {
	var tree any
	if err := yaml.Unmarshal(text, &tree); err != nil {
		return Case{}, fmt.Errorf("not valid YAML: %w", err)
	}
	raw, err := json.Marshal(tree)
	if err != nil {
		return Case{}, fmt.Errorf("not JSON: %w", err)
	}
	var c Case
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&c); err != nil {
		return Case{}, err
	}
	return c, c.check()
}

var protocols = []string{"", "TCP", "UDP", "SCTP", "ICMP"}

// check finds what a typed decoder lets through.
func (c *Case) check() error {
	switch {
	case c.Suite == "" || c.Name == "":
		return errors.New("suite and case must be named")
	case c.Schema == SchemaAdmission:
		if len(c.Operations) == 0 {
			return errors.New("an admission case needs operations")
		}
		for i, op := range c.Operations {
			if !slices.Contains([]string{"create", "update", "delete"}, op.Op) || (op.Expected != "accept" && op.Expected != "reject") {
				return fmt.Errorf("operations[%d]: op %q, expected %q", i, op.Op, op.Expected)
			}
		}
		return nil
	case c.Schema != SchemaCase:
		return fmt.Errorf("schema %q is unknown", c.Schema)
	case c.DenyMode != "drop" && c.DenyMode != "any":
		return fmt.Errorf("denyMode %q is neither drop nor any", c.DenyMode)
	case len(c.Steps) == 0:
		return errors.New("a case needs steps")
	}
	checks := 0
	for i := range c.Steps {
		s := &c.Steps[i]
		if s.Name == "" {
			s.Name = fmt.Sprintf("step-%d", i+1)
		}
		if err := s.check(); err != nil {
			return fmt.Errorf("steps[%d]: %w", i, err)
		}
		checks += len(s.Checks()) + len(s.Evaluations) + len(s.AuditLogs)
	}
	if checks == 0 {
		return errors.New("the case checks nothing")
	}
	return nil
}

func (s *Step) check() error {
	for i, t := range s.Tables {
		if len(t.Flows) == 0 {
			return fmt.Errorf("tables[%d]: no flows", i)
		}
		for _, f := range t.Flows {
			if !slices.Contains(protocols, f.Protocol) {
				return fmt.Errorf("tables[%d]: protocol %q is unknown", i, f.Protocol)
			}
		}
		for from, row := range t.Rows {
			if len(row) != len(t.Order) {
				return fmt.Errorf("tables[%d].rows.%s: %d letters for %d columns", i, from, len(row), len(t.Order))
			}
			if strings.Trim(row, "adr.") != "" {
				return fmt.Errorf("tables[%d].rows.%s: %q has letters that mean nothing (a, d, r or a dot do)", i, from, row)
			}
		}
	}
	for i, p := range s.Probes {
		if p.Expected != Allow && p.Expected != Deny && p.Expected != Reject {
			return fmt.Errorf("probes[%d]: expected %q is none of allow, deny, reject", i, p.Expected)
		}
		if err := p.check(); err != nil {
			return fmt.Errorf("probes[%d]: %w", i, err)
		}
	}
	for i, p := range s.Traffic {
		if err := p.check(); err != nil {
			return fmt.Errorf("traffic[%d]: %w", i, err)
		}
	}
	return nil
}

func (p Probe) check() error {
	switch {
	case p.Source() == "":
		return errors.New("no source")
	case p.From != "" && p.FromIP != "":
		return errors.New("both from and fromIP")
	case p.Destination() == "":
		return errors.New("no destination")
	case !slices.Contains(protocols, p.Protocol):
		return fmt.Errorf("protocol %q is unknown", p.Protocol)
	}
	return nil
}

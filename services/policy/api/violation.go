package api

import (
	"fmt"
	"strings"
)

// Violation is one thing that is wrong with an object, or that its author
// should know of.
type Violation struct {
	Document int    // YAML document of the text, from one. Zero: not from a text.
	Line     int    // Line at which the document begins, from one. Zero: not from a text.
	Object   Ref    // The object. Zero where its kind is not one of ours or unknown.
	Subject  string // The object as written, for objects without a Ref. Empty: Object counts.
	Field    string // Path such as spec.ingress[0].from[1].ipBlock.cidr. Empty: the object as a whole.
	Message  string // What is wrong, and what to write instead.
}

// Name says which object it is about.
func (v Violation) Name() string {
	switch {
	case v.Subject != "":
		return v.Subject
	case v.Object != Ref{} && v.Object.Name == "":
		return v.Object.Kind.String() + " (no name)"
	case v.Object != Ref{}:
		return v.Object.String()
	}
	return fmt.Sprintf("document %d", v.Document)
}

// String is "Kind ns/name: field: message".
func (v Violation) String() string {
	if v.Field == "" {
		return v.Name() + ": " + v.Message
	}
	return v.Name() + ": " + v.Field + ": " + v.Message
}

// Faults are what is wrong with each of some objects: "field: message", several
// with semicolons between.
func Faults(list []Violation) map[Ref]string {
	faults := make(map[Ref]string, len(list))
	for _, v := range list {
		text := v.Message
		if v.Field != "" {
			text = v.Field + ": " + text
		}
		if former := faults[v.Object]; former != "" {
			text = former + "; " + text
		}
		faults[v.Object] = text
	}
	return faults
}

// Invalid is the error of a text or object that must be refused. It holds
// every violation, at least one.
type Invalid struct {
	Violations []Violation
}

// Error lists the violations, one a line.
func (e *Invalid) Error() string {
	lines := make([]string, len(e.Violations))
	for i, v := range e.Violations {
		lines[i] = v.String()
	}
	return strings.Join(lines, "\n")
}

// invalid makes the error of some violations, nil for none.
func invalid(violations []Violation) error {
	if len(violations) == 0 {
		return nil
	}
	return &Invalid{Violations: violations}
}

// findings gathers what validation has to say of one object.
type findings struct {
	object     Ref
	violations []Violation
	warnings   []Violation
}

func (f *findings) refuse(field, format string, args ...any) {
	f.violations = append(f.violations, Violation{Object: f.object, Field: field, Message: fmt.Sprintf(format, args...)})
}

func (f *findings) warn(field, format string, args ...any) {
	f.warnings = append(f.warnings, Violation{Object: f.object, Field: field, Message: fmt.Sprintf(format, args...)})
}

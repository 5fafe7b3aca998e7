package manifests

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/weirnet/weir/services/policy/api"
)

// Problem is something wrong with a file.
type Problem struct {
	Path string // Relative to the folder, or as given for a single file.
	api.Violation
	// alone is set where the one object is concerned, beside others, and not its file.
	alone bool
}

// String is "path:line: object: field: message".
func (p Problem) String() string {
	if p.Violation.Message == "" {
		return p.Path
	}
	if p.Line == 0 {
		if p.Name() == "document 0" {
			return p.Path + ": " + p.Message
		}
		return p.Path + ": " + p.Violation.String()
	}
	return fmt.Sprintf("%s:%d: %s", p.Path, p.Line, p.Violation)
}

// problemsOf are the problems of an error from decoding or reading a file.
func problemsOf(path string, err error) []Problem {
	var inv *api.Invalid
	if errors.As(err, &inv) {
		return locate(path, inv.Violations)
	}
	return []Problem{{Path: path, Violation: api.Violation{Message: err.Error()}}}
}

func locate(path string, list []api.Violation) []Problem {
	var out []Problem
	for _, v := range list {
		out = append(out, Problem{Path: path, Violation: v})
	}
	return out
}

func sortProblems(list []Problem) {
	slices.SortStableFunc(list, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Path, b.Path), cmp.Compare(a.Document, b.Document))
	})
}

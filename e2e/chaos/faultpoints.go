package chaos

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/weirnet/weir/e2e/harness"
)

// points are the fault points of each daemon, as its code has them: those whose
// names are written out, in the folders that are its own.
type points struct{ shim, auditd, policyd []string }

// findPoints reads the module's code.
func findPoints(module string) (points, error) {
	var out points
	for folder, list := range map[string]*[]string{"shim": &out.shim, "services/audit": &out.auditd, "storage/eventlog": &out.auditd, "services/policy": &out.policyd} {
		err := filepath.WalkDir(filepath.Join(module, folder), func(path string, d fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			ast.Inspect(file, func(n ast.Node) bool {
				if name := reached(n); name != "" {
					*list = append(*list, name)
				}
				return true
			})
			return nil
		})
		if err != nil {
			return out, fmt.Errorf("find fault points: %w", err)
		}
	}
	for _, list := range []*[]string{&out.shim, &out.auditd, &out.policyd} {
		slices.Sort(*list)
		*list = slices.Compact(*list)
	}
	return out, nil
}

// reached is the point of a call of faultpoint.Reach; empty if n is none.
func reached(n ast.Node) string {
	call, is := n.(*ast.CallExpr)
	if !is || len(call.Args) != 1 {
		return ""
	}
	f, is := call.Fun.(*ast.SelectorExpr)
	if !is || f.Sel.Name != "Reach" {
		return ""
	}
	if of, is := f.X.(*ast.Ident); !is || of.Name != "faultpoint" {
		return ""
	}
	text, is := call.Args[0].(*ast.BasicLit)
	if !is {
		return ""
	}
	name, err := strconv.Unquote(text.Value)
	if err != nil {
		return ""
	}
	return name
}

// pointFaults are a fault for each daemon that has points.
func pointFaults(p points) []Fault {
	var out []Fault
	add := func(name string, points []string, victim func(a *Act) *harness.Process, then func(a *Act, p *harness.Process)) {
		if len(points) == 0 {
			return
		}
		out = append(out, Fault{name, func(ctx context.Context, a *Act) error {
			p, point := victim(a), fmt.Sprintf("%s:%d", points[a.IntN(len(points))], 1+a.IntN(3))
			defer a.claim(p.Name)()
			a.starts()
			a.tell("%s, %s", p.Name, point)
			if then != nil {
				then(a, p)
			}
			return a.doomed(ctx, p, point)
		}})
	}
	add("shim-faultpoint", p.shim, func(a *Act) *harness.Process { return a.node().Shim }, func(a *Act, p *harness.Process) {
		for name, n := range a.Nodes {
			if n.Shim == p {
				a.Holds, a.Shims = []string{name}, []string{name}
			}
		}
	})
	add("auditd-faultpoint", p.auditd, func(a *Act) *harness.Process { return a.Auditd }, nil)
	add("policyd-faultpoint", p.policyd, func(a *Act) *harness.Process { return a.Policyds[a.IntN(len(a.Policyds))] }, nil)
	return out
}

// reachLimit is how long a process may take to come to its fault point: some are
// of what does not happen.
const reachLimit = 4 * time.Second

// doomed starts a process so that it dies at a point, and then once more.
func (a *Act) doomed(ctx context.Context, p *harness.Process, point string) error {
	a.Stop(p, (*harness.Process).Terminate)
	p.Faultpoint = point
	if err := p.Start(); err != nil { // Stop says that it may end.
		return err
	}
	limit, cancel := context.WithTimeout(ctx, reachLimit)
	defer cancel()
	busy, rest := context.WithCancel(limit)
	go func() { // Changes are what most points are about.
		for busy.Err() == nil {
			a.nudge()
			a.last(busy, 200*time.Millisecond)
		}
	}()
	err := p.Died(limit)
	rest()
	if errors.Is(err, context.DeadlineExceeded) {
		a.Detail += ", not reached"
		a.Stop(p, (*harness.Process).Kill)
		p.Faultpoint, err = "", nil
	}
	return errors.Join(err, a.Start(p))
}

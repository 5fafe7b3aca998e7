package conformance

import (
	"encoding/json"
	"fmt"
	"io"
)

// The modes of a report.
const (
	ModeEvaluate = "evaluate"
	ModeDatapath = "datapath"
)

// Report is the outcome of a run, in the form of the schema. Build it with
// Begin; it is not safe for concurrent use.
type Report struct {
	Mode     string                  `json:"mode"`
	Suites   map[string]*SuiteTotals `json:"suites"`
	Totals   Totals                  `json:"totals"`
	Failures []Failure               `json:"failures"`
	Skips    []Skip                  `json:"skips"`
}

// SuiteTotals counts a suite's cases.
type SuiteTotals struct {
	Cases  int `json:"cases"`
	Passed int `json:"passed"`
}

// Totals counts everything. Verdicts are connections judged, Wrong are those
// whose verdict was not the expected one and cases that could not be run,
// Skipped are cases.
type Totals struct {
	Cases    int `json:"cases"`
	Passed   int `json:"passed"`
	Verdicts int `json:"verdicts"`
	Wrong    int `json:"wrong"`
	Skipped  int `json:"skipped"`
}

// Failure is one wrong verdict, or a case that could not be run.
type Failure struct {
	Suite    string `json:"suite"`
	Case     string `json:"case"`
	Step     string `json:"step"`
	From     string `json:"from"`
	To       string `json:"to"`
	Port     uint16 `json:"port"`
	Protocol string `json:"protocol"`
	Expected string `json:"expected"`
	Got      string `json:"got"`
	Why      string `json:"why"`
}

// String is the failure in one line.
func (f Failure) String() string {
	where := f.Suite + "/" + f.Case
	if f.Step != "" {
		where += " " + f.Step
	}
	if f.From == "" {
		return where + ": " + f.Why
	}
	return fmt.Sprintf("%s: %s -> %s %s/%d: expected %s, got %s: %s", where, f.From, f.To, f.Protocol, f.Port, f.Expected, f.Got, f.Why)
}

// Skip is a case that was not judged, or not wholly.
type Skip struct {
	Suite string `json:"suite"`
	Case  string `json:"case"`
	Why   string `json:"why"`
}

// NewReport begins a report.
func NewReport(mode string) *Report {
	return &Report{Mode: mode, Suites: map[string]*SuiteTotals{}, Failures: []Failure{}, Skips: []Skip{}}
}

// CaseReport gathers the outcome of one case. End it.
type CaseReport struct {
	report  *Report
	c       *Case
	failed  bool
	skipped bool
}

// Begin counts a case.
func (r *Report) Begin(c *Case) *CaseReport {
	if r.Suites[c.Suite] == nil {
		r.Suites[c.Suite] = &SuiteTotals{}
	}
	r.Suites[c.Suite].Cases++
	r.Totals.Cases++
	return &CaseReport{report: r, c: c}
}

// Verdict records what a probe met, and why.
func (r *CaseReport) Verdict(step *Step, p Probe, got, why string) {
	r.report.Totals.Verdicts++
	if r.c.Meets(p.Expected, got) {
		return
	}
	r.fail(Failure{Step: step.Name, From: p.Source(), To: p.Destination(), Port: p.Port, Protocol: p.Protocol, Expected: p.Expected, Got: got, Why: why})
}

// Fail records that the case, or a step of it, could not be run or is wrong as a whole.
func (r *CaseReport) Fail(step *Step, why string) {
	f := Failure{Why: why}
	if step != nil {
		f.Step = step.Name
	}
	r.fail(f)
}

func (r *CaseReport) fail(f Failure) {
	r.failed = true
	f.Suite, f.Case = r.c.Suite, r.c.Name
	r.report.Totals.Wrong++
	r.report.Failures = append(r.report.Failures, f)
}

// Skip records that something of the case cannot be judged. The case is then
// no pass, whatever else of it was right.
func (r *CaseReport) Skip(why string) {
	if !r.skipped {
		r.report.Totals.Skipped++
	}
	r.skipped = true
	r.report.Skips = append(r.report.Skips, Skip{Suite: r.c.Suite, Case: r.c.Name, Why: why})
}

// End counts the case as passed if nothing was wrong or skipped, and reports that.
func (r *CaseReport) End() bool {
	if r.failed || r.skipped {
		return false
	}
	r.report.Suites[r.c.Suite].Passed++
	r.report.Totals.Passed++
	return true
}

// Unreadable records a case file that cannot be parsed.
func (r *Report) Unreadable(path string, err error) {
	r.Totals.Wrong++
	r.Failures = append(r.Failures, Failure{Case: path, Why: err.Error()})
}

// Add counts what another report of the same mode has.
func (r *Report) Add(other *Report) {
	for name, s := range other.Suites {
		if r.Suites[name] == nil {
			r.Suites[name] = &SuiteTotals{}
		}
		r.Suites[name].Cases += s.Cases
		r.Suites[name].Passed += s.Passed
	}
	r.Totals.Cases += other.Totals.Cases
	r.Totals.Passed += other.Totals.Passed
	r.Totals.Verdicts += other.Totals.Verdicts
	r.Totals.Wrong += other.Totals.Wrong
	r.Totals.Skipped += other.Totals.Skipped
	r.Failures = append(r.Failures, other.Failures...)
	r.Skips = append(r.Skips, other.Skips...)
}

// Failed reports whether the run fails: something is wrong, or, where strict,
// skipped. A run without cases fails too.
func (r *Report) Failed(strict bool) bool {
	return r.Totals.Wrong > 0 || r.Totals.Cases == 0 || strict && r.Totals.Skipped > 0
}

// Write writes the report as one JSON object.
func (r *Report) Write(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	if err := enc.Encode(r); err != nil {
		return fmt.Errorf("write conformance report: %w", err)
	}
	return nil
}

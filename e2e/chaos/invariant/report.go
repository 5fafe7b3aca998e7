package invariant

import (
	"fmt"
	"io"
	"text/tabwriter"
)

// shown is how many violations of an invariant a report has.
const shown = 12

// Violations is how many there are.
func Violations(findings []Finding) (n int) {
	for _, f := range findings {
		n += len(f.Violations)
	}
	return n
}

// Report writes a table of the findings, and the first violations of each.
func Report(w io.Writer, findings []Finding) {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "INVARIANT\tVIOLATIONS\tCHECKED\t")
	for _, f := range findings {
		note := f.Note
		if note != "" {
			note = "; " + note
		}
		fmt.Fprintf(table, "%s\t%d\t%d %s%s\t\n", f.Invariant, len(f.Violations), f.Checked, f.Unit, note)
	}
	table.Flush()
	for _, f := range findings {
		for i, v := range f.Violations {
			if i == shown {
				fmt.Fprintf(w, "%s: and %d more\n", f.Invariant, len(f.Violations)-shown)
				break
			}
			fmt.Fprintf(w, "%s: %s\n", f.Invariant, v)
		}
	}
}

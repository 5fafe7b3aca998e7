package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
)

// Streams are where a command reads and writes.
type Streams struct {
	In  io.Reader
	Out io.Writer // Answers.
	Err io.Writer // Errors.
}

// errFound ends a command with status 1 after it has said what it found.
var errFound = errors.New("something was found wrong")

// Run runs one command line and returns the exit status.
func Run(ctx context.Context, streams Streams, args []string) int {
	root := New(streams)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	switch {
	case err == nil:
		return 0
	case !errors.Is(err, errFound):
		fmt.Fprintln(streams.Err, "weirctl: "+err.Error())
	}
	return 1
}

// New is the command line.
func New(streams Streams) *cobra.Command {
	root := &cobra.Command{
		Use:           "weirctl",
		Short:         "Ask Weir what it enforces, and why",
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetOut(streams.Out)
	root.SetErr(streams.Err)
	root.AddCommand(
		newValidate(streams),
		newEvaluate(streams),
		newExplain(streams),
		newProbe(streams),
		newDiff(streams),
		newGet(streams),
		newAudit(streams),
		newPKI(streams),
		newUninstall(streams),
	)
	return root
}

// format is the flag -o.
type format string

const (
	table  format = "table"
	asJSON format = "json"
)

func (f *format) String() string { return string(*f) }

// Type implements pflag.Value.
func (f *format) Type() string { return "table|json" }

// Set implements pflag.Value.
func (f *format) Set(s string) error {
	switch format(s) {
	case table, asJSON:
		*f = format(s)
		return nil
	}
	return fmt.Errorf("write table or json")
}

func formatFlag(cmd *cobra.Command) *format {
	f := table
	cmd.Flags().VarP(&f, "output", "o", "how to show the answer")
	return &f
}

// printJSON writes a value as indented JSON.
func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// printTable writes rows in aligned columns, and a dash for what is empty.
func printTable(w io.Writer, header []string, rows [][]string) error {
	for _, row := range rows {
		for i, cell := range row {
			if cell == "" {
				row[i] = "-"
			}
		}
	}
	return printSparse(w, header, rows)
}

// printSparse writes rows in aligned columns.
func printSparse(w io.Writer, header []string, rows [][]string) error {
	tw := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	for _, row := range append([][]string{header}, rows...) {
		fmt.Fprintln(tw, strings.Join(row, "\t"))
	}
	return tw.Flush()
}

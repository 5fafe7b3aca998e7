package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"github.com/weirnet/weir/services/policy/evaluate/conformance"
)

func newEvaluate(streams Streams) *cobra.Command {
	var dir, reportPath string
	var strict bool
	cmd := &cobra.Command{
		Use:   "evaluate -f DIR",
		Short: "Run conformance cases on the reference evaluator",
		Long: "Run the conformance cases below a folder, or one, on the reference evaluator, without any data\n" +
			"plane. The exit status is 1 if a verdict is wrong, a case cannot be read or none is there; with\n" +
			"--strict also if a case is skipped.",
		Args: cobra.NoArgs,
	}
	cmd.Flags().StringVarP(&dir, "filename", "f", "", "folder of cases, or one case")
	cmd.Flags().StringVar(&reportPath, "report", "", "write the report, one JSON object, to this file")
	cmd.Flags().BoolVar(&strict, "strict", false, "fail on skips too")
	must(cmd.MarkFlagRequired("filename"))
	output := formatFlag(cmd)
	cmd.RunE = func(*cobra.Command, []string) error {
		cases, loadErr := conformance.Load(dir)
		unreadable := fileErrors(loadErr)
		if loadErr != nil && len(unreadable) == 0 {
			return loadErr
		}
		report := conformance.Evaluate(cases)
		for _, e := range unreadable {
			report.Unreadable(e.Path, e.Err)
		}
		if reportPath != "" {
			if err := writeReport(reportPath, report); err != nil {
				return err
			}
		}
		if *output == asJSON {
			if err := report.Write(streams.Out); err != nil {
				return err
			}
		} else if err := showReport(streams, report); err != nil {
			return err
		}
		if report.Failed(strict) {
			return errFound
		}
		return nil
	}
	return cmd
}

// fileErrors takes the joined error of Load apart.
func fileErrors(err error) []*conformance.FileError {
	var out []*conformance.FileError
	list := []error{err}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		list = joined.Unwrap()
	}
	for _, e := range list {
		var fe *conformance.FileError
		if errors.As(e, &fe) {
			out = append(out, fe)
		}
	}
	return out
}

func writeReport(path string, report *conformance.Report) error {
	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("write conformance report: %w", err)
	}
	if err := report.Write(f); err != nil {
		_ = f.Close() // The write's error counts.
		return err
	}
	return f.Close()
}

func showReport(streams Streams, report *conformance.Report) error {
	for _, f := range report.Failures {
		fmt.Fprintln(streams.Out, "wrong: "+f.String())
	}
	for _, s := range report.Skips {
		fmt.Fprintf(streams.Out, "skipped: %s/%s: %s\n", s.Suite, s.Case, s.Why)
	}
	var rows [][]string
	for _, suite := range slices.Sorted(maps.Keys(report.Suites)) {
		s := report.Suites[suite]
		rows = append(rows, []string{suite, fmt.Sprint(s.Cases), fmt.Sprint(s.Passed)})
	}
	t := report.Totals
	rows = append(rows, []string{"total", fmt.Sprint(t.Cases), fmt.Sprint(t.Passed)})
	if err := printTable(streams.Out, []string{"SUITE", "CASES", "PASSED"}, rows); err != nil {
		return err
	}
	fmt.Fprintf(streams.Out, "%d verdicts, %d wrong, %d cases skipped\n", t.Verdicts, t.Wrong, t.Skipped)
	return nil
}

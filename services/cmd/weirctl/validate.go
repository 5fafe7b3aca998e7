package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/weirnet/weir/services/policy/source/manifests"
)

// finding is a violation or warning in JSON.
type finding struct {
	File     string `json:"file"`
	Document int    `json:"document"`
	Line     int    `json:"line"`
	Object   string `json:"object"`
	Field    string `json:"field"`
	Message  string `json:"message"`
}

func findings(list []manifests.Problem) []finding {
	out := []finding{}
	for _, p := range list {
		f := finding{File: p.Path, Document: p.Document, Line: p.Line, Field: p.Field, Message: p.Message}
		if p.Document > 0 {
			f.Object = p.Name()
		}
		out = append(out, f)
	}
	return out
}

func newValidate(streams Streams) *cobra.Command {
	var paths []string
	cmd := &cobra.Command{
		Use:   "validate -f PATH",
		Short: "Check manifests as strictly as an API server would",
		Long: "Check a manifest, or every manifest below a folder. Prints all violations and warnings with\n" +
			"file, object and field. The exit status is 1 if there are violations.",
		Args: cobra.NoArgs,
	}
	cmd.Flags().StringArrayVarP(&paths, "filename", "f", nil, "file or folder; may be given several times")
	must(cmd.MarkFlagRequired("filename"))
	output := formatFlag(cmd)
	cmd.RunE = func(*cobra.Command, []string) error {
		var problems, warnings []manifests.Problem
		files, objects := 0, 0
		for _, path := range paths {
			l, err := manifests.Load(path)
			if err != nil {
				return err
			}
			if l.Files == 0 {
				return fmt.Errorf("%s holds no manifest (.yaml, .yml or .json)", path)
			}
			files += l.Files
			objects += len(l.Objects)
			problems = append(problems, l.Problems...)
			warnings = append(warnings, l.Warnings...)
		}
		if *output == asJSON {
			if err := printJSON(streams.Out, map[string]any{
				"valid": len(problems) == 0, "files": files, "objects": objects, "violations": findings(problems), "warnings": findings(warnings),
			}); err != nil {
				return err
			}
		} else {
			for _, p := range problems {
				fmt.Fprintln(streams.Out, p)
			}
			for _, p := range warnings {
				fmt.Fprintln(streams.Out, "warning: "+p.String())
			}
			fmt.Fprintf(streams.Out, "%d files, %d valid objects, %d violations, %d warnings\n", files, objects, len(problems), len(warnings))
		}
		if len(problems) > 0 {
			return errFound
		}
		return nil
	}
	return cmd
}

// must is for flags that were defined a line before.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

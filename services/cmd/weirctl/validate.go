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
		Long: "Check a manifest, or every manifest below a folder, each object by itself and all of them beside\n" +
			"each other. Prints all violations and warnings with file, object and field. The exit status is 1\n" +
			"if there are violations.",
		Args: cobra.NoArgs,
	}
	cmd.Flags().StringArrayVarP(&paths, "filename", "f", nil, "file or folder; may be given several times")
	must(cmd.MarkFlagRequired("filename"))
	output := formatFlag(cmd)
	cmd.RunE = func(*cobra.Command, []string) error {
		l, err := manifests.Load(paths...)
		if err != nil {
			return err
		}
		if *output == asJSON {
			if err := printJSON(streams.Out, map[string]any{
				"valid": len(l.Problems) == 0, "files": l.Files, "objects": len(l.Objects), "violations": findings(l.Problems), "warnings": findings(l.Warnings),
			}); err != nil {
				return err
			}
		} else {
			for _, p := range l.Problems {
				fmt.Fprintln(streams.Out, p)
			}
			for _, p := range l.Warnings {
				fmt.Fprintln(streams.Out, "warning: "+p.String())
			}
			fmt.Fprintf(streams.Out, "%d files, %d valid objects, %d violations, %d warnings\n", l.Files, len(l.Objects), len(l.Problems), len(l.Warnings))
		}
		if len(l.Problems) > 0 {
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

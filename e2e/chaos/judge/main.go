// Command judge judges a chaos run that was kept: it prints what was checked of each
// invariant and what breaks it, and ends with status 1 where something does.
//
//	go run ./e2e/chaos/judge [-o json] DIR
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"

	"github.com/weirnet/weir/e2e/chaos/invariant"
)

func main() {
	output := flag.String("o", "", "json, for programs; a table if empty")
	flag.Parse()
	if flag.NArg() != 1 || *output != "" && *output != "json" {
		fmt.Fprintln(os.Stderr, "usage: judge [-o json] DIR")
		os.Exit(2)
	}
	e, err := invariant.Load(flag.Arg(0))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	findings := invariant.Judge(e)
	if *output == "json" {
		err = json.NewEncoder(os.Stdout).Encode(findings)
	} else {
		invariant.Report(os.Stdout, findings)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	if invariant.Violations(findings) > 0 {
		fmt.Fprintln(os.Stderr, "to repeat it:", e.Command)
		os.Exit(1)
	}
}

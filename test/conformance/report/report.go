// Package main prints what became of a run of Kubernetes' conformance tests: the counts, and each test that did not pass.
//
// It reads the JSON report that ginkgo writes, on whose standing as the tests' own record it relies: a test that is not in it
// did not run. It fails unless everything passed or was skipped by the test itself.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"github.com/onsi/ginkgo/v2/types"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: report REPORT.json")
		os.Exit(2)
	}
	failed, err := report(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, "report:", err)
		os.Exit(1)
	}
	if failed {
		os.Exit(1)
	}
}

func report(path string) (failed bool, err error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return false, fmt.Errorf("%w: the tests ended before they wrote their report, see tests.log beside it", err)
	}
	var suites []types.Report
	if err := json.Unmarshal(raw, &suites); err != nil {
		return false, fmt.Errorf("%s: %w", path, err)
	}
	var passed, bad, skipped []types.SpecReport
	for _, suite := range suites {
		for _, spec := range suite.SpecReports {
			switch {
			case spec.State.Is(types.SpecStateFailureStates):
				bad = append(bad, spec) // also what failed before and after all tests
			case spec.LeafNodeType != types.NodeTypeIt:
			case spec.State == types.SpecStatePassed:
				passed = append(passed, spec)
			case spec.State == types.SpecStateSkipped && spec.Failure.Message != "":
				skipped = append(skipped, spec) // by the test itself; those not asked for have no message
			}
		}
	}
	for _, spec := range bad {
		fmt.Printf("FAIL %s (%.0f s)\n     %s\n", name(spec), spec.RunTime.Seconds(), firstLine(spec.Failure.Message))
	}
	for _, spec := range skipped {
		fmt.Printf("SKIP %s\n     %s\n", name(spec), firstLine(spec.Failure.Message))
	}
	fmt.Printf("%d passed, %d failed, %d skipped\n", len(passed), len(bad), len(skipped))
	return len(bad) > 0, nil
}

func name(spec types.SpecReport) string {
	if spec.LeafNodeType != types.NodeTypeIt {
		return spec.LeafNodeType.String()
	}
	return spec.FullText()
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(text), "\n")
	return line
}

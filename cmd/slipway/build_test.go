package main

import (
	"strings"
	"testing"
)

// An error names the flag that was typed, not the parameter of the API that it becomes.
func TestBuildSizeErrorsNameTheFlag(t *testing.T) {
	for want, f := range map[string]buildFlags{
		"--memory ":      {memory: "much"},
		"--memory-swap ": {memorySwap: "much"},
		"--shm-size ":    {shmSize: "much"},
	} {
		if _, err := f.query(); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("error = %v; want one that begins with %q", err, want)
		}
	}
}

//go:build clients

// Package clients pins the versions of the official clients that the end-to-end tests drive.
package clients

import (
	_ "github.com/opencontainers/distribution-spec/conformance"
	_ "k8s.io/kubernetes/cmd/kubectl"
)

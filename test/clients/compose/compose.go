//go:build clients

// Package compose pins the version of Docker's Compose that `make test-compose` builds.
package compose

import _ "github.com/docker/compose/v5/cmd"

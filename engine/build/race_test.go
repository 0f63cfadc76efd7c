//go:build race

package build_test

// underRace tells that the race detector is on.
const underRace = true

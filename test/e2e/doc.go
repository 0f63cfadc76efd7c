// Package e2e runs whole systems and uses them as people do: with the unmodified kubectl, against a real daemon,
// real containers and a real network. Every test ends with a machine on which nothing of the daemon is left.
package e2e

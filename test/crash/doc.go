// Package crash kills what must be able to die: the daemon in the middle of anything, and the warden. What was
// acknowledged is there afterwards, what ran runs on, nobody who asked was refused, and nothing leaks.
//
// The tests run in a network namespace of their own, so that they may set a firewall's policy as another tool would.
// Five rounds of killing are the default; SLIPWAY_CRASH_ROUNDS=50 does fifty. A failure prints its seed, and
// SLIPWAY_CRASH_SEED repeats its random choices (not the scheduler's).
package crash

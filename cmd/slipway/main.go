// Slipway's command: what people type.
//
// Every verb is a call to one of the standard APIs of the daemon, and it starts in
// milliseconds, because it links no more than it takes to make one HTTP request and print
// the answer. It finds the daemon by its run directory (--run-dir, SLIPWAY_RUN_DIR,
// /run/slipway) and starts it when it is not running.
//
// Two things live in programs of their own, found beside this one: `slipway serve` becomes
// slipwayd, and what is about a Compose project (up, down, scale, and ps, logs, exec and
// build in a folder with a Compose file) becomes slipway-compose; handover.go has the rule.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	// One interrupt cancels what is going on; a second one ends the process as if nobody listened.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	code := run(ctx, os.Args[1:], streams{in: os.Stdin, out: os.Stdout, err: os.Stderr})
	stop()
	os.Exit(code)
}

// exitError ends the command with a code of its own; an empty message was told already.
type exitError struct {
	code    int
	message string
}

func (e exitError) Error() string { return e.message }

// run executes one command line and returns its exit code.
func run(ctx context.Context, args []string, s streams) int {
	c := &cli{streams: s}
	if line, ok := handOver(args, c.folder()); ok {
		return c.become(line)
	}
	root := c.rootCommand()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	if code, ok := usageCode(err); ok && errors.As(err, new(usageError)) {
		fmt.Fprintf(s.err, "slipway: %v\n", err)
		return code
	}
	var exit exitError
	if errors.As(err, &exit) {
		if exit.message != "" {
			fmt.Fprintf(s.err, "slipway: %s\n", exit.message)
		}
		return exit.code
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return 130
	}
	fmt.Fprintf(s.err, "slipway: %v\n", err)
	return 1
}

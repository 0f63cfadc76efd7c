package service

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// portKeeper takes host ports for services and pods before a rule leads from them, and
// gives them back after the last rule is gone. Owners are "service ns/name" and "pod ns/name".
type portKeeper struct {
	ports   PortReserver
	held    map[string][]hold // by owner
	wanted  map[string][]hold // the same, after the next commit
	refused map[string]bool   // owners that lack a port
}

func newPortKeeper(p PortReserver) portKeeper {
	return portKeeper{ports: p, held: map[string][]hold{}, wanted: map[string][]hold{}, refused: map[string]bool{}}
}

// want reserves the ports of an owner, and says which were refused.
func (k *portKeeper) want(ctx context.Context, owner string, holds []hold) (refused []hold, err error) {
	var errs []error
	var got []hold
	for _, h := range holds {
		if slices.Contains(k.held[owner], h) {
			got = append(got, h)
			continue
		}
		if _, err := k.ports.ReservePort(ctx, owner, strings.ToLower(string(h.proto)), h.addr, h.port); err != nil {
			refused = append(refused, h)
			errs = append(errs, explain(err))
			continue
		}
		k.held[owner] = append(k.held[owner], h)
		got = append(got, h)
	}
	k.wanted[owner] = got
	delete(k.refused, owner)
	if len(refused) > 0 {
		k.refused[owner] = true
	}
	return refused, errors.Join(errs...)
}

// explain names the holder of a port, when it is one of ours.
func explain(err error) error {
	var held interface{ HeldBy() string }
	if errors.As(err, &held) && held.HeldBy() != "" {
		return fmt.Errorf("%w (by %s)", err, held.HeldBy())
	}
	return err
}

// settle gives back the ports that an owner no longer wants, now that no rule uses them, and says whether there were any.
func (k *portKeeper) settle(ctx context.Context, owner string) (released bool) {
	for _, h := range k.held[owner] {
		if !slices.Contains(k.wanted[owner], h) {
			k.ports.ReleasePort(ctx, owner, strings.ToLower(string(h.proto)), h.addr, h.port)
			released = true
		}
	}
	k.held[owner] = k.wanted[owner]
	delete(k.wanted, owner)
	if len(k.held[owner]) == 0 {
		delete(k.held, owner)
	}
	return released
}

// wanting lists owners that lack a port.
func (k *portKeeper) wanting() []string { return slices.Collect(maps.Keys(k.refused)) }

func (k *portKeeper) releaseAll(ctx context.Context) {
	for owner := range k.held {
		k.settle(ctx, owner)
	}
}

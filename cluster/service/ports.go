package service

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// portKeeper takes host ports for services before a rule leads from them, and gives
// them back after the last rule is gone.
type portKeeper struct {
	ports   PortReserver
	held    map[string][]hold // by service
	wanted  map[string][]hold // the same, after the next commit
	refused map[string]bool   // services that lack a port
}

func newPortKeeper(p PortReserver) portKeeper {
	return portKeeper{ports: p, held: map[string][]hold{}, wanted: map[string][]hold{}, refused: map[string]bool{}}
}

func owner(key string) string { return "service " + key }

// want reserves the ports of a service, and says which were refused.
func (k *portKeeper) want(ctx context.Context, key string, holds []hold) (refused []hold, err error) {
	var errs []error
	var got []hold
	for _, h := range holds {
		if slices.Contains(k.held[key], h) {
			got = append(got, h)
			continue
		}
		if _, err := k.ports.ReservePort(ctx, owner(key), strings.ToLower(string(h.proto)), h.addr, h.port); err != nil {
			refused = append(refused, h)
			errs = append(errs, explain(err))
			continue
		}
		k.held[key] = append(k.held[key], h)
		got = append(got, h)
	}
	k.wanted[key] = got
	delete(k.refused, key)
	if len(refused) > 0 {
		k.refused[key] = true
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

// settle gives back the ports that a service no longer wants, now that no rule uses them.
func (k *portKeeper) settle(ctx context.Context, key string) {
	for _, h := range k.held[key] {
		if !slices.Contains(k.wanted[key], h) {
			k.ports.ReleasePort(ctx, owner(key), strings.ToLower(string(h.proto)), h.addr, h.port)
		}
	}
	k.held[key] = k.wanted[key]
	delete(k.wanted, key)
	if len(k.held[key]) == 0 {
		delete(k.held, key)
	}
}

// wanting lists services that lack a port.
func (k *portKeeper) wanting() []string {
	var keys []string
	for key := range k.refused {
		keys = append(keys, key)
	}
	return keys
}

func (k *portKeeper) releaseAll(ctx context.Context) {
	for key := range k.held {
		k.settle(ctx, key)
	}
}

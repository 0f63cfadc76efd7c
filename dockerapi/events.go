package dockerapi

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types"
	"github.com/moby/moby/api/types/events"

	"slipway.dev/slipway/engine/container"
	"slipway.dev/slipway/engine/event"
)

// Events is the bus that the engine's rooms publish to.
type Events interface {
	Publish(event.Event)
	Subscribe(since time.Time) *event.Subscription
}

var eventFilters = []string{
	"config", "container", "daemon", "event", "image", "label", "network", "node", "plugin",
	"scope", "secret", "service", "type", "volume",
}

func (s *Server) getEvents(w *reply, r *request) error {
	now := time.Now()
	since, err := r.timeParam("since", now)
	if err != nil {
		return err
	}
	until, err := r.timeParam("until", now)
	if err != nil {
		return err
	}
	if !since.IsZero() && !until.IsZero() && until.Before(since) {
		return invalid("`since` time (%s) cannot be after `until` time (%s)", r.query.Get("since"), r.query.Get("until"))
	}
	f, err := parseFilters(r, eventFilters...)
	if err != nil {
		return err
	}
	if since.IsZero() && !until.IsZero() {
		since = time.Unix(0, 0) // the oldest that is remembered, as with Docker
	}
	sub := s.events.Subscribe(since) // before the answer begins: the client counts on every event from then on
	send := startEvents(w, r)
	return s.copyEvents(r.Context(), sub, until, func(e event.Event) error {
		if !eventFits(f, e) {
			return nil
		}
		return send(e)
	})
}

// copyEvents calls fn with every event until the given moment (zero: for ever).
func (s *Server) copyEvents(ctx context.Context, sub *event.Subscription, until time.Time, fn func(event.Event) error) error {
	if !until.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, until)
		defer cancel()
	}
	for {
		e, ok, err := sub.TryNext() // what is remembered is sent even when until has passed
		if !ok && err == nil {
			e, err = sub.Next(ctx)
		}
		switch {
		case errors.Is(err, event.ErrLagged):
			s.log.Warn("a reader of events is too slow and lost some")
			continue
		case err != nil: // the client went away or until was reached
			return nil
		case !until.IsZero() && e.Time.After(until):
			return nil
		}
		if err := fn(e); err != nil {
			return err
		}
	}
}

// startEvents answers with the stream format that the client prefers and returns a function that sends one event.
func startEvents(w *reply, r *request) func(event.Event) error {
	media, lead := types.MediaTypeJSON, ""
	accept := r.Header.Get("Accept")
	for _, m := range []string{types.MediaTypeNDJSON, types.MediaTypeJSONLines, types.MediaTypeJSONSequence} {
		if strings.Contains(accept, m) {
			media = m
			break
		}
	}
	if media == types.MediaTypeJSONSequence {
		lead = "\x1e" // RFC 7464: a record separator before each text
	}
	w.Header().Set("Content-Type", media)
	w.WriteHeader(http.StatusOK)
	w.Flush()
	return func(e event.Event) error {
		line, err := json.Marshal(eventMessage(e))
		if err != nil {
			return err
		}
		_, err = w.Write(append([]byte(lead), append(line, '\n')...))
		w.Flush()
		return err
	}
}

// legacyEvent adds the fields that events had before actors, which docker-py and older clients still read.
type legacyEvent struct {
	Status string `json:"status,omitempty"`
	ID     string `json:"id,omitempty"`
	From   string `json:"from,omitempty"`
	events.Message
}

func eventMessage(e event.Event) legacyEvent {
	attributes := e.Actor.Attributes
	if attributes == nil {
		attributes = map[string]string{}
	}
	m := legacyEvent{Message: events.Message{
		Type: events.Type(e.Type), Action: events.Action(e.Action),
		Actor: events.Actor{ID: e.Actor.ID, Attributes: attributes},
		Scope: "local", Time: e.Time.Unix(), TimeNano: e.Time.UnixNano(),
	}}
	if e.Type == event.Container || e.Type == event.Image {
		m.Status, m.ID = e.Action, e.Actor.ID
	}
	if e.Type == event.Container {
		m.From = attributes["image"]
	}
	return m
}

func eventFits(f filters, e event.Event) bool {
	if e.Actor.Attributes[event.OwnerAttribute] == container.OwnerNode && !showsNode(f) {
		return false
	}
	action, _, _ := strings.Cut(e.Action, ":") // "health_status: healthy" is also found as health_status
	return f.exact("type", e.Type) &&
		f.accepts("event", func(want string) bool { return want == e.Action || want == action }) &&
		f.exact("scope", "local") &&
		f.labels(e.Actor.Attributes) &&
		eventObjectFits(f, e)
}

// eventObjectFits applies the filters that name an object: container=web, image=app:1 … As everywhere in Docker one filter's values are
// alternatives and several filters must all hold: container=web and image=app:1 are what happens to web while it runs app:1.
func eventObjectFits(f filters, e event.Event) bool {
	name := e.Actor.Attributes["name"]
	for _, kind := range []string{event.Container, event.Image, event.Volume, event.Network, event.Daemon, "plugin", "service", "node", "secret", "config"} {
		fits := kind == e.Type && slices.ContainsFunc(f[kind], func(want string) bool {
			return want == e.Actor.ID || want == name || len(want) >= 3 && strings.HasPrefix(e.Actor.ID, want)
		})
		if f.has(kind) && !fits && !(kind == event.Image && imageEventFits(f[kind], e)) {
			return false
		}
	}
	return true
}

// imageEventFits is true for events of an image and of the containers made from it, with or without the tag.
func imageEventFits(wanted []string, e event.Event) bool {
	ref := e.Actor.Attributes["image"]
	if e.Type == event.Image {
		ref = e.Actor.ID
		if n := e.Actor.Attributes["name"]; n != "" {
			ref = n
		}
	}
	if ref == "" {
		return false
	}
	return slices.ContainsFunc(wanted, func(want string) bool { return want == ref || want == untagged(ref) })
}

// untagged is a reference without its tag.
func untagged(ref string) string {
	slash := strings.LastIndexByte(ref, '/')
	if colon := strings.LastIndexByte(ref, ':'); colon > slash {
		return ref[:colon]
	}
	return ref
}

// showsNode is true when a request asks for what the node agent owns, the containers of pods. Docker's lists leave
// them out, so that `docker rm -f $(docker ps -aq)` is not an outage: label=slipway.owner=node brings them in.
const nodeLabel = event.OwnerAttribute + "=" + container.OwnerNode

func showsNode(f filters) bool {
	return slices.Contains(f["label"], nodeLabel)
}

// publishPrune announces the end of a prune; the rooms announce each removal.
func (s *Server) publishPrune(kind string, reclaimed int64) {
	s.events.Publish(event.Event{Type: kind, Action: "prune", Actor: event.Actor{
		Attributes: map[string]string{"reclaimed": strconv.FormatInt(reclaimed, 10)},
	}})
}

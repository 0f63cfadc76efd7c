package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/jsonstream"
)

// message is one object of a progress stream; Error is the old form of its error.
type message struct {
	jsonstream.Message
	OldError string `json:"error"`
}

func (m message) err() error {
	switch {
	case m.Error != nil:
		return errors.New(m.Error.Message)
	case m.OldError != "":
		return errors.New(m.OldError)
	}
	return nil
}

// progressView shows a progress stream: on a terminal one line per layer, kept up to date, elsewhere a line whenever something
// changes its state. Text of builds passes through.
type progressView struct {
	out   io.Writer
	width int // of the terminal; 0: not one
	aux   func(json.RawMessage)

	lines  map[string]int // id to its line
	states map[string]string
}

// show reads the stream to its end and returns the error that is in it.
func (v *progressView) show(r io.Reader) error {
	v.lines, v.states = map[string]int{}, map[string]string{}
	dec := json.NewDecoder(r)
	for {
		var m message
		switch err := dec.Decode(&m); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("read progress: %w", err)
		}
		if err := m.err(); err != nil {
			return err
		}
		v.one(m)
	}
}

func (v *progressView) one(m message) {
	switch {
	case m.Aux != nil:
		if v.aux != nil {
			v.aux(*m.Aux)
		}
	case m.Stream != "":
		fmt.Fprint(v.out, m.Stream)
	case m.ID == "":
		if m.Status != "" {
			fmt.Fprintln(v.out, m.Status)
		}
		v.lines = map[string]int{} // what follows starts below
	case v.width > 0:
		v.update(m)
	default:
		v.log(m)
	}
}

// log prints a layer's line when its state changes.
func (v *progressView) log(m message) {
	if v.states[m.ID] == m.Status {
		return
	}
	v.states[m.ID] = m.Status
	fmt.Fprintf(v.out, "%s: %s\n", m.ID, m.Status)
}

// update rewrites a layer's line in place.
func (v *progressView) update(m message) {
	at, known := v.lines[m.ID]
	if !known {
		at = len(v.lines)
		v.lines[m.ID] = at
		fmt.Fprintln(v.out)
	}
	up := len(v.lines) - at
	fmt.Fprintf(v.out, "\x1b[%dA\r\x1b[2K%s\x1b[%dB\r", up, v.line(m), up)
}

func (v *progressView) line(m message) string {
	text := m.ID + ": " + m.Status
	if p := m.Progress; p != nil && p.Total > 0 && p.Current < p.Total {
		const cells = 25
		full := int(p.Current * cells / p.Total)
		text += fmt.Sprintf(" [%s%s] %s/%s", strings.Repeat("=", full), strings.Repeat(" ", cells-full),
			units.HumanSize(float64(p.Current)), units.HumanSize(float64(p.Total)))
	} else if p != nil && p.Current > 0 && p.Total == 0 {
		text += " " + units.HumanSize(float64(p.Current))
	}
	return ellipsis(text, v.width)
}

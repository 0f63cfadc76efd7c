package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"text/template"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
)

// column is one figure of a listing: a name for templates and JSON, and a title for the table.
type column struct {
	name, title string
	hidden      bool // only for templates and JSON
}

// listing is rows to be shown as a table, as one JSON object per line (--format json), as the API's own objects
// (-o json), through a template (--format '{{.ID}}'), or as bare ids (-q).
type listing struct {
	columns []column
	rows    [][]string
	raw     any // what the API answered
	ids     []string
}

func (l *listing) add(id string, cells ...string) {
	l.ids = append(l.ids, id)
	l.rows = append(l.rows, cells)
}

// outputFlags choose how a listing is shown.
type outputFlags struct {
	format, output string
	quiet          bool
}

func (f *outputFlags) register(cmd *cobra.Command, what string) {
	cmd.Flags().StringVar(&f.format, "format", "", "table, json (one object per line), or a Go template such as '{{.ID}}'")
	cmd.Flags().StringVarP(&f.output, "output", "o", "", "json: the API's own objects")
	if what != "" {
		cmd.Flags().BoolVarP(&f.quiet, "quiet", "q", false, "print only "+what)
	}
}

func (f *outputFlags) check() error {
	if f.output != "" && f.output != "json" {
		return usageError{fmt.Errorf("--output %q: only json is known", f.output)}
	}
	return nil
}

func (l *listing) print(w io.Writer, f outputFlags) error {
	switch {
	case f.output == "json":
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		return enc.Encode(l.raw)
	case f.quiet:
		for _, id := range l.ids {
			fmt.Fprintln(w, id)
		}
		return nil
	case f.format == "json":
		return l.printLines(w)
	case strings.HasPrefix(f.format, "table "):
		return l.printTemplate(w, strings.TrimPrefix(f.format, "table "), true)
	case f.format != "" && f.format != "table":
		return l.printTemplate(w, f.format, false)
	}
	return l.printTable(w)
}

func (l *listing) printTable(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)
	l.line(t, func(i int) string { return l.columns[i].title })
	for _, row := range l.rows {
		l.line(t, func(i int) string { return row[i] })
	}
	return t.Flush()
}

func (l *listing) line(w io.Writer, cell func(int) string) {
	var cells []string
	for i, c := range l.columns {
		if !c.hidden {
			cells = append(cells, cell(i))
		}
	}
	fmt.Fprintln(w, strings.TrimRight(strings.Join(cells, "\t"), "\t"))
}

func (l *listing) object(row []string) map[string]string {
	m := map[string]string{}
	for i, c := range l.columns {
		m[c.name] = row[i]
	}
	return m
}

func (l *listing) printLines(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	for _, row := range l.rows {
		if err := enc.Encode(l.object(row)); err != nil {
			return err
		}
	}
	return nil
}

func (l *listing) printTemplate(w io.Writer, format string, table bool) error {
	t, err := parseTemplate(format)
	if err != nil {
		return err
	}
	out := w
	if table {
		tw := tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)
		defer tw.Flush()
		out = tw
		titles := map[string]string{}
		for _, c := range l.columns {
			titles[c.name] = c.title
		}
		if err := runTemplate(out, t, titles); err != nil {
			return err
		}
	}
	for _, row := range l.rows {
		if err := runTemplate(out, t, l.object(row)); err != nil {
			return err
		}
	}
	return nil
}

func parseTemplate(format string) (*template.Template, error) {
	format = strings.NewReplacer(`\t`, "\t", `\n`, "\n").Replace(format)
	t, err := template.New("").Option("missingkey=error").Funcs(template.FuncMap{
		"json":  toJSON,
		"join":  strings.Join,
		"lower": strings.ToLower,
		"upper": strings.ToUpper,
		"split": strings.Split,
	}).Parse(format)
	if err != nil {
		return nil, usageError{fmt.Errorf("--format: %w", err)}
	}
	return t, nil
}

func toJSON(v any) (string, error) {
	raw, err := json.Marshal(v)
	return string(raw), err
}

func runTemplate(w io.Writer, t *template.Template, v any) error {
	if err := t.Execute(w, v); err != nil {
		return fmt.Errorf("--format: %w", err)
	}
	_, err := fmt.Fprintln(w)
	return err
}

func shortID(id string) string {
	id = strings.TrimPrefix(id, "sha256:")
	if len(id) > 12 {
		return id[:12]
	}
	return id
}

func ago(t, now time.Time) string {
	if t.IsZero() || t.Unix() <= 0 {
		return "N/A"
	}
	return units.HumanDuration(now.Sub(t)) + " ago"
}

func size(n int64) string { return units.HumanSizeWithPrecision(float64(n), 3) }

// ellipsis shortens s to n characters.
func ellipsis(s string, n int) string {
	r := []rune(s)
	if len(r) <= n {
		return s
	}
	return string(r[:n-1]) + "…"
}

package dockerapi

import (
	"strconv"
	"strings"
	"time"
)

// parseTime reads a moment as Docker's clients send it: seconds since 1970 with an optional fraction, a
// date or time, or a duration that counts back from now. An empty string and "0" are the zero time.
func parseTime(s string, now time.Time) (time.Time, error) {
	if s == "" || s == "0" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil {
		return now.Add(-d), nil
	}
	if t, ok := parseSeconds(s); ok {
		return t, nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999", "2006-01-02T15:04", "2006-01-02T15:04Z07:00", "2006-01-02Z07:00", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, invalid("failed to parse value as time or duration: %q", s)
}

func parseSeconds(s string) (time.Time, bool) {
	whole, frac, _ := strings.Cut(s, ".")
	sec, err := strconv.ParseInt(whole, 10, 64)
	if err != nil {
		return time.Time{}, false
	}
	if frac == "" {
		return time.Unix(sec, 0), true
	}
	if len(frac) > 9 {
		frac = frac[:9]
	}
	n, err := strconv.ParseInt(frac+strings.Repeat("0", 9-len(frac)), 10, 64)
	return time.Unix(sec, n), err == nil
}

// timeParam reads a time from the query.
func (r *request) timeParam(name string, now time.Time) (time.Time, error) {
	t, err := parseTime(r.query.Get(name), now)
	if err != nil {
		return t, invalid("parameter %s: %v", name, err)
	}
	return t, nil
}

// rfc3339 is Docker's form of a time in inspect output; a moment that never was is the year 1.
func rfc3339(t time.Time) string {
	if t.IsZero() {
		return "0001-01-01T00:00:00Z"
	}
	return t.UTC().Format(time.RFC3339Nano)
}

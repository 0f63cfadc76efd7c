package auth

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/endpoints/request"
)

// Audit writes down who asked for what and what came of it: one JSON line a request, in the
// form of audit.k8s.io/v1 at level Metadata. No content of any object is in it, and so no
// secret. The files together never exceed their bound.
type Audit struct {
	path  string
	limit int64
	keep  int
	log   *slog.Logger

	mu     sync.Mutex
	file   *os.File // nil: it is closed, or could not be opened again after a rotation
	out    *bufio.Writer
	size   int64
	closed bool
	lost   bool // a failure to write has been reported and not yet overcome
	timer  *time.Timer
}

// AuditOptions bound an Audit; zero values mean 16 MB and three old files.
type AuditOptions struct {
	Path     string
	MaxBytes int64
	Keep     int
	Log      *slog.Logger
}

// flushAfter is how long a line may wait in memory.
const flushAfter = time.Second

// OpenAudit appends to the log at o.Path.
func OpenAudit(o AuditOptions) (*Audit, error) {
	if o.MaxBytes == 0 {
		o.MaxBytes = 16 << 20
	}
	if o.Keep == 0 {
		o.Keep = 3
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	a := &Audit{path: o.Path, limit: o.MaxBytes, keep: o.Keep, log: o.Log}
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.openLocked(); err != nil {
		return nil, fmt.Errorf("open audit log: %w", err)
	}
	return a, nil
}

func (a *Audit) openLocked() error {
	f, err := os.OpenFile(a.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return err
	}
	a.file, a.out, a.size = f, bufio.NewWriterSize(f, 32<<10), st.Size()
	return nil
}

// AuditRecord is one request.
type AuditRecord struct {
	ID           string
	User         user.Info
	Impersonated user.Info // nil unless the user acted as another
	Info         *request.RequestInfo
	Verb         string
	URI          string
	Source       string
	UserAgent    string
	Code         int
	Reason       string // of a refusal
	Received     time.Time
}

type auditLine struct {
	Kind         string            `json:"kind"`
	APIVersion   string            `json:"apiVersion"`
	Level        string            `json:"level"`
	AuditID      string            `json:"auditID"`
	Stage        string            `json:"stage"`
	RequestURI   string            `json:"requestURI"`
	Verb         string            `json:"verb"`
	User         auditUser         `json:"user"`
	Impersonated *auditUser        `json:"impersonatedUser,omitempty"`
	SourceIPs    []string          `json:"sourceIPs,omitempty"`
	UserAgent    string            `json:"userAgent,omitempty"`
	ObjectRef    *auditRef         `json:"objectRef,omitempty"`
	Response     *auditStatus      `json:"responseStatus,omitempty"`
	Received     metav1.MicroTime  `json:"requestReceivedTimestamp"`
	Stamp        metav1.MicroTime  `json:"stageTimestamp"`
	Annotations  map[string]string `json:"annotations,omitempty"`
}

type auditUser struct {
	Username string   `json:"username,omitempty"`
	UID      string   `json:"uid,omitempty"`
	Groups   []string `json:"groups,omitempty"`
}

type auditRef struct {
	Resource    string `json:"resource,omitempty"`
	Namespace   string `json:"namespace,omitempty"`
	Name        string `json:"name,omitempty"`
	APIGroup    string `json:"apiGroup,omitempty"`
	APIVersion  string `json:"apiVersion,omitempty"`
	Subresource string `json:"subresource,omitempty"`
}

type auditStatus struct {
	Code int `json:"code"`
}

// Write records one request. It never fails the request: what cannot be written is reported
// in the daemon's log, once until writing succeeds again. A nil Audit records nothing.
func (a *Audit) Write(r AuditRecord) {
	if a == nil {
		return
	}
	line, err := json.Marshal(r.line())
	if err != nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.report(a.appendLocked(append(line, '\n')))
}

func (r AuditRecord) line() auditLine {
	l := auditLine{
		Kind: "Event", APIVersion: "audit.k8s.io/v1", Level: "Metadata", Stage: "ResponseComplete",
		AuditID: r.ID, RequestURI: r.URI, Verb: r.Verb, User: auditUserOf(r.User), UserAgent: r.UserAgent,
		Received: metav1.NewMicroTime(r.Received), Stamp: metav1.NowMicro(), Response: &auditStatus{r.Code},
	}
	if r.Impersonated != nil {
		u := auditUserOf(r.Impersonated)
		l.Impersonated = &u
	}
	if r.Source != "" {
		l.SourceIPs = []string{r.Source}
	}
	if i := r.Info; i != nil && i.IsResourceRequest {
		l.ObjectRef = &auditRef{i.Resource, i.Namespace, i.Name, i.APIGroup, i.APIVersion, i.Subresource}
	}
	if r.Reason != "" {
		l.Annotations = map[string]string{"authorization.k8s.io/reason": r.Reason}
	}
	return l
}

func auditUserOf(u user.Info) auditUser {
	if u == nil {
		return auditUser{}
	}
	return auditUser{Username: u.GetName(), UID: u.GetUID(), Groups: u.GetGroups()}
}

func (a *Audit) appendLocked(line []byte) error {
	if a.closed {
		return fs.ErrClosed
	}
	if a.file == nil {
		if err := a.openLocked(); err != nil {
			return err
		}
	}
	if a.size+int64(len(line)) > a.limit {
		if err := a.rotateLocked(); err != nil {
			return err
		}
	}
	if a.timer == nil {
		a.timer = time.AfterFunc(flushAfter, a.flush)
	}
	n, err := a.out.Write(line)
	a.size += int64(n)
	return err
}

func (a *Audit) rotateLocked() error {
	err := errors.Join(a.out.Flush(), a.file.Close())
	a.file = nil // whatever comes, this file has been moved: rotating once more would push out the oldest for nothing
	for i := a.keep; i > 1; i-- {
		rename(fmt.Sprintf("%s.%d", a.path, i-1), fmt.Sprintf("%s.%d", a.path, i))
	}
	rename(a.path, a.path+".1")
	return errors.Join(err, a.openLocked())
}

// rename moves a file that may not be there.
func rename(from, to string) {
	if err := os.Rename(from, to); err != nil && !errors.Is(err, fs.ErrNotExist) {
		os.Remove(from) // the bound matters more than the oldest lines
	}
}

func (a *Audit) flush() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.timer = nil
	if a.file != nil {
		a.report(a.out.Flush())
	}
}

// report says that lines are being lost, once.
func (a *Audit) report(err error) {
	if err != nil && !a.lost && !errors.Is(err, fs.ErrClosed) {
		a.log.Error("the audit log cannot be written, requests go unrecorded", "path", a.path, "error", err)
	}
	if err != nil && a.file != nil { // a bufio.Writer does not forget its first error
		a.out.Reset(a.file)
	}
	a.lost = err != nil
}

// Close writes what is waiting.
func (a *Audit) Close() error {
	if a == nil {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closed = true
	if a.timer != nil {
		a.timer.Stop()
	}
	if a.file == nil {
		return nil
	}
	err := errors.Join(a.out.Flush(), a.file.Close())
	a.file = nil
	return err
}

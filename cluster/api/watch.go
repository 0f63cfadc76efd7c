package api

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"reflect"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/endpoints/handlers/responsewriters"

	"slipway.dev/slipway/cluster/store"
)

// bookmarkEvery is how often a watch that asked for bookmarks is told how far it has seen.
const bookmarkEvery = time.Minute

func (s *reader) watch(w http.ResponseWriter, req *http.Request, r *resource) error {
	form, err := r.negotiate(req)
	if err != nil {
		return err
	}
	opts, sel, err := r.listOptions(req)
	if err != nil {
		return err
	}
	frame, contentType, err := framing(form.info)
	if err != nil {
		return err
	}
	ctx, cancel := s.lifetime(req.Context(), &opts)
	defer cancel()
	if err := s.reach(ctx, r, opts.ResourceVersion); err != nil {
		return err
	}

	initial := opts.SendInitialEvents != nil && *opts.SendInitialEvents
	from := int64(0)
	if !initial {
		if from, err = store.ParseRevision(opts.ResourceVersion); err != nil {
			return apierrors.NewBadRequest(err.Error())
		}
	}
	cursor, err := s.objects.Watch(r.kind.Resource, from)
	if err != nil && !errors.Is(err, store.ErrTooOld) {
		return err
	}
	out := newReadBy(w, s.patience)
	st := &stream{w: out, frame: frame, form: form, sel: sel, ctx: ctx, bookmarks: opts.AllowWatchBookmarks, sent: time.Now()}
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(http.StatusOK)
	if cursor == nil {
		st.fail(errWatchTooOld)
		return nil
	}
	st.run(cursor, initial)
	return nil
}

// watchPatience is how long a watch's client may leave unread what it is sent.
const watchPatience = time.Minute

// lifetime ends a watch after the time that the client asks for, or after half an hour to an
// hour, spread so that clients of one start do not all come back at once.
func (s *reader) lifetime(ctx context.Context, opts *internalversion.ListOptions) (context.Context, func()) {
	d := time.Duration(float64(s.watches) * (1 + rand.Float64()))
	if opts.TimeoutSeconds != nil && *opts.TimeoutSeconds > 0 {
		d = time.Duration(*opts.TimeoutSeconds) * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, d)
	unhook := context.AfterFunc(s.closing, cancel)
	return ctx, func() { unhook(); cancel() }
}

// errWatchTooOld tells the client to list again.
var errWatchTooOld = apierrors.NewResourceExpired("The resourceVersion for the provided watch is too old.")

// readBy is a response whose client has to read on: nothing is written for longer than patience. A client that stops reading would
// otherwise keep one of the places for watches, and what it was to be sent, until its time is over: half an hour, or what it asked for.
type readBy struct {
	http.ResponseWriter
	control  *http.ResponseController
	patience time.Duration
	over     *time.Timer
}

// newReadBy wraps a response. Nothing is measured while nothing is written.
func newReadBy(w http.ResponseWriter, patience time.Duration) *readBy {
	r := &readBy{ResponseWriter: w, control: http.NewResponseController(w), patience: patience}
	// A deadline of the connection for each write would cost an HTTP/2 server two messages to itself per event.
	r.over = time.AfterFunc(patience, func() { _ = r.control.SetWriteDeadline(time.Now()) }) // fails when the connection is over
	r.over.Stop()
	return r
}

func (r *readBy) Write(p []byte) (int, error) {
	r.over.Reset(r.patience)
	defer r.over.Stop()
	return r.ResponseWriter.Write(p)
}

func (r *readBy) Flush() error {
	r.over.Reset(r.patience)
	defer r.over.Stop()
	return r.control.Flush()
}

// stream sends one watch.
type stream struct {
	w         *readBy
	frame     func(out *bytes.Buffer, typ string, object []byte)
	form      *form
	sel       *selection
	ctx       context.Context
	bookmarks bool
	sent      time.Time // when the client last learned a version

	object, out bytes.Buffer
}

func (st *stream) run(cursor *store.Cursor, initial bool) {
	if initial {
		if err := st.begin(cursor.Snapshot()); err != nil {
			return
		}
	}
	if st.w.Flush() != nil {
		return
	}
	if st.bookmarks {
		cursor.Bookmarks(bookmarkEvery)
	}
	for {
		events, err := cursor.Next(st.ctx)
		switch {
		case errors.Is(err, store.ErrTooOld):
			st.fail(errWatchTooOld)
			return
		case err != nil:
			return // the client has gone, its time is over, or the server closes
		}
		if st.events(events) != nil || st.w.Flush() != nil {
			return
		}
	}
}

// begin sends what is there, and marks where that ends for clients that list by watching.
func (st *stream) begin(snap store.Snapshot) error {
	for _, o := range st.sel.from(snap, st.form.r.kind, "", true) {
		if err := st.send("ADDED", o); err != nil {
			return err
		}
	}
	if !st.bookmarks {
		return nil
	}
	return st.bookmark(max(snap.Revision(), 1), map[string]string{metav1.InitialEventsAnnotationKey: "true"})
}

func (st *stream) events(events []store.Event) error {
	for _, e := range events {
		if err := st.event(e); err != nil {
			return err
		}
	}
	if st.bookmarks && time.Since(st.sent) > bookmarkEvery { // much happened, none of it selected
		return st.bookmark(events[len(events)-1].Revision, nil)
	}
	return nil
}

// event turns what happened to the object into what happened to the client's selection.
func (st *stream) event(e store.Event) error {
	switch e.Type {
	case store.Bookmark:
		return st.bookmark(e.Revision, nil)
	case store.Deleted:
		if !st.sel.matches(e.Object) {
			return nil
		}
		return st.pass("DELETED", e)
	}
	was, is := e.Prev != nil && st.sel.matches(e.Prev), st.sel.matches(e.Object)
	switch {
	case is && was:
		return st.pass("MODIFIED", e)
	case is:
		return st.pass("ADDED", e)
	case was: // the last version that was selected, at the version that ended that
		return st.send("DELETED", at(e.Prev, e.Object.GetResourceVersion()))
	}
	return nil
}

// at is an object with another version; everything else is shared.
func at(o store.Object, rv string) store.Object {
	v := reflect.New(reflect.TypeOf(o).Elem())
	v.Elem().Set(reflect.ValueOf(o).Elem())
	c := v.Interface().(store.Object)
	c.SetResourceVersion(rv)
	return c
}

func (st *stream) bookmark(rev int64, annotations map[string]string) error {
	o := st.form.r.kind.New()
	o.GetObjectKind().SetGroupVersionKind(st.form.r.kind.GVK)
	o.SetResourceVersion(store.FormatRevision(rev))
	o.SetAnnotations(annotations)
	return st.send("BOOKMARK", o)
}

// pass sends an event's object as it is. Its encoding is made once for all watches.
func (st *stream) pass(typ string, e store.Event) error {
	f := st.form
	if f.as != nil || f.r.gvk != f.r.kind.GVK || f.pretty {
		return st.send(typ, e.Object)
	}
	object, err := e.Encoded(f.info.MediaType, func(e store.Event) ([]byte, error) {
		var buf bytes.Buffer
		err := f.info.Serializer.Encode(e.Object, &buf)
		return buf.Bytes(), err
	})
	if err != nil {
		return fmt.Errorf("encode %T: %w", e.Object, err)
	}
	st.sent = time.Now()
	return st.frameOut(typ, object)
}

func (st *stream) send(typ string, o store.Object) error {
	shown, err := st.form.object(st.ctx, o)
	if err != nil {
		return err
	}
	if st.form.table != nil {
		st.form.table.NoHeaders = true // only the first event names the columns
	}
	st.sent = time.Now()
	return st.encode(typ, shown)
}

func (st *stream) fail(err *apierrors.StatusError) {
	status := responsewriters.ErrorToAPIStatus(err)
	if st.encode("ERROR", status) == nil {
		st.w.Flush()
	}
}

func (st *stream) encode(typ string, o runtime.Object) error {
	st.object.Reset()
	if err := st.form.info.Serializer.Encode(o, &st.object); err != nil {
		return fmt.Errorf("encode %T: %w", o, err)
	}
	return st.frameOut(typ, st.object.Bytes())
}

// keepIdle is how much memory a watch that waits may hold.
const keepIdle = 8 << 10

func (st *stream) frameOut(typ string, object []byte) error {
	st.out.Reset()
	st.frame(&st.out, typ, object)
	_, err := st.w.Write(st.out.Bytes())
	if st.out.Cap() > keepIdle {
		st.object, st.out = bytes.Buffer{}, bytes.Buffer{}
	}
	return err
}

// framing is how events follow one another in an encoding. The frames are written by hand:
// through upstream's WatchEvent each object would be copied and its JSON parsed once more.
func framing(info runtime.SerializerInfo) (func(*bytes.Buffer, string, []byte), string, error) {
	switch {
	case info.MediaType == runtime.ContentTypeJSON:
		return frameJSON, info.MediaType, nil
	case info.MediaType == runtime.ContentTypeProtobuf:
		return frameProtobuf, info.MediaType + ";stream=watch", nil
	}
	return nil, "", notAcceptable(fmt.Sprintf("only the following media types are accepted for a watch: %s;stream=watch, %s;stream=watch",
		runtime.ContentTypeJSON, runtime.ContentTypeProtobuf))
}

func frameJSON(out *bytes.Buffer, typ string, object []byte) {
	out.WriteString(`{"type":"`)
	out.WriteString(typ)
	out.WriteString(`","object":`)
	out.Write(bytes.TrimRight(object, "\n"))
	out.WriteString("}\n")
}

// frameProtobuf writes a length and a WatchEvent{type = 1, object = 2 {raw = 1}}.
func frameProtobuf(out *bytes.Buffer, typ string, object []byte) {
	raw := 1 + uvarintLen(len(object)) + len(object)
	size := 1 + uvarintLen(len(typ)) + len(typ) + 1 + uvarintLen(raw) + raw
	b := out.AvailableBuffer()
	b = binary.BigEndian.AppendUint32(b, uint32(size))
	b = append(b, 1<<3|2)
	b = binary.AppendUvarint(b, uint64(len(typ)))
	b = append(b, typ...)
	b = append(b, 2<<3|2)
	b = binary.AppendUvarint(b, uint64(raw))
	b = append(b, 1<<3|2)
	b = binary.AppendUvarint(b, uint64(len(object)))
	out.Write(b)
	out.Write(object)
}

func uvarintLen(n int) int {
	var b [binary.MaxVarintLen64]byte
	return binary.PutUvarint(b[:], uint64(n))
}

// Command store keeps the guestbook's entries in one append-only file.
//
// An entry is on disk before its POST is answered, and a line that a crash cut short is dropped at the
// next start. Every request must carry the shared secret.
package main

import (
	"bufio"
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

type entry struct {
	Name    string    `json:"name"`
	Message string    `json:"message"`
	Time    time.Time `json:"time"`
}

// book is the file and what it holds; mu guards both.
type book struct {
	mu      sync.Mutex
	file    *os.File
	entries []entry
}

func open(path string) (*book, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	b := &book{file: f}
	good := int64(0)
	r := bufio.NewReader(f)
	for {
		line, err := r.ReadBytes('\n')
		if err != nil {
			break // io.EOF, with or without a torn last line
		}
		var e entry
		if err := json.Unmarshal(line, &e); err != nil {
			return nil, fmt.Errorf("%s: damaged at byte %d: %w", path, good, err)
		}
		b.entries = append(b.entries, e)
		good += int64(len(line))
	}
	if err := f.Truncate(good); err != nil {
		return nil, err
	}
	_, err = f.Seek(good, io.SeekStart)
	return b, err
}

func (b *book) add(e entry) error {
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, err := b.file.Write(append(line, '\n')); err != nil {
		return err
	}
	if err := b.file.Sync(); err != nil {
		return err
	}
	b.entries = append(b.entries, e)
	return nil
}

func (b *book) all() []entry {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]entry{}, b.entries...)
}

func (b *book) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.Method {
	case http.MethodGet:
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(b.all())
	case http.MethodPost:
		var e entry
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 64<<10)).Decode(&e); err != nil {
			http.Error(w, "entry: "+err.Error(), http.StatusBadRequest)
			return
		}
		e.Time = time.Now().UTC()
		if err := b.add(e); err != nil {
			http.Error(w, "write entry: "+err.Error(), http.StatusInternalServerError)
			return
		}
		w.WriteHeader(http.StatusCreated)
	default:
		http.Error(w, "use GET or POST", http.StatusMethodNotAllowed)
	}
}

// withSecret lets a request through when it carries the secret.
func withSecret(secret string, next http.Handler) http.Handler {
	want := []byte("Bearer " + secret)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if subtle.ConstantTimeCompare([]byte(r.Header.Get("Authorization")), want) != 1 {
			http.Error(w, "the shared secret is missing or wrong", http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func main() {
	health := flag.Bool("health", false, "ask the running store whether it is well, and exit")
	flag.Parse()
	if *health {
		res, err := http.Get("http://127.0.0.1:7000/healthz")
		if err != nil || res.StatusCode != http.StatusOK {
			log.Fatalf("unhealthy: %v %v", res, err)
		}
		return
	}
	secret, err := os.ReadFile("/run/secrets/store_token")
	if err != nil {
		log.Fatal(err)
	}
	b, err := open(filepath.Join("/data", "entries.jsonl"))
	if err != nil {
		log.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "ok\n") })
	mux.Handle("/entries", withSecret(strings.TrimSpace(string(secret)), b))
	srv := &http.Server{Addr: ":7000", Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	drained := make(chan struct{})
	go func() {
		<-ctx.Done()
		srv.Shutdown(context.Background())
		close(drained)
	}()
	log.Printf("store: %d entries, listening on %s", len(b.entries), srv.Addr)
	if err := srv.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		log.Fatal(err)
	}
	<-drained
}

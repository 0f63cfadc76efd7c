// Command web is the guestbook's front end. Every page says which replica made it, so that the balancing shows.
package main

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"html/template"
	"io"
	"log"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// version is set by the linker: `make demo` builds a first and a second version.
var version = "1"

//go:embed page.html
var pageText string

type entry struct {
	Name    string
	Message string
	Time    time.Time
}

type site struct {
	api     string
	replica string
	client  *http.Client
	page    *template.Template
}

// get fetches a path from the api.
func (s *site) get(ctx context.Context, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.api+path, nil)
	if err != nil {
		return nil, err
	}
	res, err := s.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 8<<20))
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("api answered %s: %s", res.Status, body)
	}
	return body, err
}

func (s *site) index(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodPost {
		s.sign(w, r)
		return
	}
	data := struct {
		Title, Letter, Replica, Version, Problem string
		Entries                                  []entry
	}{Title: "Guestbook", Replica: s.replica, Version: version}
	if body, err := s.get(r.Context(), "/title"); err == nil {
		data.Title, data.Letter, _ = strings.Cut(string(body), "\n")
	}
	body, err := s.get(r.Context(), "/entries")
	if err == nil {
		err = json.Unmarshal(body, &data.Entries)
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	if err != nil {
		data.Problem = err.Error()
		w.WriteHeader(http.StatusBadGateway)
	}
	s.page.Execute(w, data)
}

// sign adds an entry and goes back to the page.
func (s *site) sign(w http.ResponseWriter, r *http.Request) {
	body, _ := json.Marshal(map[string]string{"name": r.FormValue("name"), "message": r.FormValue("message")})
	req, err := http.NewRequestWithContext(r.Context(), http.MethodPost, s.api+"/entries", bytes.NewReader(body))
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	res, err := s.client.Do(req)
	if err != nil {
		http.Error(w, "api: "+err.Error(), http.StatusBadGateway)
		return
	}
	defer res.Body.Close()
	if res.StatusCode >= 300 {
		w.WriteHeader(res.StatusCode)
		io.Copy(w, res.Body)
		return
	}
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

func main() {
	health := flag.Bool("health", false, "ask the running web server whether it is well, and exit")
	flag.Parse()
	if *health {
		res, err := http.Get("http://127.0.0.1:8080/healthz")
		if err != nil || res.StatusCode != http.StatusOK {
			log.Fatalf("unhealthy: %v %v", res, err)
		}
		return
	}
	replica, err := os.Hostname()
	if err != nil {
		log.Fatal(err)
	}
	s := &site{
		api: os.Getenv("API_URL"), replica: replica,
		client: &http.Client{Timeout: 5 * time.Second},
		page:   template.Must(template.New("page").Parse(pageText)),
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "ok\n") })
	mux.HandleFunc("/whoami", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s version %s\n", s.replica, version)
	})
	mux.HandleFunc("/", s.index)
	serve(&http.Server{Addr: ":8080", Handler: mux, ReadHeaderTimeout: 5 * time.Second})
}

// serve answers until SIGTERM, then for a second more (balancers need a moment to hear of it), then drains.
func serve(srv *http.Server) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	drained := make(chan struct{})
	go func() {
		<-ctx.Done()
		time.Sleep(time.Second)
		srv.Shutdown(context.Background())
		close(drained)
	}()
	log.Printf("web: version %s listening on %s", version, srv.Addr)
	if err := srv.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		log.Fatal(err)
	}
	<-drained
}

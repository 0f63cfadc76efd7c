// Command api is the guestbook's logic: it checks entries against the configuration and keeps them in the store.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

type config struct {
	Title         string `json:"title"`
	MaxMessage    int    `json:"maxMessage"`
	WelcomeLetter string `json:"-"`
}

type server struct {
	config config
	store  string
	secret string
	client *http.Client
}

// ask sends one request to the store and copies the answer to w.
func (s *server) ask(w http.ResponseWriter, r *http.Request, body io.Reader) {
	req, err := http.NewRequestWithContext(r.Context(), r.Method, s.store+"/entries", body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	req.Header.Set("Authorization", "Bearer "+s.secret)
	res, err := s.client.Do(req)
	if err != nil {
		http.Error(w, "store: "+err.Error(), http.StatusBadGateway)
		return
	}
	defer res.Body.Close()
	w.Header().Set("Content-Type", res.Header.Get("Content-Type"))
	w.WriteHeader(res.StatusCode)
	io.Copy(w, res.Body)
}

func (s *server) entries(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodGet {
		s.ask(w, r, nil)
		return
	}
	var e struct{ Name, Message string }
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 64<<10)).Decode(&e); err != nil {
		http.Error(w, "entry: "+err.Error(), http.StatusBadRequest)
		return
	}
	e.Name, e.Message = strings.TrimSpace(e.Name), strings.TrimSpace(e.Message)
	if e.Name == "" || e.Message == "" || len(e.Message) > s.config.MaxMessage {
		http.Error(w, fmt.Sprintf("an entry needs a name, and a message of 1 to %d bytes", s.config.MaxMessage), http.StatusBadRequest)
		return
	}
	body, _ := json.Marshal(map[string]string{"name": e.Name, "message": e.Message})
	s.ask(w, r, bytes.NewReader(body))
}

func main() {
	health := flag.Bool("health", false, "ask the running api whether it is well, and exit")
	flag.Parse()
	if *health {
		res, err := http.Get("http://127.0.0.1:8081/healthz")
		if err != nil || res.StatusCode != http.StatusOK {
			log.Fatalf("unhealthy: %v %v", res, err)
		}
		return
	}
	s, err := configure()
	if err != nil {
		log.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "ok\n") })
	mux.HandleFunc("/entries", s.entries)
	mux.HandleFunc("/title", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s\n%s", s.config.Title, s.config.WelcomeLetter)
	})
	serve(&http.Server{Addr: ":8081", Handler: mux, ReadHeaderTimeout: 5 * time.Second})
}

func configure() (*server, error) {
	s := &server{store: os.Getenv("STORE_URL"), client: &http.Client{Timeout: 5 * time.Second}}
	raw, err := os.ReadFile("/etc/guestbook.json")
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(raw, &s.config); err != nil {
		return nil, fmt.Errorf("/etc/guestbook.json: %w", err)
	}
	// Written by a RUN of the image's Dockerfile.
	letter, err := os.ReadFile("/usr/share/guestbook/welcome.txt")
	if err != nil {
		return nil, err
	}
	s.config.WelcomeLetter = strings.TrimSpace(string(letter))
	secret, err := os.ReadFile("/run/secrets/store_token")
	if err != nil {
		return nil, err
	}
	s.secret = strings.TrimSpace(string(secret))
	return s, nil
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
	log.Printf("api: listening on %s", srv.Addr)
	if err := srv.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		log.Fatal(err)
	}
	<-drained
}

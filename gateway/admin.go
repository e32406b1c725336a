package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// admin is the listener for operators: health, readiness, metrics, profiling, the access list.
type admin struct {
	listener net.Listener
	server   *http.Server
	serving  sync.WaitGroup
}

// listenFirst binds the first of the addresses that is free.
func listenFirst(addrs []string) (net.Listener, error) {
	var errs []error
	for _, addr := range addrs {
		l, err := net.Listen("tcp", addr)
		if err == nil {
			return l, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// newAdmin answers on listener, when it serves, and writes its address to file, if any. ready says
// why the gateway shall get no requests, or nil; troubles what an operator has to mend, ready or not.
func newAdmin(listener net.Listener, file string, m *metrics, ready func(context.Context) error, troubles func() []string, accessAPI http.Handler) (*admin, error) {
	if file != "" {
		if err := os.WriteFile(file, []byte(listener.Addr().String()+"\n"), 0o644); err != nil {
			_ = listener.Close()
			return nil, fmt.Errorf("--admin-file: %w", err)
		}
	}

	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "up") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), time.Second)
		defer cancel()
		text, status := "ready", http.StatusOK
		if err := ready(ctx); err != nil {
			text, status = err.Error(), http.StatusServiceUnavailable
		}
		w.WriteHeader(status)
		fmt.Fprintln(w, strings.Join(append([]string{text}, troubles()...), "\n"))
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4}))
	mux.Handle("/access", accessAPI)
	mux.Handle("/access/", accessAPI)
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	// Without pprof.Cmdline: a command line may hold a password.
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return &admin{listener: listener, server: &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       time.Minute,
	}}, nil
}

// serve answers until close.
func (a *admin) serve(log *slog.Logger) {
	a.serving.Go(func() {
		if err := a.server.Serve(a.listener); !errors.Is(err, http.ErrServerClosed) {
			log.Error("the admin listener ended", "error", err)
		}
	})
}

func (a *admin) close() {
	_ = a.server.Close()
	_ = a.listener.Close() // which the server has only when it serves
	a.serving.Wait()
}

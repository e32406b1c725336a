package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"swarmgate/gateway/internal/access"
	"swarmgate/swarmstore/swarm"
)

// What one request may bring, in bytes, and how long that may take.
const (
	maxAccessBody     = 1 << 20
	accessBodyTimeout = 10 * time.Second
)

// accessStore is what changing and showing the access list needs of the store.
type accessStore interface {
	Access(ctx context.Context, first byte) ([]swarm.Listed, error)
	ChangeAccess(ctx context.Context, changes []swarm.Listed) error
}

// accessAPI lets operators see and change the access list, as text:
//
//	GET    /access       a line "deny HASH" or "allow HASH" for each listed info hash
//	POST   /access       changes: lines like these, or "remove HASH"; a wrong line, and nothing is changed
//	GET    /access/HASH  deny or allow; 404 when it is not listed
//	PUT    /access/HASH  deny or allow
//	DELETE /access/HASH
//
// Each needs the header "Authorization: Bearer TOKEN".
type accessAPI struct {
	store accessStore
	token [sha256.Size]byte
	log   *slog.Logger
}

// newAccessAPI refuses everything when there is no token.
func newAccessAPI(store accessStore, token string, log *slog.Logger) http.Handler {
	if token == "" {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "The access list is changed here only by a gateway that was started with --admin-token.", http.StatusForbidden)
		})
	}
	a := &accessAPI{store, sha256.Sum256([]byte(token)), log}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /access", a.list)
	mux.HandleFunc("POST /access", a.change)
	mux.HandleFunc("GET /access/{hash}", a.look)
	mux.HandleFunc("PUT /access/{hash}", a.put)
	mux.HandleFunc("DELETE /access/{hash}", a.remove)
	return a.guard(mux)
}

// guard lets nobody in without the token. Sums are compared, so that not even the token's length
// shows in the time that it takes.
func (a *accessAPI) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		given, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		sum := sha256.Sum256([]byte(given))
		if subtle.ConstantTimeCompare(sum[:], a.token[:]) != 1 {
			w.Header().Set("WWW-Authenticate", "Bearer")
			http.Error(w, "This needs the header Authorization: Bearer, and what --admin-token says.", http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (a *accessAPI) list(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if err := writeAccess(r.Context(), a.store, w); err != nil {
		a.log.Error("the access list was not shown whole", "error", err)
		panic(http.ErrAbortHandler) // so that the client sees that the rest is missing
	}
}

func (a *accessAPI) change(w http.ResponseWriter, r *http.Request) {
	body, ok := readBody(w, r)
	if !ok {
		return
	}
	changes, err := parseChanges(body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	a.make(w, r, changes...)
}

func (a *accessAPI) look(w http.ResponseWriter, r *http.Request) {
	hash, ok := pathHash(w, r)
	if !ok {
		return
	}
	list, err := a.store.Access(r.Context(), hash[0])
	if err != nil {
		a.fail(w, err)
		return
	}
	i := slices.IndexFunc(list, func(l swarm.Listed) bool { return l.InfoHash == hash })
	if i < 0 {
		http.Error(w, "not listed", http.StatusNotFound)
		return
	}
	fmt.Fprintln(w, access.Word(list[i].Listing))
}

func (a *accessAPI) put(w http.ResponseWriter, r *http.Request) {
	hash, ok := pathHash(w, r)
	if !ok {
		return
	}
	body, ok := readBody(w, r)
	if !ok {
		return
	}
	listing, ok := access.ParseWord(strings.TrimSpace(string(body)))
	if !ok || listing == swarm.Unlisted {
		http.Error(w, "The body must be deny or allow.", http.StatusBadRequest)
		return
	}
	a.make(w, r, swarm.Listed{InfoHash: hash, Listing: listing})
}

func (a *accessAPI) remove(w http.ResponseWriter, r *http.Request) {
	if hash, ok := pathHash(w, r); ok {
		a.make(w, r, swarm.Listed{InfoHash: hash})
	}
}

// make changes, and answer 204.
func (a *accessAPI) make(w http.ResponseWriter, r *http.Request, changes ...swarm.Listed) {
	if err := a.store.ChangeAccess(r.Context(), changes); err != nil {
		a.fail(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// fail tells that the store did not do it.
func (a *accessAPI) fail(w http.ResponseWriter, err error) {
	a.log.Error("the access list was not read or changed", "error", err)
	http.Error(w, swarm.Reason(swarm.ErrUnavailable), http.StatusServiceUnavailable)
}

func pathHash(w http.ResponseWriter, r *http.Request) (hash swarm.InfoHash, ok bool) {
	hash, err := access.ParseHash(r.PathValue("hash"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
	}
	return hash, err == nil
}

func readBody(w http.ResponseWriter, r *http.Request) (body []byte, ok bool) {
	// The deadline is for the body alone: the changes may take longer.
	connection := http.NewResponseController(w)
	_ = connection.SetReadDeadline(time.Now().Add(accessBodyTimeout))
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxAccessBody))
	_ = connection.SetReadDeadline(time.Time{})
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		http.Error(w, fmt.Sprintf("The body may have %d bytes at most.", maxAccessBody), http.StatusRequestEntityTooLarge)
	case err != nil:
		http.Error(w, "The body did not come whole.", http.StatusBadRequest)
	}
	return body, err == nil
}

// parseChanges reads lines of deny, allow or remove and an info hash.
func parseChanges(text []byte) (changes []swarm.Listed, err error) {
	for line := range bytes.Lines(text) {
		words := strings.Fields(string(line))
		if len(words) == 0 {
			continue
		}
		listing, ok := access.ParseWord(words[0])
		if !ok || len(words) != 2 {
			return nil, fmt.Errorf("%.80q is none of deny HASH, allow HASH, remove HASH", line)
		}
		hash, err := access.ParseHash(words[1])
		if err != nil {
			return nil, err
		}
		changes = append(changes, swarm.Listed{InfoHash: hash, Listing: listing})
	}
	return changes, nil
}

// appendChange is the reverse of parseChanges for one line.
func appendChange(b []byte, c swarm.Listed) []byte {
	return fmt.Appendf(b, "%s %x\n", access.Word(c.Listing), c.InfoHash)
}

// writeAccess writes a line for each listed info hash, in their order.
func writeAccess(ctx context.Context, store accessStore, w io.Writer) error {
	lines := bufio.NewWriter(w)
	var line []byte
	for first := range 256 {
		list, err := store.Access(ctx, byte(first))
		if err != nil {
			return err
		}
		slices.SortFunc(list, func(a, b swarm.Listed) int { return bytes.Compare(a.InfoHash[:], b.InfoHash[:]) })
		for _, l := range list {
			line = appendChange(line[:0], l)
			if _, err := lines.Write(line); err != nil {
				return err
			}
		}
	}
	return lines.Flush()
}

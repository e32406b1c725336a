//go:build !linux

package httpapi

import (
	"context"
	"net"
)

// front is of use to Linux only.
type front struct{}

// Serve answers on a listener until Shutdown.
func (s *Server) Serve(l net.Listener) error { return s.app.Listener(clientListener{l, s}) }

// Shutdown closes the listener, ends idle connections, and waits for the answers
// to requests in flight, as long as ctx lasts.
func (s *Server) Shutdown(ctx context.Context) error { return s.app.ShutdownWithContext(ctx) }

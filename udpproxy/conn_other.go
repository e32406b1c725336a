//go:build !linux

package udpproxy

import "context"

// kernelBuffers are of use to Linux only.
type kernelBuffers struct{}

func listen(ctx context.Context, o Options) ([]conn, error) { return listenPortable(ctx, o) }

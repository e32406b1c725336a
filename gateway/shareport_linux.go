package main

import "golang.org/x/sys/unix"

// canSharePort says whether the kernel spreads clients over the processes that listen
// on one port.
const canSharePort = true

func sharePort(fd uintptr) error {
	return unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
}

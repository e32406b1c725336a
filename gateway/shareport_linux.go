package main

import "golang.org/x/sys/unix"

// canSharePort says whether the kernel spreads clients over the processes that listen
// on one port.
const canSharePort = true

func sharePort(fd uintptr) error {
	return unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
}

// refuseNew lets the kernel ignore what asks a listening socket for a new connection: a
// filter (bpf(2), classic) drops segments with SYN and without ACK in the flags at
// offset 13 of the TCP header.
func refuseNew(fd uintptr) {
	program := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 13},
		{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: 0x12},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: 0x02, Jt: 0, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0xffffffff},
	}
	// Some kernels let only administrators do it.
	_ = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
}

// stopEmpty stops listening on a socket unless a connection waits to be accepted.
func stopEmpty(fd uintptr) bool {
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	if n, err := unix.Poll(poll, 0); err != nil || n > 0 {
		return false
	}
	_ = unix.Shutdown(int(fd), unix.SHUT_RD)
	return true
}

package udpproxy

import (
	"errors"
	"net/netip"
)

const (
	// batchSize is how many datagrams the kernel takes or gives at a time.
	batchSize = 64

	// maxDatagram is what is read of a datagram: a scrape of 74 hashes, or an
	// announce with long options.
	maxDatagram = 2048

	// readBuffer is asked of the kernel for each socket; it may give less.
	readBuffer = 4 << 20
)

// errStopped ends receive after stop, when the socket holds nothing more.
var errStopped = errors.New("stopped")

// conn is a socket that moves datagrams in batches. receive is for one goroutine, the
// rest for many.
type conn interface {
	// receive waits for datagrams and returns how many it put into in.
	receive(in *incoming) (n int, err error)
	// send returns how many of out the kernel had no room for. What the kernel
	// refuses otherwise (a destination without a route) is nobody's loss.
	send(out *outgoing) (dropped int)
	// stop lets receive return what the socket holds, and then errStopped.
	stop() error
	close() error
	localAddr() netip.AddrPort
}

// route is where a datagram came from, and so where its reply goes.
type route struct {
	client netip.AddrPort // never a 4-in-6 address, and without a zone
	local  netip.Addr     // that the datagram was sent to; the reply leaves from it
	zone   uint32         // the interface, for link-local clients
}

// incoming is a batch that was received.
type incoming struct {
	from    [batchSize]route
	data    [batchSize][]byte
	dropped int // lost before this batch, in the kernel's full buffer
	kernel  kernelBuffers
}

func newIncoming() *incoming {
	in := &incoming{}
	for i := range in.data {
		in.data[i] = make([]byte, maxDatagram)
	}
	return in
}

// outgoing is a batch to send.
type outgoing struct {
	n      int
	to     [batchSize]route
	data   [batchSize][]byte
	kernel kernelBuffers
}

func newOutgoing() *outgoing {
	out := &outgoing{}
	for i := range out.data {
		out.data[i] = make([]byte, 0, maxPayload)
	}
	return out
}

func (o *outgoing) full() bool { return o.n == batchSize }

// add appends a datagram that fill writes.
func (o *outgoing) add(to route, fill func(b []byte) []byte) {
	o.to[o.n] = to
	o.data[o.n] = fill(o.data[o.n][:0])
	o.n++
}

package main

import (
	"errors"
	"fmt"
	"net"
	"os"
)

// sockets are those that the service manager has bound and passed on (sd_listen_fds(3)). It keeps
// them itself, for the next process.
type sockets struct {
	http  []*listener
	udp   []*net.UDPConn
	admin net.Listener
}

// adminSocket is the name of the one for the admin listener; the kind tells the others.
const adminSocket = "admin"

// adopt takes over what was passed on.
func (s *sockets) adopt(files []*os.File) error {
	for _, f := range files {
		err := s.adoptOne(f)
		_ = f.Close()
		if err != nil {
			return fmt.Errorf("socket %q of the service manager: %w", f.Name(), err)
		}
	}
	return nil
}

func (s *sockets) adoptOne(f *os.File) error {
	if l, err := net.FileListener(f); err == nil {
		tcp, is := l.(*net.TCPListener)
		switch {
		case !is:
			_ = l.Close()
		case f.Name() == adminSocket && s.admin == nil:
			s.admin = tcp
			return nil
		case f.Name() == adminSocket:
			_ = l.Close()
			return errors.New("there are two of this name")
		default:
			s.http = append(s.http, newListener(tcp, true))
			return nil
		}
	}
	if p, err := net.FilePacketConn(f); err == nil {
		if udp, is := p.(*net.UDPConn); is {
			s.udp = append(s.udp, udp)
			return nil
		}
		_ = p.Close()
	}
	return errors.New("neither TCP that listens nor UDP")
}

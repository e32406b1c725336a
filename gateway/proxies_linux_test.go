package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"

	"swarmgate/swarmstore/swarm"
	"swarmgate/udpproxy/bep15"
)

// announceFrom announces over HTTP from an address of this host, which on Linux are all of
// 127.0.0.0/8.
func announceFrom(t *testing.T, ip, to, parameters string, header http.Header) (body string) {
	t.Helper()
	from := &net.TCPAddr{IP: net.ParseIP(ip)}
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: (&net.Dialer{LocalAddr: from}).DialContext}}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+to+"/announce?info_hash=aaaaaaaaaaaaaaaaaaaa&"+parameters, nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header = header
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	b, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// tcpProxy passes connections on to the gateway, each behind a PROXY header.
func tcpProxy(t *testing.T, version byte, to string) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	t.Cleanup(func() {
		_ = l.Close()
		serving.Wait()
	})
	serving.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			gateway, err := net.Dial("tcp", to)
			if err != nil {
				t.Error(err)
				_ = client.Close()
				return
			}
			if _, err := proxyproto.HeaderProxyFromAddrs(version, client.RemoteAddr(), client.LocalAddr()).WriteTo(gateway); err != nil {
				t.Error(err)
			}
			for _, way := range [][2]net.Conn{{gateway, client}, {client, gateway}} {
				serving.Go(func() {
					_, _ = io.Copy(way[0], way[1])
					_ = way[0].Close()
				})
			}
		}
	})
	return l.Addr().String()
}

// udpProxy passes datagrams of one client at a time on to the gateway, each behind a PROXY header,
// and answers back as they are.
func udpProxy(t *testing.T, to string) (addr string) {
	t.Helper()
	front, err1 := net.ListenPacket("udp", "127.0.0.1:0")
	back, err2 := net.Dial("udp", to)
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	var serving sync.WaitGroup
	t.Cleanup(func() {
		_, _ = front.Close(), back.Close()
		serving.Wait()
	})
	clients := make(chan net.Addr, 10)
	serving.Go(func() {
		b := make([]byte, 2048)
		for {
			n, client, err := front.ReadFrom(b)
			if err != nil {
				close(clients)
				return
			}
			datagram, err := proxyproto.HeaderProxyFromAddrs(2, client, front.LocalAddr()).FormatUDPDatagram(b[:n])
			if err != nil {
				t.Error(err)
			}
			clients <- client
			_, _ = back.Write(datagram)
		}
	})
	serving.Go(func() {
		b := make([]byte, 2048)
		for client := range clients {
			n, err := back.Read(b)
			if err != nil {
				return
			}
			_, _ = front.WriteTo(b[:n], client)
		}
	})
	return front.LocalAddr().String()
}

func dialUDPFrom(t *testing.T, ip, to string) *udpClient {
	t.Helper()
	c, err := (&net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(ip)}}).DialContext(context.Background(), "udp", to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	u := &udpClient{t: t, conn: c}
	u.id = u.ask(bep15.Request{Action: bep15.ActionConnect}).ConnectionID
	return u
}

func TestClientsBehindProxies(t *testing.T) {
	g := gatewayWith(t, "--trusted-proxies", "127.0.0.1", "--proxy-protocol", "--ip-from-query", "127.0.0.6", "--view-ttl", "0")
	reverse := httptest.NewServer(httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: g.HTTP}))
	defer reverse.Close()
	announce := bep15.Request{Action: bep15.ActionAnnounce, InfoHash: hashA, Left: 5, NumWant: 50}

	// The client is 127.0.0.5 behind each proxy, the proxies 127.0.0.1.
	announceFrom(t, "127.0.0.5", reverse.Listener.Addr().String(), "left=5&port=1001", nil)
	announceFrom(t, "127.0.0.5", tcpProxy(t, 1, g.HTTP), "left=5&port=1002", nil)
	announceFrom(t, "127.0.0.5", tcpProxy(t, 2, g.HTTP), "left=5&port=1003", nil)
	announce.Port = 1004
	dialUDPFrom(t, "127.0.0.5", udpProxy(t, g.UDP)).ask(announce)
	// 127.0.0.6 may name addresses, in one case behind the reverse proxy.
	announceFrom(t, "127.0.0.6", g.HTTP, "left=5&port=1005&ip=203.0.113.5", nil)
	announceFrom(t, "127.0.0.6", reverse.Listener.Addr().String(), "left=5&port=1006&ipv4=203.0.113.6", nil)
	announce.Port, announce.IP = 1007, [4]byte{203, 0, 113, 7}
	dialUDPFrom(t, "127.0.0.6", g.UDP).ask(announce)
	// 127.0.0.7 may do nothing of that.
	announceFrom(t, "127.0.0.7", g.HTTP, "left=5&port=1008&ip=203.0.113.8", http.Header{"X-Forwarded-For": {"203.0.113.8"}})
	announceFrom(t, "127.0.0.7", reverse.Listener.Addr().String(), "left=5&port=1009", http.Header{"X-Forwarded-For": {"203.0.113.9"}})
	forger := dialUDPFrom(t, "127.0.0.7", g.UDP)
	announce.Port = 1010
	forger.ask(announce)
	header, err := proxyproto.HeaderProxyFromAddrs(2, &net.UDPAddr{IP: net.IPv4(203, 0, 113, 11), Port: 1}, &net.UDPAddr{IP: net.IPv4(203, 0, 113, 1), Port: 1}).Format()
	if err != nil {
		t.Fatal(err)
	}
	announce.Port, announce.ConnectionID = 1011, forger.id
	if _, err := forger.conn.Write(append(header, announce.Append(nil)...)); err != nil {
		t.Fatal(err)
	}
	announce.Port = 1012
	forger.ask(announce) // and so the one before has been read

	body := announceFrom(t, "127.0.0.8", g.HTTP, "left=5&port=1000&numwant=50", nil)
	_, peers, _ := strings.Cut(body, "5:peers")
	_, peers, _ = strings.Cut(peers, ":")
	got := map[string]bool{}
	for ; len(peers) >= swarm.Size4; peers = peers[swarm.Size4:] {
		got[netip.AddrPortFrom(netip.AddrFrom4([4]byte([]byte(peers[:4]))), uint16(peers[4])<<8|uint16(peers[5])).String()] = true
	}
	want := []string{"127.0.0.5:1001", "127.0.0.5:1002", "127.0.0.5:1003", "127.0.0.5:1004", "203.0.113.5:1005", "203.0.113.6:1006", "203.0.113.7:1007",
		"127.0.0.7:1008", "127.0.0.7:1009", "127.0.0.7:1010", "127.0.0.7:1012"}
	for _, peer := range want {
		if !got[peer] {
			t.Errorf("%s is missing", peer)
		}
	}
	if len(got) != len(want) {
		t.Errorf("the peers are %v", got)
	}
	_, metrics := g.get("http://" + g.Admin + "/metrics")
	for _, kind := range []string{"header", "proxy", "query"} {
		if line := `swarmgate_forged_addresses_total{kind="` + kind + `"} 1`; !strings.Contains(metrics, line+"\n") {
			t.Errorf("the metrics lack %s", line)
		}
	}
	if log := g.log.String(); strings.Contains(log, "127.0.0.5") || strings.Contains(log, "203.0.113") {
		t.Errorf("the log tells addresses: %q", log)
	}
}

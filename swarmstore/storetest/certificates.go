package storetest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Authority signs certificates for a test.
type Authority struct {
	File string // its own certificate, in PEM

	t    *testing.T
	dir  string
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

// Certificate is one in PEM, with its key.
type Certificate struct{ File, Key string }

// NewAuthority makes an authority that ends with the test.
func NewAuthority(t *testing.T) *Authority {
	t.Helper()
	a := &Authority{t: t, dir: t.TempDir()}
	a.cert = &x509.Certificate{
		Subject: pkix.Name{CommonName: "an authority"}, NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	c := a.issue("ca", a.cert)
	a.File = c.File
	return a
}

// Issue a certificate for a host, good until then, that is written to the files of that name. Those that
// were there are replaced.
func (a *Authority) Issue(name, host string, until time.Time) Certificate {
	a.t.Helper()
	cert := &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: until,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if ip := net.ParseIP(host); ip != nil {
		cert.IPAddresses = []net.IP{ip}
	} else {
		cert.DNSNames = []string{host}
	}
	return a.issue(name, cert)
}

func (a *Authority) issue(name string, cert *x509.Certificate) Certificate {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(a.t, err)
	if a.key == nil {
		a.key = key // signs itself
	}
	cert.SerialNumber, err = rand.Int(rand.Reader, big.NewInt(1<<62))
	must(a.t, err)
	der, err := x509.CreateCertificate(rand.Reader, cert, a.cert, &key.PublicKey, a.key)
	must(a.t, err)
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	must(a.t, err)
	c := Certificate{filepath.Join(a.dir, name+".crt"), filepath.Join(a.dir, name+".key")}
	must(a.t, os.WriteFile(c.File, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644))
	must(a.t, os.WriteFile(c.Key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), 0o600))
	return c
}

// TLS are the arguments of a redis-server that takes TLS connections on addr from clients with certificates
// of the authority, plain ones on its other port.
func (a *Authority) TLS(c Certificate, addr string) []string {
	_, port, _ := net.SplitHostPort(addr)
	return []string{"--tls-port", port, "--tls-cert-file", c.File, "--tls-key-file", c.Key, "--tls-ca-cert-file", a.File}
}

package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
)

// passwordVariable holds the password of Redis where no file does. It has no flag: everybody on the
// host can read a command line.
const passwordVariable = "SWARMGATE_REDIS_PASSWORD"

// redisAccess is how the gateway shows who it is to Redis, and checks who Redis is. Files are read
// at each connection, so that what they hold can be replaced while the gateway runs.
type redisAccess struct {
	CA, Cert, Key string // files, in PEM
	PasswordFile  string
	Password      string
}

// check refuses what does not go with the addresses.
func (a *redisAccess) check(urls []string) error {
	given := ""
	for _, f := range []struct{ flag, value string }{
		{"--redis-ca", a.CA}, {"--redis-cert", a.Cert}, {"--redis-key", a.Key}, {"--redis-password-file", a.PasswordFile}, {passwordVariable, a.Password},
	} {
		if f.value != "" {
			given = f.flag
		}
	}
	if given != "" && len(urls) == 0 {
		return fmt.Errorf("%s: there is no Redis without --redis", given)
	}
	if (a.Cert == "") != (a.Key == "") {
		return errors.New("--redis-cert and --redis-key: one is of no use without the other")
	}
	if a.PasswordFile != "" && a.Password != "" {
		return fmt.Errorf("--redis-password-file: %s is set too", passwordVariable)
	}
	for i, text := range urls {
		u, err := url.Parse(text)
		if err != nil {
			continue // which the store says better
		}
		_, password := u.User.Password()
		secret := a.PasswordFile != "" || a.Password != ""
		switch first, _ := url.Parse(urls[0]); {
		case i > 0 && first != nil && u.Scheme != first.Scheme:
			return errors.New("--redis: its addresses have to be all redis://, or all rediss://")
		case u.Scheme != "rediss" && a.CA+a.Cert != "":
			return errors.New("--redis-ca, --redis-cert: there is no TLS without rediss:// in --redis")
		case password && secret:
			return fmt.Errorf("--redis: it has a password, and so has --redis-password-file or %s", passwordVariable)
		case u.User.Username() != "" && !password && !secret:
			return fmt.Errorf("--redis: it names a user without a password; --redis-password-file or %s gives one", passwordVariable)
		}
	}
	return nil
}

// tls puts certificates into how a connection is made.
func (a *redisAccess) tls(c *tls.Config) error {
	if a.CA != "" {
		pem, err := os.ReadFile(a.CA)
		if err != nil {
			return fmt.Errorf("--redis-ca: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return fmt.Errorf("--redis-ca: %s holds no certificate in PEM", a.CA)
		}
	}
	if a.Cert != "" {
		own, err := tls.LoadX509KeyPair(a.Cert, a.Key)
		if err != nil {
			return fmt.Errorf("--redis-cert, --redis-key: %w", err)
		}
		c.Certificates = []tls.Certificate{own}
	}
	return nil
}

// password of Redis, or nil when its address has it or none is needed.
func (a *redisAccess) password() func() (string, error) {
	switch {
	case a.PasswordFile != "":
		return func() (string, error) {
			text, err := os.ReadFile(a.PasswordFile)
			if err != nil {
				return "", fmt.Errorf("--redis-password-file: %w", err)
			}
			password := strings.TrimRight(string(text), "\r\n")
			if password == "" {
				return "", fmt.Errorf("--redis-password-file: %s is empty", a.PasswordFile)
			}
			return password, nil
		}
	case a.Password != "":
		return func() (string, error) { return a.Password, nil }
	}
	return nil
}

// try reads the files once, so that a wrong path is told at the start.
func (a *redisAccess) try() error {
	err := a.tls(&tls.Config{})
	if password := a.password(); password != nil && err == nil {
		_, err = password()
	}
	return err
}

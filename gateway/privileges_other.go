//go:build !unix

package main

import "errors"

type account struct{}

func findAccount(string) (*account, error) {
	return nil, errors.New("only on Unix can a process become another user's")
}

func (*account) become() error { return errors.ErrUnsupported }
